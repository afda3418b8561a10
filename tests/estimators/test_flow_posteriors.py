"""A flow's own weights among the parameters: every estimator unbiased for them, against quadrature over its noise."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_unbiased, exact_model_gradient, in_float64, model_gradient

from vaejax import distributions, estimators, models, networks, objectives


def quadrature(params, x, vae, reduce, num_nodes):
    """The bound of two samples by Gauss-Hermite quadrature over the two latents of each, for two examples."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    noise = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 1, 2)
    mass = np.outer(weights, weights).reshape(-1) / weights.sum() ** 2
    q = vae.encode(params, x)
    z, log_q = q._bent(jnp.broadcast_to(noise, (len(noise), *q.shape())))
    log_p = distributions.log_prob(vae.decode(params, z), x) + distributions.log_prob(vae.prior(params), z)
    log_w = log_p - log_q  # (nodes^2, n)
    if reduce is None:  # the ELBO
        return (mass[:, None] * log_w).sum(axis=0).mean()
    pairs = reduce.bound(jnp.stack(jnp.broadcast_arrays(log_w[:, None], log_w[None])))
    return (mass[:, None, None] * mass[None, :, None] * pairs).sum(axis=(0, 1)).mean()


@pytest.fixture
def flow_problem(x64):
    """A linear decoder, and a flow that is bent enough to be no Gaussian, but smooth enough for quadrature."""
    vae = models.make_vae(
        networks.mlp(2, (), 6),
        networks.mlp(2, (), 2),
        data_shape=(2,),
        latent_dim=2,
        likelihood="gaussian_fixed_std",
        posterior=distributions.autoregressive_flow(2, 3),
    )
    params = in_float64(vae.init(jax.random.key(0)))
    for layer in params["encoder"]["head"].values():
        layer["output_kernel"] = 5 * layer["output_kernel"]
    return vae, params, jax.random.normal(jax.random.key(1), (2, 2))


CASES = {
    "pathwise": (estimators.pathwise(), 60_000),
    "sticking the landing": (estimators.sticking_the_landing(), 60_000),
    "doubly reparameterized": (estimators.doubly_reparameterized(), 60_000),
    "leave-one-out": (estimators.score_function("leave_one_out"), 200_000),
}


@pytest.mark.slow_for("elbo-sticking the landing", "iwae-doubly reparameterized", "iwae-pathwise")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["elbo", "iwae"])
def test_the_gradient_of_a_flow_is_unbiased(flow_problem, name, form):
    vae, params, x = flow_problem
    estimator, num_repeats = CASES[name]
    if form == "elbo":
        objective, reduce = objectives.make_elbo(vae, estimator, 2, kl="sampled"), None
    else:
        objective, reduce = objectives.make_iwae(vae, estimator, 2), estimators.log_mean_exp_reduction()
    exact = exact_model_gradient(jax.jit(lambda params: quadrature(params, x, vae, reduce, 20)), params)
    if form == "iwae" and name == "sticking the landing":
        with pytest.raises(AssertionError, match="biased: coordinate"):
            assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), num_repeats)
    else:
        assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), num_repeats)


@pytest.mark.slow
def test_a_flow_whose_score_is_not_dropped_fails_the_same_test(flow_problem):
    """The wrong one: log q of the weights as they are, at samples that are held fixed."""
    vae, params, x = flow_problem

    def wrong(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None):
        log_w, terms = estimators.over_samples(
            lambda key: integrand(jax.lax.stop_gradient(q.sample(key)), q), key, num_samples, chunk_size
        )
        return estimators.Estimate(reduce.bound(log_w), terms)

    exact = exact_model_gradient(jax.jit(lambda params: quadrature(params, x, vae, None, 20)), params)
    objective = objectives.make_elbo(vae, wrong, 1, kl="sampled")
    with pytest.raises(AssertionError, match="biased: coordinate"):
        assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 10_000)


def test_the_gradient_of_a_flow_is_unbiased_quickly(flow_problem):
    vae, params, x = flow_problem
    exact = exact_model_gradient(jax.jit(lambda params: quadrature(params, x, vae, None, 20)), params)
    objective = objectives.make_elbo(vae, estimators.sticking_the_landing(), 1, kl="sampled")
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 10_000)


@pytest.mark.slow
def test_the_quadrature_has_enough_nodes(flow_problem):
    vae, params, x = flow_problem
    reduce = estimators.log_mean_exp_reduction()
    for reduction, tolerance in ((None, 1e-5), (reduce, 1e-3)):
        few, many = (
            jax.flatten_util.ravel_pytree(
                jax.jit(jax.grad(lambda p, n=n, of=reduction: quadrature(p, x, vae, of, n)))(params)
            )[0]
            for n in (20, 32)
        )
        np.testing.assert_allclose(few, many, atol=tolerance * np.linalg.norm(many))


@pytest.mark.slow
def test_every_estimator_gives_a_flow_the_same_value(flow_problem):
    vae, params, x = flow_problem
    values = [
        float(jax.jit(objectives.make_iwae(vae, estimator, 4))(params, jax.random.key(3), x)[0])
        for estimator, _ in CASES.values()
    ]
    np.testing.assert_allclose(values, values[0], rtol=1e-9)
