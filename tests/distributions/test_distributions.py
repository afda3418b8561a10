import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vaejax import distributions

EXTREMES = (-1e4, -100.0, -88.8, -1.0, 0.0, 1e-8, 1.0, 88.8, 100.0, 1e4)


def event(head, *outputs):
    return head.apply(head.init(jax.random.key(0), outputs[0].shape), *outputs).to_event(1)


@settings(deadline=None)  # the first call compiles
@given(st.floats(-1e4, 1e4, width=32))
def test_bounded_log_std_is_bounded_and_increasing(raw):
    value, slope = jax.value_and_grad(distributions.bounded_log_std)(jnp.float32(raw))
    assert abs(value) <= distributions.LOG_STD_BOUND
    assert 0 <= slope <= 1


DATA = {  # of the likelihoods of other data than 0 and 1
    "beta": (1e-6, 0.3, 0.999999),
    "continuous_bernoulli": (0.0, 0.3, 1.0),
    "discretized_logistic_mixture": (0.0, 1.0, 128.0, 255.0),
    "categorical_pixels": (0.0, 255.0),
    **dict.fromkeys(("poisson", "negative_binomial", "zero_inflated_negative_binomial"), (0.0, 1.0, 17.0, 1e4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", sorted(distributions.LIKELIHOODS))
def test_likelihoods_are_finite_in_value_and_gradient(likelihood):
    head = distributions.likelihood_head(likelihood)
    number = head.outputs_for(())
    if number <= 3:
        grid = np.stack(np.meshgrid(*[EXTREMES] * number)).reshape(number, -1)
    else:
        grid = np.random.default_rng(0).choice(EXTREMES, (number, 300))
    outputs = tuple(jnp.asarray(row, jnp.float32) for row in grid)
    log_prob = jax.jit(jax.value_and_grad(lambda outputs, x: distributions.log_prob(event(head, *outputs), x)))
    for datum in DATA.get(likelihood, (0.0, 1.0)):
        x = jnp.full(grid.shape[1], datum)
        value, grads = log_prob(outputs, x)
        assert jnp.isfinite(value)
        assert all(jnp.isfinite(grad).all() for grad in grads)


def test_posterior_is_finite_in_sample_density_and_kl():
    grid = np.stack(np.meshgrid(EXTREMES, EXTREMES)).reshape(2, -1)
    head = distributions.gaussian()
    prior = dist.Normal(jnp.zeros(grid.shape[1]), jnp.ones(grid.shape[1])).to_event(1)

    def terms(outputs):
        q = event(head, *outputs)
        z = q.rsample(jax.random.key(1))
        return jnp.stack([q.log_prob(z), prior.log_prob(z), distributions.kl_divergence(q, prior), q.entropy()])

    outputs = tuple(jnp.asarray(row, jnp.float32) for row in grid)
    assert jnp.isfinite(terms(outputs)).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.jacrev(terms)(outputs))


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["bernoulli", "categorical"])
def test_discrete_posteriors_are_finite_in_density_kl_and_entropy(posterior):
    head = distributions.bernoulli() if posterior == "bernoulli" else distributions.categorical(3)
    grid = np.stack(np.meshgrid(*[EXTREMES] * head.num_outputs)).reshape(head.num_outputs, -1)
    prior = head.prior((grid.shape[1],), jnp.float32).to_event(1)

    def terms(outputs):
        q = event(head, *outputs)
        z = distributions.sample(q, jax.random.key(1))
        densities = [distributions.log_prob(of, z) for of in (q, prior)]
        return jnp.stack([*densities, distributions.kl_divergence(q, prior), distributions.entropy(q)])

    outputs = tuple(jnp.asarray(row, jnp.float32) for row in grid)
    assert jnp.isfinite(terms(outputs)).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.jacrev(terms)(outputs))


