"""A posterior that holds its parameters in a closure is detached all the same."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro.distributions.flows import InverseAutoregressiveTransform
from reference import assert_unbiased, in_float64

from vaejax import estimators, models, objectives

PARAMS = {"loc": jnp.array([0.5, -0.4]), "weight": jnp.array(0.8), "log_scale": jnp.array([-0.3, 0.2])}
DETACHING = {
    "sticking the landing": estimators.sticking_the_landing(),
    "doubly reparameterized": estimators.doubly_reparameterized(),
}


def flow(params, batch_shape=()):
    """An affine autoregressive flow of N(loc, I): a Gaussian whose parameters are in the closure of the network."""

    def network(x):
        shift = jnp.stack([jnp.zeros_like(x[..., 0]), params["weight"] * x[..., 0]], axis=-1)
        return shift, jnp.broadcast_to(params["log_scale"], x.shape)

    loc = jnp.broadcast_to(params["loc"], (*batch_shape, 2))
    base = dist.Normal(loc, jnp.ones_like(loc)).to_event(1)
    return dist.TransformedDistribution(base, [InverseAutoregressiveTransform(network)])


def exact_kl(params):
    """KL(q || N(0, I)) of that Gaussian in closed form: z = diag(s) eps + (0, w eps_1), eps ~ N(loc, I)."""
    s = jnp.exp(params["log_scale"])
    matrix = jnp.array([[1.0, 0.0], [0.0, 0.0]]) * s[0] + jnp.array([[0.0, 0.0], [0.0, 1.0]]) * s[1]
    matrix += jnp.array([[0.0, 0.0], [1.0, 0.0]]) * params["weight"]
    mean = matrix @ params["loc"]
    return 0.5 * ((matrix**2).sum() + (mean**2).sum() - 2) - params["log_scale"].sum()


def minus_kl(estimator, num_samples=1):
    """`(params, key) -> -KL`, with q's log-density inside the expectation."""

    def function(params, key):
        def integrand(z, q):
            return dist.Normal(jnp.zeros(2), 1.0).to_event(1).log_prob(z) - q.log_prob(z), None

        integrand = estimators.with_detached(integrand, lambda: flow(lax.stop_gradient(params)))
        reduce = estimators.mean_reduction()
        return estimator(key, flow(params), integrand, num_samples, reduce).bound

    return function


@pytest.fixture
def params(x64):
    return jax.tree.map(lambda array: array.astype(float), PARAMS)


def test_the_oracle_is_the_kl(params):
    def log_ratio_of(key):
        z = flow(params).sample(key)
        return flow(params).log_prob(z) - dist.Normal(jnp.zeros(2), 1.0).to_event(1).log_prob(z)

    log_ratio = jax.jit(jax.vmap(log_ratio_of))(jax.random.split(jax.random.key(0), 200_000))
    assert abs(log_ratio.mean() - exact_kl(params)) < 4 * log_ratio.std() / np.sqrt(200_000)


@pytest.mark.parametrize("name", DETACHING)
def test_a_flow_in_a_closure_is_detached(params, name):
    exact = jax.grad(lambda params: -exact_kl(params))(params)
    gradient = jax.grad(minus_kl(DETACHING[name]))
    assert_unbiased(lambda key: gradient(params, key), exact, jax.random.key(1), 20_000)


def flow_vae():
    """A linear VAE whose posterior is that flow, moved by the data."""
    vae = models.linear_vae(data_dim=2, latent_dim=2)

    def encode(params, x):
        own = params["flow"]
        return flow({**own, "loc": own["loc"] + 0 * x[0]}, x.shape[:-1])

    return vae._replace(encode=encode)


@pytest.mark.quick_for("doubly reparameterized")
@pytest.mark.parametrize("name", DETACHING)
def test_objectives_detach_it_too(params, name):
    vae, x = flow_vae(), jnp.zeros((1, 2))
    model = {**in_float64(vae.init(jax.random.key(0))), "flow": params}
    model["decoder"] = jax.tree.map(jnp.zeros_like, model["decoder"])  # the data say nothing of z
    objective = objectives.make_elbo(vae, DETACHING[name], 1, kl="sampled")
    gradient = jax.grad(lambda own, key: objective({**model, "flow": own}, key, x), has_aux=True)
    exact = jax.grad(lambda params: -exact_kl(params))(params)
    assert_unbiased(lambda key: gradient(params, key)[0], exact, jax.random.key(1), 20_000)


@pytest.mark.parametrize("name", DETACHING)
def test_expectations_detach_it_too(params, name):
    estimate = estimators.expectation(DETACHING[name], flow, lambda params, z: z[1] ** 2)
    exact = jax.grad(lambda p: (p["weight"] * p["loc"][0] + jnp.exp(p["log_scale"][1]) * p["loc"][1]) ** 2)(params)
    exact["weight"] += 2 * params["weight"]
    exact["log_scale"] += jnp.array([0.0, 2.0]) * jnp.exp(2 * params["log_scale"])
    gradient = jax.grad(estimate, has_aux=True)
    assert_unbiased(lambda key: gradient(params, key)[0], exact, jax.random.key(2), 20_000)


@pytest.mark.parametrize("name", DETACHING)
def test_a_bare_integrand_of_a_flow_in_a_closure_is_refused(name):
    def bound(params):
        q = flow(params)
        reduce = estimators.mean_reduction()
        return DETACHING[name](jax.random.key(0), q, lambda z, q: (q.log_prob(z), None), 1, reduce).bound

    bound(PARAMS)  # nothing is traced, and so there is no gradient to stop
    with pytest.raises(ValueError, match="with_detached"):
        jax.grad(bound)(PARAMS)


@pytest.mark.parametrize("name", DETACHING)
def test_a_bare_integrand_of_a_plain_distribution_is_served(name):
    def bound(mean, scale):
        q = dist.Normal(mean, scale).to_event(1)
        log_p = dist.Normal(jnp.zeros(2), 1.0).to_event(1).log_prob
        integrand = lambda z, q: (log_p(z) - q.log_prob(z), None)  # noqa: E731
        return DETACHING[name](jax.random.key(0), q, integrand, 1, estimators.mean_reduction()).bound

    # At q = p the gradient is zero for each sample.
    for grad in jax.jit(jax.grad(bound, argnums=(0, 1)))(jnp.zeros(2), jnp.ones(2)):
        np.testing.assert_allclose(grad, 0, atol=1e-6)
