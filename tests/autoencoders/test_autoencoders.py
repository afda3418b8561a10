"""Autoencoders: errors and objectives against numpy, scipy and enumeration, and the score against its closed form."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax import export
from scipy import stats

import vaejax
from vaejax import autoencoders, evaluation, models, objectives, training

COVARIANCE = np.array([[1.0, 0.6, 0.0], [0.6, 0.8, -0.3], [0.0, -0.3, 0.5]])
MEAN = np.array([0.5, -1.0, 2.0])
STD = 0.5


def linear_params(A, a, B, b):
    """Parameters of a linear autoencoder with these kernels and biases of encoder and decoder."""
    halves = ((A, a), (B, b))
    layers = [{"layer_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}} for kernel, bias in halves]
    return {
        "encoder": {"network": layers[0], "head": {}},
        "decoder": {"network": layers[1], "head": {}},
        "prior": {},
    }


@pytest.fixture
def linear(x64):
    """A linear autoencoder of images 2x2 with latents of 3 numbers, its kernels and biases, and seven images."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((4, 3), (3,), (3, 4), (4,))]
    return autoencoders.linear_autoencoder((2, 2), 3), arrays, rng.normal(size=(7, 2, 2))


def residuals(arrays, target, seen, latent_shift=0.0):
    """Reconstruction of what is seen minus target, flat, by matrix products of numpy; and the latents."""
    A, a, B, b = arrays
    flat, seen = (part.reshape(-1, 4) for part in (target, seen))
    latents = seen @ A + a
    return (latents + latent_shift) @ B + b - flat, latents


def test_a_linear_autoencoder_has_these_parameters():
    params = jax.eval_shape(autoencoders.linear_autoencoder((2, 2), 3).init, jax.random.key(0))
    expected = linear_params(np.zeros((4, 3)), np.zeros(3), np.zeros((3, 4)), np.zeros(4))
    chex.assert_trees_all_equal_shapes(params, expected)


def test_errors_are_their_formulas(x64):
    rng = np.random.default_rng(0)
    x, mean, logits = rng.uniform(size=(5, 2, 3)), rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 2, 3))
    pixels, bits = jnp.asarray(x), jnp.asarray(x.round())
    normal = dist.Normal(jnp.asarray(mean), 0.7).to_event(2)
    bernoulli = dist.BernoulliLogits(jnp.asarray(logits)).to_event(2)
    m = 1 / (1 + np.exp(-logits))
    for got, terms in (
        (autoencoders.squared_error(normal, pixels), (x - mean) ** 2),
        (autoencoders.squared_error(bernoulli, pixels), (x - m) ** 2),
        (autoencoders.negative_log_likelihood(normal, pixels), -stats.norm(mean, 0.7).logpdf(x)),
        (autoencoders.negative_log_likelihood(bernoulli, bits), -stats.bernoulli(m).logpmf(x.round())),
        (autoencoders.cross_entropy(bernoulli, pixels), -(x * np.log(m) + (1 - x) * np.log(1 - m))),
    ):
        np.testing.assert_allclose(got, terms.sum(axis=(1, 2)))


def test_cross_entropy_is_the_mean_over_binarizations(x64):
    x = np.array([0.0, 0.2, 0.5, 0.9])
    p = dist.BernoulliLogits(jnp.array([-1.0, 0.3, 2.0, -0.7])).to_event(1)
    bits = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
    errors = autoencoders.negative_log_likelihood(p.expand((16,)), jnp.asarray(bits))
    expected = (np.where(bits, x, 1 - x).prod(axis=1) * errors).sum()
    np.testing.assert_allclose(autoencoders.cross_entropy(p, jnp.asarray(x)), expected, rtol=1e-7)