@pytest.mark.slow
def test_discrete_kl_and_entropy_equal_scipy(x64):
    logits = jax.random.normal(jax.random.key(0), (2, 5, 3))
    q = distributions.categorical(3).apply({}, *jnp.moveaxis(logits, -1, 0)).to_event(1)
    prior = distributions.categorical(3).prior((5,), jnp.float64).to_event(1)
    probabilities = np.asarray(jax.nn.softmax(logits))
    kl, entropy = distributions.kl_divergence(q, prior), distributions.entropy(q)
    np.testing.assert_allclose(kl, stats.entropy(probabilities, np.full(3, 1 / 3)[None, None], axis=-1).sum(axis=1))
    np.testing.assert_allclose(entropy, stats.entropy(probabilities, axis=-1).sum(axis=1))
    coins = dist.BernoulliLogits(logits[..., 0]).to_event(1)
    p = np.asarray(jax.nn.sigmoid(logits[..., 0]))
    fair = distributions.bernoulli().prior((5,), jnp.float64).to_event(1)
    expected = stats.entropy(np.stack([p, 1 - p]), np.full((2, 1, 1), 0.5), axis=0).sum(axis=1)
    np.testing.assert_allclose(distributions.kl_divergence(coins, fair), expected)


@pytest.mark.parametrize("num_categories", [1, 0, 2.0, True])
def test_a_category_needs_another(num_categories, no_type_hook):
    with pytest.raises(ValueError, match="num_categories must be an integer of at least 2; got"):
        distributions.categorical(num_categories)


def test_unknown_posterior_names_the_known(no_type_hook):
    with pytest.raises(
        ValueError,
        match=r"posterior must be 'gaussian', 'full_covariance', 'flow', 'bernoulli', .* 'point' or .*; got 'beta'",
    ):
        distributions.posterior_head("beta")


def test_bernoulli_log_prob_equals_scipy(x64):
    logits = jnp.linspace(-20, 20, 41)
    for x in (0.0, 1.0):
        expected = stats.bernoulli(1 / (1 + np.exp(-np.asarray(logits)))).logpmf(x)
        got = distributions.log_prob(distributions.bernoulli().apply({}, logits), jnp.full(41, x))
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_gaussian_heads_equal_scipy(x64):
    mean, raw, x = jnp.array([0.3, -2.0, 5.0]), jnp.array([-1.0, 0.0, 2.0]), jnp.array([1.0, 2.0, 3.0])
    std = np.exp(8 * np.tanh(np.asarray(raw) / 8))
    np.testing.assert_allclose(
        event(distributions.gaussian(), mean, raw).log_prob(x), stats.norm(mean, std).logpdf(x).sum(), rtol=1e-12
    )
    np.testing.assert_allclose(
        event(distributions.gaussian_fixed_std(0.1), mean).log_prob(x),
        stats.norm(mean, 0.1).logpdf(x).sum(),
        rtol=1e-12,
    )
    shared = distributions.gaussian_shared_std()
    q = shared.apply({"log_std": jnp.array(-1.0)}, mean).to_event(1)
    np.testing.assert_allclose(q.log_prob(x), stats.norm(mean, std[0]).logpdf(x).sum(), rtol=1e-12)


def test_kl_and_entropy_equal_quadrature(x64):
    q = dist.Normal(jnp.array([0.7]), jnp.array([0.4])).to_event(1)
    p = dist.Normal(jnp.zeros(1), jnp.ones(1)).to_event(1)
    grid = np.linspace(-8, 8, 200_001)
    density = stats.norm(0.7, 0.4).pdf(grid)
    entropy = -np.trapezoid(density * stats.norm(0.7, 0.4).logpdf(grid), grid)
    kl = -entropy - np.trapezoid(density * stats.norm(0, 1).logpdf(grid), grid)
    np.testing.assert_allclose(distributions.kl_divergence(q, p), kl, rtol=1e-9)
    np.testing.assert_allclose(distributions.entropy(q), entropy, rtol=1e-9)


