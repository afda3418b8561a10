import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import in_float64, linear_gaussian_arrays, linear_log_likelihood

from vaejax import autoencoders, distributions, evaluation, models


def test_the_linear_model_in_closed_form(x64):
    vae = models.linear_vae((2, 3), latent_dim=2)
    params = in_float64(vae.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (2, 5, 2, 3))
    for raw in (-6.0, 0.0, 3.0):
        params["decoder"]["head"]["log_std"] = jnp.array(raw)
        exact = linear_log_likelihood(params, x.reshape(10, 6)).reshape(2, 5)
        np.testing.assert_allclose(evaluation.linear_log_likelihood(vae, params, x), exact, rtol=1e-10)
    assert evaluation.linear_log_likelihood(vae, params, x[0, 0]).shape == ()


def test_the_linear_model_of_a_std_for_each_pixel(x64):
    """Where the noise differs from pixel to pixel (factor analysis) it is not x that has the latent's covariance."""
    head = distributions.gaussian_shared_std((3,))
    vae = models.linear_vae(3, 2, head)
    params = in_float64(vae.init(jax.random.key(0)))
    params["decoder"]["head"]["log_std"] = jnp.array([-1.0, 0.5, 2.0])
    x = jax.random.normal(jax.random.key(1), (4, 3))
    W = np.asarray(params["decoder"]["network"]["layer_0"]["kernel"])
    std = np.exp(np.asarray(distributions.bounded_log_std(params["decoder"]["head"]["log_std"])))
    from scipy import stats

    exact = stats.multivariate_normal(np.zeros(3), W.T @ W + np.diag(std**2)).logpdf(np.asarray(x))
    np.testing.assert_allclose(evaluation.linear_log_likelihood(vae, params, x), exact, rtol=1e-10)


@pytest.mark.slow
def test_the_linear_model_of_greatest_likelihood(x64):
    """Probabilistic PCA's own log p(x), which is computed from an eigendecomposition instead."""
    x = jax.random.normal(jax.random.key(0), (50, 4)) * jnp.array([[3.0, 2.0, 1.0, 0.5]])
    exact = autoencoders.pca(x, 2)
    vae = models.linear_vae(4, 2)
    params = in_float64(vae.init(jax.random.key(1)))
    scale = jnp.sqrt(exact.explained_variance - exact.noise_variance)
    params["decoder"]["network"]["layer_0"] = {"kernel": scale[:, None] * exact.components, "bias": exact.mean}
    log_std = 0.5 * jnp.log(exact.noise_variance)
    bound = distributions.LOG_STD_BOUND
    params["decoder"]["head"]["log_std"] = bound * jnp.arctanh(log_std / bound)
    np.testing.assert_allclose(evaluation.linear_log_likelihood(vae, params, x), exact.log_likelihood(x), rtol=1e-10)


