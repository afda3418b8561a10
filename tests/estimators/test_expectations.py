import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import assert_unbiased
from scipy import stats

from vaejax import distributions, estimators

CONTINUOUS = {
    "pathwise": (estimators.pathwise(), 1),
    "sticking the landing": (estimators.sticking_the_landing(), 3),
    "doubly reparameterized": (estimators.doubly_reparameterized(), 3),
    "score function": (estimators.score_function(), 2),
    "leave-one-out": (estimators.score_function(baseline="leave_one_out"), 3),
    "moving average": (estimators.score_function(baseline="moving_average"), 2),
    "NVIL": (estimators.score_function(baseline="nvil"), 1),
    "VIMCO": (estimators.vimco(), 3),
    "measure-valued": (estimators.measure_valued(), 1),
}


def gaussian(params):
    return dist.Normal(params["mean"], jnp.exp(params["log_std"]))


def distance(params, z):
    """E = (mean - k)^2 + std^2 + scale sum over the two coordinates; depends on params directly, through k."""
    return ((z - params["k"]) ** 2).sum()


def exact_distance(params):
    return ((params["mean"] - params["k"]) ** 2 + jnp.exp(2 * params["log_std"])).sum()


@pytest.fixture
def params(x64):
    return {"mean": jnp.array([0.5, -1.0]), "log_std": jnp.array([-0.3, 0.2]), "k": jnp.array([1.0, 0.3])}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_gradient_is_unbiased_also_where_f_depends_on_the_parameters(params, name):
    estimator, num_samples = CONTINUOUS[name]
    function = estimators.expectation(estimator, gaussian, distance, num_samples)
    exact = jax.grad(exact_distance)(params)
    own = estimators.with_baseline(params, estimator, jax.random.key(1), jnp.zeros(1))
    own = jax.tree.map(lambda leaf: leaf.astype(float), own)

    def gradient(key):
        grads, _ = jax.grad(function, has_aux=True)(own, key)
        return {name: grads[name] for name in params}

    assert_unbiased(gradient, exact, jax.random.key(2), num_repeats=100_000)


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.45, 0.499])
def test_the_toy_of_one_coin(x64, target):
    def coin(logit):
        return dist.BernoulliLogits(logit)

    def f(logit, z):
        return (z.astype(float) - target) ** 2

    logit = jnp.array(0.3)
    p = jax.nn.sigmoid(logit)
    exact = p * (1 - p) * (1 - 2 * target)  # d/dlogit of p (1 - t)^2 + (1 - p) t^2
    enumerated = estimators.expectation(estimators.enumerate_support(), coin, f)
    grad, info = jax.grad(enumerated, has_aux=True)(logit, jax.random.key(0))
    np.testing.assert_allclose(grad, exact, rtol=1e-12)
    np.testing.assert_allclose(info.value, p * (1 - target) ** 2 + (1 - p) * target**2, rtol=1e-12)
    # The gradient is nearly zero at t = 0.499, which is the point of the toy; leave-one-out still sees it.
    sampled = estimators.expectation(estimators.score_function("leave_one_out"), coin, f, 10)
    assert_unbiased(lambda key: jax.grad(sampled, has_aux=True)(logit, key)[0], exact, jax.random.key(1), 100_000)


def test_several_axes_are_one_event(x64):
    """A batch of a matrix of normals and a full covariance: f sees the whole sample."""
    covariance = jnp.array([[1.0, 0.6], [0.6, 2.0]])

    def make(mean):
        return dist.MultivariateNormal(mean, covariance)

    function = estimators.expectation(estimators.pathwise(), make, lambda mean, z: (z**2).sum(), 100_000)
    mean = jnp.arange(6.0).reshape(3, 2)
    value, info = function(mean, jax.random.key(0))
    assert info.per_sample.shape == (100_000,)
    assert abs(value - ((mean**2).sum() + 9.0)) < 5 * info.standard_error
    assert info.standard_error < 0.1
    np.testing.assert_allclose(info.standard_error, stats.sem(info.per_sample), rtol=1e-10)


def test_one_sample_has_no_standard_error(params):
    _, info = estimators.expectation(estimators.pathwise(), gaussian, distance)(params, jax.random.key(0))
    assert np.isnan(info.standard_error)


def test_f_that_is_no_scalar_is_refused():
    function = estimators.expectation(estimators.pathwise(), lambda mean: dist.Normal(mean, 1.0), lambda mean, z: z)
    with pytest.raises(ValueError, match=r"expected a scalar from f\(params, z\), of shape \(\); got \(2,\)"):
        function(jnp.zeros(2), jax.random.key(0))


