import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from reference import assert_unbiased, exact_model_gradient, in_float64, model_gradient, with_wrong_baseline
from scipy import stats

from vaejax import distributions, estimators, models, objectives

SCORED = {
    "score function, K=1": (estimators.score_function(), 1, 400_000),
    "score function, K=4": (estimators.score_function(), 4, 200_000),
    "leave-one-out, K=4": (estimators.score_function(baseline="leave_one_out"), 4, 40_000),
    "moving average, K=1": (estimators.score_function(baseline="moving_average"), 1, 100_000),
    "NVIL, K=1": (estimators.score_function(baseline="nvil"), 1, 100_000),
}
BOUND_OF_TWO = {
    "score function": (estimators.score_function(), 400_000),
    "leave-one-out": (estimators.score_function(baseline="leave_one_out"), 100_000),
    "VIMCO": (estimators.vimco(), 100_000),
}


@pytest.fixture(params=["bernoulli", "categorical"])
def discrete_problem(request, x64):
    """A model of 256 states: eight coins, or four numbers of four categories."""
    coins = request.param == "bernoulli"
    posterior = "bernoulli" if coins else distributions.categorical(4)
    vae = models.mlp_vae((6,), 8 if coins else 4, (5,), posterior=posterior)
    params = in_float64(vae.init(jax.random.key(0)))
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (2, 6)).astype(float)
    states = np.array(list(itertools.product(range(2 if coins else 4), repeat=8 if coins else 4)))
    return vae, params, x, states


def log_weights(vae, params, x, states):
    """Log p(x, z) - log q(z|x) and log q(z|x) of every state, one after another: (states, batch)."""
    q = vae.encode(params, x)

    def of_state(z):
        z = jnp.broadcast_to(z, (len(x), *z.shape))
        log_q = distributions.log_prob(q, z)
        joint = distributions.log_prob(vae.decode(params, z), x) + distributions.log_prob(vae.prior(params), z)
        return joint - log_q, log_q

    return jax.lax.map(of_state, jnp.asarray(states))


def summed_elbo(vae, params, x, states):
    log_w, log_q = log_weights(vae, params, x, states)
    return (jnp.exp(log_q) * log_w).sum(axis=0).mean()


def summed_bound_of_two(vae, params, x, states):
    log_w, log_q = log_weights(vae, params, x, states)
    bound = jnp.logaddexp(log_w[:, None], log_w[None]) - np.log(2)
    return (jnp.exp(log_q[:, None] + log_q[None]) * bound).sum(axis=(0, 1)).mean()


@pytest.mark.quick_for("bernoulli-None-entropy")
@pytest.mark.slow_for("categorical-None-entropy", "bernoulli-None-sampled")
@pytest.mark.parametrize("kl", objectives.KL_FORMS)
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_enumeration_is_the_summed_elbo_and_its_gradient(discrete_problem, kl, chunk_size):
    vae, params, x, states = discrete_problem
    objective = objectives.make_elbo(vae, estimators.enumerate_support(), kl=kl, chunk_size=chunk_size)
    (value, info), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, jax.random.key(2), x)
    expected, exact = jax.jit(jax.value_and_grad(lambda params: summed_elbo(vae, params, x, states)))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(info.elbo, expected, rtol=1e-12)
    np.testing.assert_allclose(info.reconstruction - info.kl, expected, rtol=1e-12)
    grads, exact = ravel_pytree(grads)[0], ravel_pytree(exact)[0]
    assert np.linalg.norm(grads - exact) < 1e-6 * np.linalg.norm(exact)
    assert np.linalg.norm(exact) > 0.1


@pytest.mark.exhaustive
def test_enumeration_leaves_the_key_alone(discrete_problem):
    vae, params, x, _ = discrete_problem
    objective = objectives.make_elbo(vae, estimators.enumerate_support())
    key = jax.random.key(2)
    values = [objective(params, k, x)[0] for k in (key, key, jax.random.key(3))]  # the reuse checker says nothing
    assert values[0] == values[1] == values[2]


@pytest.mark.slow_for("bernoulli-leave-one-out, K=4", "bernoulli-NVIL, K=1", "categorical-moving average, K=1")
@pytest.mark.parametrize("name", SCORED)
def test_gradient_is_unbiased(discrete_problem, name):
    vae, params, x, states = discrete_problem
    estimator, num_samples, num_repeats = SCORED[name]
    exact = exact_model_gradient(lambda params: summed_elbo(vae, params, x, states), params)
    params = with_wrong_baseline(params, estimator, x)
    objective = objectives.make_elbo(vae, estimator, num_samples)
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), num_repeats, largest_error=0.1)


