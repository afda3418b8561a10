"""Several runs in one program by `train.py`: each is the run that it is by itself, and their numbers come together."""

import json

import jax
import numpy as np
import pytest
from commands import is_picture, main_of, refusal

TINY = ("--hidden-sizes", "8", "--num-steps", "20", "--eval-samples", "10")


@pytest.fixture(scope="module")
def cli(experiments):
    """The modules of experiments/ that are tested here."""
    from engines.train import config, population, run

    return config, run, population


@pytest.fixture(scope="module")
def grid(cli, tmp_path_factory):
    """The folder of two seeds of two weights, in groups of three."""
    folder = tmp_path_factory.mktemp("grid")
    assert several(cli, folder, "grid", "--seeds", 2, "--beta", 0.5, 2, "--group-size", 3) == 0
    return folder / "grid"


def several(cli, runs_dir, name, *options):
    train, _, population_run = cli
    words = (*TINY, "--runs-dir", runs_dir, "--name", name, *options)
    return population_run.run(train.parse([str(word) for word in words]))


def result(folder):
    return json.loads((folder / "result.json").read_text())


def without_times(values):
    return {name: value for name, value in values.items() if "second" not in name}


@pytest.mark.slow
def test_everything_is_left_behind(grid):
    assert is_picture(grid / "learning_curve.png")
    found = result(grid)
    assert [(run["beta"], run["seed"]) for run in found["runs"]] == [(0.5, 0), (0.5, 1), (2.0, 0), (2.0, 1)]
    for group in found["groups"]:
        mine = [run["test_log_likelihood"] for run in found["runs"] if run["beta"] == group["beta"]]
        assert group["test_log_likelihood"] == pytest.approx(np.mean(mine))
        error = abs(mine[0] - mine[1]) / 2
        assert group["test_log_likelihood_error_over_seeds"] == pytest.approx(error)
        assert group["runs"] == 2
    rows = [json.loads(line) for line in (grid / "metrics.jsonl").read_text().splitlines()]
    assert np.shape([row["elbo"] for row in rows]) == (20, 4)
    assert np.shape([row["validation_elbo"] for row in rows]) == (20, 4)


@pytest.mark.slow
def test_each_is_the_run_by_itself(cli, grid, tmp_path):
    train, training_run, _ = cli
    words = (*TINY, "--runs-dir", tmp_path, "--name", "one", "--beta", 2, "--seed", 1)
    training_run.run(train.parse([str(word) for word in words]))
    alone, together = result(tmp_path / "one"), result(grid)["runs"][3]
    for name in ("test_log_likelihood", "test_elbo", "rate", "distortion"):
        assert together[name] == pytest.approx(alone[name], rel=1e-4)


@pytest.mark.slow
def test_the_table_has_a_line_for_each_kind(cli, tmp_path, capsys):
    several(cli, tmp_path, "grid", "--learning-rate", 1e-3, 1e-2)
    printed = capsys.readouterr().out.split("digits: means over seeds")[1].splitlines()
    assert printed[1].split()[:3] == ["beta", "learning", "rate"]
    assert [line.split()[:3] for line in printed[2:4]] == [["1", "0.001", "1"], ["1", "0.01", "1"]]


@pytest.mark.slow
def test_an_interrupted_grid_is_resumed(cli, grid, tmp_path, monkeypatch):
    from engines.harness import run_folder

    options = ("--seeds", 2, "--beta", 0.5, 2, "--group-size", 3, "--checkpoint-seconds", 0)
    append, rows = run_folder.append_metrics, []

    def until_the_eighth(folder, row):
        rows.append(row)
        if len(rows) == 8:
            raise KeyboardInterrupt
        append(folder, row)

    monkeypatch.setattr(run_folder, "append_metrics", until_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        several(cli, tmp_path, "grid", *options)
    monkeypatch.undo()
    assert several(cli, tmp_path, "grid", *options, "--resume") == 0
    found, expected = result(tmp_path / "grid"), result(grid)
    assert [without_times(run) for run in found["runs"]] == [without_times(run) for run in expected["runs"]]


@pytest.mark.slow
def test_a_run_that_diverges_does_not_take_others_along(cli, tmp_path, capsys):
    several(cli, tmp_path, "grid", "--learning-rate", 1e-3, 1e30, "--optimizer", "sgd", "--seeds", 2)
    good, bad = result(tmp_path / "grid")["groups"]
    assert good["diverged"] == 0
    assert np.isfinite(good["test_log_likelihood"])
    assert bad["diverged"] == 2
    assert "test_log_likelihood" not in bad
    assert "2 (2 diverged)" in capsys.readouterr().out


def test_runs_go_side_by_side_where_that_pays(cli):
    train, _, population_run = cli
    for options, expected in (
        (("--hidden-sizes", "64", "32", "--latent-dim", "8"), 16),
        (("--hidden-sizes", "500", "--latent-dim", "20", "--dataset", "mnist"), 1),
        (("--model", "conv"), 1),
    ):
        config = train.parse(["--seeds", "16", *options])
        size = 784 if config.dataset == "mnist" else 64
        params = {"weights": jax.ShapeDtypeStruct((2, size, config.hidden_sizes[0]), np.float32)}
        is_convolutional = config.model == "conv"
        size = population_run.chosen_group_size(
            params, 16, config.batch_size, config.hidden_sizes, is_convolutional=is_convolutional
        )
        assert size == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seeds", "0"), ["--seeds must be from 1"]),
        (("--beta", "1", "1"), ["--beta must be one or more numbers, each once; got 1.0 1.0"]),
        (("--beta", "1", "-1"), ["--beta must be finite and at least 0; got -1.0"]),
        (("--learning-rate", "0.1", "0"), ["--learning-rate must be positive and finite; got 0.0"]),
        (("--seeds", "2", "--patience", "3"), ["--patience has no effect on several runs"]),
        (("--seeds", "2", "--inference", "em"), ["several runs needs --inference amortized; got em"]),
        (("--group-size", "2"), ["--group-size has no effect on a single run; got 2: leave it out"]),
    ],
)
def test_refused(cli, monkeypatch, capsys, tmp_path, no_type_hook, options, words):
    error = refusal(main_of("train"), monkeypatch, capsys, *options, "--runs-dir", tmp_path / "runs")
    for word in words:
        assert word in error
    assert not (tmp_path / "runs").exists()
