"""Likelihoods of counts against scipy, against sums, and with a library size from the batch's context."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special, stats

from vaejax import distributions, evaluation, models, objectives

NAMES = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")
K = np.concatenate([np.arange(30), [100, 999, 10_000, 1_000_000]]).astype(float)


def scipys(mean, concentration=None, odds=None):
    """The log-probabilities of K by scipy."""
    if concentration is None:
        return stats.poisson(mean).logpmf(K)
    counted = stats.nbinom(concentration, concentration / (concentration + mean)).logpmf(K)
    if odds is None:
        return counted
    counted = counted + special.log_expit(-odds)
    return np.where(K == 0, np.logaddexp(special.log_expit(odds), counted), counted)


def ours(mean, concentration=None, odds=None, dtype=jnp.float64):
    logs = [jnp.asarray(np.log(part), dtype) for part in (mean, concentration) if part is not None]
    if concentration is None:
        return distributions.Poisson(*logs)
    if odds is None:
        return distributions.NegativeBinomial(*logs)
    return distributions.ZeroInflatedNegativeBinomial(*logs, jnp.asarray(odds, dtype))


CASES = [
    (0.3,),
    (17.0,),
    (9e3,),
    *((mean, r) for mean in (0.01, 3.0, 900.0) for r in (4e-4, 0.7, 16.0, 2900.0)),
    (3.0, 0.7, -1.5),
    (900.0, 20.0, 4.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts_equal_scipy(x64, case):
    np.testing.assert_allclose(distributions.log_prob(ours(*case), K), scipys(*case), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [(17.0,), (9e3,), (3.0, 0.7), (9e3, 2900.0), (900.0, 20.0, 0.0)], ids=str)
def test_counts_keep_their_digits_in_float32(case):
    mean = case[0]
    near = [float(round(mean + away * np.sqrt(mean))) for away in (-2, 0, 1, 3)]
    p = ours(*case, dtype=jnp.float32)
    logs = [p.log_rate] if len(case) == 1 else [p.log_rate, p.log_concentration]
    rounded = [float(np.exp(np.float64(part))) for part in logs]
    expected = [_exact(k, rounded, case[2:]) for k in near]
    # The three terms of the usual formula, of size 80,000 at a count of 9,000, would lose 5e-3 and more.
    np.testing.assert_allclose(distributions.log_prob(p, jnp.array(near)), expected, atol=5e-4)


def _exact(k, parameters, odds):
    mean, *rest = parameters
    if not rest:
        return stats.poisson(mean).logpmf(k)
    (r,) = rest
    counted = stats.nbinom(r, r / (r + mean)).logpmf(k)
    return counted + special.log_expit(-odds[0]) if odds else counted


@pytest.mark.parametrize("case", [(17.0,), (3.0, 0.7), (40.0, 5.0), (3.0, 0.7, 0.5)], ids=str)
def test_counts_sum_to_one_and_have_their_moments(x64, case):
    p, k = ours(*case), np.arange(2000.0)
    probabilities = np.exp(distributions.log_prob(p, k))
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-10)
    mean = (probabilities * k).sum()
    np.testing.assert_allclose(p.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(p.variance, (probabilities * (k - mean) ** 2).sum(), rtol=1e-9)


@pytest.mark.quick_for("(17.0,)")
@pytest.mark.parametrize("case", [(17.0,), (3.0, 0.7), (30.0, 5.0, 0.5)], ids=str)
def test_samples_of_counts_have_their_moments(case):
    p = ours(*case, dtype=jnp.float32).expand((100_000,))
    samples = np.asarray(p.sample(jax.random.key(0)), float)
    assert (samples == np.round(samples)).all()
    assert abs(samples.mean() - p.mean[0]) < 5 * samples.std() / np.sqrt(100_000)
    error = np.sqrt(((samples - samples.mean()) ** 2).var() / 100_000)
    assert abs(samples.var() - p.variance[0]) < 5 * error


@pytest.mark.slow
@pytest.mark.parametrize("case", [(3.0, 0.7), (3.0, 1000.0, 0.5), (17.0,)], ids=str)
def test_gradients_of_counts_equal_differences(x64, case):
    def value(parts):
        p = ours(*[1.0] * min(len(case), 2), *case[2:])
        p = jax.tree.unflatten(jax.tree.structure(p), parts)
        return distributions.log_prob(p, jnp.array([0.0, 1.0, 5.0, 40.0])).sum()

    jax.test_util.check_grads(value, (jax.tree.leaves(ours(*case)),), order=1, modes=("rev",), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_data_that_are_no_counts_are_refused(name):
    vae = models.mlp_vae((3,), 2, (4,), name)
    params, elbo = vae.init(jax.random.key(0)), objectives.make_elbo(vae)
    x = jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 400.0]])
    whole, floating = (elbo(params, jax.random.key(1), data)[0] for data in (x.astype(jnp.int32), x))
    assert jnp.isfinite(whole)
    np.testing.assert_allclose(whole, floating, rtol=1e-6)
    for value in (0.5, -1.0):
        bad = x.at[1, 0].set(value)
        with pytest.raises(
            ValueError, match=rf"whole numbers of at least 0; got 1 others, .* \(1, 0\) with .* {value:.4g}"
        ):
            elbo(params, jax.random.key(1), bad)
    p = vae.decode(params, jnp.zeros((2, 2)))
    assert jnp.isnan(jax.jit(distributions.data_log_prob)(p, bad)).tolist() == [False, True]


@pytest.mark.quick_for("negative_binomial")
@pytest.mark.parametrize("head", ["poisson", "negative_binomial", "zero_inflated_negative_binomial"])
def test_rates_are_shares_of_the_library_size(head):
    likelihood = getattr(distributions, head)(library=True)
    vae = models.mlp_vae((2, 3), 2, (4,), likelihood, context_shape=(1,))
    params, z = vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 2))
    sizes = jnp.array([[10.0], [100.0], [1.0], [20.0], [30.0]])
    p = distributions.family_of(vae.decode(params, z, jnp.log(sizes)))
    np.testing.assert_allclose(jnp.exp(p.log_rate).sum(axis=(1, 2)), sizes[:, 0], rtol=1e-5)
    several = vae.decode(params, jnp.stack([z, z]), jnp.log(sizes))
    assert (several.batch_shape, several.event_shape) == ((2, 5), (2, 3))
    np.testing.assert_allclose(distributions.family_of(several).log_rate[1], p.log_rate, rtol=1e-6)


@pytest.mark.slow
def test_a_library_size_reaches_objective_and_evaluation():
    vae = models.mlp_vae((3,), 2, (4,), distributions.negative_binomial(library=True), context_shape=(1,))
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 30.0, 10.0], [2.0, 0.0, 400.0]])
    batch = models.Batch(x, context=jnp.log(x.sum(axis=1, keepdims=True)))
    grads, info = jax.jit(jax.grad(objectives.make_elbo(vae), has_aux=True))(params, jax.random.key(1), batch)
    assert jnp.isfinite(info.elbo)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    result = evaluation.log_likelihood(vae, params, jax.random.key(2), batch, 100)
    assert jnp.isfinite(result.estimate).all()
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 1\)"):
        objectives.make_elbo(vae)(params, jax.random.key(1), x)


def test_a_library_size_needs_a_context():
    with pytest.raises(ValueError, match=r"expected a context_shape, .*library=True do: context_shape=\(1,\)"):
        models.mlp_vae((3,), 2, (4,), distributions.poisson(library=True))


def test_an_encoder_sees_the_logarithms_of_counts():
    seen = []

    def apply(params, x):
        seen.append(x)
        return jnp.zeros((len(x), 4))

    vae = models.make_vae(
        (lambda key: {}, apply), models.networks.mlp(2, (), 3), data_shape=(3,), latent_dim=2, likelihood="poisson"
    )
    params, x = vae.init(jax.random.key(0)), jnp.array([[0, 3, 1000]])
    vae.encode(params, x)
    np.testing.assert_allclose(seen[-1], np.log1p([[0, 3, 1000]]), rtol=1e-6)


@pytest.mark.slow
def test_counts_may_be_missing():
    vae = models.mlp_vae((3,), 2, (4,), "negative_binomial")
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 3.0, 1.0], [2.0, jnp.nan, 4.0]])
    batch = models.Batch(x, mask=jnp.isfinite(x))
    value, info = objectives.make_elbo(vae)(params, jax.random.key(1), batch)
    assert jnp.isfinite(value)
    p = vae.decode(params, jnp.zeros((2, 2)))
    alone = distributions.without_wrappers(p).log_prob(jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 4.0]]))
    masked = models.given(vae, batch)[0].decode(params, jnp.zeros((2, 2)))
    np.testing.assert_allclose(
        distributions.log_prob(masked, jnp.nan_to_num(x)), [alone[0].sum(), alone[1, 0] + alone[1, 2]], rtol=1e-5
    )
    assert isinstance(distributions.family_of(masked), dist.Distribution)
    assert info.per_example.shape == (2,)
