"""Do 95% intervals hold the exact answer in 95% of 400 repeats? Of a linear model whose q is the best of its family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import linear_log_likelihood
from scipy import stats

from vaejax import distributions, evaluation, inference, models
from vaejax.evaluation import estimates

REPEATS = 400


def best_of_independent_units(correlation):
    """A linear VAE of two latents that are correlated in the posterior, and the Gaussian q of highest ELBO.

    Its units are independent, so it is too narrow along the diagonal: the weights have the Pareto index `correlation`.
    """
    vae = models.linear_vae(data_dim=3, latent_dim=2)
    params = vae.init(jax.random.key(0))
    params["decoder"]["head"]["log_std"] = distributions.unbounded_log_std(jnp.zeros(()))
    cosine = 5 / 4 * correlation  # with rows of length 2 and noise of variance 1 the precision is 5 on its diagonal
    W = 2 * np.array([[1.0, 0.0, 0.0], [cosine, np.sqrt(1 - cosine**2), 0.0]])
    precision = np.eye(2) + W @ W.T
    encoder = {"kernel": W.T @ np.linalg.inv(precision), "bias": np.zeros(2)}
    params["encoder"]["network"]["layer_0"] = encoder
    params["decoder"]["network"]["layer_0"] = {"kernel": W, "bias": np.zeros(3)}
    params["encoder"]["head"]["log_std"] = distributions.unbounded_log_std(-0.5 * jnp.log(jnp.diagonal(precision)))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return vae, params, jax.random.normal(jax.random.key(1), (100, 3))


def errors_of_repeats(correlation, num_samples, num_examples):
    """Averages of log p(x) for 400 keys minus the exact one, their stated error, and the error without the bias."""
    vae, params, x = best_of_independent_units(correlation)
    x = x[:num_examples]

    @jax.jit
    def one(key):
        result = evaluation.log_likelihood(vae, params, key, x, num_samples, chunk_size=num_samples)
        without = result._replace(half_estimate=None)
        return *evaluation.average(result), result.bias.mean(), evaluation.average(without).error_over_samples

    estimate, _, error, bias, noise = map(np.asarray, jax.lax.map(one, jax.random.split(jax.random.key(2), REPEATS)))
    return estimate - linear_log_likelihood(params, x).mean(), error, noise, bias


def coverage(off, error):
    return np.mean(np.abs(off) < 1.96 * error)


@pytest.mark.slow
def test_the_mean_log_likelihood_after_elbo_training(no_type_hook):
    """Weights of Pareto index 0.5: the error that does not know of the bias covers 0.86."""
    off, error, noise, bias = errors_of_repeats(0.5, 100, 80)
    assert 0.92 <= coverage(off, error) <= 0.98
    assert coverage(off, noise) < 0.9
    assert off.mean() < -5 * off.std(ddof=1) / np.sqrt(REPEATS)
    assert bias.mean() < off.mean()  # not smaller than the true one


@pytest.mark.exhaustive
@pytest.mark.parametrize(("correlation", "num_samples", "without"), [(0.3, 100, 0.96), (0.7, 1000, 0.7)])
def test_the_mean_log_likelihood_for_other_tails(correlation, num_samples, without):
    off, error, noise, _ = errors_of_repeats(correlation, num_samples, 100)
    assert 0.92 <= coverage(off, error) <= 0.98
    assert coverage(off, noise) < without


@pytest.mark.slow
def test_the_bias_of_the_log_of_a_mean(x64):
    """Of weights with few values, the exact bias by the binomial law, for K even and odd."""
    values, chance = np.array([1.0, 4.0]), 0.3
    for number in (10, 11):
        counts = np.arange(number + 1)
        log_means = np.log((counts * values[1] + (number - counts) * values[0]) / number)
        exact = stats.binom(number, chance).pmf(counts) @ log_means - np.log(
            chance * values[1] + (1 - chance) * values[0]
        )
        picked = jax.random.bernoulli(jax.random.key(number), chance, (30_000, number))
        log_w = jnp.log(jnp.where(picked, values[1], values[0]))
        whole, _, _ = estimates.log_mean_weight(log_w)
        of_half = estimates.log_mean_weight_of_half(log_w)
        found = np.asarray(evaluation.bias_of_log_mean(whole, of_half, number))
        error = found.std(ddof=1) / np.sqrt(len(found))
        assert error < 0.03 * abs(exact)
        assert abs(found.mean() - exact) < 0.15 * abs(exact)  # of the next order in 1 / K
    assert jnp.isnan(estimates.log_mean_weight_of_half(log_w[:, :1])).all()


def test_the_error_of_a_mean_holds_the_bias():
    means, errors, biases = np.array([-1.0, -2.0, -6.0]), np.array([0.1, 0.2, 0.2]), np.array([-0.3, -0.1, -0.2])
    record = evaluation.LogLikelihood(
        *map(jnp.asarray, (means, errors, means, np.full(3, 2 / 3))), 8, jnp.asarray(means + biases * (2**0.5 - 1))
    )
    np.testing.assert_allclose(record.bias, biases, rtol=1e-5)
    assert float(evaluation.average(record).error_over_samples) == pytest.approx(
        np.sqrt(0.1**2 + 0.2**2 + 0.1**2 / 3), rel=1e-5
    )
    without = record._replace(half_estimate=None)
    assert float(evaluation.average(without).error_over_samples) == pytest.approx(0.1, rel=1e-5)
    one = jax.tree.map(lambda leaf: leaf[:1] if jnp.ndim(leaf) else leaf, record)
    assert float(evaluation.average(one).error_over_samples) == pytest.approx(np.hypot(0.1, 0.3), rel=1e-5)
    assert jnp.isnan(evaluation.average(one).error_over_data)


@pytest.mark.parametrize("std", [pytest.param(0.05, marks=pytest.mark.slow), 1.0])
@pytest.mark.slow
def test_the_errors_of_large_images_hold_the_rounding(std):
    """196,608 numbers in float32: a log density of 300,000 has no digit below 0.03. The oracle is float64."""
    size, rng = 256 * 256 * 3, np.random.default_rng(0)
    vae = models.linear_vae(size, 1)
    params = vae.init(jax.random.key(0))
    raw = distributions.unbounded_log_std(jnp.float32(np.log(std)))
    W = np.asarray(rng.standard_normal((1, size)) * 2 * std / np.sqrt(size), np.float32)
    params["decoder"] = {
        "network": {"layer_0": {"kernel": jnp.asarray(W), "bias": jnp.zeros(size)}},
        "head": {"log_std": raw},
    }
    params = inference.with_exact_posterior(vae, params)
    x = np.asarray(rng.standard_normal((6, 1)) @ W + std * rng.standard_normal((6, size)), np.float32)
    settings = {"batch_size": 2, "chunk_size": 10}
    result = evaluation.log_likelihood(vae, params, jax.random.key(1), x, 30, **settings)
    bound = evaluation.elbo(vae, params, jax.random.key(1), x, 30, **settings)
    W, scale = W.astype(np.float64)[0], float(np.exp(np.float64(distributions.bounded_log_std(raw))))
    rows = x.astype(np.float64) / scale
    precision = 1 + W @ W / scale**2
    squares = (rows**2).sum(axis=1) - (rows @ W / scale) ** 2 / precision
    exact = -0.5 * (squares + np.log(precision) + size * np.log(2 * np.pi * scale**2))
    for found in (result, bound):
        assert (np.abs(np.asarray(found.estimate, np.float64) - exact) < 3 * np.asarray(found.standard_error)).all()
        assert np.asarray(found.standard_error).max() < 0.1
        mean = evaluation.average(found)
        assert abs(np.asarray(found.estimate, np.float64).mean() - exact.mean()) < 3 * mean.error_over_samples
