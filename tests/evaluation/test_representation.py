import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import in_float64
from scipy import stats

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


@pytest.mark.slow
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


@pytest.mark.exhaustive
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


@pytest.mark.slow
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


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
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


def test_the_moments_of_a_posterior(small_problem):
    vae, params, x = small_problem
    q = vae.encode(params, x)
    means, variances = evaluation.posterior_moments(vae, params, x)
    np.testing.assert_allclose(means, q.mean, rtol=1e-5)
    np.testing.assert_allclose(variances, q.variance, rtol=1e-5)
    np.testing.assert_allclose(evaluation.posterior_means(vae, params, x), q.mean, rtol=1e-5)


def test_a_unit_is_active_above_a_hundredth():
    vae = models.linear_vae(2, 2)
    params = vae.init(jax.random.key(0))
    params["encoder"]["network"]["layer_0"]["kernel"] = jnp.diag(jnp.array([0.15, 0.09]))  # variances 0.0225, 0.0081
    x = jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    assert evaluation.active_units(vae, params, x).active.tolist() == [True, False]


def test_the_error_of_the_distortion_is_over_examples(small_problem):
    """With the same key the distortions are the reconstructions of the ELBO: the error is their spread over x."""
    vae, params, x = small_problem
    found = evaluation.rate_distortion(vae, params, jax.random.key(2), x, num_samples=50)
    terms = np.asarray(evaluation.elbo(vae, params, jax.random.key(2), x, num_samples=50).reconstruction)
    assert float(found.distortion_error) == pytest.approx(terms.std(ddof=1) / np.sqrt(len(x)), rel=1e-3)


def structured(prior, covariance):
    """A linear model whose q has full covariance, and another prior."""
    plain = models.linear_vae(3, 2)
    params = plain.init(jax.random.key(0))

    def encode(params, x):
        mean = plain.encode(params, x).mean
        return dist.MultivariateNormal(mean, jnp.broadcast_to(covariance, (*mean.shape, 2)))

    return plain._replace(encode=encode, prior=lambda params: prior), params, plain


COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]], np.float32)
MIXTURE = dist.MixtureSameFamily(
    dist.Categorical(probs=jnp.array([0.3, 0.7])),
    dist.Normal(jnp.array([[-1.0, 0.0], [1.0, 0.5]]), jnp.ones((2, 2))).to_event(1),
)


def test_the_rate_of_dependent_units_and_of_a_mixture_prior():
    """Against 400,000 samples in float64 of scipy; per unit it means nothing."""
    vae, params, plain = structured(MIXTURE, COVARIANCE)
    x = jax.random.normal(jax.random.key(1), (40, 3))
    found = evaluation.rate_distortion(vae, params, jax.random.key(2), x, num_samples=1000)
    assert found.rate_per_unit is None
    means, rng = np.asarray(plain.encode(params, x).mean, np.float64), np.random.default_rng(0)
    noise = rng.multivariate_normal(np.zeros(2), COVARIANCE.astype(np.float64), 10_000)
    z = means[:, None] + noise[None]
    log_q = stats.multivariate_normal(np.zeros(2), COVARIANCE).logpdf(noise)
    parts = [stats.multivariate_normal(m, np.eye(2)).pdf(z) for m in ([-1.0, 0.0], [1.0, 0.5])]
    rates = (log_q[None] - np.log(0.3 * parts[0] + 0.7 * parts[1])).mean(axis=1)
    assert float(found.rate) == pytest.approx(rates.mean(), abs=0.03)
    assert float(found.rate_error) == pytest.approx(rates.std(ddof=1) / np.sqrt(40), rel=0.2)


@pytest.mark.exhaustive
def test_a_report_of_dependent_units_and_of_a_mixture_prior():
    vae, params, _ = structured(MIXTURE, COVARIANCE)
    x = jax.random.normal(jax.random.key(1), (40, 3))
    report = evaluation.report(vae, params, jax.random.key(2), x, num_samples=100)
    assert evaluation.numbers(report)["latent_dim"] == 2
    assert "units active" in evaluation.in_words(report)
    np.testing.assert_allclose(report.aggregate.mean_of_variances, np.diag(COVARIANCE), rtol=1e-5)
    sampled = report.aggregate.mutual_information + report.aggregate.kl_to_prior
    assert abs(sampled - report.rate_distortion.rate) < 0.5
    annealed = evaluation.annealed_log_likelihood(vae, params, jax.random.key(3), x[:5], 16, 50, num_leapfrog=3)
    naive = evaluation.log_likelihood_from_prior(vae, params, jax.random.key(4), x[:5], 20_000, chunk_size=2000)
    error = np.hypot(annealed.standard_error, naive.standard_error)
    assert (abs(annealed.estimate - naive.estimate) < 4.5 * error).all()


@pytest.mark.exhaustive
def test_active_units_of_a_q_without_moments_are_sampled():
    """A skewed q, of exp: a closed form for its density, and none for its mean."""
    vae, params, plain = structured(dist.Normal(jnp.zeros(2), 1.0).to_event(1), COVARIANCE)
    power = dist.transforms.PowerTransform(3.0)

    def encode(params, x):
        base = dist.LogNormal(plain.encode(params, x).mean, 0.5)
        return dist.TransformedDistribution(base, power).to_event(1)

    skewed = vae._replace(encode=encode)
    x = jax.random.normal(jax.random.key(1), (10, 3))
    with pytest.raises(ValueError, match="no mean in closed form"):
        evaluation.active_units(skewed, params, x)
    report = evaluation.report(skewed, params, jax.random.key(2), x, num_samples=30)
    assert report.units.variance.shape == (2,)
    assert report.aggregate.mean is None
    assert "active" in evaluation.in_words(report)
