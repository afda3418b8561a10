import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax import export
from reference import assert_unbiased
from scipy.special import expit

from vaejax import adversarial, data, distributions, evaluation, models, networks, training

GAMES = [adversarial.make_minimax, adversarial.make_non_saturating]


def linear_params(kernel, bias, discriminator):
    """Parameters of a GAN whose generator is a linear VAE's decoder: G(z) = z kernel + bias."""
    layer = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    decoder = {"network": {"layer_0": layer}, "head": {"log_std": jnp.zeros(())}}
    return {"generator": {"decoder": decoder, "prior": {}}, "discriminator": discriminator}


def latents_of(key, num_latents, latent_dim):
    """The latents that `sample` draws, by a generator that changes nothing."""
    identity = adversarial.gan_from_vae(models.linear_vae(latent_dim, latent_dim), networks.mlp(latent_dim, (), 1))
    return adversarial.sample(identity, linear_params(jnp.eye(latent_dim), jnp.zeros(latent_dim), {}), key, num_latents)


# A GAN of one number: samples are N(b, w^2), and logits c0 + c1 x + c2 x^2 can be those of the best discriminator.

POWERS = networks.Network(
    init=lambda key: {"c": jnp.zeros(3)},
    apply=lambda params, x: jnp.concatenate([jnp.ones_like(x), x, x**2], axis=1) @ params["c"],
)
GRID = np.linspace(-15.0, 15.0, 3001)
DATA_MEAN, DATA_STD = 0.7, 1.1


def gaussian_gan():
    return adversarial.gan_from_vae(models.linear_vae(1, 1), POWERS)


def best_discriminator(b, w, m=DATA_MEAN, s=DATA_STD):
    """The coefficients of log N(x; m, s^2) - log N(x; b, w^2)."""
    constant = b**2 / w**2 / 2 - m**2 / s**2 / 2 + np.log(w / s)
    return {"c": jnp.array([constant, m / s**2 - b / w**2, 1 / w**2 / 2 - 1 / s**2 / 2])}


def divergences(b, w):
    """JSD(data, samples) and KL(samples || data), by quadrature."""
    log_p, log_g = dist.Normal(DATA_MEAN, DATA_STD).log_prob(GRID), dist.Normal(b, w).log_prob(GRID)
    log_m = jnp.logaddexp(log_p, log_g) - np.log(2)
    kl = lambda log_a, log_b: (jnp.exp(log_a) * (log_a - log_b)).sum() * (GRID[1] - GRID[0])  # noqa: E731
    return (kl(log_p, log_m) + kl(log_g, log_m)) / 2, kl(log_g, log_p)


def draw_data(key, num):
    return DATA_MEAN + DATA_STD * jax.random.normal(key, (num, 1))


@pytest.mark.quick_for("make_non_saturating")
@pytest.mark.parametrize("make", GAMES)
def test_at_the_best_discriminator_the_players_see_divergences(x64, make):
    b, w = -0.4, 0.6
    game, params = make(gaussian_gan()), linear_params([[w]], [b], best_discriminator(b, w))

    def draw(key):
        data_key, key = jax.random.split(key)
        (value, _), grads = jax.value_and_grad(game, has_aux=True)(params, key, draw_data(data_key, 100))
        layer = grads["generator"]["decoder"]["network"]["layer_0"]
        return value, layer["bias"][0], layer["kernel"][0, 0], grads["discriminator"]["c"]

    def climbed(b, w):
        jsd, kl = divergences(b, w)
        return -2 * jsd if make is adversarial.make_minimax else 2 * jsd - kl, 2 * jsd - np.log(4)

    pushes, value = jax.jit(jax.grad(climbed, (0, 1), has_aux=True))(b, w)
    assert min(map(abs, pushes)) > 0.1
    exact = (value, *pushes, jnp.zeros(3))
    assert_unbiased(draw, exact, jax.random.key(1), 5000, largest_error=0.01)