def test_what_is_not_linear_is_refused():
    x = jnp.ones((2, 4))
    for vae, words in (
        (models.mlp_vae((4,), 2, (3,), "gaussian_shared_std"), "expected a linear network"),
        (models.linear_vae(4, 2, "bernoulli"), "std does not depend on z.*got Bernoulli"),
        (models.linear_vae(4, 2, "gaussian"), "std does not depend on z"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluation.linear_log_likelihood(vae, vae.init(jax.random.key(0)), x)


@pytest.mark.slow
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quadrature_is_the_closed_form(latent_dim, x64):
    vae = models.linear_vae(data_dim=4, latent_dim=latent_dim)
    params = in_float64(vae.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    result = evaluation.quadrature_log_likelihood(vae, params, x, 101, chunk_size=30, batch_size=4)
    exact = linear_log_likelihood(params, x.reshape(6, 4)).reshape(2, 3)
    np.testing.assert_allclose(result.estimate, exact, rtol=1e-10)
    assert result.num_nodes == 101
    assert result.error.max() < 1e-6
    # Where p(x|z) is narrower than the nodes are apart, the error says so.
    params["decoder"]["head"]["log_std"] = jnp.array(-4.0)
    narrow = evaluation.quadrature_log_likelihood(vae, params, x, 101)
    off = np.abs(narrow.estimate - linear_log_likelihood(params, x.reshape(6, 4)).reshape(2, 3))
    assert off.max() > 0.1
    assert narrow.error.max() > 0.1


def test_peaks_that_hide_between_the_nodes_are_announced(x64, caplog):
    vae = models.linear_vae(data_dim=4, latent_dim=1)
    params = in_float64(vae.init(jax.random.key(0)))
    params["decoder"]["head"]["log_std"] = jnp.array(-6.0)
    x = jax.random.normal(jax.random.key(1), (20, 4))
    result = evaluation.quadrature_log_likelihood(vae, params, x, 1001)
    assert jnp.isinf(result.error).sum() > 10
    assert "posterior is narrower than the nodes are apart" in caplog.text


def test_quadrature_refuses_what_it_cannot_integrate(no_type_hook):
    x, quadrature = jnp.ones((2, 4)), evaluation.quadrature_log_likelihood
    wide, narrow = (models.linear_vae(4, latent_dim) for latent_dim in (3, 1))
    params = narrow.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"one or two dimensions; got shape \(3,\): use log_like"):
        quadrature(wide, wide.init(jax.random.key(0)), x)
    coins = models.mlp_vae((4,), 2, (3,), posterior="bernoulli")
    with pytest.raises(ValueError, match="got discrete ones, BernoulliLogits: use log_likelihood"):
        quadrature(coins, coins.init(jax.random.key(0)), x)
    with pytest.raises(ValueError, match=r"num_nodes must be odd.*; got 100"):
        quadrature(narrow, params, x, 100)
    with pytest.raises(ValueError, match="num_nodes must be an integer of at least 3; got 1"):
        quadrature(narrow, params, x, 1)
    with pytest.raises(ValueError, match=r"expected nodes that hold the prior.*use more nodes, or another bound"):
        quadrature(narrow, params, x, 101, bound=1.0)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_posterior_by_quadrature_is_the_closed_form(latent_dim, x64):
    vae = models.linear_vae(4, latent_dim)
    params = in_float64(vae.init(jax.random.key(0)))
    params["decoder"]["head"]["log_std"] = jnp.array(-0.5)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    result = evaluation.quadrature_posterior(vae, params, x, 201, chunk_size=30, batch_size=4)
    *_, W, b, s = (np.asarray(array) for array in linear_gaussian_arrays(params))
    covariance = np.linalg.inv(np.eye(latent_dim) + W @ W.T / s**2)
    np.testing.assert_allclose(result.mean, (np.asarray(x) - b) @ W.T @ covariance / s**2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.covariance, np.broadcast_to(covariance, result.covariance.shape), rtol=1e-8)


def test_independent_numbers_by_hand():
    train = np.array([[[1, 0]], [[1, 1]], [[1, 0]], [[1, 0]]])
    found = evaluation.independent_log_likelihood(train, train[1:3])
    np.testing.assert_allclose(found, np.log(0.9999) + np.log([0.25, 0.75]), rtol=1e-5)


def test_independent_pixels_of_mnist(shared_data):
    with np.load(shared_data / "binarized_mnist" / "binarized_mnist_larochelle.npz") as packed:
        train, test = (np.unpackbits(packed[name], axis=1, count=784).reshape(-1, 28, 28) for name in ("train", "test"))
    assert evaluation.independent_log_likelihood(train, test).mean() == pytest.approx(-205.80, abs=0.01)


def test_independent_numbers_refuse_what_is_not_binary():
    with pytest.raises(ValueError, match="expected binary data, got 6 other values"):
        evaluation.independent_log_likelihood(jnp.ones((3, 2)), 0.5 * jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"expected data of shape \(n, 2\); got \(3, 3\)"):
        evaluation.independent_log_likelihood(jnp.ones((3, 2)), jnp.ones((3, 3)))
