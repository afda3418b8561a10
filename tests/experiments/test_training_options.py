"""The optimizer that the options of train.py name, step by step against optax's pieces by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import estimators, training

PARAMS = {"encoder": {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([1.0, 1.0])}}
GRADS = {"encoder": {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([0.0, 4.0])}}


@pytest.fixture
def engines(experiments):
    """What builds the parts that options name, and what reads the options."""
    from engines.train import build, config

    return build, config


@pytest.fixture
def optimizer_of(engines):
    build, config = engines

    def make(*options):
        parsed = config.parse(["--learning-rate", "0.1", "--learning-rate-schedule", "constant", *options])
        return build.build_optimizer(parsed, 0.1, estimators.pathwise())

    return make


def moved(optimizer, *gradients):
    params, state = PARAMS, optimizer.init(PARAMS)
    for grads in gradients:
        with jax.numpy_dtype_promotion("standard"):  # as a train step does around optax
            updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params["encoder"], state


def test_long_gradients_are_cut(optimizer_of):
    new, _ = moved(optimizer_of("--optimizer", "sgd", "--max-gradient-norm", "1"), GRADS)
    np.testing.assert_allclose(new["kernel"], [[2.0 - 0.1 * 3 / 5, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(new["bias"], [1.0, 1.0 - 0.1 * 4 / 5], rtol=1e-6)


def test_kernels_alone_decay(optimizer_of):
    nothing = jax.tree.map(jnp.zeros_like, GRADS)
    new, _ = moved(optimizer_of("--weight-decay", "0.5"), nothing)
    np.testing.assert_allclose(new["kernel"], [[2.0 * 0.95, -0.95]], rtol=1e-6)
    np.testing.assert_array_equal(new["bias"], PARAMS["encoder"]["bias"])


def test_gradients_of_two_steps_make_one_update(optimizer_of):
    optimizer = optimizer_of("--optimizer", "sgd", "--accumulate-steps", "2")
    first, _ = moved(optimizer, GRADS)
    np.testing.assert_array_equal(first["kernel"], PARAMS["encoder"]["kernel"])
    both, _ = moved(optimizer, GRADS, jax.tree.map(lambda leaf: 3 * leaf, GRADS))
    np.testing.assert_allclose(both["kernel"], [[2.0 - 0.1 * 6, -1.0]], rtol=1e-6)


def test_what_is_measured_is_the_average(optimizer_of, engines):
    optimizer = optimizer_of("--optimizer", "sgd", "--averages", "0.5")
    new, opt_state = moved(optimizer, GRADS, GRADS)
    state = training.TrainState({"encoder": new}, opt_state, jnp.array(2))
    build, config = engines
    measured = build.build_measure(config.parse(["--averages", "0.5"]), None).params_of(state)["encoder"]["kernel"][
        0, 0
    ]
    np.testing.assert_allclose(measured, (2 * 1.4 + 1.7) / 3, rtol=1e-6)  # weights 1 and 1/2
    plain = build.build_measure(config.parse([]), None)
    assert plain.params_of(state) is state.params