@pytest.mark.slow_for("bernoulli-VIMCO", "categorical-leave-one-out")
@pytest.mark.parametrize("name", BOUND_OF_TWO)
def test_gradient_of_the_importance_weighted_bound_is_unbiased(discrete_problem, name):
    vae, params, x, states = discrete_problem
    estimator, num_repeats = BOUND_OF_TWO[name]
    exact = exact_model_gradient(lambda params: summed_bound_of_two(vae, params, x, states), params)
    objective = objectives.make_iwae(vae, estimator, 2)
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), num_repeats, largest_error=0.1)


@pytest.mark.slow
def test_states_of_probability_zero_count_for_nothing():
    vae = models.mlp_vae((3,), 2, (5,), posterior="bernoulli")
    params, x = vae.init(jax.random.key(0)), jnp.ones((2, 3))
    params["encoder"]["network"]["layer_1"]["bias"] = jnp.array([1e4, -1e4])  # q is sure of z = (1, 0)
    for kl in objectives.KL_FORMS:
        objective = objectives.make_elbo(vae, estimators.enumerate_support(), kl=kl)
        (value, info), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, jax.random.key(1), x)
        certain = distributions.log_prob(vae.decode(params, jnp.array([1.0, 0.0])), x).mean()
        np.testing.assert_allclose(value, certain - 2 * np.log(2), rtol=1e-5)
        np.testing.assert_allclose(info.kl, 2 * np.log(2), rtol=1e-5)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_enumeration_says_what_it_cannot_serve():
    x = jnp.ones((2, 3))

    def value(latent_dim=2, num_samples=1, posterior="bernoulli"):
        vae = models.mlp_vae((3,), latent_dim, (5,), posterior=posterior)
        objective = objectives.make_elbo(vae, estimators.enumerate_support(), num_samples)
        return objective(vae.init(jax.random.key(0)), jax.random.key(1), x)

    with pytest.raises(ValueError, match=r"expects num_samples=1; got 4.*vimco\(\)"):
        value(num_samples=4)
    with pytest.raises(ValueError, match=r"at most 65,536 states, and .* has 2\^17; got q = .*Use score_function"):
        value(latent_dim=17)
    with pytest.raises(ValueError, match=r"got q = Normal. Use score_function\(.*\), or pathwise\(\)"):
        value(posterior="gaussian")
    poisson = dist.Poisson(jnp.ones(2)).to_event(1)
    with pytest.raises(ValueError, match=r"finite support .* got q = Poisson. Use score_function"):
        estimators.enumerate_support()(
            jax.random.key(0), poisson, lambda z, q: (z.sum(), None), 1, estimators.mean_reduction()
        )


@pytest.mark.quick_for("0.5-2.0--1.0")
@pytest.mark.parametrize(("mean", "std", "k"), [(1.0, 1.0, 1.0), (0.5, 2.0, -1.0), (-1.0, 0.5, 1.0)])
def test_coupled_measure_valued_gradient_has_the_closed_form_moments(x64, mean, std, k):
    d = mean - k
    value = estimators.expectation(
        estimators.measure_valued(),
        lambda params: dist.Normal(params["mean"], params["std"]),
        lambda params, z: (z - k) ** 2,
    )
    params = {"mean": jnp.array(mean), "std": jnp.array(std)}
    keys = jax.random.split(jax.random.key(0), 200_000)
    draws = jax.jit(jax.vmap(lambda key: jax.grad(value, has_aux=True)(params, key)[0]))(keys)
    of_mean = np.asarray(draws["mean"])
    variance = d**2 * (16 / np.pi - 4)
    np.testing.assert_allclose(of_mean.mean(), 2 * d, atol=5 * np.sqrt(variance / len(keys)) + 1e-12)
    error = np.sqrt(np.mean((of_mean - of_mean.mean()) ** 4) / len(keys))
    assert abs(of_mean.var(ddof=1) - variance) <= stats.norm.ppf(0.995) * error + 1e-20
    error = draws["std"].std() / np.sqrt(len(keys))
    assert error < 0.05 * std
    assert abs(draws["std"].mean() - 2 * std) < 5 * error