def test_cross_entropy_is_exact_at_extreme_logits():
    pairs = itertools.product((-1e4, -88.8, 0.0, 88.8, 1e4), (0.0, 0.3, 1.0))
    logits, x = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    error = lambda logits: autoencoders.cross_entropy(dist.BernoulliLogits(logits), jnp.asarray(x))  # noqa: E731
    value, pull = jax.vjp(error, jnp.asarray(logits))
    exact = np.logaddexp(0, np.float64(logits)) - np.float64(x) * logits
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.ones_like(value))[0], stats.logistic.cdf(np.float64(logits)) - x, atol=1e-6)


def test_pixels_out_of_range_raise_and_are_nan_under_jit():
    p = dist.BernoulliLogits(jnp.zeros((3, 2))).to_event(1)
    x = jnp.array([[0.0, 1.0], [0.5, 0.5], [0.5, 1.5]])
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]; got values from 0 to 1.5: rescale"):
        autoencoders.cross_entropy(p, x)
    traced = np.asarray(jax.jit(autoencoders.cross_entropy)(p, x))
    np.testing.assert_allclose(traced[:2], 2 * np.log(2), rtol=1e-6)
    assert np.isnan(traced[2])
    with pytest.raises(ValueError, match=r"exactly 0 or 1; got 4 others, the first at index \(1, 0\)"):
        autoencoders.negative_log_likelihood(p, x)
    assert np.isnan(jax.jit(autoencoders.negative_log_likelihood)(p, x)).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="likelihood='bernoulli'; got Normal: use squared_error"):
        autoencoders.cross_entropy(dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1), x)
    with pytest.raises(ValueError, match=r"expected finite pixels, got 1 NaN .* at index \(2, 1\)"):
        autoencoders.cross_entropy(p, x.at[2, 1].set(jnp.nan))
    # The mean of coins lies between 0 and 1: data that do not are not its reconstruction, by whatever error.
    with pytest.raises(
        ValueError, match=r"squared_error of a Bernoulli decoder expects pixels in \[0, 1\].*gaussian_fixed"
    ):
        autoencoders.squared_error(p, x)
    assert np.isnan(jax.jit(autoencoders.squared_error)(p, x)).tolist() == [False, False, True]


def assert_mean(draws, expected, largest_error):
    """The mean of draws lies within 5 standard errors of what is expected, and these are small."""
    error = np.std(draws) / np.sqrt(len(draws))
    assert error < largest_error
    assert abs(np.mean(draws) - expected) < 5 * error


def test_gaussian_noise_has_its_moments():
    x = jnp.full((20_000, 2), 3.0)
    noise = np.asarray(autoencoders.gaussian_noise(0.4)(jax.random.key(0), x), np.float64) - 3
    assert_mean(noise.ravel(), 0.0, 0.003)
    assert_mean(noise.ravel() ** 2, 0.4**2, 0.002)
    assert_mean(noise.ravel() ** 4, 3 * 0.4**4, 0.002)
    assert_mean(noise[:, 0] * noise[:, 1], 0.0, 0.002)
    np.testing.assert_array_equal(autoencoders.gaussian_noise(0.0)(jax.random.key(0), x), x)


def test_masking_noise_loses_as_many_as_said():
    x = np.arange(1.0, 40_001, dtype=np.float32).reshape(20_000, 2)
    kept = np.asarray(autoencoders.masking_noise(0.3)(jax.random.key(0), jnp.asarray(x)))
    lost = (kept == 0).astype(np.float64)
    np.testing.assert_array_equal(kept, np.where(lost, 0, x))
    assert_mean(lost.ravel(), 0.3, 0.003)
    assert_mean((lost[:, 0] - 0.3) * (lost[:, 1] - 0.3), 0.0, 0.002)
    np.testing.assert_array_equal(autoencoders.masking_noise(0.0)(jax.random.key(0), jnp.asarray(x)), x)


