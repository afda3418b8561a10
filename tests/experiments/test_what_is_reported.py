"""What the commands report: of which images, of how many, when a run stops, and numbers that are known exactly."""

import itertools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from commands import is_picture

from vaejax import data, evaluation, models, sequences, training


@pytest.fixture(autouse=True)
def _importable(experiments):
    """All of these tests import the engines."""


class Info(NamedTuple):
    """What a step reports."""

    bound: np.ndarray


class Reached(Exception):
    """Ends a run where its training would begin."""


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_is_stopped_by_validation_images(seeds, tmp_path, monkeypatch):
    from engines.harness import loading
    from engines.train import config, population, session
    from engines.train import run as single

    seen = {}

    def train_until_done(plan, folder, state, metrics, fit, measure, validation, viewer=None, record=None):
        seen.update(validation=validation, shown=viewer and viewer.test, plan=plan)
        raise Reached

    monkeypatch.setattr(session, "train_until_done", train_until_done)
    monkeypatch.setattr(single, "in_memory", lambda *_: (None, 0.0))
    monkeypatch.setattr(population, "compiled", lambda *_: (None, 0.0))
    options = ("--hidden-sizes", "4", "--runs-dir", tmp_path, "--seeds", seeds)
    options += ("--patience", 3, "--tolerance", 0.7) if seeds == 1 else ()
    options = config.parse([str(option) for option in options])
    with pytest.raises(Reached):
        (single if seeds == 1 else population).run(options)
    held_out = {split: data.load("digits", split).images for split in ("validation", "test")}
    purposes = {"validation": "held-out images", "test": "other held-out images"}
    binary = {
        split: np.asarray(data.binarize_dynamic(loading.evaluation_key(purposes[split]), images))
        for split, images in held_out.items()
    }
    np.testing.assert_array_equal(seen["validation"], binary["validation"])
    assert (binary["validation"] != binary["test"]).any()
    if seeds == 1:
        assert sorted(map(bytes, np.asarray(seen["shown"]))) == sorted(map(bytes, binary["test"]))
        assert (seen["plan"].patience, seen["plan"].tolerance) == (3, 0.7)


@pytest.mark.slow
def test_validation_is_of_at_most_a_thousand_images():
    from engines.harness import loading
    from engines.train import measures

    vae = models.linear_vae(3, 1)
    params = vae.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(1100, 3)).astype(np.float32)
    measure = measures.of_bounds(vae, num_samples=1000)
    each = evaluation.elbo(vae, params, loading.evaluation_key("validation"), x, num_samples=1).estimate
    for number in (40, 1100):
        np.testing.assert_allclose(measure.validate(params, x[:number]), each[:1000][:number].mean(), rtol=1e-5)
    x = x[:200]
    numbers, _ = measure.evaluate(params, x)
    assert numbers["num_test_examples"] == 200
    exact = evaluation.linear_log_likelihood(vae, params, x)
    np.testing.assert_allclose(numbers["test_log_likelihood"], exact.mean(), atol=0.02)
    np.testing.assert_allclose(numbers["standard_error"], exact.std(ddof=1) / len(x) ** 0.5, rtol=0.05)
    assert 0 < numbers["standard_error_over_samples"] < 0.05  # it holds the bias of K samples too


@pytest.mark.parametrize(
    ("patience", "tolerance", "reports"),
    # After five reports that raise it by 1, six that raise it by 0.1, and five that leave it as it is.
    [(0, 0.05, 16), (3, 0.05, 14), (3, 0.5, 8), (3, 20.0, 4), (5, 0.55, 10)],
)
def test_a_run_stops_by_patience_and_tolerance(patience, tolerance, reports, tmp_path):
    from engines.train import measures, session

    heights = [*range(5), *(4 + 0.1 * i for i in range(1, 7)), *[4.6] * 5]
    seen = []

    def validate(params, images):
        seen.append(images)
        return float(heights[len(seen) - 1])

    def fit(state, stop):
        return state._replace(step=state.step + 1), Info(np.zeros(1))

    state = training.init_state({"w": jnp.zeros(2)}, optax.sgd(0.1))
    plan = session.Plan(len(heights), 1, patience, tolerance, 1000.0, {})
    measure = measures.Measure("validation_elbo", validate, None, lambda row: "")
    tmp_path.joinpath("run").mkdir()
    tmp_path.joinpath("run", "config.json").write_text("{}")
    metrics = []
    state, signal = session.train_until_done(plan, tmp_path / "run", state, metrics, fit, measure, "validation images")
    assert signal is None
    assert len(metrics) == int(state.step) == reports
    assert set(seen) == {"validation images"}


