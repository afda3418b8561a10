"""Likelihoods of pixels against scipy in float64, against sums and quadrature, and what they refuse."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from scipy import stats

from vaejax import distributions, evaluation, models, objectives

PIXELS = np.arange(256.0)


def mixture(key, batch=4, components=3):
    logits, means, raw = jax.random.normal(key, (3, batch, components))
    return distributions.DiscretizedLogisticMixture(logits, means, raw - 1.5)


def bins(p):
    """The probabilities of all 256 pixels by scipy, (256, batch)."""
    upper = (PIXELS + 0.5) / 127.5 - 1
    logistic = stats.logistic(np.asarray(p.means), np.exp(np.asarray(p.log_scales)))
    cdf = logistic.cdf(upper[:-1, None, None])
    of_components = np.concatenate([cdf[:1], np.diff(cdf, axis=0), 1 - cdf[-1:]])
    weights = np.exp(np.asarray(p.logits))
    return (of_components * weights / weights.sum(axis=-1, keepdims=True)).sum(axis=-1)


@pytest.mark.slow
def test_a_discretized_mixture_equals_scipy(x64):
    p = mixture(jax.random.key(0))
    log_p = distributions.log_prob(p, jnp.broadcast_to(PIXELS[:, None], (256, 4)))
    np.testing.assert_allclose(np.exp(log_p), bins(p), rtol=1e-7, atol=1e-13)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=0), 1, rtol=1e-12)
    mean = (PIXELS[:, None] * bins(p)).sum(axis=0)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(p.variance, ((PIXELS[:, None] - mean) ** 2 * bins(p)).sum(axis=0), rtol=1e-8)


@pytest.mark.parametrize("log_scale", [-8.0, 0.0, 8.0])
def test_a_discretized_mixture_sums_to_one_in_float32(log_scale):
    p = distributions.DiscretizedLogisticMixture(*(jnp.full((1, 1), value) for value in (0.0, 0.1, log_scale)))
    total = jax.nn.logsumexp(distributions.log_prob(p, jnp.arange(256.0)[:, None]), axis=0)
    np.testing.assert_allclose(total, 0, atol=3e-6)


def test_samples_of_a_discretized_mixture_fall_into_its_bins():
    p = mixture(jax.random.key(0), batch=1)
    samples = np.asarray(p.sample(jax.random.key(1), (100_000,)))[:, 0]
    counts, expected = np.bincount(samples, minlength=256), 100_000 * bins(p)[:, 0]
    common = expected > 20
    assert common.sum() > 50
    statistic = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert stats.chi2(common.sum()).sf(statistic) > 1e-4


@pytest.mark.slow
def test_categories_of_pixels_have_moments(x64):
    p = distributions.categorical_pixels().apply({}, *jax.random.normal(jax.random.key(0), (256, 4)))
    weights = np.exp(p.log_prob(jnp.arange(256)[:, None]))
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-12)
    mean = (PIXELS[:, None] * weights).sum(axis=0)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(p.variance, ((PIXELS[:, None] - mean) ** 2 * weights).sum(axis=0), rtol=1e-10)


LOGITS = (-200.0, -1.0001, -0.9999, -1e-2, -1e-6, 0.0, 1e-9, 1e-3, 0.5, 1.0, 7.0, 40.0, 1e4)


def exponential(logits):
    """Scipy's exponential cut at 1, whose density a falling continuous Bernoulli has."""
    return stats.truncexpon(b=abs(logits), scale=1 / abs(logits))


@pytest.mark.slow
def test_a_continuous_bernoulli_equals_scipy(x64):
    x = np.linspace(0.001, 0.999, 11)  # at the edges scipy's density is 0
    for logits in LOGITS:
        p = distributions.ContinuousBernoulli(jnp.array(logits))
        if abs(logits) < 1e-5:  # where scipy's own normalizer cancels: the first two terms of the series
            expected, mean, variance = logits * (x - 0.5), 0.5 + logits / 12, 1 / 12
        else:
            exact, mirrored = exponential(logits), x if logits < 0 else 1 - x
            expected, mean, variance = exact.logpdf(mirrored), exact.mean(), exact.var()
            mean = mean if logits < 0 else 1 - mean
        tolerance = 1e-11 if abs(logits) > 0.1 else 1e-7
        np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-9, atol=tolerance, err_msg=logits)
        np.testing.assert_allclose(p.mean, mean, rtol=1e-6, err_msg=logits)
        np.testing.assert_allclose(p.variance, variance, rtol=1e-5 if abs(logits) > 0.1 else 1e-2, err_msg=logits)
        edges = np.sort(np.concatenate([np.geomspace(1e-7, 0.5, 4000), 1 - np.geomspace(1e-7, 0.49, 4000), [0, 1]]))
        np.testing.assert_allclose(np.trapezoid(np.exp(p.log_prob(edges)), edges), 1, rtol=1e-4, err_msg=logits)