def test_noise_keeps_the_dtype_and_is_anew_for_each_key():
    for noise in (autoencoders.gaussian_noise(0.4), autoencoders.masking_noise(0.5)):
        noisy, other = (noise(jax.random.key(seed), jnp.ones((5, 20), jnp.bfloat16)) for seed in (0, 1))
        assert noisy.dtype == jnp.bfloat16
        assert (noisy != other).any()


def test_a_population_has_a_noise_level_each():
    x, stds = jnp.ones((3, 2)), jnp.array([0.1, 2.0])
    noisy = jax.vmap(lambda std: autoencoders.gaussian_noise(std)(jax.random.key(0), x))(stds)
    for one, std in zip(noisy, stds, strict=True):
        np.testing.assert_allclose(one, autoencoders.gaussian_noise(float(std))(jax.random.key(0), x), rtol=1e-6)


def test_the_value_is_minus_the_mean_error(linear):
    model, arrays, x = linear
    value, info = autoencoders.make_reconstruction(model)(linear_params(*arrays), jax.random.key(2), x)
    expected = (residuals(arrays, x, x)[0] ** 2).sum(axis=1)
    np.testing.assert_allclose(info.per_example, expected)
    np.testing.assert_allclose([-value, -info.bound, info.error, info.squared_error], expected.mean())
    objective = autoencoders.make_reconstruction(model, autoencoders.negative_log_likelihood)
    value, info = objective(linear_params(*arrays), jax.random.key(2), x)
    np.testing.assert_allclose(-value, expected.mean() / 2 + 2 * np.log(2 * np.pi))  # of four numbers with std 1
    np.testing.assert_allclose([info.error, info.squared_error], [-value, expected.mean()])


def test_input_and_latents_are_corrupted_and_the_target_is_not(linear):
    model, arrays, x = linear
    objective = autoencoders.make_reconstruction(
        model,
        corrupt=lambda key, x: 2 * x + 1,
        corrupt_code=lambda key, z: z + 3,
        penalties=(lambda params, z: z.sum(), lambda params, z: jnp.asarray(10.0)),
    )
    value, info = objective(linear_params(*arrays), jax.random.key(2), x)
    difference, latents = residuals(arrays, x, 2 * x + 1, latent_shift=3.0)
    errors = (difference**2).sum(axis=1)
    np.testing.assert_allclose(info.per_example, errors)
    np.testing.assert_allclose(info.error, errors.mean())
    # The penalties see the latents before these are corrupted.
    np.testing.assert_allclose([value, info.bound], -errors.mean() - latents.sum() - 10)


def test_the_gradient_is_that_of_the_written_loss(linear):
    model, (A, a, B, b), x = linear
    seen = np.random.default_rng(1).normal(size=x.shape)
    objective = autoencoders.make_reconstruction(
        model,
        corrupt=lambda key, x: jnp.asarray(seen),
        penalties=(lambda params, z: (params["decoder"]["network"]["layer_0"]["kernel"] ** 2).sum(),),
    )
    grads, _ = jax.jit(jax.grad(objective, has_aux=True))(linear_params(A, a, B, b), jax.random.key(2), x)
    difference, latents = residuals((A, a, B, b), x, seen)
    slope = 2 / 7 * difference  # of the mean squared error, by the reconstruction
    expected = linear_params(
        seen.reshape(7, 4).T @ slope @ B.T, (slope @ B.T).sum(axis=0), latents.T @ slope + 2 * B, slope.sum(axis=0)
    )
    chex.assert_trees_all_close(grads, jax.tree.map(jnp.negative, expected), rtol=1e-10)


def test_no_gradient_flows_through_info(linear):
    model, arrays, x = linear
    objective = autoencoders.make_reconstruction(model)
    reported = lambda params: sum(leaf.sum() for leaf in objective(params, jax.random.key(2), x)[1])  # noqa: E731
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.grad(reported)(linear_params(*arrays))))


