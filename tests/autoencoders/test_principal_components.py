"""PCA against scikit-learn, its identities in double precision, and the published numbers on MNIST."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA as SklearnPCA

from vaejax import autoencoders


def correlated(num_examples, shape, seed=0):
    """Data with a spectrum that falls, around a mean."""
    size = int(np.prod(shape))
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size)) * 0.7 ** np.arange(size)[:, None]
    return (rng.normal(size=(num_examples, size)) @ mixing + rng.normal(size=size)).reshape(num_examples, *shape)


@pytest.mark.parametrize("num_examples", [50, 9])  # more examples than numbers in one of them, and fewer
def test_pca_is_that_of_scikit_learn(num_examples, x64):
    x = correlated(num_examples, (3, 4))
    ours = autoencoders.pca(x, 5)
    theirs = SklearnPCA(5, svd_solver="full").fit(x.reshape(num_examples, 12))
    np.testing.assert_allclose(ours.mean.ravel(), theirs.mean_, rtol=1e-12)
    flat = np.asarray(ours.components).reshape(5, 12)
    np.testing.assert_allclose(flat * np.sign((flat * theirs.components_).sum(1))[:, None], theirs.components_, 1e-9)
    assert (flat[np.arange(5), np.abs(flat).argmax(axis=1)] > 0).all()
    # It divides by n - 1, and leaves out of the noise the directions in which n examples cannot vary.
    shrunk = (num_examples - 1) / num_examples
    np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_ * shrunk, rtol=1e-10)
    left_out = min(num_examples, 12) - 5
    np.testing.assert_allclose(ours.noise_variance, theirs.noise_variance_ * shrunk * left_out / 7, rtol=1e-10)
    latents = ours.encode(x)
    np.testing.assert_allclose(np.abs(latents), np.abs(theirs.transform(x.reshape(num_examples, 12))), rtol=1e-9)
    np.testing.assert_allclose(
        ours.decode(latents).reshape(num_examples, 12), theirs.inverse_transform(theirs.transform(x.reshape(-1, 12)))
    )


def test_log_likelihood_is_that_of_the_gaussian_of_greatest_likelihood(x64):
    x = correlated(40, (6,))
    model = autoencoders.pca(x, 2)
    excess = np.asarray(model.explained_variance - model.noise_variance)
    components = np.asarray(model.components)
    covariance = (components.T * excess) @ components + float(model.noise_variance) * np.eye(6)
    exact = stats.multivariate_normal(np.asarray(model.mean), covariance).logpdf
    np.testing.assert_allclose(model.log_likelihood(x), exact(x), rtol=1e-10)
    assert model.log_likelihood(x[:4].reshape(2, 2, 6)).shape == (2, 2)
    # No other noise, and no other scale of the components, has a greater likelihood.
    for noise, scale in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)):
        other = model._replace(
            noise_variance=model.noise_variance * noise, explained_variance=model.explained_variance * scale
        )
        assert other.log_likelihood(x).mean() < model.log_likelihood(x).mean()
    full = autoencoders.pca(x, 6)
    np.testing.assert_allclose(
        full.log_likelihood(x), stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x), rtol=1e-10
    )


def test_total_variance_is_reconstruction_error_and_projected_variance(x64):
    x = correlated(200, (4, 5))
    model = autoencoders.pca(x, 3)
    total = ((x - x.mean(axis=0)) ** 2).sum() / len(x)
    error = ((x - model.decode(model.encode(x))) ** 2).sum() / len(x)
    np.testing.assert_allclose(error + model.encode(x).var(axis=0).sum(), total, rtol=1e-10)
    np.testing.assert_allclose(model.encode(x).var(axis=0), model.explained_variance, rtol=1e-10)
    np.testing.assert_allclose(error, model.noise_variance * 17, rtol=1e-10)


def test_a_code_as_wide_as_the_data_copies_in_many_ways(x64):
    x = correlated(30, (5,))
    model = autoencoders.pca(x, 5)
    np.testing.assert_allclose(model.decode(model.encode(x)), x, rtol=1e-10)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    turned = model._replace(components=turn @ model.components)
    np.testing.assert_allclose(turned.decode(turned.encode(x)), x, rtol=1e-10)


def test_the_record_goes_through_jit_and_vmap():
    x = jnp.asarray(correlated(30, (5,)), jnp.float32)
    model = autoencoders.pca(x, 2)
    loglik = jax.jit(lambda model, x: jax.vmap(model.log_likelihood)(x))(model, x)
    np.testing.assert_allclose(loglik, model.log_likelihood(x), rtol=1e-5)
    assert model.components.dtype == jnp.float32


def test_constant_pixels_do_no_harm_below_the_rank(x64):
    x = np.pad(correlated(40, (4,)), ((0, 0), (0, 3)), constant_values=0.1)
    model = autoencoders.pca(x, 2)
    assert np.isfinite(model.log_likelihood(x)).all()
    np.testing.assert_allclose(model.components[:, 4:], 0, atol=1e-12)


@pytest.mark.parametrize("num_examples", [500, 6])
def test_equivalent_examples_have_the_same_mean_and_covariance(num_examples, x64):
    x = correlated(num_examples, (3, 2))
    few = autoencoders.equivalent_examples(x)
    assert few.shape == (min(num_examples, 7), 3, 2)
    np.testing.assert_allclose(few.mean(axis=0), x.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(
        np.cov(few.reshape(-1, 6).T, bias=True), np.cov(x.reshape(-1, 6).T, bias=True), rtol=1e-9, atol=1e-12
    )


def test_distances_to_subspace_and_axes(x64):
    components = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 3)))[0].T
    mixing = np.random.default_rng(1).normal(size=(3, 3))
    np.testing.assert_allclose(autoencoders.subspace_distance(mixing @ components, components), 0, atol=1e-12)
    assert autoencoders.axis_alignment(mixing @ components, components) > 0.05
    # Neither order nor sign nor length of the axes counts.
    np.testing.assert_allclose(autoencoders.axis_alignment(components[[2, 0, 1]] * 3 * -1, components), 0, atol=1e-12)
    # One of three axes turned by an angle out of the subspace.
    out = np.linalg.svd(components)[2][3]
    angle = 0.3
    tilted = np.stack([np.cos(angle) * components[0] + np.sin(angle) * out, *components[1:]])
    for distance in (autoencoders.subspace_distance, autoencoders.axis_alignment):
        np.testing.assert_allclose(distance(tilted, components), np.sin(angle) ** 2 / 3, rtol=1e-10)


def test_bad_input_is_refused(no_type_hook):
    x = correlated(10, (4,)).astype(np.float32)
    pca = autoencoders.pca
    with pytest.raises(ValueError, match=r"latent_dim must be at most 4, .*; got 5\. .* of 4 numbers"):
        pca(x, 5)
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"latent_dim must be an integer of at least 1; got {bad}"):
            pca(x, bad)
    with pytest.raises(
        ValueError, match=r"latent_dim must be at most 2, .*; got 3\. There are 3 examples, which vary in at most 2"
    ):
        pca(x[:3], 3)
    constant = np.pad(x, ((0, 0), (0, 2)))
    with pytest.raises(
        ValueError, match=r"at most 4, .*; got 5\. .* of 6 numbers \(pixels\), 2 of them the same in all"
    ):
        pca(constant, 5)
    with pytest.raises(
        ValueError, match=r"at most 0, .*; got 1\. .* of 4 numbers \(pixels\), 4 of them the same in all"
    ):
        pca(np.ones((10, 4), np.float32), 1)
    with pytest.raises(ValueError, match="variance outside their 4 components; there is none"):
        pca(constant, 4).log_likelihood(constant)
    with pytest.raises(ValueError, match=r"got data of shape|expected data of shape \(\*batch, 4\)"):
        pca(x, 2).encode(constant)
    with pytest.raises(ValueError, match=r"expected latents of shape \(\*batch, 2\); got \(3,\)"):
        pca(x, 2).decode(jnp.ones(3))
    with pytest.raises(ValueError, match="expected finite data, got 1 NaN"):
        pca(np.where(np.arange(4) + np.zeros_like(x) == 2, np.where(np.arange(10) == 3, np.nan, x.T).T, x), 2)
    with pytest.raises(ValueError, match="floating dtype; got int64"):
        pca(np.ones((10, 4), np.int64), 2)
    with pytest.raises(ValueError, match=r"expected concrete data.*outside jit"):
        jax.jit(lambda x: pca(x, 2))(x)
    with pytest.raises(ValueError, match=r"expected examples of shape \(n, \*data_shape\); got \(10,\)"):
        autoencoders.equivalent_examples(x[:, 0])
    for distance in (autoencoders.subspace_distance, autoencoders.axis_alignment):
        with pytest.raises(ValueError, match=r"got \(2, 4\) and \(3, 4\)"):
            distance(x[:2], x[:3])


def mnist(folder, name):
    content = gzip.decompress((folder / "mnist" / f"{name}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28).astype(np.float32) / 255


@pytest.mark.slow
def test_numbers_on_mnist(shared_data):
    train, test = mnist(shared_data, "train"), mnist(shared_data, "t10k")
    model = autoencoders.pca(train, 30)
    assert abs(autoencoders.pca(train[:1000], 200).log_likelihood(train[:1000]).mean() - 962.3835) < 1e-3
    assert abs(model.log_likelihood(test).mean() - 394.6156) < 1e-2
    for latent_dim, error in ((30, 13.866), (20, 18.454), (2, 43.645)):
        fewer = model._replace(
            components=model.components[:latent_dim], explained_variance=model.explained_variance[:latent_dim]
        )
        measured = ((test - fewer.decode(fewer.encode(test))) ** 2).sum(axis=(1, 2)).mean()
        assert abs(measured - error) < 1e-3