@pytest.mark.slow
def test_a_continuous_bernoulli_is_smooth_where_its_formulas_meet(x64):
    logits = jnp.array([0.999999, 1.000001, 0.0, 0.3, -5.0])
    jax.test_util.check_grads(
        lambda logits: distributions.ContinuousBernoulli(logits).log_prob(0.2), (logits,), order=2, modes=("rev",)
    )
    slopes = jax.vmap(jax.grad(lambda logits: distributions.ContinuousBernoulli(logits).log_prob(0.25)))(
        jnp.array([1e-7, 1e-12, 0.0])
    )
    np.testing.assert_allclose(slopes, -0.25, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("logits", [-30.0, -0.5, 1e-5, 3.0, 300.0])
def test_samples_of_a_continuous_bernoulli_have_its_moments(logits):
    p = distributions.ContinuousBernoulli(jnp.full(100_000, logits))
    samples = np.asarray(p.sample(jax.random.key(0)))
    assert (samples >= 0).all()
    assert (samples <= 1).all()
    assert abs(samples.mean() - p.mean[0]) < 5 * samples.std() / np.sqrt(100_000)
    np.testing.assert_allclose(samples.std(), np.sqrt(p.variance[0]), rtol=0.02)


def test_a_beta_equals_scipy(x64):
    raw1, raw0 = jax.random.normal(jax.random.key(0), (2, 5))
    p, x = distributions.beta().apply({}, raw1, raw0), np.linspace(0.01, 0.99, 5)
    exact = stats.beta(*(np.exp(8 * np.tanh(np.asarray(raw) / 8)) for raw in (raw1, raw0)))
    np.testing.assert_allclose(distributions.log_prob(p, x), exact.logpdf(x), rtol=1e-9)
    np.testing.assert_allclose(p.mean, exact.mean(), rtol=1e-12)


REFUSED = {
    "discretized_logistic_mixture": ((256.0, -1.0, 3.5), r"whole numbers from 0 to 255; got 1 others, .* \(1, 0\)"),
    "categorical_pixels": ((256.0, -1.0, 3.5), r"whole numbers from 0 to 255; got 1 others, .* \(1, 0\)"),
    "continuous_bernoulli": ((-0.1, 1.5), r"numbers in \[0, 1\]; got 1 others, the first at index \(1, 0\)"),
    "beta": ((0.0, 1.0, -0.5, 2.0), r"inside \(0, 1\); got 1 others, the first at index \(1, 0\).*off the edges"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_data_outside_the_support_are_refused(name):
    vae = models.mlp_vae((3,), 2, (4,), name)
    params, elbo = vae.init(jax.random.key(0)), objectives.make_elbo(vae)
    x = jnp.full((2, 3), 0.25) if name in ("beta", "continuous_bernoulli") else jnp.array([[0.0, 7, 255], [3, 4, 5]])
    assert jnp.isfinite(elbo(params, jax.random.key(1), x)[0])
    for value in REFUSED[name][0]:
        bad = x.at[1, 0].set(value)
        with pytest.raises(ValueError, match=REFUSED[name][1]):
            elbo(params, jax.random.key(1), bad)
    p = vae.decode(params, jnp.zeros((2, 2)))
    assert jnp.isnan(jax.jit(distributions.data_log_prob)(p, bad)).tolist() == [False, True]


@pytest.mark.quick_for("categorical_pixels")
@pytest.mark.parametrize("name", ["discretized_logistic_mixture", "categorical_pixels"])
def test_pixels_may_be_integers_and_are_scaled_for_the_encoder(name):
    head = distributions.likelihood_head(name)
    np.testing.assert_allclose(head.seen(jnp.array([0.0, 127.5, 255.0])), [-1, 0, 1], atol=1e-6)
    vae = models.mlp_vae((3,), 2, (4,), name)
    params, x = vae.init(jax.random.key(0)), jnp.array([[0, 7, 255], [3, 4, 5]])
    elbo = objectives.make_elbo(vae)
    values = [
        float(elbo(params, jax.random.key(1), x.astype(dtype))[0]) for dtype in (jnp.uint8, jnp.int32, jnp.float32)
    ]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)
    q = vae.encode(params, x)
    scaled = models.networks.mlp(3, (4,), 4).apply(params["encoder"]["network"], head.seen(x.astype(jnp.float32)))
    np.testing.assert_allclose(q.mean, scaled[:, :2], rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_of_categories_does_not_slice_them_apart():
    """Hundreds of slices, and the sum of their gradients, took ten times as long as the rest of a step."""
    head = distributions.categorical(30)  # as those of 256, in less time
    x, values = jnp.array([[0.0, 7.0, 29.0], [3.0, 4.0, 5.0]]), []
    for same in (head, head._replace(apply_stacked=None)):
        vae = models.mlp_vae((3,), 2, (4,), same)
        gradient = jax.value_and_grad(objectives.make_elbo(vae), has_aux=True)
        arguments = (vae.init(jax.random.key(0)), jax.random.key(1), x)
        values.append(jax.jit(gradient)(*arguments))
        sliced = str(jax.make_jaxpr(gradient)(*arguments)).count("slice")
        assert (sliced < 20) == (same is head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["discretized_logistic_mixture", "beta", "continuous_bernoulli"])
def test_convolutions_and_channels_serve_pixels(name):
    vae = models.conv_vae((4, 4, 3), 2, (2,), 4, likelihood=name)
    params = vae.init(jax.random.key(0))
    p = vae.decode(params, jnp.zeros((2, 2)))
    x = distributions.sample(p, jax.random.key(1))
    assert (p.event_shape, x.shape, p.mean.shape) == ((4, 4, 3), (2, 4, 4, 3), (2, 4, 4, 3))
    value, _ = jax.jit(objectives.make_elbo(vae))(params, jax.random.key(2), x)
    assert jnp.isfinite(value)


@pytest.mark.slow
def test_a_report_shows_what_pixels_lose():
    vae = models.mlp_vae((3,), 2, (4,), "discretized_logistic_mixture")
    params, x = vae.init(jax.random.key(0)), jnp.array([[0, 7, 255], [3, 4, 5], [200, 100, 0]])
    assert evaluation.variance_loss(vae, params, jax.random.key(1), x).noise > 0


@pytest.mark.parametrize("number", [0, 1.5, True])
def test_components_are_counted(number, no_type_hook):
    with pytest.raises(ValueError, match="num_components must be an integer of at least 1"):
        distributions.discretized_logistic_mixture(number)
    with pytest.raises(ValueError, match="channels must be 'first' or 'last'"):
        distributions.categorical_pixels("middle")
