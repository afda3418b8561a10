"""The comparison of gradient estimators: what it leaves behind, whether its numbers fit each other, what it refuses."""

import json
import math
import pathlib
import runpy
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from commands import EXPERIMENTS, is_picture, main_of, refusal

from vaejax import estimators, models

TINY = "--hidden-sizes 4 --latent-dim 2 --num-steps 10 --batch-size 20 --num-seeds 2 --baseline-steps 3 ".split()
TINY += "--num-repeats 5 --comparison-batch-size 6 --timing-rounds 2".split()
SOME = ("pathwise", "nvil", "leave_one_out", "measure_valued", "iwae_pathwise")
PICTURES = {"variance.png", "signal_to_noise.png", "training.png"}


@pytest.fixture(scope="module")
def cli(experiments):
    """The modules of experiments/ that are tested here."""
    from engines.gradients import config, run

    return config, run


def run_here(cli, *options):
    compare_gradients, gradient_comparison = cli
    gradient_comparison.run(compare_gradients.parse([*TINY, *map(str, options)]))


@pytest.fixture(scope="module")
def compared(cli, tmp_path_factory):
    """A comparison of a few estimators, one of which is too expensive: its folder and results."""
    runs = tmp_path_factory.mktemp("compared")
    budgets = ("--max-decodings", 8, "--max-training-decodings", 2)
    run_here(cli, "--estimators", *SOME, "--num-samples", 2, *budgets, "--runs-dir", runs)
    folder = runs / "gradients-digits"
    return folder, json.loads((folder / "results.json").read_text())


def only(rows, **fields):
    """The one row with these values."""
    (row,) = (row for row in rows if all(row[name] == value for name, value in fields.items()))
    return row


@pytest.mark.slow
def test_everything_is_left_behind(cli, compared):
    folder, results = compared
    assert {path.name for path in folder.iterdir()} == PICTURES | {"config.json", "results.json", "table.md"}
    assert all(is_picture(folder / name, smallest=200) for name in PICTURES)
    config = json.loads((folder / "config.json").read_text())
    assert tuple(config["estimators"]) == SOME
    assert config["num_samples"] == [1, 2]
    assert [(moment["name"], moment["step"]) for moment in results["moments"]] == [
        ("start", 0),
        ("middle", 5),
        ("end", 10),
    ]
    settings = [(moment, name, K) for moment in ("start", "middle", "end") for name in SOME for K in (1, 2)]
    assert [(row["moment"], row["estimator"], row["num_samples"]) for row in results["rows"]] == settings


@pytest.mark.slow
def test_who_cannot_serve_says_so(compared):
    _, results = compared
    refused = {(row["estimator"], row["num_samples"]): row["refusal"] for row in results["rows"] if row["refusal"]}
    assert refused.keys() == {("leave_one_out", 1), ("measure_valued", 1), ("measure_valued", 2)}
    assert "num_samples must be an integer of at least 2; got 1" in refused["leave_one_out", 1]
    assert refused["measure_valued", 2] == "decodes 18 latents for an example, above --max-decodings"
    assert all(row.keys().isdisjoint({"cost", "variance"}) for row in results["rows"] if row["refusal"])


@pytest.mark.slow
def test_numbers_fit_each_other(compared):
    _, results = compared
    for row in (row for row in results["rows"] if not row["refusal"]):
        unit = only(results["rows"], moment=row["moment"], estimator="pathwise", num_samples=1)
        encoder, unit_encoder = row["summaries"]["encoder"], unit["summaries"]["encoder"]
        ratio = encoder["variance"] / unit_encoder["variance"]
        seconds = row["cost"]["seconds"] / unit["cost"]["seconds"]
        assert row["variance"][0] == encoder["variance"]
        assert row["variance_ratio"][0] == pytest.approx(ratio)
        assert row["samples_ratio"][0] == pytest.approx(ratio * row["num_samples"])
        assert row["seconds_ratio"][0] == pytest.approx(ratio * seconds)
        assert row["cost"]["decoder_evaluations"] == row["num_samples"]
        for name in ("variance", "variance_ratio", "samples_ratio", "seconds_ratio", "signal_to_noise"):
            middle, lower, upper = row[name]
            assert lower <= middle <= upper
        for name in ("variance_ratio", "samples_ratio", "seconds_ratio"):
            assert (row[name] == [1, 1, 1]) == (row is unit)
        # One signal for all estimators of a bound.
        if row["bound"] == "elbo":
            signal = row["signal_to_noise"][0] * math.sqrt(encoder["variance"])
            assert signal == pytest.approx(unit["signal_to_noise"][0] * math.sqrt(unit_encoder["variance"]))


