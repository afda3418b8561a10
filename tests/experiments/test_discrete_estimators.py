"""Estimators of discrete latents as options of `train.py`."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import main_of

from vaejax import training

BERNOULLI = ("ovis", "disarm", "arms", "muprop", "double_control_variates", "rodeo", "rebar", "relax")
BERNOULLI += ("gumbel_softmax", "straight_through", "reinmax")
CATEGORICAL = ("ovis", "disarm", "arms", "rebar", "relax", "gumbel_softmax", "straight_through", "reinmax")


@pytest.fixture(scope="module")
def train(experiments):
    from engines.train import build, config

    return build, config


def gradient_of(train, *options):
    """The shapes of parameters and gradient, without a compilation."""
    build, config = train
    chosen = config.parse([*options, "--num-samples", "4", "--latent-dim", "6", "--hidden-sizes", "20"])
    vae, estimator = build.build_model(chosen, (8, 8)), build.build_estimator(chosen)
    x = jnp.zeros((5, 8, 8))
    params = build.build_init(chosen, vae, estimator, x)(jax.random.split(jax.random.key(0), 3))
    objective = build.build_objective(chosen, vae, estimator, 1.0)
    return params, jax.eval_shape(jax.grad(objective, has_aux=True), params, jax.random.key(1), x)[0], estimator


@pytest.mark.quick_for("arms", "reinmax")
@pytest.mark.parametrize("name", BERNOULLI)
def test_bernoulli_latents_have_them(train, name):
    objective = "iwae" if name == "ovis" else "elbo"
    params, gradient, estimator = gradient_of(
        train, "--posterior", "bernoulli", "--estimator", name, "--objective", objective
    )
    assert jax.tree.structure(params) == jax.tree.structure(gradient)
    assert ("baseline" in params) == (estimator.baseline is not None)


@pytest.mark.quick_for("gumbel_softmax", "reinmax")
@pytest.mark.parametrize("name", CATEGORICAL)
def test_categories_have_those_that_serve_them(train, name):
    objective = "iwae" if name == "ovis" else "elbo"
    gradient_of(train, "--posterior", "categorical", "--estimator", name, "--objective", objective)


def test_a_temperature_belongs_to_estimators_that_have_one(train):
    build, config = train
    for name in ("rebar", "relax", "gumbel_softmax"):
        chosen = config.parse(["--posterior", "bernoulli", "--estimator", name, "--temperature", "0.25"])
        assert build.build_estimator(chosen) is not None
    with pytest.raises(ValueError, match=r"--temperature.*--estimator"):
        config.parse(["--posterior", "bernoulli", "--estimator", "disarm", "--temperature", "0.25"])


def test_what_cannot_serve_is_refused_by_the_estimator(train):
    with pytest.raises(ValueError, match="Bernoulli"):
        gradient_of(train, "--estimator", "disarm")
    with pytest.raises(ValueError, match="Bernoulli"):
        gradient_of(train, "--posterior", "categorical", "--estimator", "rodeo")


@pytest.mark.slow
def test_a_control_network_is_trained_along(train, tmp_path, monkeypatch):
    options = ["--posterior", "bernoulli", "--latent-dim", "6", "--estimator", "relax", "--num-samples", "2"]
    options += ["--hidden-sizes", "20", "--num-steps", "40", "--eval-samples", "10", "--runs-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", *options, "--checkpoint-seconds", "0"])
    with pytest.raises(SystemExit) as stopped:
        main_of("train")()
    assert stopped.value.code == 0
    result = json.loads((tmp_path / "digits" / "result.json").read_text())
    assert result["test_elbo"] < result["test_log_likelihood"]
    first = gradient_of(train, *options[:6])[0]["baseline"]
    trained = training.checkpoints.restore_params(tmp_path / "digits" / "checkpoints")["baseline"]
    assert any(np.any(new != old) for new, old in zip(*map(jax.tree.leaves, (trained, first)), strict=True))
