"""Generative adversarial networks: a decoder without a likelihood, trained by a game against a discriminator.

The generator G maps a code z ~ p(z) to x = G(z); the discriminator's D(x) is the probability it gives to x being data.
The two play for one number, which D raises and G lowers:

    V(D, G) = E_data[log D(x)] + E_p(z)[log(1 - D(G(z)))]

For a given G the best D has the logit log p_data(x) - log p_G(x), and V is then 2 JSD(p_data, p_G) - log 4, with the
Jensen-Shannon divergence in nats. At p_data = p_G it is -log 4, and D gives 1/2 to everything.

Why p(x) cannot be read off: the model is a sampler and nothing else. Where the code has fewer dimensions than the data,
the samples lie on a set of measure zero, and there is no density at all. Where it has as many, p_G(x) is the sum of
p(z) / |det dG/dz| over every z with G(z) = x, and where it has more an integral over them: G would have to be inverted,
and nothing here does that. Nor is there a q(z|x), and so no ELBO; V is no bound on log p(x); and even the best D knows
a ratio of two densities, neither of them by itself. A VAE has p(x) because its decoder adds noise to G(z): p(x|z) is
positive for every z, and q(z|x) says which z to try.

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
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models
from vaejax.distributions import Head, Params
from vaejax.estimators import monte_carlo
from vaejax.models import VAE, networks


class GAN(NamedTuple):
    """A generator, its prior and a discriminator, as pure functions of one `params`.

    Attributes:
        init: `key -> params`, a dict with "generator" and "discriminator", each of dicts of arrays.
        generate: `(params, z) -> x`, deterministic; z of shape (*batch, latent_dim), x of shape (*batch, *data_shape).
        discriminate: `(params, x) -> logits`, of the probability that x is data: (*batch,).
        prior: `params -> p(z)`, with batch_shape ().
    """

    init: Callable[..., Params]
    generate: Callable[..., Array]
    discriminate: Callable[..., Array]
    prior: Callable[[Params], dist.Distribution]

    @property
    def encode(self) -> NoReturn:
        """What a VAE has here, and objectives and evaluation ask for. Raises AttributeError, which says so."""
        raise AttributeError(
            "expected a VAE; got a GAN, which has neither q(z|x) nor p(x|z): no bound on log p(x) can be computed for "
            "it. See vaejax.adversarial for why, and train it by adversarial.make_minimax or make_non_saturating"
        )


class GameInfo(NamedTuple):
    """What a game reports beside its value. No gradient flows through it.

    The two losses measure each player against the other, not how good the samples are.

    Attributes:
        value: V(D, G), nats per example; -log 4 = -1.386 where D cannot tell samples from data. ()
        discriminator_loss: what the discriminator minimises, -V. ()
        generator_loss: what the generator minimises, nats per sample: E[log(1 - D(G(z)))] in the minimax game (the part
            of V that it can change), -E[log D(G(z))] in the non-saturating one. ()
        data_probability: mean of D(x) over the batch of data. ()
        sample_probability: mean of D(G(z)) over as many samples. ()
    """

    value: Float[Array, ""]
    discriminator_loss: Float[Array, ""]
    generator_loss: Float[Array, ""]
    data_probability: Float[Array, ""]
    sample_probability: Float[Array, ""]


# `(params, key, x, *, step=None) -> (value, info)`; info is a GameInfo, where an objective promises an ObjectiveInfo.
Game = Callable[..., tuple[Float[Array, ""], Any]]


def gan_from_vae(vae: VAE, discriminator: Any) -> GAN:
    """The GAN whose generator is a VAE's decoder: G(z) is the mean of p(x|z), and p(z) the VAE's prior.

    `params["generator"]` holds the "decoder" and "prior" of the VAE's params: a trained decoder can be put there. What
    the likelihood has beside its mean, such as a std, gets no gradient.

    Args:
        vae: the model. Its encoder is not used.
        discriminator: a network, as `networks.as_network` takes it, from (n, *data_shape) to one logit an example, (n,)
            or (n, 1), without a sigmoid; for images, say, `networks.conv_encoder((8, 8, 1), (32, 64), 256, 1)`.

    Raises:
        ValueError: if the likelihood has no mean, the prior's codes are not the decoder's, or the discriminator is no
            network; and, when its functions are called, if shapes or dtypes are not the model's, G(z) is NaN, or the
            discriminator returns other than one number an example.

    >>> gan = gan_from_vae(models.linear_vae(data_dim=3, latent_dim=2), networks.mlp(3, (5,), 1))
    >>> params = gan.init(jax.random.key(0))
    >>> gan.discriminate(params, gan.generate(params, jnp.zeros((7, 2)))).shape
    (7,)
    """
    with jax.numpy_dtype_promotion("standard"):  # only the shape is wanted; fresh parameters mix floats under x64
        data_shape = jax.eval_shape(lambda key: _one_sample(vae, key), jax.random.key(0)).shape
    network = networks.as_network(discriminator, data_shape)

    @jax.jit
    def init(key: Key[Array, ""]) -> Params:
        generator_key, discriminator_key = jax.random.split(key)
        whole = vae.init(generator_key)
        return {
            "generator": {"decoder": whole["decoder"], "prior": whole["prior"]},
            "discriminator": network.init(discriminator_key),
        }

    def generate(params: Params, z: ArrayLike) -> Array:
        p = vae.decode(params["generator"], z)
        x = _mean(p)
        if not isinstance(x, Tracer) and jnp.isnan(x).any():
            raise ValueError(
                "expected G(z), the mean of p(x|z), to be a number; got NaN: either the likelihood "
                f"{distributions.name_of(p)} has no mean, or the training diverged"
            )
        return x

    def discriminate(params: Params, x: ArrayLike) -> Array:
        x = checks.checked_data(x, data_shape)
        batch_shape = x.shape[: x.ndim - len(data_shape)]
        num_examples = math.prod(batch_shape)
        logits = network.apply(params["discriminator"], x.reshape(num_examples, *data_shape))
        if not isinstance(logits, jax.Array) or logits.size != num_examples:
            raise ValueError(
                "the discriminator must return one number for each example, the logit of its being data, as an array "
                f"(n,) or (n, 1); got {jax.tree.map(jnp.shape, logits)} for {num_examples} examples"
            )
        # Logarithms are taken in single precision, or in double where something is: never in half.
        return logits.reshape(batch_shape).astype(jnp.float64 if logits.dtype == jnp.float64 else jnp.float32)

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
        latent_dim: numbers in one code.
        hidden_sizes: units of each hidden layer of the discriminator; the generator has them in the opposite order.
        likelihood: as in `models.make_vae`. Only its mean is used: samples are in (0, 1) for "bernoulli", which suits
            grey images as they are (binarized ones give grey samples away), and any real numbers for
            "gaussian_fixed_std".
        activation: a name of `networks.ACTIVATIONS` or a function, of both players.

    Raises:
        ValueError: as `models.mlp_vae`.

    >>> gan = mlp_gan(data_shape=(8, 8), latent_dim=10, hidden_sizes=(20,))
    >>> gan.generate(gan.init(jax.random.key(0)), jnp.zeros((7, 10))).shape
    (7, 8, 8)
    """
    vae = models.mlp_vae(data_shape, latent_dim, hidden_sizes, likelihood, activation)
    return gan_from_vae(vae, networks.mlp(math.prod(data_shape), hidden_sizes, 1, activation))


