"""Each train step: a run of it is compiled once, however long, and lowers for every platform, as the device's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from vaejax import autoencoders, estimators, inference, models, objectives, training
from vaejax.data import binarize_dynamic

NUM_EXAMPLES, SIZE = 24, 6
ADAM = optax.adam(1e-2)
VAE = models.mlp_vae((SIZE,), 2, (4,))
HALF = models.mlp_vae((SIZE,), 2, (4,), compute_dtype=jnp.bfloat16)
COINS = models.mlp_vae((SIZE,), 2, (4,), posterior="bernoulli")
LINEAR = models.linear_vae(SIZE, 2)
IMAGES = models.conv_vae((2, 3), 2, (3,), 4)
POINTS = models.mlp_vae((SIZE,), 2, (4,), posterior="point")
WARMUP = objectives.linear_warmup(5)


def plain(objective, vae=VAE, estimator=None):
    def make(images):
        params = vae.init(jax.random.key(0))
        if estimator is not None:
            params = estimators.with_baseline(params, estimator, jax.random.key(1), images)
        return training.make_train_step(objective, ADAM, binarize_dynamic), training.init_state(params, ADAM), 4

    return make


def scored(baseline):
    estimator = estimators.score_function(baseline=baseline)
    return plain(objectives.make_elbo(COINS, estimator, 2), COINS, estimator)


def aggressive(images):
    elbo = objectives.make_elbo(VAE)
    step = inference.make_aggressive_train_step(
        VAE, elbo, ADAM, ADAM, images[:5], batch_size=4, max_encoder_steps=3, window=1, check_every=2
    )
    return step, inference.init_lagging(VAE.init(jax.random.key(0)), ADAM, ADAM), 16


def exact_em(images):
    params = LINEAR.init(jax.random.key(0))
    return inference.make_em_step(LINEAR), training.init_state(params, optax.identity()), len(images)


def variational_em(images):
    step = inference.make_variational_em_step(objectives.make_elbo(VAE), ADAM, ADAM)
    return step, inference.init_groups(VAE.init(jax.random.key(0)), ADAM, ADAM), 4


STEPS = {
    "elbo": plain(objectives.make_elbo(VAE)),
    "warm-up": plain(objectives.make_elbo(VAE, beta=WARMUP)),
    "iwae in chunks": plain(objectives.make_iwae(VAE, num_samples=7, chunk_size=3)),
    "doubly reparameterized": plain(objectives.make_iwae(VAE, estimators.doubly_reparameterized(), 3)),
    "renyi": plain(objectives.make_renyi(VAE, 0.5, num_samples=3)),
    "free bits": plain(objectives.make_free_bits(VAE, 0.1)),
    "discrepancy": plain(objectives.make_info_vae(VAE, 1.0)),
    "best std": plain(objectives.make_optimal_std_elbo(LINEAR), LINEAR),
    "closed form": plain(objectives.make_linear_elbo(LINEAR), LINEAR),
    "bfloat16": plain(objectives.make_elbo(HALF), HALF),
    "leave one out": scored("leave_one_out"),
    "moving average": scored("moving_average"),
    "nvil": scored("nvil"),
    "reconstruction": plain(autoencoders.make_reconstruction(POINTS, autoencoders.squared_error), POINTS),
    "aggressive": aggressive,
    "exact EM": exact_em,
    "variational EM": variational_em,
}


@pytest.fixture(scope="module")
def images():
    return jax.random.bernoulli(jax.random.key(2), 0.5, (NUM_EXAMPLES, SIZE)).astype(jnp.float32)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", STEPS)
def test_a_run_is_one_program_for_every_platform(name, images):
    step, state, batch_size = STEPS[name](images)
    traced = []

    def chunk(state, key, images, stop):
        traced.append(None)
        return training.fit(step, state, key, images, num_steps=4, batch_size=batch_size, stop=stop)

    fit, key = jax.jit(chunk), jax.random.key(3)
    for _ in range(3):
        state, history = fit(state, key, images, 11)
    assert (len(traced), fit._cache_size()) == (1, 1)
    assert int(state.step) == 11
    assert np.isfinite(history.bound[:3]).all()
    # Typed keys inside the program are its own business; at its boundary jax.export wants their bits.
    of_bits = jax.jit(lambda state, bits, images: chunk(state, jax.random.wrap_key_data(bits), images, 11))
    platforms = ("cpu", "cuda", "tpu")
    assert export.export(of_bits, platforms=platforms)(state, jax.random.key_data(key), images).platforms == platforms


@pytest.mark.parametrize(("platform", "has_convolutions"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_the_program_is_the_devices_own(platform, has_convolutions, images):
    """Lowered here for a device that is not: what a CPU computes as matrix products, it computes as convolutions."""
    step, state, batch_size = plain(objectives.make_elbo(IMAGES), IMAGES)(images)

    def run(state, bits, images):
        key = jax.random.wrap_key_data(bits)
        return training.fit(step, state, key, images, num_steps=4, batch_size=batch_size)

    arguments = state, jax.random.key_data(jax.random.key(3)), images.reshape(-1, 2, 3)
    text = export.export(jax.jit(run), platforms=[platform])(*arguments).mlir_module()
    assert ("stablehlo.convolution" in text) == has_convolutions


def test_a_step_is_traced_once_for_its_report_and_the_loop():
    step, state, batch_size = plain(objectives.make_elbo(VAE))(jnp.ones((NUM_EXAMPLES, SIZE)))
    traced = []

    def counted(state, key, batch):
        traced.append(batch.shape)
        return step(state, key, batch)

    def run(state, key, images, stop):
        return training.fit(counted, state, key, images, num_steps=6, batch_size=batch_size, stop=stop)

    jax.jit(run).lower(state, jax.random.key(1), jnp.ones((NUM_EXAMPLES, SIZE)), 3)
    assert traced == [(batch_size, SIZE)]