def test_the_linear_loss_is_invariant_under_any_invertible_map_of_the_latents(linear):
    model, (A, a, B, b), x = linear
    objective = jax.jit(autoencoders.make_reconstruction(model, corrupt=autoencoders.gaussian_noise(0.2)))
    value, info = objective(linear_params(A, a, B, b), jax.random.key(2), x)
    turn = np.array([[1.0, 2.0, 0.0], [0.0, -3.0, 1.0], [0.5, 0.0, 1.0]])
    moved = linear_params(A @ turn, a @ turn, np.linalg.inv(turn) @ B, b)
    other, other_info = objective(moved, jax.random.key(2), x)
    np.testing.assert_allclose(value, other, rtol=1e-12)
    np.testing.assert_allclose(info.per_example, other_info.per_example, rtol=1e-12)


def test_input_and_latents_get_keys_of_their_own():
    # With the identity for encoder and decoder the error is the square of the sum of both noises.
    model = autoencoders.linear_autoencoder((2,), 2)
    params = linear_params(np.eye(2, dtype=np.float32), jnp.zeros(2), np.eye(2, dtype=np.float32), jnp.zeros(2))
    noise = autoencoders.gaussian_noise(1.0)
    objective = autoencoders.make_reconstruction(model, corrupt=noise, corrupt_code=noise)
    key = jax.random.key(1)
    _, info = objective(params, key, jnp.zeros((20_000, 2)))
    assert_mean(info.per_example, 4.0, 0.05)  # with one noise for both it is 8
    with pytest.raises(jax.errors.KeyReuseError):
        objective(params, key, jnp.zeros((20_000, 2)))


def test_an_example_does_not_hear_of_its_batch_and_nothing_is_traced_twice():
    model = autoencoders.mlp_autoencoder((3,), 2, (5,), "bernoulli")
    objective = autoencoders.make_reconstruction(
        model, autoencoders.cross_entropy, corrupt=autoencoders.masking_noise(0.5)
    )
    objective = jax.jit(chex.assert_max_traces(objective, 1))
    params, x = model.init(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (4, 3))
    _, info = objective(params, jax.random.key(2), x, step=3)
    _, other = objective(params, jax.random.key(2), x.at[1:].set(0.5), step=4)
    assert info.per_example[0] == other.per_example[0]
    assert info.per_example[1] != other.per_example[1]


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(linear, batch):
    model, arrays, x = linear
    x = x[: int(np.prod(batch))].reshape(*batch, 2, 2)
    value, info = autoencoders.make_reconstruction(model)(linear_params(*arrays), jax.random.key(2), x)
    expected = residuals(arrays, x, x)[0].reshape(x.shape)
    np.testing.assert_allclose(value, -(expected**2).sum(axis=(-2, -1)).mean())
    np.testing.assert_allclose(info.per_example, (expected**2).sum(axis=(-2, -1)))
    score = autoencoders.denoising_score(model, linear_params(*arrays), x, STD)
    np.testing.assert_allclose(score, expected / STD**2)


FACTORIES = {
    "mlp": lambda shape, likelihood: autoencoders.mlp_autoencoder(shape, 3, (6, 5), likelihood),
    "conv": lambda shape, likelihood: autoencoders.conv_autoencoder(shape, 3, (4, 5), 6, likelihood),
    "linear": lambda shape, likelihood: autoencoders.linear_autoencoder(shape, 3, likelihood),
}