@pytest.mark.slow
def test_trainings_share_their_start(compared):
    _, results = compared
    trained = [(run["estimator"], run["num_samples"]) for run in results["training"]]
    assert trained == [("pathwise", 1), ("nvil", 1)]
    for run in results["training"]:
        assert run["steps"] == list(range(11))
        assert [len(elbos) for elbos in run["validation_elbo"]] == [2] * 11
        assert [len(elbos) for elbos in run["training_elbo"]] == [2] * 10
        assert run["validation_elbo"][0] == results["training"][0]["validation_elbo"][0]
        assert run["seconds_per_step"] > 0
    first, second = results["training"][0]["validation_elbo"][0]
    assert first != second
    # The first batch's value does not depend on the estimator: same keys, same samples.
    for run in results["training"]:
        assert run["training_elbo"][0] == pytest.approx(results["training"][0]["training_elbo"][0], rel=1e-5)


@pytest.mark.slow
def test_headline_and_tables(cli, compared):
    from engines.gradients import tables as gradient_tables

    folder, results = compared
    text = (folder / "table.md").read_text()
    sentence = gradient_tables.sentence(results)
    assert sentence.startswith("At the end of training, to match one reparameterized sample REINFORCE needs: with NVIL")
    assert sentence in text
    assert sentence in gradient_tables.terminal(results)
    for entry in results["headline"]:
        row = only(results["rows"], **{name: entry[name] for name in ("moment", "estimator", "num_samples")})
        assert entry.items() <= row.items()
        assert gradient_tables.interval(row["samples_ratio"]) in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert [len(table) - 2 for table in tables] == [2 * len(results["headline"]) // 3, 5, 5, 2, 2]
    for header, rule, *lines in tables:
        assert set(rule) <= set("|- :")
        assert {line.count("|") for line in (header, *lines)} == {header.count("|")}
    ranked = tables.pop(2)
    assert ranked[2].split("|")[1].strip()[0] == "1"
    # Reparameterization of most samples is what the others are held against, of fewer samples too.
    (reference,) = (line for line in ranked if "| pathwise | 2 |" in line)
    assert "| - |" in reference
    fewer = only(results["rows"], moment="end", estimator="pathwise", num_samples=1)
    assert fewer["summaries"]["encoder"]["bias_squared"] is not None
    assert "-" not in {cell.strip() for table in tables for line in table[2:] for cell in line.split("|")}
    # Without an importance-weighted bound there is no table of it.
    assert "Importance-weighted" in gradient_tables.terminal(results)
    elbo = {**results, "rows": [row for row in results["rows"] if row["bound"] == "elbo"]}
    assert "Importance-weighted" not in gradient_tables.terminal(elbo)


@pytest.mark.slow
def test_discrete_latents(cli, tmp_path):
    """Two samples with leave-one-out are the unit, and the reference of the others' bias is that of most samples."""
    options = ("--latents", "bernoulli", "--estimators", "disarm", "--num-samples", 4, "--max-training-decodings", 1)
    run_here(cli, *options, "--runs-dir", tmp_path)
    results = json.loads((tmp_path / "gradients-digits" / "results.json").read_text())
    assert (results["unit"]["estimator"], results["unit"]["num_samples"]) == ("leave_one_out", 2)
    assert [(curve["estimator"], curve["num_samples"]) for curve in results["training"]] == [("leave_one_out", 2)]
    unit = only(results["rows"], moment="end", estimator="leave_one_out", num_samples=2)
    assert unit["seconds_ratio"] == [1, 1, 1]
    assert unit["cost"]["temporary_bytes"] > 0
    none = [row["summaries"]["encoder"]["bias_squared"] is None for row in results["rows"] if row["moment"] == "end"]
    assert none == [False, True, False, False]
    text = (tmp_path / "gradients-digits" / "table.md").read_text()
    assert "that of two samples with leave-one-out being 1" in text
    assert "REINFORCE needs" not in text


@pytest.mark.slow
def test_bits_beside_numbers(cli, tmp_path):
    """The others' bias is against enumeration of the bits; pairs refuse an odd K, and REINFORCE on all is the unit."""
    names = ("--estimators", "enumerate_support_and_pathwise", "disarm_and_pathwise", "rebar_and_pathwise")
    options = ("--latents", "mixed", "--latent-dim", 3, "--num-samples", 3, "--max-training-decodings", 2)
    run_here(cli, *names, *options, "--runs-dir", tmp_path)
    results = json.loads((tmp_path / "gradients-digits" / "results.json").read_text())
    last = {(row["estimator"], row["num_samples"]): row for row in results["rows"] if row["moment"] == "end"}
    assert "num_samples must be divisible by the 2 samples" in last["disarm_and_pathwise", 3]["refusal"]
    assert last["leave_one_out", 2]["seconds_ratio"] == [1, 1, 1]
    served = {setting: row for setting, row in last.items() if not row["refusal"]}
    without = [setting for setting, row in served.items() if row["summaries"]["encoder"]["bias_squared"] is None]
    assert without == [("enumerate_support_and_pathwise", 3)]
    # Two bits have four states; REBAR decodes a softened sample beside each.
    decodings = {"enumerate_support_and_pathwise": 4, "rebar_and_pathwise": 2}
    for (name, number), row in served.items():
        assert row["cost"]["decoder_evaluations"] == number * decodings.get(name, 1)
    text = (tmp_path / "gradients-digits" / "table.md").read_text()
    assert "that of two samples with leave-one-out of all latents being 1" in text
    assert "DisARM; pathwise" in text


def test_each_kind_of_latents_has_the_estimators_of_the_command_line(cli):
    for latents, names in cli[0].ESTIMATORS.items():
        field = cli[1].contestants.field_of(latents, 5)
        assert tuple(field.contestants) == names
        assert field.unit[0] == names[0]
        assert {name for bound in field.references.values() for name in bound} <= field.contestants.keys()


def test_places_are_those_that_intervals_leave_open(cli):
    from engines.gradients import tables as gradient_tables

    encoder = {"norm": 2.0, "bias_squared": 0.2, "bias_squared_error": 0.04}
    cost = {"temporary_bytes": 3 * 2**19}
    same = {"moment": "end", "bound": "elbo", "refusal": None, "summaries": {"encoder": encoder}, "cost": cost}
    ratios = {"a": [3.0, 2.0, 4.0], "b": [1.0, 0.5, 1.5], "c": [3.5, 3.0, 5.0], "d": [9.0, 8.0, 10.0]}
    rows = [{**same, "estimator": name, "num_samples": 2, "seconds_ratio": ratio} for name, ratio in ratios.items()]
    unit = {"estimator": "b", "num_samples": 2, "words": "b"}
    results = {
        "moments": [{"name": "end"}],
        "rows": rows,
        "labels": {n: n for n in ratios},
        "level": 0.99,
        "unit": unit,
    }
    table = gradient_tables.ranked(results)
    assert [(cells[0], cells[1]) for cells in table.cells] == [("1", "b"), ("2 to 3", "a"), ("2 to 3", "c"), ("4", "d")]
    assert table.cells[0][-2:] == ["0.05 ± 0.01", "1.50"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (4368.2, "4,370"),
        (99.96, "100"),
        (12.345, "12.3"),
        (1, "1.00"),
        (0.06161, "0.0616"),
        (math.nan, "-"),
        (None, "-"),
    ],
)
def test_three_significant_figures(cli, number, text):
    from engines.harness import tables

    assert tables.figures(number) == text


