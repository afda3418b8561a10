import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import in_float64

from vaejax import distributions, evaluation, models


@pytest.fixture
def small_problem():
    vae = models.mlp_vae((2, 2), 2, (5,))
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (7, 2, 2)).astype(jnp.float32)
    return vae, vae.init(jax.random.key(0)), x


def with_kernel(vae, params, kernel, log_std):
    """A linear encoder whose means are x times the kernel."""
    params = in_float64(params)
    params["encoder"]["network"]["layer_0"] = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(vae_dim(vae, params))}
    params["encoder"]["head"]["log_std"] = jnp.full(vae_dim(vae, params), log_std)
    return params


def vae_dim(vae, params):
    return vae.prior(params).event_shape


def test_active_units_are_those_that_the_data_move(x64):
    vae = models.linear_vae(data_dim=4, latent_dim=3)
    params = in_float64(vae.init(jax.random.key(0)))
    kernel = jnp.zeros((4, 3)).at[0, 0].set(1.0).at[1, 2].set(0.05)
    params["encoder"]["network"]["layer_0"]["kernel"] = kernel
    x = jax.random.normal(jax.random.key(1), (1000, 4))
    result = evaluation.active_units(vae, params, x, batch_size=64)
    np.testing.assert_allclose(result.variance, [x[:, 0].var(), 0.0, 0.0025 * x[:, 1].var()], rtol=1e-9, atol=1e-12)
    assert result.active.tolist() == [True, False, False]
    assert int(result.num_active) == 1
    assert int(evaluation.active_units(vae, params, x, threshold=0.001).num_active) == 2


def test_active_units_at_several_thresholds(small_problem):
    vae, params, x = small_problem
    sweep = evaluation.active_units(vae, params, x, threshold=jnp.array([1e-9, 1e-3, 1e3]))
    assert sweep.active.shape == (3, 2)
    assert sweep.num_active.tolist() == [
        int(evaluation.active_units(vae, params, x, threshold=t).num_active) for t in (1e-9, 1e-3, 1e3)
    ]
    assert sweep.num_active[0] == 2
    assert sweep.num_active[2] == 0
    with pytest.raises(ValueError, match="expected at least 2 examples; got 1"):
        evaluation.active_units(vae, params, x[:1])


def test_rate_and_distortion_are_the_parts_of_the_elbo(small_problem):
    vae, params, x = small_problem
    x = jnp.tile(x, (30, 1, 1))
    result = evaluation.rate_distortion(vae, params, jax.random.key(2), x, num_samples=200)
    elbo = evaluation.elbo(vae, params, jax.random.key(2), x, num_samples=200)
    kl = distributions.kl_divergence(vae.encode(params, x), vae.prior(params))
    np.testing.assert_allclose(result.rate, kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(result.rate_error, kl.std(ddof=1) / np.sqrt(len(x)), rtol=1e-4)
    np.testing.assert_allclose(result.distortion, -elbo.reconstruction.mean(), rtol=1e-5)
    q = vae.encode(params, x)
    per_unit = (0.5 * (q.mean**2 + q.variance) - 0.5 - 0.5 * jnp.log(q.variance)).mean(axis=0)
    np.testing.assert_allclose(result.rate_per_unit, per_unit, rtol=1e-4)


def test_rate_of_discrete_units_by_enumeration():
    vae = models.mlp_vae((2, 2), 3, (5,), posterior="bernoulli")
    params = vae.init(jax.random.key(0))
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (7, 2, 2)).astype(jnp.float32)
    result = evaluation.rate_distortion(vae, params, jax.random.key(2), x)
    p = jax.nn.sigmoid(distributions.without_wrappers(vae.encode(params, x)).logits)
    expected = (p * jnp.log(2 * p) + (1 - p) * jnp.log(2 * (1 - p))).mean(axis=0)
    np.testing.assert_allclose(result.rate_per_unit, expected, rtol=1e-4)


def test_a_kl_of_each_unit_needs_independent_units():
    joint = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(ValueError, match=r"numbers are independent.*got MultivariateNormal"):
        distributions.kl_per_unit(joint, joint)