@pytest.mark.parametrize(("shape", "likelihood"), [((8, 8), "gaussian_fixed_std"), ((7, 5, 3), "bernoulli")])
@pytest.mark.parametrize("name", sorted(FACTORIES))
def test_factories_make_latents_of_one_number_for_each_unit(name, shape, likelihood):
    model = FACTORIES[name](shape, likelihood)
    params = jax.eval_shape(model.init, jax.random.key(0))
    q = jax.eval_shape(model.encode, params, jnp.ones((2, 4, *shape)))
    p = jax.eval_shape(model.decode, params, jnp.ones((2, 4, 3)))
    assert (q.batch_shape, q.event_shape, p.batch_shape, p.event_shape) == ((2, 4), (3,), (2, 4), shape)
    assert type(p.base_dist).__name__ == {"bernoulli": "BernoulliLogits"}.get(likelihood, "Normal")
    encoder, decoder = (
        {layer: leaf["kernel"].shape for layer, leaf in params[half]["network"].items()}
        for half in ("encoder", "decoder")
    )
    size, depth = int(np.prod(shape)), (*shape, 1)[2]
    if name == "mlp":
        assert encoder == {"layer_0": (size, 6), "layer_1": (6, 5), "layer_2": (5, 3)}
        assert decoder == {"layer_0": (3, 5), "layer_1": (5, 6), "layer_2": (6, size)}
    elif name == "linear":
        assert (encoder, decoder) == ({"layer_0": (size, 3)}, {"layer_0": (3, size)})
    else:
        assert (encoder["conv_0"], encoder["output"]) == ((4, 4, depth, 4), (6, 3))
        assert (decoder["hidden"], decoder["conv_1"]) == ((3, 6), (4, 4, 4, depth))


@pytest.mark.quick_for("mlp")
@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_a_run_lowers_for_every_platform(name):
    model = FACTORIES[name]((8, 8), "bernoulli")
    objective = autoencoders.make_reconstruction(
        model,
        autoencoders.cross_entropy,
        corrupt=autoencoders.masking_noise(0.5),
        corrupt_code=autoencoders.gaussian_noise(0.1),
    )
    optimizer = optax.adam(1e-3)
    step = training.make_train_step(objective, optimizer)

    def program(state, bits, x):
        # Typed keys inside the program are its own business; at its boundary jax.export wants their bits.
        state, history = training.fit(step, state, jax.random.wrap_key_data(bits), x, num_steps=3, batch_size=4)
        return state, history, autoencoders.denoising_score(model, state.params, x, STD)

    state = jax.eval_shape(lambda key: training.init_state(model.init(key), optimizer), jax.random.key(0))
    bits, x = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((20, 8, 8), jnp.float32)
    platforms = ("cpu", "cuda", "tpu")
    assert export.export(jax.jit(program), platforms=platforms)(state, bits, x).platforms == platforms


def test_the_face_offers_every_name():
    names = """PCA Corruption ErrorFunction Penalty ReconstructionInfo axis_alignment conv_autoencoder cross_entropy
        denoising_score equivalent_examples gaussian_noise linear_autoencoder make_reconstruction masking_noise
        mlp_autoencoder negative_log_likelihood nested_dropout nonuniform_l2 pca rotation_augmentation squared_error
        subspace_distance uniform_l2 adversarial"""
    assert set(names.split()) <= set(autoencoders.__all__)
    assert all(hasattr(autoencoders, name) for name in autoencoders.__all__)
    assert vaejax.adversarial is autoencoders.adversarial
    game = "GAN Game GameInfo gan_from_vae make_minimax make_non_saturating mlp_gan sample two_optimizers"
    assert all(hasattr(vaejax.adversarial, name) for name in game.split())


def test_an_autoencoder_has_no_bound_on_log_p():
    model = autoencoders.linear_autoencoder((3,), 2)
    params, x = linear_params(jnp.ones((3, 2)), jnp.zeros(2), jnp.ones((2, 3)), jnp.zeros(3)), jnp.ones((4, 3))
    refused = r"expected a distribution with a density; got a point mass, .* autoencoders\.make_reconstruction"
    bounds = [objectives.make_elbo(model, kl=kl) for kl in objectives.KL_FORMS]
    for bound in (*bounds, objectives.make_iwae(model, num_samples=3), objectives.make_linear_elbo(model)):
        with pytest.raises(ValueError, match=refused):
            jax.eval_shape(bound, params, jax.random.key(1), x)
    with pytest.raises(ValueError, match=refused):
        evaluation.log_likelihood(model, params, jax.random.key(1), x, num_samples=3)
    with pytest.raises(ValueError, match=refused):
        evaluation.quadrature_log_likelihood(model, params, x, num_nodes=11)


