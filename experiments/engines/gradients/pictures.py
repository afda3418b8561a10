"""Draw a comparison of gradients from what it saved, without JAX: `python experiments/plots.py runs/NAME`."""

import json
import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from engines.harness.pictures import STYLE, save

# Okabe & Ito's colours, which the colour-blind tell apart, and a marker for each, where they lie on each other.
STYLES = {
    "pathwise": ("#000000", "o"),
    "score_function": ("#D55E00", "v"),
    "moving_average": ("#E69F00", "^"),
    "nvil": ("#CC79A7", "D"),
    "leave_one_out": ("#0072B2", "s"),
    "measure_valued": ("#009E73", "P"),
    "pathwise_sampled_kl": ("#999999", "o"),
    "sticking_the_landing": ("#56B4E9", "X"),
    "iwae_pathwise": ("#000000", "o"),
    "doubly_reparameterized": ("#56B4E9", "X"),
    "vimco": ("#D55E00", "v"),
    "muprop": ("#E69F00", "P"),
    "disarm": ("#009E73", "o"),
    "arms": ("#009E73", "^"),
    "double_control_variates": ("#56B4E9", "s"),
    "rodeo": ("#000000", "o"),
    "rebar": ("#CC79A7", "X"),
    "relax": ("#CC79A7", "v"),
    "ovis": ("#0072B2", "s"),
    "gumbel_softmax": ("#999999", "o"),
    "straight_through": ("#999999", "s"),
    "reinmax": ("#999999", "^"),
    # Of bits beside real numbers: those on the bits alone are round where the same one on all latents is not.
    "enumerate_support_and_pathwise": ("#000000", "P"),
    "leave_one_out_and_pathwise": ("#0072B2", "o"),
    "score_function_and_pathwise": ("#D55E00", "o"),
    "moving_average_and_pathwise": ("#E69F00", "o"),
    "nvil_and_pathwise": ("#CC79A7", "o"),
}
ON_BITS = ("rebar", "relax", "muprop", "disarm", "double_control_variates", "rodeo")
BIASED_ON_BITS = ("gumbel_softmax", "straight_through", "reinmax")
STYLES |= {f"{name}_and_pathwise": STYLES[name] for name in (*ON_BITS, *BIASED_ON_BITS)}

BOUNDS = {"elbo": "ELBO", "iwae": "importance-weighted bound of K samples"}


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw every picture of a finished comparison. Returns their paths."""
    results = json.loads((folder / "results.json").read_text())
    title = name_of(json.loads((folder / "config.json").read_text()))
    with plt.rc_context(STYLE):
        figures = {
            "variance": by_num_samples(results, title, "variance", "variance of the encoder's gradient, nats$^2$"),
            "signal_to_noise": by_num_samples(
                results, title, "signal_to_noise", "signal-to-noise ratio, encoder's gradient"
            ),
            "training": training(results, title),
        }
        return save(figures, folder)


def name_of(config: dict[str, Any]) -> str:
    """What was trained, in a few words."""
    hidden = "-".join(map(str, config["hidden_sizes"]))
    kind = config.get("latents", "gaussian")
    latents = (
        f"{config['latent_dim']}-dimensional latents"
        if kind == "gaussian"
        else f"{config['latent_dim']} {kind} latents"
    )
    return f"VAE on {config['dataset']}, {hidden} hidden units, {latents}"


def by_num_samples(results: dict[str, Any], title: str, quantity: str, axis_name: str) -> plt.Figure:
    """A quantity of the encoder's gradient against K: a row for each bound, a column for each moment of training."""
    rows = [row for row in results["rows"] if not row["refusal"] and row[quantity] is not None]
    bounds = [bound for bound in BOUNDS if any(row["bound"] == bound for row in rows)]
    moments = results["moments"]
    figure, axes = plt.subplots(
        len(bounds),
        len(moments),
        figsize=(11.5, 0.7 + 3 * len(bounds)),
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for bound, panels in zip(bounds, axes, strict=True):
        for moment, panel in zip(moments, panels, strict=True):
            here = [row for row in rows if row["moment"] == moment["name"]]
            named = results["unit"]["estimator"], results["unit"]["num_samples"]
            (unit,) = (row for row in here if (row["estimator"], row["num_samples"]) == named)
            label = f"{results['unit']['words']},\nELBO"
            panel.axhline(unit[quantity][0], color="black", linewidth=0.9, linestyle=":", label=label, zorder=1)
            for name, label in results["labels"].items():
                points = [row for row in here if (row["estimator"], row["bound"]) == (name, bound)]
                if points:
                    # Smaller and smaller, so that one that lies on another does not hide it.
                    curve(panel, points, label, quantity, markersize=max(4, 7 - 0.5 * len(panel.lines)))
        on_log_axes(panels)
        panels[0].set_ylabel(f"{BOUNDS[bound]}:\n{axis_name}")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    for moment, top, bottom in zip(moments, axes[0], axes[-1], strict=True):
        top.set_title(f"{moment['name']} of training (step {moment['step']:,})")
        bottom.set_xlabel("K, samples for each example")
    figure.suptitle(f"{title}. Bands: {results['level']:.0%} intervals")
    return figure


def curve(panel: plt.Axes, points: list[dict[str, Any]], label: str, quantity: str, markersize: float) -> None:
    """One estimator: a line through the values, a band over their intervals."""
    colour, marker = STYLES[points[0]["estimator"]]
    numbers = [point["num_samples"] for point in points]
    values, lower, upper = np.array([point[quantity] for point in points], float).T
    panel.plot(numbers, values, color=colour, marker=marker, markersize=markersize, label=label, linewidth=1.3)
    # A logarithm has no room for an interval that reaches down to zero: it ends below the picture.
    panel.fill_between(numbers, np.maximum(lower, values / 1e6), upper, color=colour, alpha=0.22, linewidth=0)


def on_log_axes(panels: np.ndarray) -> None:
    """Both axes logarithmic, with a tick at each K, and room for all lines though not for the far ends of bands."""
    lines = [line for panel in panels for line in panel.lines]
    shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in lines])
    lowest, highest = shown[shown > 0].min() / 1.7, shown.max() * 1.7
    few_decades = highest / lowest < 300
    for panel in panels:
        numbers = np.unique(np.concatenate([line.get_xdata() for line in panel.lines[1:]]))
        panel.set(xscale="log", yscale="log", ylim=(lowest, highest), xticks=numbers)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(plain)
        panel.yaxis.set_minor_formatter(NullFormatter())
        if few_decades:
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(plain)
        panel.grid(alpha=0.25, linewidth=0.5)