def test_a_point_is_its_own_mean_and_sample_and_has_no_density():
    value = jnp.array([[0.5, -2.0, 3.0], [0.0, 1.0, 1e4]])
    q = event(distributions.point(), value)
    assert (q.batch_shape, q.event_shape) == ((2,), (3,))
    for code in (q.mean, distributions.center(q), distributions.sample(q, jax.random.key(0))):
        np.testing.assert_array_equal(code, value)
    normal = dist.Normal(value, 1.0).to_event(1)
    for ask in (
        lambda: distributions.log_prob(q, value),
        lambda: distributions.data_log_prob(q, value),
        lambda: distributions.entropy(q),
        lambda: distributions.kl_divergence(q, normal),
        lambda: distributions.kl_divergence(normal, q),
    ):
        with pytest.raises(ValueError, match=r"a distribution with a density; got a point mass, .* no ELBO and gives"):
            ask()
    prior = distributions.point().prior((3,), jnp.float32)  # codes drawn at random come from a standard normal
    np.testing.assert_allclose(distributions.log_prob(prior, jnp.zeros(3)), stats.norm.logpdf(np.zeros(3)), rtol=1e-6)


def test_kl_broadcasts_a_prior_over_the_batch():
    q = dist.Normal(jnp.ones((5, 3)), jnp.ones((5, 3))).to_event(1)
    p = dist.Normal(jnp.zeros(3), jnp.ones(3)).to_event(1)
    np.testing.assert_allclose(distributions.kl_divergence(q, p), np.full(5, 1.5), rtol=1e-6)


def test_kl_without_closed_form_names_the_sampled_one():
    q, p = dist.Normal(0.0, 1.0), dist.Laplace(0.0, 1.0)
    with pytest.raises(ValueError, match=r"none for q = Normal, p = Laplace; use kl='sampled'"):
        distributions.kl_divergence(q, p)


def test_entropy_without_closed_form_names_the_sampled_kl():
    with pytest.raises(ValueError, match="use kl='sampled'"):
        distributions.entropy(dist.Kumaraswamy(2.0, 3.0))