@pytest.mark.parametrize(("posterior", "name"), [("gaussian", "Normal"), ("bernoulli", "Bernoulli")])
def test_latents_with_noise_are_refused(posterior, name):
    vae = models.mlp_vae((3,), 2, (4,), "gaussian_fixed_std", posterior=posterior)
    params, x = jax.eval_shape(vae.init, jax.random.key(0)), jnp.ones((4, 3))
    refused = rf"posterior='point', whose latents have no noise; got one with q = {name}.*objectives\.make_elbo"
    with pytest.raises(ValueError, match=refused):
        jax.eval_shape(autoencoders.make_reconstruction(vae), params, jax.random.key(1), x)
    with pytest.raises(ValueError, match=refused):
        jax.eval_shape(lambda params: autoencoders.denoising_score(vae, params, x, STD), params)


def smoothed_score(x):
    """Gradient of the log density of N(MEAN, COVARIANCE + STD^2 I)."""
    return -np.linalg.solve(COVARIANCE + STD**2 * np.eye(3), (x - MEAN).T).T


def test_the_best_linear_denoiser_gives_the_exact_score(x64):
    # r(x) = mean + S (S + std^2 I)^-1 (x - mean)
    kernel = np.linalg.solve(COVARIANCE + STD**2 * np.eye(3), COVARIANCE)
    params = linear_params(np.eye(3), -MEAN, kernel, MEAN)
    model = autoencoders.linear_autoencoder((3,), 3)
    x = 3 * np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_allclose(autoencoders.denoising_score(model, params, x, STD), smoothed_score(x), rtol=1e-10)
    traced = jax.jit(lambda std: autoencoders.denoising_score(model, params, x, std))(jnp.asarray(STD))
    np.testing.assert_allclose(traced, smoothed_score(x), rtol=1e-10)


def test_training_finds_the_score():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 3))
    orthonormal = np.linalg.qr(points - points.mean(axis=0))[0]
    points = MEAN + 20 * orthonormal @ np.linalg.cholesky(COVARIANCE).T  # their covariance is this one exactly
    model = autoencoders.linear_autoencoder((3,), 3)
    objective = autoencoders.make_reconstruction(model, corrupt=autoencoders.gaussian_noise(STD))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 2000))
    step = training.make_train_step(objective, optimizer)
    state = training.init_state(model.init(jax.random.key(0)), optimizer)
    fit = jax.jit(lambda state, key, x: training.fit(step, state, key, x, num_steps=2000, batch_size=400))
    state, _ = fit(state, jax.random.key(1), points.astype(np.float32))
    x = (points + STD * rng.normal(size=points.shape)).astype(np.float32)
    learned = autoencoders.denoising_score(model, state.params, x, STD)
    assert np.linalg.norm(learned - smoothed_score(x)) < 0.03 * np.linalg.norm(smoothed_score(x))


def test_noise_out_of_range_is_refused(no_type_hook):
    for std in (-0.1, np.nan, np.inf, "0.1", None, np.array([0.1, 0.2])):
        with pytest.raises(ValueError, match="std of gaussian_noise must be a number of at least 0; got"):
            autoencoders.gaussian_noise(std)
    for probability in (-0.1, 1.0, 1.5, np.nan, "half"):
        with pytest.raises(ValueError, match="of masking_noise must be a number of at least 0 and below 1; got"):
            autoencoders.masking_noise(probability)
    for std in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"std must be a number above 0; got .*: give the std of the noise"):
            autoencoders.denoising_score(autoencoders.linear_autoencoder((3,), 2), {}, jnp.ones((4, 3)), std)


