"""Generative adversarial networks: a decoder without a likelihood, trained by a game against a discriminator.

The generator G maps a latent z ~ p(z) to x = G(z); the discriminator gives D(x), the probability that x is data. The
two play for one number, which D raises and G lowers:

    V(D, G) = E_data[log D(x)] + E_p(z)[log(1 - D(G(z)))]

For a given G the best D has the logit log p_data(x) - log p_G(x), and V is then 2 JSD(p_data, p_G) - log 4, with the
Jensen-Shannon divergence in nats. At p_data = p_G it is -log 4, and D gives 1/2 to everything.

Why p(x) is not known: the model is a sampler and nothing else. Where z has fewer dimensions than x, the samples lie on
a set of measure zero, and there is no density. Where z has as many or more, p_G(x) is a sum or an integral over every z
with G(z) = x, which needs the inverse of G. There is no q(z|x) either, and so no ELBO. V is no bound on log p(x), and
the best D knows only the ratio of the two densities. A VAE has p(x) because its decoder adds noise to G(z).

Source: Goodfellow et al. 2014, "Generative adversarial nets".
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models, records
from vaejax.distributions import Head, Params
from vaejax.estimators import monte_carlo
from vaejax.models import VAE, networks, parameters


class GAN(NamedTuple):
    """A generator, its prior and a discriminator, as pure functions of one `params`.

    Attributes:
        init: `key -> params`, a dict with "generator" and "discriminator", each of dicts of arrays.
        generate: `(params, z) -> x`, deterministic; z of shape (*batch, latent_dim), x of shape (*batch, *data_shape).
        discriminate: `(params, x) -> logits`, of the probability that x is data: (*batch,).
        prior: `params -> p(z)`, with batch_shape ().

    >>> gan = mlp_gan(data_shape=(3,), latent_dim=2)
    >>> gan.prior(gan.init(jax.random.key(0))).event_shape
    (2,)
    """

    init: Callable[..., Params]
    generate: Callable[..., Array]
    discriminate: Callable[..., Array]
    prior: Callable[[Params], dist.Distribution]

    @property
    def encode(self) -> NoReturn:
        """Refuse what is asked of a VAE: an AttributeError that says why a GAN has no encoder, and what trains it."""
        raise AttributeError(
            "expected a VAE; got a GAN, which has neither q(z|x) nor p(x|z): no bound on log p(x) can be computed for "
            "it. See vaejax.adversarial for why, and train it by adversarial.make_minimax or make_non_saturating"
        )


class GameInfo(NamedTuple):
    """What a game reports beside its value. No gradient flows through it.

    Attributes:
        value: V(D, G), nats per example; -log 4 = -1.386 where D cannot tell samples from data. ()
        discriminator_loss: what the discriminator minimises, -V. ()
        generator_loss: what the generator minimises, nats per sample: E[log(1 - D(G(z)))] in the minimax game (the part
            of V that it can change), -E[log D(G(z))] in the non-saturating one. ()
        data_probability: mean of D(x) over the batch of data. ()
        sample_probability: mean of D(G(z)) over as many samples. ()

    >>> bool(GameInfo(*jnp.array([-1.5, 1.5, -0.75, 0.5, 0.5])).value < -math.log(4))  # worse than a D that says 1/2
    True
    """

    value: Float[Array, ""]
    discriminator_loss: Float[Array, ""]
    generator_loss: Float[Array, ""]
    data_probability: Float[Array, ""]
    sample_probability: Float[Array, ""]

    __repr__ = records.short_repr


PLAYERS = ("generator", "discriminator")
"""The two groups of parameters of a GAN: `params["generator"]` and `params["discriminator"]`."""

Game = Callable[..., tuple[Float[Array, ""], Any]]
"""A player's objective, `(params, key, x, *, step=None) -> (value, info)`; info is a `GameInfo`, no `ObjectiveInfo`."""