def test_mutual_information_by_enumeration():
    """Of a latent of three coins: all 8 values for each of N examples, exactly."""
    vae = models.mlp_vae((2, 2), 3, (5,), posterior="bernoulli")
    params = jax.tree.map(lambda leaf: 3 * leaf, vae.init(jax.random.key(0)))
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (2000, 2, 2)).astype(jnp.float32)
    logits = np.asarray(distributions.without_wrappers(vae.encode(params, x)).logits, np.float64)
    values = np.array(list(itertools.product([0, 1], repeat=3)))
    log_q = -np.logaddexp(0, np.where(values[:, None] == 1, -logits, logits)).sum(axis=2)  # (8, n)
    mixture = np.exp(log_q).mean(axis=1)
    information = (np.exp(log_q) * (log_q - np.log(mixture)[:, None])).sum(axis=0).mean()
    kl = (mixture * np.log(8 * mixture)).sum()
    result = evaluation.aggregate_posterior(vae, params, jax.random.key(2), x, num_permutations=9)
    assert 0 < result.mutual_information_error < 0.1 * information
    assert abs(result.mutual_information - information) < 4 * result.mutual_information_error
    assert abs(result.kl_to_prior - kl) < 4 * result.kl_to_prior_error
    alone = evaluation.mutual_information(vae, params, jax.random.key(3), x)
    assert abs(alone.estimate - information) < 4 * alone.standard_error
    assert alone.num_examples == 2000


def test_mutual_information_of_latents_that_say_all_or_nothing(x64):
    vae = models.linear_vae(3, 2)
    init = vae.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (50, 3))
    collapsed = with_kernel(vae, init, np.zeros((3, 2)), 0.0)
    nothing = evaluation.aggregate_posterior(vae, collapsed, jax.random.key(2), x)
    np.testing.assert_allclose(nothing.mutual_information, 0, atol=1e-12)
    np.testing.assert_allclose(nothing.kl_to_prior, 0, atol=1e-12)
    np.testing.assert_allclose(nothing.mean_of_variances, 1, rtol=1e-12)
    assert nothing.p_value > 0.01
    sharp = with_kernel(vae, init, np.eye(3)[:, :2], -7.0)
    all_told = evaluation.mutual_information(vae, sharp, jax.random.key(2), x)
    np.testing.assert_allclose(all_told.estimate, np.log(50), rtol=1e-3)


def test_the_aggregate_posterior_of_many_gaussian_examples(x64):
    """For x ~ N(0, 1) and q = N(a x, s^2), q(z) = N(0, a^2 + s^2): all in closed form as N grows."""
    vae = models.linear_vae(1, 1)
    a, std = 1.5, 0.7
    params = with_kernel(vae, vae.init(jax.random.key(0)), [[a]], np.log(std))
    std = float(jnp.exp(distributions.bounded_log_std(jnp.log(std))))
    x = jax.random.normal(jax.random.key(1), (4000, 1))
    result = evaluation.aggregate_posterior(vae, params, jax.random.key(2), x, num_permutations=99)
    variance = a**2 + std**2
    information, kl = 0.5 * np.log(variance / std**2), 0.5 * (variance - 1 - np.log(variance))
    assert abs(result.mutual_information - information) < 5 * result.mutual_information_error
    assert abs(result.kl_to_prior - kl) < 5 * result.kl_to_prior_error
    assert result.mutual_information_error < 0.05 * information
    assert result.kl_to_prior_error < 0.1 * kl
    np.testing.assert_allclose(result.mean_of_squared_means, a**2 * (x**2).mean(), rtol=1e-9)
    np.testing.assert_allclose(result.mean_of_variances, std**2, rtol=1e-9)
    assert result.p_value == 0.01  # the least that 99 permutations can give
    assert result.energy_distance.estimate > 5 * result.energy_distance.standard_error


def test_chunks_change_nothing(small_problem):
    vae, params, x = small_problem
    for function in (evaluation.mutual_information, evaluation.rate_distortion):
        results = [function(vae, params, jax.random.key(2), x, batch_size=size) for size in (1, 3, 100)]
        chex.assert_trees_all_close(results[0], results[1], rtol=1e-5)
        chex.assert_trees_all_close(results[0], results[2], rtol=1e-5)
    means, variances = evaluation.posterior_moments(vae, params, x, 3)
    q = vae.encode(params, x)
    np.testing.assert_allclose(means, q.mean, rtol=1e-5)
    np.testing.assert_allclose(variances, q.variance, rtol=1e-5)
