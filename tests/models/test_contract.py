"""What a model's parts must keep to: the shapes of distributions, the layouts of outputs, one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from flax import linen, nnx

from vaejax import distributions, evaluation, models, objectives


def key(seed=0):
    return jax.random.key(seed)


X = jax.random.normal(jax.random.key(7), (2, 4))  # as many examples as latents, where broadcasting hides most
VAE = models.mlp_vae((4,), 2, (3,), "gaussian")
PARAMS = VAE.init(jax.random.key(1))

BROKEN = {
    "prior": VAE._replace(prior=lambda params: dist.Normal(jnp.zeros(2), 1.0)),
    "prior of a batch": VAE._replace(prior=lambda params: dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1)),
    "prior of one number": VAE._replace(prior=lambda params: dist.Normal(0.0, 1.0)),
    "encode": VAE._replace(encode=lambda params, x: dist.Normal(jnp.zeros((*x.shape[:-1], 2)), 1.0)),
    "encode without a batch": VAE._replace(encode=lambda params, x: dist.Normal(jnp.zeros(2), 1.0).to_event(1)),
    "decode": VAE._replace(decode=lambda params, z: dist.Normal(jnp.zeros((*z.shape[:-1], 4)), 1.0)),
    "decode one number": VAE._replace(decode=lambda params, z: dist.Normal(z[..., 0], 1.0)),
    "decode without a batch": VAE._replace(decode=lambda params, z: dist.Normal(jnp.zeros(4), 1.0).to_event(1)),
    "decode all in one": VAE._replace(decode=lambda params, z: dist.Normal(jnp.zeros((2, 4)), 1.0).to_event(2)),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_to_event_is_named(name, number, no_type_hook):
    vae, x = BROKEN[name], X[:number]
    for make in (lambda: objectives.make_elbo(vae, kl="sampled"), lambda: objectives.make_iwae(vae, num_samples=2)):
        objective = make()
        with pytest.raises(ValueError, match="to_event"):
            objective(PARAMS, key(), x)
    if name != "decode without a batch":  # one likelihood for every z: an evaluation, which takes one z, is right
        with pytest.raises(ValueError, match="to_event"):
            evaluation.log_likelihood(vae, PARAMS, key(), x, 2)


def test_an_own_head_of_another_shape_is_refused():
    def head(make):
        return distributions.Head(1, lambda key, shape: {}, lambda params, output: make(output))

    good = models.mlp_vae((4,), 2, (3,), head(lambda output: dist.Normal(output, 1.0)))
    assert good.decode(good.init(key()), jnp.zeros((2, 2))).event_shape == (4,)
    for make in (lambda output: dist.Normal(output[..., :1], 1.0), lambda output: dist.Normal(output, 1.0).to_event(2)):
        bad = models.mlp_vae((4,), 2, (3,), head(make))
        params = bad.init(key(1))
        with pytest.raises(ValueError, match="the head of the decoder must make"):
            bad.decode(params, jnp.zeros((2, 2)))


def decoder_of(shape, spread=1.0):
    """A decoder that emits known numbers of that shape."""
    size = int(np.prod(shape))
    numbers = spread * jnp.arange(size, dtype=jnp.float32).reshape(1, *shape) / size
    return lambda key: {}, lambda params, z: jnp.broadcast_to(numbers, (len(z), *shape)) + 0 * z[:, :1].sum()


def image_vae(decoder, likelihood, data_shape=(4, 5, 3)):
    encoder = models.networks.mlp(int(np.prod(data_shape)), (), 4)
    return models.make_vae(encoder, decoder, data_shape=data_shape, latent_dim=2, likelihood=likelihood)


@pytest.mark.exhaustive
def test_channels_that_stand_on_the_last_axis():
    """Log p against scipy, for what a convolution emits: means and then log standard deviations as channels."""
    vae = image_vae(decoder_of((4, 5, 6)), distributions.gaussian(channels="last"))
    x = jax.random.normal(key(), (7, 4, 5, 3))
    emitted = np.arange(120, dtype=np.float32).reshape(4, 5, 6) / 120
    mean, log_std = emitted[..., :3], 8 * np.tanh(emitted[..., 3:] / 8)
    expected = scipy.stats.norm(mean, np.exp(log_std)).logpdf(np.asarray(x)).sum((1, 2, 3))
    params = vae.init(key(1))
    np.testing.assert_allclose(vae.decode(params, jnp.zeros((7, 2))).log_prob(x), expected, rtol=1e-5)
    pixels = image_vae(decoder_of((4, 5, 6)), distributions.categorical(2, channels="last"))
    logits = distributions.family_of(pixels.decode(pixels.init(key(2)), jnp.zeros((7, 2)))).logits
    np.testing.assert_allclose(logits[0], np.stack([emitted[..., :3], emitted[..., 3:]], -1), rtol=1e-6)
    grey = image_vae(decoder_of((4, 5, 2)), distributions.gaussian(channels="last"), (4, 5))
    assert grey.decode(grey.init(key(3)), jnp.zeros((7, 2))).event_shape == (4, 5)


@pytest.mark.parametrize(
    ("shape", "likelihood"),
    [
        ((2, 4, 5, 3), "gaussian"),
        ((120,), "gaussian"),
        ((4, 5, 3), "bernoulli"),
        ((60,), "bernoulli"),
        ((1, 4, 5, 3), "bernoulli"),
    ],
)
def test_documented_layouts_are_served(shape, likelihood):
    vae = image_vae(decoder_of(shape), likelihood)
    p = vae.decode(vae.init(key()), jnp.zeros((7, 2)))
    first = distributions.family_of(p)
    first = first.logits if likelihood == "bernoulli" else first.loc
    np.testing.assert_allclose(first[0].ravel(), np.arange(60) / int(np.prod(shape)), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((2, 4, 5, 3), "first"), ((120,), "first"), ((4, 5, 6), "last")],
)
def test_outputs_that_are_taken_as_one_array_are_those_one_by_one(shape, channels):
    head = distributions.categorical(2, channels)
    logits = []
    for same in (head, head._replace(apply_stacked=None)):
        vae = image_vae(decoder_of(shape), same)
        logits.append(distributions.family_of(vae.decode(vae.init(key()), jnp.zeros((7, 2)))).logits)
    assert logits[0].shape == (7, 4, 5, 3, 2)
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("shape", "likelihood"),
    [
        ((3, 4, 5), "bernoulli"),  # channels first
        ((5, 4, 3), "bernoulli"),  # width and height
        ((4, 5, 6), "gaussian"),  # means and log standard deviations on the last axis
        ((6, 4, 5), "gaussian"),
        ((4, 5, 3, 2), "gaussian"),
        ((4, 15), "bernoulli"),
        ((2, 60), "gaussian"),
        ((120,), distributions.gaussian(channels="last")),
        ((2, 4, 5, 3), distributions.gaussian(channels="last")),
    ],
)
def test_other_layouts_are_refused(shape, likelihood):
    vae = image_vae(decoder_of(shape), likelihood)
    params = vae.init(key())
    with pytest.raises(ValueError, match="the decoder must return"):
        vae.decode(params, jnp.zeros((7, 2)))


class Standardized(nnx.Module):
    """A layer of batch statistics without state."""

    def __init__(self, size, rngs):
        self.output = nnx.Linear(size, 4, rngs=rngs)

    def __call__(self, x):
        return self.output((x - x.mean(0, keepdims=True)) / (x.std(0, keepdims=True) + 0.1))


class Centred(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(x - x.max(0, keepdims=True))


@pytest.mark.parametrize(
    "encoder",
    [
        lambda rngs: Standardized(4, rngs),
        Centred(),
        (lambda key: {}, lambda params, x: x - x[::-1]),
        (lambda key: {}, lambda params, x: x * len(x)),
    ],
    ids=["nnx", "linen", "neighbour", "size of the batch"],
)
def test_networks_that_mix_examples_are_refused(encoder):
    with pytest.raises(ValueError, match="sees each example by itself"):
        models.make_vae(encoder, models.networks.mlp(2, (), 4), data_shape=(4,), latent_dim=2)


@pytest.mark.exhaustive
def test_models_that_mix_examples_are_refused_by_an_evaluation():
    x = (jax.random.uniform(key(), (9, 4)) < 0.5).astype(jnp.float32)
    plain = models.mlp_vae((4,), 2, (3,))
    params = plain.init(key(1))
    encoder = plain._replace(encode=lambda params, x: plain.encode(params, x - x.mean(0, keepdims=True)))
    decoder = plain._replace(decode=lambda params, z: plain.decode(params, z - z.mean(0, keepdims=True)))
    for vae, name in ((encoder, "encode"), (decoder, "decode")):
        with pytest.raises(ValueError, match=f"{name}, that gives the same example"):
            evaluation.elbo(vae, params, key(2), x, 2)
    assert np.isfinite(evaluation.elbo(plain, params, key(3), x, 2).estimate).all()
    half = models.mlp_vae((4,), 2, (3,), compute_dtype=jnp.bfloat16)
    assert np.isfinite(evaluation.elbo(half, half.init(key(4)), key(5), x, 2).estimate).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("make", [objectives.make_elbo, objectives.make_iwae])
def test_weighted_bounds_train(make):
    objective = make(VAE, num_samples=3)
    weights = jnp.array([0.3, 2.0])

    def weighted(params, key):
        return (weights * objectives.per_example(objective)(params, key, X)[0]).sum()

    def one_by_one(params, key):  # the gradient of each example alone, by masks of the mean
        bounds = objectives.per_example(jax.jit(objective))(params, key, X)[0]
        return 0.3 * bounds[0] + 2.0 * bounds[1]

    grads = [jax.grad(function)(PARAMS, key(4)) for function in (weighted, one_by_one)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *grads)
    mean = jax.grad(lambda params: objectives.per_example(objective)(params, key(4), X)[0].mean())(PARAMS)
    plain = jax.grad(lambda params: objective(params, key(4), X)[0])(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), mean, plain)
    assert np.abs(plain["decoder"]["network"]["layer_1"]["bias"]).max() > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda vae: objectives.make_free_bits(vae, 0.1),
        lambda vae: objectives.make_info_vae(vae, 10.0),
        objectives.make_optimal_std_elbo,
    ],
)
def test_per_example_refuses_what_is_no_mean_of_bounds(make):
    objective = make(models.linear_vae(4, 2))
    with pytest.raises(ValueError, match="mean over examples"):
        objectives.per_example(objective)


@pytest.mark.exhaustive
def test_whole_numbers_are_data_of_counts_and_categories(no_type_hook):
    pixels = jax.random.randint(key(), (7, 4), 0, 5)
    counts = distributions.Head(1, lambda key, shape: {}, lambda params, output: dist.Poisson(jnp.exp(output)))
    for likelihood in (distributions.categorical(5), counts):
        vae = models.mlp_vae((4,), 2, (3,), likelihood)
        params = vae.init(key(1))
        values = [objectives.make_elbo(vae)(params, key(2), pixels.astype(dtype))[0] for dtype in (jnp.int32, float)]
        assert np.isfinite(values[0])
        np.testing.assert_array_equal(*values)
        p = vae.decode(params, vae.encode(params, pixels).mean)
        base = distributions.family_of(p)
        logits = getattr(base, "logits", None)
        exact = (
            scipy.stats.poisson(np.asarray(base.rate)).logpmf(pixels)
            if logits is None
            else np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(pixels)[..., None], -1)[..., 0]
        )
        np.testing.assert_allclose(distributions.data_log_prob(p, pixels), exact.sum(1), rtol=1e-5)
    bits = models.mlp_vae((4,), 2, (3,))
    params = bits.init(key(3))
    with pytest.raises(ValueError, match="floating dtype"):
        bits.encode(params, pixels.astype(jnp.uint8))


def test_lists_are_data_and_the_grey_pixel_is_found(no_type_hook):
    vae = models.mlp_vae((4,), 2, (3,))
    params, elbo = vae.init(key()), objectives.make_elbo(vae, num_samples=3)
    rows = [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    np.testing.assert_array_equal(elbo(params, key(1), rows)[0], elbo(params, key(1), jnp.array(rows))[0])
    with pytest.raises(ValueError, match=r"the first at index \(1, 2\) with value 0.25"):
        elbo(params, key(1), jnp.array(rows).at[1, 2].set(0.25))
    with pytest.raises(ValueError, match="range of float32"):
        models.mlp_vae((4,), 2, (3,), compute_dtype=jnp.float16)