def test_an_alarm_where_a_run_made_the_model_worse():
    from engines.train import session

    rows = [{"step": 1, "validation_elbo": -5.0}, {"step": 2, "validation_elbo": -5e8}]
    words = session.alarm(rows, "validation_elbo", -40.0)
    assert "worse than before the first step: validation elbo -500,000,000.00" in words
    assert "-40.00" in words
    assert session.alarm(rows[:1], "validation_elbo", -40.0) is None
    several = [{"validation_elbo": [-5.0, -60.0, np.nan]}]
    assert session.alarm(several, "validation_elbo", np.array([-40.0, -40.0, -40.0])).startswith("1 of 3 runs are")
    assert session.alarm_in_words({"alarm": words}) == f"WARNING: {words}\n"
    assert session.alarm_in_words({}) == ""


# The parts of collapse.py, against numbers that are known.


@pytest.mark.slow
def test_the_information_of_the_generator(monkeypatch):
    from engines.collapse import text

    sizes = {"vocabulary_size": 3, "length": 2}
    generator, truth = sequences.latent_lstm(jax.random.key(0), **sizes, hidden_size=5, scale=3.0)
    z, x = sequences.draw(generator, truth, jax.random.key(1), 400)
    likelihood, information = text.of_generator(generator, truth, z, np.asarray(x))
    # By enumeration: all sequences, and the prior on a grid.
    axis = np.linspace(-5, 5, 81)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), jnp.float32)
    centres = 2.0 * np.stack([np.cos(np.pi / 2 * np.arange(4)), np.sin(np.pi / 2 * np.arange(4))], axis=1)
    distances = ((np.asarray(grid, np.float64)[:, None] - centres) ** 2).sum(axis=-1)
    weights = np.exp(-0.5 * distances / 0.4**2).sum(axis=1)
    weights /= weights.sum()
    every = jnp.asarray(list(itertools.product(range(3), repeat=2)))
    given = np.stack([np.asarray(generator.decode(truth, grid).log_prob(each), np.float64) for each in every])
    marginal = np.log(np.exp(given) @ weights)
    exact = (weights * np.exp(given) * (given - marginal[:, None])).sum()
    assert 0.1 < exact < np.log(9)
    assert information["standard_error"] < 0.1 * exact
    assert abs(information["value"] - exact) < 5 * information["standard_error"]
    assert abs(likelihood["value"] - (np.exp(marginal) * marginal).sum()) < 5 * likelihood["standard_error"]


@pytest.mark.slow
def test_the_error_of_quadrature_is_in_the_table(monkeypatch):
    from engines.collapse import cures, text

    vae = models.mlp_vae((3,), 2, (3,))
    params = vae.init(jax.random.key(0))
    x = np.eye(3, dtype=np.float32)
    errors = {}
    for nodes in (9, 31):
        monkeypatch.setattr(text, "NUM_NODES", nodes)
        found = cures.measured(vae, params, 0, x, text.by_quadrature)
        result = evaluation.quadrature_log_likelihood(vae, params, x, nodes, bound=6.0)
        assert found["largest error of one log p(x)"] == pytest.approx(float(result.error.max()))
        errors[nodes] = found["largest error of one log p(x)"]
    assert errors[9] > 100 * errors[31]
    rows = cures.rows_of("plain", [found, found], "")
    assert "largest error of one log p(x)" in {row["quantity"] for row in rows}