def test_headline_takes_the_fewest_samples_and_the_cheapest(cli):
    from engines.gradients import tables as gradient_tables

    def row(name, number, seconds, moment="end"):
        values = {"samples_ratio": [1.0, 1.0, 1.0], "seconds_ratio": seconds and [seconds] * 3}
        return {"estimator": name, "num_samples": number, "moment": moment, "step": 3, "refusal": None, **values}

    rows = [row("score_function", 1, 5.0, "start"), row("score_function", 4, 1.0, "start"), row("pathwise", 1, 1.0)]
    rows += [row("score_function", 1, 3.0), row("score_function", 4, 4.0), row("nvil", 1, None)]
    rows += [row("leave_one_out", 2, 3.0), row("leave_one_out", 4, 2.0)]
    chosen = [(entry["estimator"], entry["num_samples"], entry["moment"]) for entry in gradient_tables.headline(rows)]
    assert chosen == [
        *(("score_function", 1, "start"), ("score_function", 1, "end")),
        *(("leave_one_out", 2, "end"), ("leave_one_out", 4, "end")),
    ]


@pytest.mark.slow
def test_pictures_are_drawn_from_the_folder_without_jax(compared, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(compared[0], tmp_path / "moved", ignore=shutil.ignore_patterns("*.png", "*.md"))
    code = "import runpy, sys; runpy.run_module('plots', run_name='__main__'); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=EXPERIMENTS)
    assert done.returncode == 0, done.stderr
    assert {pathlib.Path(line).name for line in done.stdout.split()} == PICTURES
    assert all(is_picture(folder / name, smallest=200) for name in PICTURES)
    monkeypatch.setattr(sys, "argv", ["plots.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_module("plots", run_name="__main__")
    assert "expected the folder of a finished run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("latents", ["gaussian", "mixed"])
def test_every_estimator_serves_two_samples(cli, latents):
    field = cli[1].contestants.field_of(latents, 2)
    vae = models.mlp_vae((8, 8), 2, (4,), posterior=field.posterior)
    params, x = vae.init(jax.random.key(0)), jnp.ones((3, 8, 8))
    for contestant in field.contestants.values():
        estimator, objective = contestant.gradient(vae, 2)
        own = estimators.with_baseline(params, estimator, jax.random.key(1), x)
        gradient = jax.eval_shape(jax.grad(objective, has_aux=True), own, jax.random.key(2), x)[0]
        assert jax.tree.structure(gradient) == jax.tree.structure(own)


def test_first_line_needs_no_jax():
    code = "import sys; from engines.gradients import config; config.parse([]); "
    code += "assert not {'jax', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=EXPERIMENTS)


def test_defaults_depend_on_the_dataset(cli):
    config = cli[0].parse([])
    assert (config.latent_dim, config.hidden_sizes, config.num_samples) == (5, (50,), (1, 4, 16, 64))
    config = cli[0].parse(["--dataset", "mnist", "--num-samples", "8", "2", "--estimators", "vimco"])
    assert (config.latent_dim, config.hidden_sizes, config.num_samples) == (20, (500,), (1, 2, 8))
    assert config.estimators == ("pathwise", "iwae_pathwise", "vimco")


REFUSED = {
    "estimator of other latents": (
        ("--latents", "mixed", "--estimators", "disarm"),
        ["disarm serves --latents bernoulli; got --latents mixed", "disarm_and_pathwise"],
    ),
    "one latent of two kinds": (("--latents", "mixed", "--latent-dim", "1"), ["--latent-dim of at least 2", "got 1"]),
    "unknown estimator": (
        ("--estimators", "score_funktion"),
        ["'score_funktion'", "did you mean score_function?", "vimco"],
    ),
    "no samples": (("--num-samples", "4", "0"), ["--num-samples must be at least 1; got 4 0"]),
    "more seeds than there are numbers": (("--num-seeds", "9" * 12), ["--num-seeds must be below 2^31; got 9999"]),
    "more latents than memory holds": (("--latent-dim", "100000000"), ["--latent-dim times", "1,073,741,824"]),
    "more samples than JAX counts": (("--num-samples", "9" * 12), ["--num-samples and --hidden-sizes must be from 1"]),
    "two repeats": (("--num-repeats", "2"), ["--num-repeats must be at least 3; got 2"]),
    "no seeds": (("--num-seeds", "0"), ["--num-seeds must be at least 1; got 0"]),
    "seed": (("--seed", "-1"), ["--seed must be from 0 to 2^31 - 1; got -1"]),
    "learning rate": (("--learning-rate", "nan"), ["--learning-rate must be a positive number; got nan"]),
    "name taken": (("--name", "taken"), ["taken exists: choose another --name"]),
    "large batch": (("--batch-size", "1286"), ["at most 1285", "got 1286"]),
    "unknown dataset": (("--dataset", "mnit"), ["'mnit'", "'mnist'"]),
    "not prepared": (("--dataset", "mnist"), ["not prepared", "train-images-idx3-ubyte.gz", "--manual-dir"]),
    "real numbers": (("--dataset", "two_gaussians"), ["[0, 1]"]),
    "grey pixels": (("--binarization", "none"), ["exactly 0 or 1"]),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals(cli, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.setenv("XLA_FLAGS", "")
    (tmp_path / "taken").mkdir()
    where = ("--runs-dir", tmp_path, "--data-dir", tmp_path / "nothing")
    error = refusal(main_of("compare_gradients"), monkeypatch, capsys, *where, *options)
    assert all(word in error for word in words), error
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.slow
def test_diverged_training_says_so(cli, tmp_path):
    with pytest.raises(ValueError, match=r"finite parameters.*smaller learning rate"):
        run_here(cli, "--estimators", "pathwise", "--learning-rate", "1e38", "--runs-dir", tmp_path)
