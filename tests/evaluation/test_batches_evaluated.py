"""Evaluation and inference of batches with contexts or missing numbers, against closed forms and work by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import in_float64, linear_gaussian_arrays, with_exact_posterior
from scipy import stats

from vaejax import evaluation, inference, laboratory, models, objectives


def key(seed=3):
    return jax.random.key(seed)


@pytest.fixture
def missing(x64):
    """A linear model, data of which a third is NaN because it was not observed, and log p of the rest by scipy."""
    vae = models.linear_vae(4, 2)
    params = with_exact_posterior(in_float64(vae.init(jax.random.key(0))))
    mask = jax.random.bernoulli(jax.random.key(2), 0.7, (6, 4))
    x = jnp.where(mask, jax.random.normal(jax.random.key(1), (6, 4)), jnp.nan)
    *_, W, b, s = (np.asarray(array) for array in linear_gaussian_arrays(params))
    covariance = W.T @ W + s**2 * np.eye(4)
    exact = [
        stats.multivariate_normal(b[m], covariance[np.ix_(m, m)]).logpdf(row[m])
        for row, m in zip(np.asarray(x), np.asarray(mask), strict=True)
    ]
    return vae, params, models.Batch(x, mask=mask), np.array(exact)


@pytest.mark.slow
def test_log_p_of_the_observed_numbers(missing):
    vae, params, batch, exact = missing
    np.testing.assert_allclose(evaluation.linear_log_likelihood(vae, params, batch), exact, rtol=1e-10)
    grid = evaluation.quadrature_log_likelihood(vae, params, batch, 101)
    np.testing.assert_allclose(grid.estimate, exact, rtol=1e-8)
    sampled = evaluation.log_likelihood(vae, params, key(), batch, 4000)
    assert sampled.standard_error.max() < 0.05
    assert (abs(sampled.estimate - exact) < 4.5 * sampled.standard_error).all()


@pytest.mark.exhaustive
def test_other_ways_to_log_p_of_the_observed_numbers(missing):
    vae, params, batch, exact = missing
    naive = evaluation.log_likelihood_from_prior(vae, params, key(), batch, 20_000, chunk_size=2000)
    annealed = evaluation.annealed_log_likelihood(vae, params, key(), batch, 32, 100, num_leapfrog=3)
    for found in (naive, annealed):
        assert found.standard_error.max() < 0.2
        assert (abs(found.estimate - exact) < 4.5 * found.standard_error).all()
    bound = evaluation.elbo(vae, params, key(), batch, 1000)
    assert (bound.estimate < exact + 4 * bound.standard_error).all()


@pytest.mark.exhaustive
def test_the_posterior_of_the_latent_where_numbers_are_missing(missing):
    vae, params, batch, exact = missing
    *_, W, b, s = (np.asarray(array) for array in linear_gaussian_arrays(params))
    mask, rows = np.asarray(batch.mask), np.nan_to_num(np.asarray(batch.x))
    covariances = np.array([np.linalg.inv(np.eye(2) + (W * m) @ W.T / s**2) for m in mask])
    means = np.array([c @ (W * m) @ (r - b) / s**2 for c, m, r in zip(covariances, mask, rows, strict=True)])
    grid = evaluation.quadrature_posterior(vae, params, batch, 201)
    np.testing.assert_allclose(grid.mean, means, atol=1e-6)
    np.testing.assert_allclose(grid.covariance, covariances, atol=1e-6)
    fitted = inference.fit_posterior(vae, params, key(), batch, num_steps=1500)
    np.testing.assert_allclose(fitted.q.mean, means, atol=0.02)
    gap = inference.inference_gap(vae, params, key(), batch, num_steps=300, num_samples=1000)
    assert abs(gap.log_likelihood.estimate - exact.mean()) < 4 * gap.log_likelihood.error_over_samples
    drawn = inference.sample_posterior(vae, params, key(), jax.tree.map(lambda leaf: leaf[:2], batch), num_samples=500)
    np.testing.assert_allclose(drawn.mean, means[:2], atol=0.15)


@pytest.mark.exhaustive
def test_a_report_of_missing_numbers(missing):
    vae, params, batch, exact = missing
    result = evaluation.report(vae, params, key(), batch, num_samples=500)
    assert abs(result.log_likelihood.estimate - exact.mean()) < 4 * result.log_likelihood.error_over_samples
    assert result.num_examples == 6
    assert result.variance_loss is None
    assert evaluation.numbers(result)["latent_dim"] == 2
    with pytest.raises(ValueError, match="data without a mask"):
        evaluation.variance_loss(vae, params, key(), batch)
    with pytest.raises(ValueError, match=r"exact EM needs all numbers observed.*a mask"):
        inference.em(vae, params, batch, 2)


CONTEXT = jnp.broadcast_to(jnp.array([0.5, -1.0, 2.0]), (6, 3))


@pytest.fixture(scope="module")
def conditional():
    """A model with a context, the same for all examples; and the model in which it is part of the biases."""
    vae, plain = models.mlp_vae((5,), 2, (4,), context_shape=(3,)), models.mlp_vae((5,), 2, (4,))
    params = vae.init(jax.random.key(0))
    by_hand = dict(params)
    for part, size in (("encoder", 5), ("decoder", 2)):
        first = params[part]["network"]["layer_0"]
        bias = first["bias"] + CONTEXT[0] @ first["kernel"][size:]
        network = {**params[part]["network"], "layer_0": {"kernel": first["kernel"][:size], "bias": bias}}
        by_hand[part] = {**params[part], "network": network}
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (6, 5)).astype(jnp.float32)
    return (vae, params, models.Batch(x, CONTEXT)), (plain, by_hand, x)


FUNCTIONS = {
    "log_likelihood": lambda vae, params, x: evaluation.log_likelihood(vae, params, key(), x, 30),
    "log_likelihood_from": lambda vae, params, x: evaluation.log_likelihood_from(
        vae, params, key(), x, dist.Normal(jnp.zeros((6, 2)), jnp.ones((6, 2))).to_event(1), 30
    ),
    "sweep": lambda vae, params, x: evaluation.log_likelihood_sweep(vae, params, key(), x, (1, 30)),
    "elbo": lambda vae, params, x: evaluation.elbo(vae, params, key(), x, 30),
    "annealed": lambda vae, params, x: evaluation.annealed_log_likelihood(vae, params, key(), x, 2, 5, num_leapfrog=2),
    "quadrature": lambda vae, params, x: evaluation.quadrature_posterior(vae, params, x, 31),
    "rate_distortion": lambda vae, params, x: evaluation.rate_distortion(vae, params, key(), x),
    "active_units": evaluation.active_units,
    "mutual_information": lambda vae, params, x: evaluation.mutual_information(vae, params, key(), x),
    "aggregate_posterior": lambda vae, params, x: evaluation.aggregate_posterior(vae, params, key(), x),
    "variance_loss": lambda vae, params, x: evaluation.variance_loss(vae, params, key(), x),
    "fit_posterior": lambda vae, params, x: inference.fit_posterior(vae, params, key(), x, num_steps=5)[1:],
    "fit_shared_posterior": lambda vae, params, x: inference.fit_shared_posterior(vae, params, key(), x, num_steps=5)[
        1:
    ],
    "gradient_moments": lambda vae, params, x: laboratory.gradient_moments(
        objectives.make_elbo(vae), params, key(), x, 10
    ).mean["decoder"]["head"],
}


QUICK = ("log_likelihood", "quadrature", "rate_distortion")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_context_is_what_it_adds_to_the_first_layers(conditional, name):
    with_context, by_hand = (FUNCTIONS[name](*case) for case in conditional)
    for found, expected in zip(jax.tree.leaves(with_context), jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.exhaustive
def test_a_prior_of_each_context():
    """Log p(x|c) with z ~ N(c, 1): in closed form, and refused where one prior for all is needed."""
    plain = models.linear_vae(3, 1)
    params = plain.init(jax.random.key(0))

    def prior(params, context):
        return dist.Normal(context, 1.0).to_event(1)

    vae = plain._replace(
        encode=lambda params, x: plain.encode(params, x),
        decode=lambda params, z: plain.decode(params, z),
        prior=prior,
    )
    context, x = jnp.linspace(-2.0, 2.0, 5)[:, None], jax.random.normal(jax.random.key(1), (5, 3))
    batch = models.Batch(x, context)
    *_, W, b, s = (np.asarray(array, np.float64) for array in linear_gaussian_arrays(params))
    covariance = W.T @ W + s**2 * np.eye(3)
    exact = [stats.multivariate_normal(b + c @ W, covariance).logpdf(row) for c, row in zip(context, x, strict=True)]
    found = evaluation.log_likelihood(vae, params, key(), batch, 5000)
    assert (abs(found.estimate - np.array(exact)) < 4.5 * found.standard_error).all()
    assert found.standard_error.max() < 0.1
    rates = evaluation.rate_distortion(vae, params, key(), batch)
    q = plain.encode(params, x)
    by_hand = (0.5 * (q.variance + (q.mean - context) ** 2 - 1 - jnp.log(q.variance))).mean()
    assert float(rates.rate) == pytest.approx(float(by_hand), rel=1e-4)
    with pytest.raises(ValueError, match="one prior for all examples; got one for each context"):
        evaluation.aggregate_posterior(vae, params, key(), batch)
    with pytest.raises(ValueError, match="one prior for all examples; got one for each context"):
        evaluation.quadrature_log_likelihood(vae, params, batch, 31)
    assert evaluation.report(vae, params, key(), batch, 50).aggregate is None