def test_data_that_are_not_the_models_are_refused(no_type_hook):
    model = autoencoders.linear_autoencoder((3,), 2)
    params, x = linear_params(jnp.ones((3, 2)), jnp.zeros(2), jnp.ones((2, 3)), jnp.zeros(3)), jnp.ones((4, 3))
    objective = autoencoders.make_reconstruction(model)
    missing = x.at[2, 1].set(jnp.nan)
    for bad, message in (
        (x[:, :2], r"expected data of shape \(\*batch, 3\).*got \(4, 2\)"),
        (x[:0], "expected at least one example"),
        (np.ones((4, 3), np.int32), "expected data of a floating dtype; got int32"),
        (missing, r"expected finite data, got 1 NaN or infinite value of 12.*index \(2, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            objective(params, jax.random.key(1), bad)
    value, info = jax.jit(objective)(params, jax.random.key(1), missing)
    assert np.isnan(value)
    assert np.isnan(info.per_example).tolist() == [False, False, True, False]


def test_what_is_no_function_is_refused_at_once(no_type_hook):
    model = autoencoders.linear_autoencoder((3,), 2)
    for options, words in (
        (
            {"error": "squared_error"},
            r"error must be a function, such as autoencoders\.squared_error; got 'squared_error'",
        ),
        ({"corrupt": 0.5}, r"corrupt must be a function, such as .*gaussian_noise\(0\.1\), or None; got 0\.5"),
        ({"corrupt_code": 0.5}, "corrupt_code must be a function"),
        ({"penalties": [0.1]}, r"each of penalties must be a function, such as .*uniform_l2\(0\.1\); got 0\.1"),
    ):
        with pytest.raises(ValueError, match=words):
            autoencoders.make_reconstruction(model, **options)


def test_functions_must_return_what_they_are_asked_for():
    model = autoencoders.linear_autoencoder((3,), 2)
    params, x = linear_params(jnp.ones((3, 2)), jnp.zeros(2), jnp.ones((2, 3)), jnp.zeros(3)), jnp.ones((4, 3))
    one = autoencoders.make_reconstruction(model, penalties=autoencoders.uniform_l2(0.1))
    several = autoencoders.make_reconstruction(model, penalties=[autoencoders.uniform_l2(0.1)])
    assert one(params, jax.random.key(1), x)[0] == several(params, jax.random.key(1), x)[0]
    for options, words in (
        ({"error": lambda p, x: (x - p.mean) ** 2}, r"what error returns to be of shape \(4,\); got \(4, 3\)"),
        ({"error": lambda p, x: jnp.zeros(())}, r"what error returns to be of shape \(4,\); got \(\)"),
        ({"corrupt": lambda key, x: x[:1]}, r"what corrupt returns to be of shape \(4, 3\); got \(1, 3\)"),
        ({"corrupt_code": lambda key, z: z[:1]}, r"what corrupt_code returns to be of shape \(4, 2\)"),
        ({"penalties": lambda params, z: z[:, 0]}, r"what a penalty returns to be of shape \(\); got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            autoencoders.make_reconstruction(model, **options)(params, jax.random.key(1), x)


def test_factories_pass_on_their_options(no_type_hook):
    for make in (autoencoders.mlp_autoencoder, autoencoders.conv_autoencoder):
        with pytest.raises(ValueError, match=r"activation must be 'tanh', 'relu'.* or a function; got 'swoosh'"):
            make((8, 8), 2, activation="swoosh")
        with pytest.raises(ValueError, match="latent_dim must be an integer of at least 1; got 0"):
            make((8, 8), 0)
        with pytest.raises(ValueError, match=r"likelihood must be 'bernoulli', .*; got 'exponential'"):
            make((8, 8), 2, likelihood="exponential")
    with pytest.raises(ValueError, match="latent_dim must be an integer of at least 1; got 0"):
        autoencoders.linear_autoencoder((3,), 0)
    with pytest.raises(ValueError, match="a model without convolutions is an mlp_vae"):
        autoencoders.conv_autoencoder((8, 8), 2, ())
