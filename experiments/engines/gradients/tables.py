"""A comparison of gradients in words, from its results: the headline, and tables for the terminal and in Markdown."""

import math
from collections.abc import Iterator
from typing import Any

from engines.harness.tables import Table, figures, fixed_width, pipes

BASELINES = {
    "score_function": "without a baseline",
    "moving_average": "with a moving average",
    "nvil": "with NVIL's baselines",
    "leave_one_out": "with leave-one-out",
}

BOUNDS = {"elbo": "ELBO", "iwae": "Importance-weighted bound"}

QUANTITIES = {
    "variance_ratio": "x variance",
    "seconds_ratio": "x seconds",
    "signal_to_noise": "signal to noise",
}

CLOSE = 1.0  # nats below where reparameterization ends: how far a training has to come

QUESTION = (
    "How many times more samples, and how many times more seconds, REINFORCE needs to match one reparameterized sample"
)

NOTES = """\
* Noise is the variance of the gradient of the encoder's parameters, summed over them, of one batch of {batch} images,
  the same at all moments of one training run, that by {unit}. It comes from {repeats:,} gradients a row.
* To reach the noise of {unit} by the mean of independent gradients takes, in seconds, variance ratio x ratio of the
  seconds of one gradient; in samples, variance ratio x ratio of K.
* Intervals, of {level}, hold the noise of the gradients and that of the clock; not that of other batches or runs.
* Seconds are of one gradient of the batch, compiled, all timed by turns ({device}). Where a model is so small
  that a gradient of one sample is mostly overhead, seconds fall with K for every estimator: compare rows of the same K.
* Trained baselines learned for {baseline_steps:,} steps at each moment while the model stood still: what they can do at
  best. In training they run after a model that moves; the training table shows what that makes of them.
* The signal of the signal-to-noise ratio is the norm of the mean gradient, which is the same for all estimators of a
  bound (for the importance-weighted one: of as many samples), from the one that shows it best.
* Decodings are decoder evaluations for one example and gradient, forward. Training seconds are of one step of one run:
  those of the compiled program of {seeds} runs, divided by their number."""


