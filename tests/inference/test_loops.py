"""What the loops of inference do step by step: which key, which number of steps, when they stop."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from reference import in_float64, with_exact_posterior

from vaejax import distributions, inference, models
from vaejax.estimators import monte_carlo
from vaejax.inference import aggressive


def noise_objective(params, key, x, *, step=None):
    """Its gradient is noise of the key alone, so that the parameters say which keys were used, and how often."""
    keys = dict(zip(("encoder", "decoder"), jax.random.split(key), strict=True))
    value = sum((params[part]["w"] * jax.random.normal(keys[part], (2,))).sum() for part in keys)
    return value, inference.GroupInfo(value, value, value, value, value)


def test_each_step_of_variational_em_has_noise_of_its_own():
    params = {"encoder": {"w": jnp.zeros(2)}, "decoder": {"w": jnp.zeros(2)}, "prior": {}}
    optimizers = optax.sgd(1.0), optax.sgd(1.0)
    step = inference.make_variational_em_step(noise_objective, *optimizers, num_e_steps=3, num_m_steps=2)
    state, _ = step(inference.init_groups(params, *optimizers), jax.random.key(2), None)
    (key,) = jax.random.split(jax.random.key(2), 1)
    for part, place, numbers in (("encoder", 0, range(3)), ("decoder", 1, range(3, 5))):
        keys = [jax.random.split(jax.random.fold_in(key, number))[place] for number in numbers]
        expected = sum(jax.random.normal(key, (2,)) for key in keys)
        np.testing.assert_allclose(state.params[part]["w"], expected, rtol=1e-6)


def steps_by_hand(bounds, most, window):
    """After each whole window but the first: stop where its mean is not above that of the window before."""
    for number in range(2 * window, most, window):
        if np.sum(bounds[number - window : number]) <= np.sum(bounds[number - 2 * window : number - window]):
            return number
    return most


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_encoder_stops_once_a_window_is_not_above_the_one_before(window):
    rows = np.random.default_rng(0).standard_normal((30, 21)) + np.linspace(0, 3, 30)[:, None] * np.arange(21) / 10
    rows = jnp.asarray(np.round(rows, 3), jnp.float32)

    def run(bounds):
        def raise_encoder(encoder, opt_state, number):
            return encoder + 1, opt_state, inference.GroupInfo(*[bounds[number - 1]] * 5)

        return aggressive._until_converged(raise_encoder, jnp.zeros(()), (), jnp.asarray(0), 21, window)

    taken, _, number = jax.jit(jax.vmap(run))(rows)
    expected = [steps_by_hand(np.asarray(row), 21, window) for row in rows]
    assert number.tolist() == expected
    assert taken.tolist() == expected
    assert len(set(expected)) > 2  # some stop early, and some never


@pytest.fixture
def linear(x64):
    vae = models.linear_vae(3, 1)
    params = in_float64(vae.init(jax.random.key(0)))
    params["decoder"]["head"]["log_std"] = jnp.array(0.5)
    return vae, with_exact_posterior(params), jax.random.normal(jax.random.key(1), (3, 3))


@pytest.mark.exhaustive
def test_a_fit_starts_where_it_is_told_and_slows_down(linear):
    """Far from the optimum the steps of Adam are as long as the rate, which falls along a cosine: half of n rates."""
    vae, params, x = linear
    far = dist.Normal(jnp.array([[30.0], [31.0], [32.0]]), jnp.ones((3, 1))).to_event(1)
    still = inference.fit_posterior(vae, params, jax.random.key(2), x, num_steps=1, learning_rate=1e-9, start=far)
    np.testing.assert_allclose(still.q.mean, far.mean, atol=1e-6)
    np.testing.assert_allclose(still.q.variance, 1, atol=1e-6)
    moved = inference.fit_posterior(vae, params, jax.random.key(2), x, num_steps=100, learning_rate=0.01, start=far)
    np.testing.assert_allclose(far.mean - moved.q.mean, 0.5 * 100 * 0.01, rtol=0.05)


def test_steps_with_one_sample_see_new_noise_each_time(linear):
    """With the same noise in each step any q that maps it to the mode would do."""
    vae, params, x = linear
    start = dist.Normal(jnp.zeros((3, 1)), 2 * jnp.ones((3, 1))).to_event(1)
    settings = {"num_steps": 1500, "num_samples": 1, "start": start}
    fitted = inference.fit_posterior(vae, params, jax.random.key(2), x, **settings)
    exact = vae.encode(params, x)
    np.testing.assert_allclose(fitted.q.mean, exact.mean, atol=0.05)
    np.testing.assert_allclose(fitted.q.variance, exact.variance, rtol=0.1)


@pytest.mark.exhaustive
def test_the_elbo_of_a_fit_is_of_samples_that_it_did_not_train_on(linear):
    vae, params, x = linear
    wide = dist.Normal(jnp.zeros((3, 1)), jnp.ones((3, 1))).to_event(1)
    settings = {"num_steps": 1, "learning_rate": 1e-12, "num_samples": 7, "eval_samples": 7, "start": wide}
    fitted = inference.fit_posterior(vae, params, jax.random.key(2), x, **settings)

    def by_hand(index, number):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(2), index), number)
        q, prior = dist.Normal(jnp.zeros(1), jnp.ones(1)).to_event(1), vae.prior(params)

        def log_w(key):
            z = q.sample(key)
            log_joint = distributions.data_log_prob(vae.decode(params, z), x[index]) + prior.log_prob(z)
            return log_joint - q.log_prob(z)

        return monte_carlo.over_samples(log_w, key, 7).mean()

    np.testing.assert_allclose(fitted.elbo, [by_hand(index, 1) for index in range(3)], rtol=1e-6)
    assert (abs(fitted.elbo - jnp.array([by_hand(index, 0) for index in range(3)])) > 1e-3).all()


def test_a_q_of_dependent_units_is_a_start_by_its_moments(linear):
    vae, params, x = linear
    own = vae._replace(encode=lambda params, x: dist.MultivariateNormal(vae.encode(params, x).mean, 0.3 * jnp.eye(1)))
    fitted = inference.fit_posterior(own, params, jax.random.key(2), x, num_steps=1, learning_rate=1e-9)
    np.testing.assert_allclose(fitted.q.variance, 0.3, rtol=1e-5)
    power = dist.transforms.PowerTransform(3.0)

    def skewed(params, x):
        base = dist.LogNormal(vae.encode(params, x).mean, 0.5)
        return dist.TransformedDistribution(base, power).to_event(1)

    with pytest.raises(ValueError, match=r"expected a start.*got TransformedDistribution"):
        inference.fit_posterior(vae._replace(encode=skewed), params, jax.random.key(2), x)