def gan_from_vae(vae: VAE, discriminator: Any) -> GAN:
    """The GAN whose generator is a VAE's decoder: G(z) is the mean of p(x|z), and p(z) the VAE's prior.

    `params["generator"]` holds the VAE's "decoder" and "prior", trained ones too. A likelihood's std gets no gradient.

    Args:
        vae: the model. Its encoder is not used.
        discriminator: a network, as `networks.as_network` takes it, from (n, *data_shape) to one logit an example, (n,)
            or (n, 1), without a sigmoid; for images, say, `networks.conv_encoder((8, 8, 1), (32, 64), 256, 1)`.

    Returns:
        The GAN.

    Raises:
        ValueError: if the likelihood has no mean, the prior's latents are not the decoder's, or the discriminator is no
            network. When its functions are called: if shapes or dtypes are not the model's, G(z) is NaN, or the
            discriminator returns anything but one number for each example.

    >>> gan = gan_from_vae(models.linear_vae(data_dim=3, latent_dim=2), networks.mlp(3, (5,), 1))
    >>> params = gan.init(jax.random.key(0))
    >>> gan.discriminate(params, gan.generate(params, jnp.zeros((7, 2)))).shape
    (7,)
    """
    checks.check_model(vae)
    with jax.numpy_dtype_promotion("standard"):  # only the shape is wanted; fresh parameters mix floats under x64
        data_shape = jax.eval_shape(lambda key: _one_sample(vae, key), jax.random.key(0)).shape
    network = networks.as_network(discriminator, data_shape)

    @jax.jit
    def draw(key: Key[Array, ""]) -> Params:
        generator_key, discriminator_key = jax.random.split(key)
        whole = vae.init(generator_key)
        generator = {part: whole[part] for part in ("decoder", "prior")}
        return {"generator": generator, "discriminator": network.init(discriminator_key)}

    init, part_of = parameters.checking(draw)

    def generate(params: Params, z: ArrayLike) -> Array:
        checks.check_params(params, "generator")
        p = vae.decode(params["generator"], z)
        x = _mean(p)
        if not isinstance(x, jax.core.Tracer) and jnp.isnan(x).any():
            raise ValueError(
                f"expected G(z) to be a number; got NaN: either the likelihood {distributions.name_of(p)} has no mean, "
                "or the training diverged"
            )
        return x

    def discriminate(params: Params, x: ArrayLike) -> Array:
        x = checks.checked_data(x, data_shape)
        num_examples = x.size // math.prod(data_shape)
        logits = network.apply(part_of(params, "discriminator"), x.reshape(num_examples, *data_shape))
        if not isinstance(logits, jax.Array) or logits.size != num_examples:
            raise ValueError(
                "the discriminator must return one number for each example, the logit of its being data, (n,) or "
                f"(n, 1); got {jax.tree.map(jnp.shape, logits)} for {num_examples} examples"
            )
        # Logarithms are never taken in half precision.
        return logits.reshape(x.shape[: x.ndim - len(data_shape)]).astype(checks.wide_dtype(logits.dtype))

    return GAN(init, generate, discriminate, lambda params: vae.prior(params["generator"]))


def mlp_gan(
    data_shape: Sequence[int],
    latent_dim: int,
    hidden_sizes: Sequence[int] = (500,),
    likelihood: str | Head = "bernoulli",
    activation: str | networks.Activation = "tanh",
) -> GAN:
    """A GAN whose generator is the decoder of `models.mlp_vae`, and whose discriminator has the shape of its encoder.

    Args:
        data_shape: shape of one example.
        latent_dim: numbers in the latent of one example.
        hidden_sizes: units of each hidden layer of the discriminator; the generator has them in the opposite order.
        likelihood: as in `models.make_vae`. Only its mean is used: samples are in (0, 1) for "bernoulli", which suits
            grey images as they are (binarized ones give grey samples away), for "gaussian_fixed_std" any numbers.
        activation: a name of `networks.ACTIVATIONS` or a function, of both players.

    Returns:
        The GAN.

    Raises:
        ValueError: as `models.mlp_vae`.

    >>> gan = mlp_gan(data_shape=(8, 8), latent_dim=10, hidden_sizes=(20,))
    >>> gan.generate(gan.init(jax.random.key(0)), jnp.zeros((7, 10))).shape
    (7, 8, 8)
    """
    vae = models.mlp_vae(data_shape, latent_dim, hidden_sizes, likelihood, activation)
    return gan_from_vae(vae, networks.mlp(math.prod(data_shape), hidden_sizes, 1, activation))


def sample(gan: GAN, params: Params, key: Key[Array, ""], num_samples: int) -> Float[Array, "n *data"]:
    """Samples of p_G: x = G(z) with z ~ p(z).

    Args:
        gan: the model.
        params: its parameters.
        key: consumed; sample i has a key of its own, whatever num_samples.
        num_samples: how many.

    Returns:
        The samples. (num_samples, *data_shape)

    Raises:
        ValueError: if num_samples is not a positive integer.

    >>> gan = mlp_gan(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> sample(gan, gan.init(jax.random.key(0)), jax.random.key(1), 7).shape
    (7, 3)
    """
    checks.check_kind("gan", gan, GAN, "a GAN, such as adversarial.mlp_gan(...)")
    checks.check_params(params, "generator")
    checks.check_given(key=key, num_samples=num_samples)
    latents = monte_carlo.over_samples(lambda key: distributions.sample(gan.prior(params), key), key, num_samples)
    return gan.generate(params, latents)