def sample(gan: GAN, params: Params, key: Key[Array, ""], num_samples: int) -> Float[Array, "n *data"]:
    """Samples x = G(z) with z from the prior: (num_samples, *data_shape).

    Args:
        gan: the model.
        params: its parameters.
        key: consumed; sample i has a key of its own, whatever num_samples.
        num_samples: how many.

    Raises:
        ValueError: if num_samples is not a positive integer.

    >>> gan = mlp_gan(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> sample(gan, gan.init(jax.random.key(0)), jax.random.key(1), 7).shape
    (7, 3)
    """
    prior = gan.prior(params)
    codes = monte_carlo.over_samples(lambda key: distributions.sample(prior, key), key, num_samples)
    return gan.generate(params, codes)


def make_minimax(gan: GAN) -> Game:
    """The game as it is defined: D ascends V, and G ascends -V.

    Where D is sure of the samples, as it is early on, G learns next to nothing: the gradient that reaches a sample of
    logit l is sigmoid(l) times the logit's.

    Returns:
        `(params, key, x, *, step=None) -> (value, info)`, for `training.make_train_step`, which moves both players at
        once. x has shape (*batch, *data_shape), and as many codes are drawn from the prior. The value is V(D, G) in
        nats per example, an unbiased estimate. `jax.grad` gives for the discriminator's parameters the gradient of V,
        and for the generator's that of -V: together the gradient of no function, so there is nothing that must rise.

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
    """The game in which G ascends E[log D(G(z))] in place of -V, and D still ascends V.

    The direction in which a sample is pushed is the same, its weight 1 - D(G(z)) in place of D(G(z)): largest where the
    sample is worst. At the best D, G then descends KL(p_G || p_data) - 2 JSD(p_data, p_G), not a divergence of the two.

    Takes, returns and raises what `make_minimax` does; the value is V(D, G) here too.

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

    The discriminator's is often the faster of the two, so that it stays near its best response.

    >>> optimizer = two_optimizers(generator=optax.sgd(0.1), discriminator=optax.sgd(1.0))
    >>> params = {"generator": jnp.zeros(1), "discriminator": jnp.zeros(1)}
    >>> grads = {"generator": jnp.ones(1), "discriminator": jnp.ones(1)}
    >>> updates, state = optimizer.update(grads, optimizer.init(params))
    >>> updates["generator"].tolist(), updates["discriminator"].tolist()
    ([-0.10000000149011612], [-1.0])
    """
    labels = {"generator": "generator", "discriminator": "discriminator"}
    return optax.partition({"generator": generator, "discriminator": discriminator}, labels)


def _make_game(gan: GAN, generator_loss: Callable[[Float[Array, " *batch"]], Float[Array, ""]]) -> Game:
    def game(params: Params, key: Key[Array, ""], x: ArrayLike, *, step: ArrayLike | None = None):
        del step
        if set(params) != {"generator", "discriminator"}:
            raise ValueError(f"expected a GAN's params, with 'generator' and 'discriminator'; got {sorted(params)}")
        held = lax.stop_gradient(params)
        generators_turn = {**held, "generator": params["generator"]}
        discriminators_turn = {**held, "discriminator": params["discriminator"]}

        data_logits = gan.discriminate(discriminators_turn, x)
        samples = sample(gan, generators_turn, key, data_logits.size)
        sample_logits = gan.discriminate(discriminators_turn, lax.stop_gradient(samples))

        value = jax.nn.log_sigmoid(data_logits).mean() + jax.nn.log_sigmoid(-sample_logits).mean()
        loss = generator_loss(gan.discriminate(generators_turn, samples))
        info = GameInfo(
            value=value,
            discriminator_loss=-value,
            generator_loss=loss,
            data_probability=jax.nn.sigmoid(data_logits).mean(),
            sample_probability=jax.nn.sigmoid(sample_logits).mean(),
        )
        return monte_carlo.with_gradient_of(value, -loss), lax.stop_gradient(info)

    return game


def _one_sample(vae: VAE, key: Key[Array, ""]) -> Array:
    """G(z) for one code, which finds out the shape of the data and that decoder and prior fit each other."""
    init_key, key = jax.random.split(key)
    params = vae.init(init_key)
    return _mean(vae.decode(params, distributions.sample(vae.prior(params), key)))


def _mean(p: dist.Distribution) -> Array:
    try:
        return jnp.asarray(p.mean)
    except NotImplementedError:
        raise ValueError(
            f"expected a likelihood with a mean, for G(z) is the mean of p(x|z); got {distributions.name_of(p)}, for "
            "which numpyro has none: choose another likelihood"
        ) from None