def test_where_samples_are_like_data_nobody_moves(x64):
    game = adversarial.make_non_saturating(gaussian_gan())
    params = linear_params([[DATA_STD]], [DATA_MEAN], best_discriminator(DATA_MEAN, DATA_STD))

    def draw(key):
        data_key, key = jax.random.split(key)
        return jax.value_and_grad(game, has_aux=True)(params, key, draw_data(data_key, 100))

    (values, info), grads = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(values, -np.log(4), rtol=1e-15)
    np.testing.assert_array_equal(info.data_probability, 0.5)
    np.testing.assert_array_equal(info.sample_probability, 0.5)
    chex.assert_trees_all_equal(grads["generator"], jax.tree.map(jnp.zeros_like, grads["generator"]))
    pushes = np.asarray(grads["discriminator"]["c"])
    assert (pushes[:, 0] == 0).all()
    error = pushes[:, 1:].std(axis=0, ddof=1) / np.sqrt(len(pushes))
    assert error.max() < 0.01
    assert (abs(pushes[:, 1:].mean(axis=0)) < 5 * error).all()


@pytest.fixture(scope="module")
def small_game():
    """A small GAN, its parameters, the six latents that it draws with key 1, and six examples, in double precision."""
    gan = adversarial.mlp_gan((2, 2), 3, (5,))
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(gan.init, jax.random.key(0))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), shapes)
        latents = jax.jit(lambda key: latents_of(key, 6, 3))(jax.random.key(1))
        return gan, params, latents, jnp.asarray(draw.uniform(size=(6, 2, 2)))


@pytest.mark.parametrize("make", GAMES)
def test_value_and_losses_equal_numpy(x64, small_game, make):
    gan, params, latents, x = small_game

    def mlp(params, inputs):
        first, second = ({name: np.asarray(leaf) for name, leaf in params[f"layer_{i}"].items()} for i in range(2))
        return np.tanh(np.asarray(inputs) @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]

    on_data = expit(mlp(params["discriminator"], x.reshape(6, 4))[:, 0])
    samples = expit(mlp(params["generator"]["decoder"]["network"], latents))
    on_samples = expit(mlp(params["discriminator"], samples)[:, 0])
    value, info = jax.jit(make(gan))(params, jax.random.key(1), x.reshape(2, 3, 2, 2))
    np.testing.assert_allclose(value, np.log(on_data).mean() + np.log(1 - on_samples).mean(), rtol=1e-12)
    assert (info.value, info.discriminator_loss) == (value, -value)
    loss = np.log(1 - on_samples) if make is adversarial.make_minimax else -np.log(on_samples)
    np.testing.assert_allclose(info.generator_loss, loss.mean(), rtol=1e-12)
    np.testing.assert_allclose(info.data_probability, on_data.mean(), rtol=1e-12)
    np.testing.assert_allclose(info.sample_probability, on_samples.mean(), rtol=1e-12)


@pytest.mark.parametrize("make", GAMES)
def test_each_player_climbs_its_own_gain(x64, small_game, make):
    gan, params, latents, x = small_game

    def probabilities(generator, discriminator):
        both = {"generator": generator, "discriminator": discriminator}
        samples = gan.generate(both, latents)
        return jax.nn.sigmoid(gan.discriminate(both, x)), jax.nn.sigmoid(gan.discriminate(both, samples))

    def v(generator, discriminator):
        on_data, on_samples = probabilities(generator, discriminator)
        return (jnp.log(on_data) + jnp.log(1 - on_samples)).mean()

    def log_d(generator, discriminator):
        return jnp.log(probabilities(generator, discriminator)[1]).mean()

    generator_gain = (lambda *players: -v(*players)) if make is adversarial.make_minimax else log_d
    players = params["generator"], params["discriminator"]
    climb = lambda *players: (jax.grad(generator_gain, 0)(*players), jax.grad(v, 1)(*players))  # noqa: E731
    expected = dict(zip(("generator", "discriminator"), jax.jit(climb)(*players), strict=True))
    grads, _ = jax.jit(jax.grad(make(gan), has_aux=True))(params, jax.random.key(1), x)
    assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_close(grads, expected, rtol=1e-10)


def test_only_one_of_the_games_saturates(x64):
    gan = adversarial.gan_from_vae(models.linear_vae(2, 2), networks.mlp(2, (), 1))
    slope = np.array([0.3, -0.8])
    sure = {"layer_0": {"kernel": jnp.asarray(slope)[:, None], "bias": jnp.array([-10.0])}}
    params = linear_params(jnp.zeros((2, 2)), jnp.zeros(2), sure)  # every sample is 0, and its logit -10
    pushes = []
    for make in GAMES:
        grads, _ = jax.jit(jax.grad(make(gan), has_aux=True))(params, jax.random.key(0), jnp.ones((3, 2)))
        pushes.append(grads["generator"]["decoder"]["network"]["layer_0"]["bias"])
    np.testing.assert_allclose(pushes[0], expit(-10) * slope, rtol=1e-12)
    np.testing.assert_allclose(pushes[1], expit(10) * slope, rtol=1e-12)