def test_grey_pixels_under_bernoulli_raise_and_are_nan_under_jit():
    p = dist.BernoulliLogits(jnp.zeros((2, 3))).to_event(1)
    x = jnp.array([[0.0, 1.0, 1.0], [0.0, 0.25, 0.5]])
    with pytest.raises(ValueError, match=r"got 2 others, the first at index \(1, 1\) with value 0.25. Binarize"):
        distributions.data_log_prob(p, x)
    traced = jax.jit(distributions.data_log_prob)(p, x)
    assert jnp.isfinite(traced[0])
    assert jnp.isnan(traced[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_are_not_finite_raise_with_count_and_index(bad):
    p = dist.Normal(jnp.zeros((2, 3)), jnp.ones((2, 3))).to_event(1)
    x = jnp.zeros((2, 3)).at[1, 2].set(bad)
    with pytest.raises(
        ValueError,
        match=r"expected finite data, got 1 NaN or infinite value of 6, the first (nan|inf) at index \(1, 2\)",
    ):
        distributions.data_log_prob(p, x)


def test_data_outside_another_support_raise():
    p = dist.Exponential(jnp.ones(3)).to_event(1)
    with pytest.raises(ValueError, match=r"support of the likelihood Exponential; got values from -1 to 2"):
        distributions.data_log_prob(p, jnp.array([-1.0, 0.5, 2.0]))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_fixed_std_must_be_positive(std):
    with pytest.raises(ValueError, match=r"std must be a number above 0; got .*: give it in the units of the data"):
        distributions.gaussian_fixed_std(std)


def test_unknown_likelihood_names_the_known():
    with pytest.raises(ValueError, match=r"must be 'bernoulli', .* or a distributions.Head; got 'exponential'"):
        distributions.likelihood_head("exponential")


@pytest.mark.quick_for("event_shape2")
@pytest.mark.parametrize("event_shape", [(), (6,), (2, 3), (2, 3, 1)])
def test_pixels_on_several_axes_are_summed(event_shape):
    """Of several samples z for one batch of data, and NaN for the example with a grey pixel alone."""
    logits = 3 * jax.random.normal(jax.random.key(0), (4, 5, *event_shape))
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (5, *event_shape)).astype(jnp.float32)
    p = distributions.BernoulliLogits(logits).to_event(len(event_shape))
    of_pixels = -np.logaddexp(0, np.where(x == 1, -1, 1) * np.asarray(logits, np.float64))
    expected = of_pixels.sum(axis=tuple(range(2, 2 + len(event_shape))))
    np.testing.assert_allclose(distributions.log_prob(p, x), expected, rtol=1e-5)
    grey = x.at[(1, *[0] * len(event_shape))].set(0.5)
    expected[:, 1] = np.nan
    np.testing.assert_allclose(jax.jit(distributions.data_log_prob)(p, grey), expected, rtol=1e-5)


@pytest.mark.quick_for("3.0-784", "3000.0-63")
@pytest.mark.parametrize("size", [784, 64, 63])
@pytest.mark.parametrize("height", [0.1, 3.0, 3000.0])
def test_a_vector_of_bits_is_the_sum_of_its_bits(size, height):
    """To float32's precision of the sum, also where each bit is nearly certain; and so are its derivatives."""
    logits = height * jax.random.normal(jax.random.key(0), (20, size))
    logits = logits.at[-1].set(20 + jnp.abs(logits[-1]))  # whose log-probability is about -1e-6
    x = (logits > 0).at[:10].set(jax.random.bernoulli(jax.random.key(1), 0.5, (10, size))).astype(jnp.float32)
    exact = -np.logaddexp(0, np.where(x == 1, -1, 1) * np.asarray(logits, np.float64))
    p = distributions.BernoulliLogits(logits)
    np.testing.assert_allclose(distributions.log_prob(p.to_event(1), x), exact.sum(-1), rtol=2e-6, atol=1e-37)

    def of_vector(logits):
        return distributions.BernoulliLogits(logits).log_prob_of_vector(x)

    def of_bits(logits):
        return distributions.BernoulliLogits(logits).log_prob(x).sum(-1)

    direction = jax.random.normal(jax.random.key(2), logits.shape)
    for derivative in (
        lambda f: jax.jvp(f, (logits,), (direction,))[1],
        lambda f: jax.grad(lambda logits: (f(logits) ** 2).sum())(logits),
        lambda f: jax.jvp(jax.grad(lambda logits: f(logits).sum()), (logits,), (direction,))[1],
    ):
        np.testing.assert_allclose(derivative(of_vector), derivative(of_bits), rtol=1e-4, atol=1e-5 * height)


def test_a_vector_of_bits_is_compiled_without_a_condition():
    p = distributions.BernoulliLogits(jnp.zeros((3, 784)))
    program = jax.jit(jax.value_and_grad(lambda p: p.log_prob_of_vector(jnp.ones(784)).sum()))
    assert " conditional(" not in program.lower(p).compile().as_text()


def test_a_vector_of_bits_in_float64_and_with_impossible_bits(x64):
    logits = 5 * jax.random.normal(jax.random.key(0), (3, 784), jnp.float64)
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (3, 784)).astype(jnp.float64)
    exact = -np.logaddexp(0, np.where(x == 1, -1, 1) * np.asarray(logits)).sum(-1)
    p = distributions.BernoulliLogits(logits)
    np.testing.assert_allclose(p.log_prob_of_vector(x), exact, rtol=1e-14)
    assert np.isnan(p.log_prob_of_vector(x.at[1, 700].set(0.5))).tolist() == [False, True, False]
    certain = distributions.BernoulliLogits(jnp.where(x == 1, jnp.inf, -jnp.inf), validate_args=False)
    assert certain.log_prob_of_vector(x).tolist() == [0.0, 0.0, 0.0]
    assert certain.log_prob_of_vector(x.at[1, 700].set(1 - x[1, 700])).tolist() == [0.0, -np.inf, 0.0]


def test_a_pixel_that_is_neither_zero_nor_one_spoils_the_gradient_too():
    logits, x = jnp.array([0.3, -2.0, 1.0, 100.0]), jnp.array([0.0, 0.5, 1.0, 1.0])

    def log_prob(logits, x):
        return distributions.BernoulliLogits(logits).log_prob(x).sum()

    of_logits, of_x = jax.grad(log_prob, (0, 1))(logits, x)
    np.testing.assert_allclose(of_logits, [-1 / (1 + np.exp(-0.3)), np.nan, 1 / (1 + np.e), 0.0], rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(of_x, logits)  # of x l - log(1 + e^l)