@pytest.mark.slow
def test_what_is_measured_of_a_linear_model(monkeypatch):
    """Against the exact log p(x), and the KL of Gaussians in closed form."""
    from engines.collapse import cures

    monkeypatch.setattr(cures, "NUM_SAMPLES", 200)
    vae = models.linear_vae(3, 1)
    params = vae.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(1200, 3)).astype(np.float32)
    found = cures.measured(vae, params, 0, x)
    exact = np.asarray(evaluation.linear_log_likelihood(vae, params, x), np.float64)
    assert found["log p(x)"] == pytest.approx(exact.mean(), abs=0.01)
    q = vae.encode(params, jnp.asarray(x))
    mean, variance = np.asarray(q.mean, np.float64), np.asarray(q.variance, np.float64)
    assert found["KL"] == pytest.approx(
        (0.5 * (mean**2 + variance - 1 - np.log(variance))).sum(axis=1).mean(), rel=1e-4
    )
    assert found["ELBO"] < found["log p(x)"]
    assert found["ELBO"] == pytest.approx(
        float(evaluation.elbo(vae, params, jax.random.key(3), x, 50).estimate.mean()), abs=0.05
    )
    assert 0 <= found["mutual information"] < found["KL"]
    assert found["active units"] == float((mean.var(axis=0) > 0.01).sum())


def test_points_of_a_curve_are_means_of_stretches():
    from engines.collapse import cures

    history = types.SimpleNamespace(kl=np.arange(250.0), elbo=-np.arange(250.0))
    curves = cures.curves(history, 250)
    assert curves["steps"][[0, 1, -1]].tolist() == [2, 5, 250]
    assert curves["kl"][:2].tolist() == [0.5, 3.0]
    assert curves["elbo"][-1] == -248.0
    assert set(curves["encoder_steps"]) == {1.0}


def test_rows_are_means_over_seeds():
    from engines.collapse import cures

    runs = [{"log p(x)": 1.0, "evaluation seconds": 9.0}, {"log p(x)": 4.0, "evaluation seconds": 9.0}]
    (row,) = cures.rows_of("plain", runs, "note", {"log p(x)": 3.0})
    assert (row["value"], row["known"], row["unit"]) == (2.5, 3.0, "nats")
    assert row["standard_error"] == pytest.approx(1.5)
    assert row["note"] == "note; by seed 1, 4"


@pytest.mark.slow
def test_one_divergence_keeps_the_moments_and_the_other_a_mode():
    from engines.collapse import gaps

    rows, arrays = gaps.both_divergences()
    axis = np.linspace(-4, 4, 161)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    squares = (points**2).sum(axis=1) + ((1 - points[:, 0] ** 2 / 2 - points[:, 1] / 4) / 0.2) ** 2
    p = np.exp(-0.5 * squares)
    p = np.maximum(p / p.sum(), 1e-300)
    one, both = arrays["grid_means"]
    np.testing.assert_allclose(both, p @ points, atol=1e-4)
    np.testing.assert_allclose(arrays["grid_covariances"][1], (points - both).T * p @ (points - both), atol=1e-4)
    assert abs(both[0]) < 1e-3
    assert one[0] > 0.7  # of the two modes, on either side of 0, the one where it started
    found = {}
    for row, mean, covariance in zip(rows[::2], (one, both), arrays["grid_covariances"], strict=True):
        q = np.exp(-0.5 * (((points - mean) @ np.linalg.inv(covariance)) * (points - mean)).sum(axis=1))
        q /= q.sum()
        inside = q > 1e-300
        q = np.where(inside, q, 1e-300)
        found[row["model"]] = (q * np.log(q / p)).sum(), (p * np.log(p / q)).sum()
    for row in rows:
        reverse, forward = found[row["model"]]
        exact = reverse if row["quantity"] == "KL(q || p)" else forward
        assert row["value"] == pytest.approx(exact, abs=0.02)


# What counts as a picture.


def test_empty_axes_are_no_picture(tmp_path):
    figure, axes = plt.subplots(1, 2)
    figure.suptitle("a title, ticks and labels")
    axes[0].set(xlabel="steps", ylabel="nats", title="nothing")
    figure.savefig(tmp_path / "empty.png")
    axes[0].plot([0, 1], [0, 1])
    figure.savefig(tmp_path / "line.png")
    image, axes = plt.subplots(1, 1)
    axes.imshow(np.random.default_rng(0).uniform(size=(8, 8)) > 0.5, cmap="gray")
    image.savefig(tmp_path / "image.png")
    plt.close("all")
    assert not is_picture(tmp_path / "empty.png")
    assert is_picture(tmp_path / "line.png")
    assert is_picture(tmp_path / "image.png")