@pytest.mark.parametrize("make", GAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_finite_for_large_logits(make, dtype):
    shift = networks.Network(
        init=lambda key: {"by": jnp.zeros((1, 1), dtype)},
        apply=lambda params, inputs: inputs.astype(dtype) + params["by"],
    )
    vae = models.make_vae(shift, shift, data_shape=(1,), latent_dim=1, likelihood="gaussian_fixed_std")
    gan = adversarial.gan_from_vae(vae, shift)
    logits = jnp.array([-1e4, -90.0, 0.0, 90.0, 1e4])

    def evaluate(of_samples, of_data):
        params = gan.init(jax.random.key(0))
        params["generator"]["decoder"]["network"]["by"] += of_samples.astype(dtype)
        return jax.value_and_grad(make(gan), has_aux=True)(params, jax.random.key(1), jnp.full((3, 1), of_data, dtype))

    (value, info), grads = jax.jit(jax.vmap(evaluate))(jnp.repeat(logits, 5), jnp.tile(logits, 5))
    chex.assert_tree_all_finite((value, info, grads))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value[20], -2e4, rtol=1e-2)  # data at -1e4, samples at 1e4


@pytest.fixture(scope="module")
def training_run():
    """A GAN of points in the plane, its first state, and a run of up to 1,000 steps on two Gaussians."""
    gan = adversarial.mlp_gan((2,), 2, (32, 32), "gaussian_fixed_std")
    optimizer = adversarial.two_optimizers(optax.adam(1e-3, b1=0.5), optax.adam(2e-3, b1=0.5))
    step = training.make_train_step(adversarial.make_non_saturating(gan), optimizer)
    step = chex.assert_max_traces(step, 2)  # one for the shapes of what it reports, one for the scan
    points = data.load("two_gaussians").images
    run = jax.jit(
        lambda state, stop: training.fit(
            step, state, jax.random.key(1), points, num_steps=1000, batch_size=100, stop=stop
        )
    )
    return gan, training.init_state(gan.init(jax.random.key(0)), optimizer), run


@pytest.mark.slow
def test_training_moves_the_samples_to_both_modes(training_run):
    gan, state, run = training_run

    def near_modes(params):
        samples = np.asarray(adversarial.sample(gan, params, jax.random.key(2), 2000))
        return [(np.linalg.norm(samples - [center, 0], axis=1) < 1.5).mean() for center in (-2.0, 2.0)]

    trained, history = run(state, 1000)
    assert min(near_modes(state.params)) < 0.2
    assert min(near_modes(trained.params)) > 0.4
    assert isinstance(history, adversarial.GameInfo)
    assert all(leaf.shape == (1000,) for leaf in history)
    np.testing.assert_allclose(history.value[-100:].mean(), -np.log(4), atol=0.05)


def test_chunks_equal_one_run_bit_for_bit(training_run):
    _, state, run = training_run
    whole, history = run(state, 120)
    first, before = run(state, 30)
    second, after = run(first, 120)
    chex.assert_trees_all_equal(whole, second)
    np.testing.assert_array_equal(history.value[:120], np.concatenate([before.value[:30], after.value[:90]]))


@pytest.mark.quick_for("make_minimax-cuda")
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("make", GAMES)
def test_a_run_on_digits_lowers_for_every_platform(platform, make):
    gan = adversarial.gan_from_vae(models.conv_vae((8, 8), 2, (4,), 8), networks.conv_encoder((8, 8, 1), (4,), 8, 1))
    optimizer = adversarial.two_optimizers(optax.adam(1e-3), optax.adam(1e-3))
    step = training.make_train_step(make(gan), optimizer)
    state = jax.eval_shape(lambda key: training.init_state(gan.init(key), optimizer), jax.random.key(0))
    fit = jax.jit(
        lambda state, bits, x: training.fit(step, state, jax.random.wrap_key_data(bits), x, num_steps=3, batch_size=4)
    )
    images = jax.ShapeDtypeStruct((20, 8, 8), jnp.float32)
    lowered = export.export(fit, platforms=[platform])(state, jax.ShapeDtypeStruct((2,), jnp.uint32), images)
    assert lowered.platforms == (platform,)