def training(results: dict[str, Any], title: str) -> plt.Figure:
    """The ELBO on validation images, against steps and against seconds; bands hold all seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4), sharey=True, layout="constrained")
    shown = []
    names = [run["estimator"] for run in results["training"]]
    first_of_colour = {STYLES[name][0]: name for name in reversed(names)}.values()
    for run in results["training"]:
        name, number = run["estimator"], run["num_samples"]
        again = any(other is not run and other["estimator"] == name for other in results["training"])
        # Reparameterization is the widest, for others may lie on it.
        width = 2.6 if name == results["unit"]["estimator"] else 1.2
        style = {"color": STYLES[name][0], "linestyle": "--" if again and number > 1 else "-", "linewidth": width}
        if name not in ("pathwise", *first_of_colour):
            style |= {"marker": STYLES[name][1], "markevery": 0.1, "markersize": 4}
        elbo = np.array(run["validation_elbo"], float)[1:]  # a logarithm has no room for step 0
        steps = np.array(run["steps"])[1:]
        for panel, x in ((left, steps), (right, steps * run["seconds_per_step"])):
            panel.plot(x, elbo.mean(axis=1), label=f"{results['labels'][name]}, K = {number}", **style)
            panel.fill_between(x, elbo.min(axis=1), elbo.max(axis=1), color=style["color"], alpha=0.2, linewidth=0)
        shown.append(elbo[len(elbo) // 20 :].ravel())  # the first reports would flatten all the rest
    values = np.concatenate(shown)
    untrained = np.mean(results["training"][0]["validation_elbo"][0])  # whoever falls below that leaves the picture
    lowest, highest = max(np.nanmin(values), untrained), np.nanmax(values)
    left.set_ylim(lowest - 0.03 * (highest - lowest), highest + 0.03 * (highest - lowest))
    left.set(xlabel="step", ylabel="ELBO of validation images, nats per example")
    right.set_xlabel("seconds of one run's steps, without compilation")
    for panel in (left, right):
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(plain)
        panel.grid(alpha=0.25, linewidth=0.5)
    right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.suptitle(f"{title}. Mean of {elbo.shape[1]} seeds; bands hold all of them")
    return figure


def plain(value: float, _: Any) -> str:
    """A tick's label: 1,000 or 0.05."""
    return f"{value:,g}"