@pytest.mark.slow
def test_per_sample_gradients_are_those_of_single_samples(params):
    gradients = estimators.per_sample_gradients(estimators.score_function(), gaussian, distance, 5)
    many = jax.jit(gradients)(params, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, many) == {name: (5, 2) for name in params}
    (base,) = jax.random.split(jax.random.key(0), 1)
    single = estimators.expectation(estimators.score_function(), gaussian, distance)
    for k in range(5):
        one, _ = jax.grad(single, has_aux=True)(params, jax.random.fold_in(base, k))
        jax.tree.map(lambda many, one, k=k: np.testing.assert_allclose(many[k], one, rtol=1e-10), many, one)
    chunked = estimators.per_sample_gradients(estimators.score_function(), gaussian, distance, 5, chunk_size=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), many, jax.jit(chunked)(params, jax.random.key(0))
    )


def test_only_what_is_selected_of_per_sample_gradients_is_kept():
    def wide(params):
        return dist.Normal(params["mean"], jnp.exp(params["log_std"]))

    params = {"mean": jnp.zeros(1000), "log_std": jnp.zeros(1000)}
    f = lambda params, z: (z**2).sum()  # noqa: E731
    arguments = (estimators.pathwise(), wide, f, 512)
    everything = estimators.per_sample_gradients(*arguments, chunk_size=8)
    first = estimators.per_sample_gradients(*arguments, select=lambda grads: grads["mean"][0], chunk_size=8)
    assert jax.eval_shape(first, params, jax.random.key(0)).shape == (512,)
    memory = [
        jax.jit(function).lower(params, jax.random.key(0)).compile().memory_analysis()
        for function in (everything, first)
    ]
    held = [analysis.output_size_in_bytes + analysis.temp_size_in_bytes for analysis in memory]
    assert held[1] < held[0] / 20


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_delta_method_leaves_nothing_to_estimate_of_a_quadratic(x64, covariance):
    matrix = jnp.array([[1.0, 0.3], [0.3, 0.5]])

    def make(params):
        if covariance == "diagonal":
            return dist.Normal(params, jnp.array([0.5, 2.0]))
        return dist.MultivariateNormal(params, jnp.array([[0.25, 0.4], [0.4, 4.0]]))

    def f(params, z):
        return z @ matrix @ z + params[0] * z[1]

    params = jnp.array([0.7, -0.2])
    variate = estimators.delta_method(make, f)
    function = estimators.expectation(estimators.score_function(), make, f, 3, control_variate=variate)
    grad, info = jax.grad(function, has_aux=True)(params, jax.random.key(0))
    trace = (matrix * jnp.diag(jnp.array([0.25, 4.0]))).sum() + (0.0 if covariance == "diagonal" else 2 * 0.3 * 0.4)
    np.testing.assert_allclose(info.value, f(params, params) + trace, rtol=1e-12)
    np.testing.assert_allclose(grad, jax.grad(lambda params: f(params, params))(params), rtol=1e-10)
    np.testing.assert_allclose(info.per_sample, 0, atol=1e-12)


@pytest.mark.slow
def test_delta_method_lowers_the_variance_and_keeps_the_mean(x64):
    def make(params):
        return dist.Normal(params["mean"], jnp.exp(params["log_std"]))

    def f(params, z):
        return jnp.sin(z).sum()

    params = {"mean": jnp.array([0.5]), "log_std": jnp.array([-1.0])}
    variance = jnp.exp(2 * params["log_std"])
    exact = {
        "mean": jnp.cos(params["mean"]) * jnp.exp(-variance / 2),
        "log_std": -jnp.sin(params["mean"]) * jnp.exp(-variance / 2) * variance,
    }
    variances = []
    for variate in (None, estimators.delta_method(make, f)):
        function = estimators.expectation(estimators.score_function(), make, f, control_variate=variate)
        gradient = lambda key, of=function: jax.grad(of, has_aux=True)(params, key)[0]  # noqa: E731
        assert_unbiased(gradient, exact, jax.random.key(1), 100_000)
        draws = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(2), 10_000))
        variances.append(draws["mean"].var())
    assert variances[1] < variances[0] / 20


def test_a_custom_estimator_of_the_one_signature_is_enough():
    """A plain function comes in through the same door."""

    def antithetic(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None):
        z = q.rsample(key)
        mirrored = 2 * q.mean - z
        log_w, terms = jax.vmap(lambda z: integrand(z, q))(jnp.stack([z, mirrored]))
        return estimators.Estimate(reduce.bound(log_w), terms)

    function = estimators.expectation(antithetic, lambda mean: dist.Normal(mean, 1.0), lambda mean, z: 3 * z)
    grad, info = jax.grad(function, has_aux=True)(jnp.array(2.0), jax.random.key(0))
    assert grad == 3.0
    np.testing.assert_allclose(info.value, 6.0, rtol=1e-6)


def test_bernoulli_samples_come_as_numbers():
    assert distributions.sample(dist.BernoulliLogits(jnp.zeros(3)), jax.random.key(0)).dtype == jnp.int32