@pytest.mark.parametrize("posterior", ["gaussian", "bernoulli"])
def test_the_generator_is_the_decoder_of_the_vae(posterior):
    vae = models.mlp_vae((2, 2), 3, (5,), posterior=posterior)
    gan = adversarial.gan_from_vae(vae, networks.mlp(4, (), 1))
    whole, params = vae.init(jax.random.key(0)), jax.eval_shape(gan.init, jax.random.key(0))
    shapes = {name: jax.tree.map(jnp.shape, whole[name]) for name in ("decoder", "prior")}
    assert jax.tree.map(jnp.shape, params["generator"]) == shapes
    x = jax.eval_shape(gan.generate, params, jnp.zeros((7, 2, 3)))
    assert x.shape == (7, 2, 2, 2)
    assert jax.eval_shape(gan.discriminate, params, x).shape == (7, 2)
    z = jnp.array([0.0, 1.0, 0.0])
    np.testing.assert_array_equal(gan.generate({"generator": whole}, z), vae.decode(whole, z).mean)
    assert type(gan.prior({"generator": whole}).base_dist) is type(vae.prior(whole).base_dist)


def test_a_gan_is_refused_where_a_density_is_wanted(training_run, no_type_hook):
    gan, state, _ = training_run
    with pytest.raises(ValueError, match=r"expected a VAE; got a GAN.*no bound on log p\(x\)"):
        evaluation.log_likelihood(gan, state.params, jax.random.key(1), jnp.ones((3, 2)))
    params = {"encoder": {}, "decoder": {}, "prior": {}}
    with pytest.raises(
        ValueError, match=r"with 'generator' and 'discriminator'.*got a dict of encoder, decoder, prior"
    ):
        adversarial.make_minimax(gan)(params, jax.random.key(1), jnp.ones((3, 2)))


def test_what_does_not_fit_the_model_is_refused():
    vae = models.linear_vae(4, 2)
    gan = adversarial.gan_from_vae(vae, networks.mlp(4, (), 1))
    params = gan.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"expected data of shape \(\*batch, 4\).*got \(3, 5\)"):
        adversarial.make_minimax(gan)(params, jax.random.key(1), jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1; got 0"):
        adversarial.sample(gan, params, jax.random.key(1), 0)
    with pytest.raises(ValueError, match=r"expected latents of shape \(\*batch, 2\); got \(3, 5\)"):
        gan.generate(params, jnp.ones((3, 5)))
    with pytest.raises(ValueError, match=r"expected latents of shape \(\*batch, 2\); got \(3,\)"):
        adversarial.gan_from_vae(vae._replace(prior=models.linear_vae(4, 3).prior), networks.mlp(4, (), 1))
    two = adversarial.gan_from_vae(vae, (lambda key: {}, lambda params, x: x[:, :2]))
    with pytest.raises(ValueError, match=r"one number for each example.*got \(3, 2\) for 3 examples"):
        two.discriminate(two.init(jax.random.key(0)), jnp.ones((3, 4)))
    pair = adversarial.gan_from_vae(vae, (lambda key: {}, lambda params, x: (x[:, 0], x[:, 1])))
    with pytest.raises(ValueError, match=r"one number for each example.*got \(\(3,\), \(3,\)\) for 3 examples"):
        pair.discriminate(pair.init(jax.random.key(0)), jnp.ones((3, 4)))


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (dist.Cauchy, "got NaN: either the likelihood Cauchy has no mean"),
        (
            lambda loc, scale: dist.TransformedDistribution(
                dist.Normal(loc, scale), dist.transforms.SigmoidTransform()
            ),
            "expected a likelihood with a mean.*got TransformedDistribution",
        ),
    ],
)
def test_a_likelihood_without_a_mean_is_refused(family, message):
    head = distributions.Head(1, lambda key, shape: {}, lambda params, loc: family(loc, jnp.ones_like(loc)))

    def one_sample():
        gan = adversarial.mlp_gan((2,), 2, (), head)
        return gan.generate(gan.init(jax.random.key(0)), jnp.zeros(2))

    with pytest.raises(ValueError, match=message):
        one_sample()