def make_minimax(gan: GAN) -> Game:
    """The minimax game: D ascends V(D, G) = E_data[log D(x)] + E_p(z)[log(1 - D(G(z)))], and G ascends -V.

    Where D is sure that samples are no data, as early on, G learns next to nothing: the gradient that reaches a sample
    of logit l is sigmoid(l) times that of the logit.

    Args:
        gan: the model.

    Returns:
        `(params, key, x, *, step=None) -> (value, info)`, for `training.make_train_step`, which moves both players at
        once. x has shape (*batch, *data_shape), and as many latents are drawn from the prior. The value is an unbiased
        estimate of V(D, G), nats per example; `info` is a `GameInfo`. `jax.grad` gives the gradient of V for the
        discriminator's parameters and the gradient of -V for the generator's. Together they are the gradient of no
        function, so no number has to rise in training.

    Raises:
        ValueError: when called, if the parameters are not a GAN's or the data not the model's.

    >>> gan = mlp_gan(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, x = gan.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> grads, info = jax.grad(make_minimax(gan), has_aux=True)(params, jax.random.key(1), x)
    >>> sorted(grads), bool(info.discriminator_loss == -info.value)
    (['discriminator', 'generator'], True)

    Source: Goodfellow et al. 2014, equation 1.
    """
    return _make_game(gan, lambda logits: jax.nn.log_sigmoid(-logits).mean())


def make_non_saturating(gan: GAN) -> Game:
    """The non-saturating game: G ascends E_p(z)[log D(G(z))] in place of -V, and D still ascends V.

    Each sample is pushed in the same direction as in the minimax game, with the weight 1 - D(G(z)) in place of D(G(z)),
    which is largest for the worst samples. At the best D, G descends KL(p_G || p_data) - 2 JSD(p_data, p_G), which is
    not a divergence.

    Args:
        gan: the model.

    Returns:
        As `make_minimax`; the value is an estimate of V(D, G) here too.

    Raises:
        ValueError: as `make_minimax`.

    >>> gan = mlp_gan(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> value, info = make_non_saturating(gan)(gan.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> bool(info.generator_loss > 0)
    True

    Source: Goodfellow et al. 2014, section 3; for what it descends, Arjovsky & Bottou 2017, theorem 2.5.
    """
    return _make_game(gan, lambda logits: -jax.nn.log_sigmoid(logits).mean())


def two_optimizers(
    generator: optax.GradientTransformation, discriminator: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer for a GAN's parameters, made of one for each player.

    The discriminator's is often the faster one, so that D stays near the best answer to G.

    Args:
        generator: optax transformation for `params["generator"]`.
        discriminator: optax transformation for `params["discriminator"]`.

    Returns:
        The optimizer, for `training.make_train_step` and `training.init_state`.

    >>> optimizer = two_optimizers(generator=optax.sgd(0.25), discriminator=optax.sgd(1.0))
    >>> grads = {"generator": jnp.ones(1), "discriminator": jnp.ones(1)}
    >>> updates, _ = optimizer.update(grads, optimizer.init(grads))
    >>> updates["generator"].tolist(), updates["discriminator"].tolist()
    ([-0.25], [-1.0])
    """
    checks.check_optimizer(generator, "generator_optimizer")
    checks.check_optimizer(discriminator, "discriminator_optimizer")
    return optax.partition({"generator": generator, "discriminator": discriminator}, {name: name for name in PLAYERS})


def _make_game(gan: GAN, generator_loss: Callable[[Float[Array, " *batch"]], Float[Array, ""]]) -> Game:
    checks.check_kind("gan", gan, GAN, "a GAN, such as adversarial.mlp_gan(...)")

    def game(params: Params, key: Key[Array, ""], x: ArrayLike, *, step: ArrayLike | None = None):
        del step
        checks.check_params(params, *PLAYERS)
        held = lax.stop_gradient(params)
        generators_turn = {**held, "generator": params["generator"]}
        discriminators_turn = {**held, "discriminator": params["discriminator"]}

        data_logits = gan.discriminate(discriminators_turn, x)
        samples = sample(gan, generators_turn, key, data_logits.size)
        sample_logits = gan.discriminate(discriminators_turn, lax.stop_gradient(samples))

        value = jax.nn.log_sigmoid(data_logits).mean() + jax.nn.log_sigmoid(-sample_logits).mean()
        loss = generator_loss(gan.discriminate(generators_turn, samples))
        probabilities = (jax.nn.sigmoid(logits).mean() for logits in (data_logits, sample_logits))
        info = GameInfo(value, -value, loss, *probabilities)
        return monte_carlo.with_gradient_of(value, -loss), lax.stop_gradient(info)

    return game


def _one_sample(vae: VAE, key: Key[Array, ""]) -> Array:
    """G(z) for one latent; it shows the shape of the data, and that decoder and prior fit each other."""
    init_key, key = jax.random.split(key)
    params = vae.init(init_key)
    return _mean(vae.decode(params, distributions.sample(vae.prior(params), key)))


def _mean(p: dist.Distribution) -> Array:
    try:
        return jnp.asarray(p.mean)
    except NotImplementedError:
        raise ValueError(f"expected a likelihood with a mean, for G(z); got {distributions.name_of(p)}") from None