def headline(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What REINFORCE needs for the noise of one reparameterized sample, with each baseline, at each moment.

    For the smallest K that the baseline allows, and for the one that is cheapest in seconds at the end.
    """
    served = [row for row in rows if row["estimator"] in BASELINES and not row["refusal"] and row["seconds_ratio"]]
    entries = []
    for name in dict.fromkeys(row["estimator"] for row in served):
        last = [row for row in served if row["estimator"] == name and row["moment"] == served[-1]["moment"]]
        cheapest = min(last, key=lambda row: row["seconds_ratio"][0])
        for number in dict.fromkeys((last[0]["num_samples"], cheapest["num_samples"])):
            fields = ("estimator", "num_samples", "moment", "step", "samples_ratio", "seconds_ratio")
            chosen = [row for row in served if (row["estimator"], row["num_samples"]) == (name, number)]
            entries += [{field: row[field] for field in fields} for row in chosen]
    return entries


def terminal(results: dict[str, Any]) -> str:
    """The tables in columns of fixed width, and the headline as a sentence."""
    noise = [
        compared(results, "elbo", [*at_moments(results, "variance_ratio"), ("seconds_ratio", -1)]),
        ranked(results),
        compared(results, "iwae", at_moments(results, "signal_to_noise")),
    ]
    noise, rest = (
        [fixed_width(table) for table in tables if table.cells]
        for tables in (noise, (trained(results), asked(results)))
    )
    return "\n\n".join(["", *noise, *left_out(results), *rest, sentence(results), ""])


def markdown(results: dict[str, Any], config: dict[str, Any]) -> str:
    """Headline, tables with more columns, and what the numbers mean."""
    ratios = [*at_moments(results, "variance_ratio"), *at_moments(results, "seconds_ratio")]
    signal = at_moments(results, "signal_to_noise")
    tables = [
        asked(results),
        compared(results, "elbo", [*ratios, *signal]),
        ranked(results),
        # Its gradient's mean changes with K, so that the same noise is not worth the same.
        compared(results, "iwae", [*at_moments(results, "variance_ratio"), *signal]),
        trained(results),
    ]
    notes = NOTES.format(
        batch=config["comparison_batch_size"],
        repeats=config["num_repeats"],
        unit=results["unit"]["words"],
        level=f"{results['level']:.0%}",
        device=results["device"],
        baseline_steps=config["baseline_steps"],
        seeds=config["num_seeds"],
    )
    title = f"# Gradient estimators on {config['dataset']}"
    parts = [title, sentence(results), *(pipes(table) for table in tables if table.cells), *left_out(results)]
    return "\n\n".join([*parts, "## What the numbers mean", notes]) + "\n"


def asked(results: dict[str, Any]) -> Table:
    """The headline as a table."""
    entries = results["headline"]
    cells = []
    for name, number in dict.fromkeys((entry["estimator"], entry["num_samples"]) for entry in entries):
        mine = [entry for entry in entries if (entry["estimator"], entry["num_samples"]) == (name, number)]
        for unit in ("samples", "seconds"):
            cells.append([BASELINES[name], str(number), unit, *(interval(entry[f"{unit}_ratio"]) for entry in mine)])
    return Table(QUESTION, ["REINFORCE", "K", "times the", *moment_names(results)], cells)


def sentence(results: dict[str, Any]) -> str:
    """The headline in plain words, at the end of training."""
    end = results["moments"][-1]["name"]
    last = [entry for entry in results["headline"] if entry["moment"] == end]
    if not last:
        return ""
    cheapest = min(last, key=lambda entry: entry["seconds_ratio"][0])
    needs = [
        f"{BASELINES[entry['estimator']]} and K = {entry['num_samples']}, {interval(entry['samples_ratio'])} times the "
        f"samples and {interval(entry['seconds_ratio'])} times the seconds"
        for entry in ([last[0]] if cheapest is last[0] else [last[0], cheapest])
    ]
    text = f"At the end of training, to match one reparameterized sample REINFORCE needs: {'; '.join(needs)}."
    number = cheapest["num_samples"]
    if number > 1:
        (same,) = (rows[-1] for name, K, rows in by_setting(results) if (name, K) == ("pathwise", number))
        text += f" (Seconds fall with K for all: K = {number} reparameterized samples at once need "
        text += f"{interval(same['seconds_ratio'])} of them for that noise.)"
    return text


def compared(results: dict[str, Any], bound: str, columns: list[tuple[str, int]]) -> Table:
    """Of a bound, each estimator with each K: some quantities, each at a moment of training, and what it costs."""
    moments = [moment["name"] for moment in results["moments"]]
    header = [f"{QUANTITIES[quantity]}, {moments[i]}" for quantity, i in columns]
    cells = []
    for name, number, rows in by_setting(results):
        if rows[0]["bound"] == bound and not rows[0]["refusal"]:
            cost = rows[0]["cost"]
            decodings = cost["decoder_evaluations"]
            costs = ["-" if decodings is None else f"{decodings:,g}", figures(1e3 * cost["seconds"])]
            values = [interval(rows[i][quantity]) for quantity, i in columns]
            cells.append([results["labels"][name], str(number), *values, *costs])
    title = f"{BOUNDS[bound]}: the encoder's gradient, {results['level']:.0%} intervals"
    if columns[0][0] == "variance_ratio":
        title += f". x variance, and x seconds for the same noise: those of {results['unit']['words']}"
    return Table(title, ["estimator", "K", *header, "decodings", "ms"], cells)


def ranked(results: dict[str, Any]) -> Table:
    """At the end of training, variance x seconds of the ELBO's gradients, best first, with bias and memory."""
    end = results["moments"][-1]["name"]
    rows = [row for row in results["rows"] if row["moment"] == end and row["bound"] == "elbo" and not row["refusal"]]
    rows = sorted((row for row in rows if row["seconds_ratio"]), key=lambda row: row["seconds_ratio"][0])
    cells = []
    for row in rows:
        _, lower, upper = row["seconds_ratio"]
        first = 1 + sum(other["seconds_ratio"][2] < lower for other in rows)
        last = len(rows) - sum(other["seconds_ratio"][1] > upper for other in rows)
        places = str(first) if first == last else f"{first} to {last}"
        memory = row["cost"].get("temporary_bytes")
        cells.append(
            [
                *(places, results["labels"][row["estimator"]], str(row["num_samples"]), interval(row["seconds_ratio"])),
                *(bias(row["summaries"]["encoder"]), "-" if memory is None else figures(memory / 2**20)),
            ]
        )
    title = (
        f"Variance x seconds at the end of training, that of {results['unit']['words']} being 1, and the places that "
        f"{results['level']:.0%} intervals leave open; bias² as a share of |gradient|², ± standard error"
    )
    return Table(title, ["place", "estimator", "K", "variance x seconds", "bias²", "MiB"], cells)


def bias(encoder: dict[str, Any]) -> str:
    """The squared bias as a share of the squared norm of the gradient, with its standard error."""
    norm, squared, error = (encoder[name] for name in ("norm", "bias_squared", "bias_squared_error"))
    if not norm or squared is None or error is None:
        return "-"
    return f"{squared / norm**2:.2g} ± {error / norm**2:.1g}"


def trained(results: dict[str, Any]) -> Table:
    """Where each training ended, and when it got close to where reparameterization ended."""
    runs = results["training"]
    means = [[mean(elbos) for elbos in run["validation_elbo"]] for run in runs]
    goal = means[0][-1] - CLOSE
    cells = []
    for run, elbos in zip(runs, means, strict=True):
        last = run["validation_elbo"][-1]
        elbo = "-" if None in last else f"{elbos[-1]:.2f} [{min(last):.2f}, {max(last):.2f}]"
        seconds = run["seconds_per_step"]
        steps = next((step for step, elbo in zip(run["steps"], elbos, strict=True) if elbo >= goal), None)
        reached = ["never", "never"] if steps is None else [f"{steps:,}", figures(steps * seconds)]
        name = results["labels"][run["estimator"]]
        cells.append([name, str(run["num_samples"]), str(run["decodings"]), elbo, figures(1e3 * seconds), *reached])
    num_seeds = len(runs[0]["validation_elbo"][0])
    title = f"Training: validation ELBO at the end, mean [all {num_seeds} seeds]; steps and seconds to {goal:.2f}, "
    title += f"{CLOSE:g} nat below the end of {results['labels'][results['unit']['estimator']]}"
    return Table(title, ["estimator", "K", "decodings", "ELBO", "ms a step", "steps", "seconds"], cells)


def left_out(results: dict[str, Any]) -> list[str]:
    """Which estimators could not serve which K, in their own words."""
    lines = [
        f"{results['labels'][name]}, K = {number}: {rows[0]['refusal']}"
        for name, number, rows in by_setting(results)
        if rows[0]["refusal"]
    ]
    return ["\n".join(["Left out:", "", *(f"* {line}" for line in lines)])] if lines else []


def by_setting(results: dict[str, Any]) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """Every estimator and K, with its rows at all moments."""
    settings = dict.fromkeys((row["estimator"], row["num_samples"]) for row in results["rows"])
    for setting in settings:
        yield *setting, [row for row in results["rows"] if (row["estimator"], row["num_samples"]) == setting]


def at_moments(results: dict[str, Any], quantity: str) -> list[tuple[str, int]]:
    """A quantity at every moment."""
    return [(quantity, i) for i in range(len(results["moments"]))]


def moment_names(results: dict[str, Any]) -> list[str]:
    """As in "end, step 2,000"."""
    return [f"{moment['name']}, step {moment['step']:,}" for moment in results["moments"]]


def interval(value: list[float] | None) -> str:
    """As in "0.25 [0.23, 0.27]"."""
    if value is None:
        return "-"
    middle, lower, upper = map(figures, value)
    return middle if lower == upper else f"{middle} [{lower}, {upper}]"


def mean(numbers: list[float]) -> float:
    """Their mean; NaN where one is missing."""
    return math.nan if None in numbers else sum(numbers) / len(numbers)
