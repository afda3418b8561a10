"""Variational autoencoders as tuples of pure functions, and the factories that build them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, distributions
from vaejax.distributions import Head, Params
from vaejax.models import adapters, networks

# Latents that enter a decoder bear this name in the program, so that decoder evaluations can be counted.
LATENTS = "vaejax_latents"


class VAE(NamedTuple):
    """A latent-variable model p(z) p(x|z) and its approximate posterior q(z|x), as pure functions of one `params`.

    Attributes:
        init: `key -> params`, a dict with "encoder", "decoder" and "prior", each a dict of arrays.
        encode: `(params, x) -> q(z|x)`; x of shape (*batch, *data_shape), batch_shape == batch.
        decode: `(params, z) -> p(x|z)`; z of shape (*batch, latent_dim), event_shape == data_shape.
        prior: `params -> p(z)`, with batch_shape ().

    >>> vae = mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> sorted(vae.init(jax.random.key(0)))
    ['decoder', 'encoder', 'prior']
    """

    init: Callable[..., Params]
    encode: Callable[..., dist.Distribution]
    decode: Callable[..., dist.Distribution]
    prior: Callable[[Params], dist.Distribution]


def make_vae(
    encoder: Any,
    decoder: Any,
    *,
    data_shape: Sequence[int],
    latent_dim: int,
    likelihood: str | Head = "bernoulli",
    posterior: str | Head = "gaussian",
    compute_dtype: Any = None,
) -> VAE:
    """A VAE from any encoder and decoder network.

    The networks see exactly one batch axis. The encoder's output is, for the Gaussian posterior, the means and then the
    unbounded log standard deviations, as one array (n, 2 * latent_dim) or a pair of (n, latent_dim); for the Bernoulli
    one the logits, for a categorical one the logits of the first category, of the second and so on. The decoder's
    output is what the likelihood's head wants: one array with `num_outputs * prod(data_shape)` numbers an example, the
    arrays one after another, or a tuple of `num_outputs` arrays. The decoder sees categorical latents one-hot, as
    (n, latent_dim * num_categories).

    The prior is the plainest of the posterior's family: standard normal, fair coins, categories of equal probability.

    Args:
        encoder: a pure `(init, apply)` pair, a Linen module, an NNX module or a function that builds one from
            `nnx.Rngs`; see `networks.as_network`.
        decoder: likewise.
        data_shape: shape of one example.
        latent_dim: latents of one example.
        likelihood: a name of `distributions.LIKELIHOODS` or a `distributions.Head` of your own.
        posterior: of q(z|x): a name of `distributions.POSTERIORS` ("gaussian" with diagonal covariance, "bernoulli",
            "categorical", "point" for an autoencoder) or a `distributions.Head`, such as
            `distributions.categorical(num_categories=4)`.
        compute_dtype: of the networks' arithmetic, such as `jnp.bfloat16`; by default that of parameters and data.
            Parameters, gradients and densities stay in float32.

    Returns:
        The model. Its `init` is jitted; its other functions are plain, for the caller to jit.

    Raises:
        ValueError: if a size is not a positive integer, an option is unknown, a network has state other than its
            parameters; and, when the functions are called, if shapes or dtypes are not the model's.

    >>> vae = make_vae(networks.mlp(3, (), 4), networks.mlp(2, (), 3), data_shape=(3,), latent_dim=2)
    >>> params = vae.init(jax.random.key(0))
    >>> vae.encode(params, jnp.ones((7, 3))).batch_shape
    (7,)
    """
    data_shape = checks.checked_shape("data_shape", data_shape)
    checks.check_count("latent_dim", latent_dim)
    latent_shape = (int(latent_dim),)
    encoder = adapters.as_network(encoder, data_shape)
    posterior = distributions.posterior_head(posterior)
    input_shape = (latent_dim * (posterior.num_categories or 1),)
    decoder = adapters.as_network(decoder, input_shape)
    if compute_dtype is not None:
        encoder, decoder = (adapters.in_dtype(network, compute_dtype) for network in (encoder, decoder))
    likelihood = distributions.likelihood_head(likelihood)

    @jax.jit
    def init(key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, 4)
        return {
            "encoder": {"network": encoder.init(keys[0]), "head": posterior.init(keys[1], latent_shape)},
            "decoder": {"network": decoder.init(keys[2]), "head": likelihood.init(keys[3], data_shape)},
            "prior": {},
        }

    def encode(params: Params, x: ArrayLike) -> dist.Distribution:
        x = checks.checked_data(x, data_shape)
        return _apply("encoder", encoder, posterior, params["encoder"], x, data_shape, latent_shape)

    def decode(params: Params, z: ArrayLike) -> dist.Distribution:
        z = jnp.asarray(z)
        checks.check_shape("latents", z.shape, ("*batch", *latent_shape))
        dtype = params_dtype(params)
        if posterior.num_categories is not None:
            one_hot = jax.nn.one_hot(z.astype(jnp.int32), posterior.num_categories, dtype=dtype)
            z = one_hot.reshape(*z.shape[:-1], *input_shape)
        elif not jnp.issubdtype(z.dtype, jnp.floating):
            z = z.astype(dtype)
        # Named below one more axis: `vmap` then puts its own axis in front, and the last one always counts the inputs.
        z = checkpoint_name(z[None], LATENTS).squeeze(0)
        return _apply("decoder", decoder, likelihood, params["decoder"], z, input_shape, data_shape)

    def prior(params: Params) -> dist.Distribution:
        return posterior.prior(latent_shape, params_dtype(params)).to_event(1)

    return VAE(init, encode, decode, prior)


def mlp_vae(
    data_shape: Sequence[int],
    latent_dim: int,
    hidden_sizes: Sequence[int] = (500,),
    likelihood: str | Head = "bernoulli",
    activation: str | networks.Activation = "tanh",
    posterior: str | Head = "gaussian",
    compute_dtype: Any = None,
) -> VAE:
    """A VAE with multilayer perceptrons for encoder and decoder (Kingma & Welling 2014, appendix C).

    Args:
        data_shape: shape of one example.
        latent_dim: latents of one example.
        hidden_sizes: units of each hidden layer of the encoder; the decoder has them in the opposite order.
        likelihood: as in `make_vae`.
        activation: a name of `networks.ACTIVATIONS` or a function.
        posterior: as in `make_vae`.
        compute_dtype: as in `make_vae`.

    Returns:
        The model, as `make_vae`.

    Raises:
        ValueError: as `make_vae`.

    >>> vae = mlp_vae(data_shape=(28, 28), latent_dim=20)
    >>> params = vae.init(jax.random.key(0))
    >>> vae.decode(params, jnp.zeros((7, 20))).event_shape
    (28, 28)
    """
    data_size = math.prod(checks.checked_shape("data_shape", data_shape))
    checks.check_count("latent_dim", latent_dim)
    head = distributions.likelihood_head(likelihood)
    posterior = distributions.posterior_head(posterior)
    decoder_inputs = latent_dim * (posterior.num_categories or 1)
    return make_vae(
        networks.mlp(data_size, hidden_sizes, posterior.num_outputs * latent_dim, activation),
        networks.mlp(decoder_inputs, tuple(reversed(hidden_sizes)), head.num_outputs * data_size, activation),
        data_shape=data_shape,
        latent_dim=latent_dim,
        likelihood=head,
        posterior=posterior,
        compute_dtype=compute_dtype,
    )


def conv_vae(
    data_shape: Sequence[int],
    latent_dim: int,
    channels: Sequence[int] = (32, 64),
    hidden_size: int = 256,
    likelihood: str | Head = "bernoulli",
    activation: str | networks.Activation = "relu",
    posterior: str | Head = "gaussian",
    compute_dtype: Any = None,
) -> VAE:
    """A VAE with strided convolutions in the encoder and their mirror image in the decoder.

    Args:
        data_shape: (height, width) or (height, width, depth).
        latent_dim: latents of one example.
        channels: channels of each convolution, which halves height and width.
        hidden_size: units of the dense layer between the convolutions and the latents.
        likelihood: as in `make_vae`.
        activation: a name of `networks.ACTIVATIONS` or a function.
        posterior: as in `make_vae`.
        compute_dtype: as in `make_vae`.

    Returns:
        The model, as `make_vae`.

    Raises:
        ValueError: if data_shape has not two or three axes, or there is no convolution; and as `make_vae`.

    >>> vae = conv_vae(data_shape=(8, 8), latent_dim=2, channels=(4,), hidden_size=16)
    >>> vae.encode(vae.init(jax.random.key(0)), jnp.ones((7, 8, 8))).batch_shape
    (7,)
    """
    data_shape = checks.checked_shape("data_shape", data_shape)
    if len(data_shape) not in (2, 3):
        raise ValueError(f"conv_vae expects data_shape (height, width) or (height, width, depth); got {data_shape}")
    checks.check_count("latent_dim", latent_dim)
    height, width, depth = (*data_shape, 1)[:3]
    image_shape = (height, width, depth)
    head = distributions.likelihood_head(likelihood)
    posterior = distributions.posterior_head(posterior)
    decoder_inputs = latent_dim * (posterior.num_categories or 1)
    return make_vae(
        networks.conv_encoder(image_shape, channels, hidden_size, posterior.num_outputs * latent_dim, activation),
        networks.conv_decoder(decoder_inputs, image_shape, channels, hidden_size, head.num_outputs, activation),
        data_shape=data_shape,
        latent_dim=latent_dim,
        likelihood=head,
        posterior=posterior,
        compute_dtype=compute_dtype,
    )


def with_output_bias(params: Params, x: ArrayLike) -> Params:
    """The parameters with the decoder's output bias at the logit of the mean of x, the optimum of independent pixels.

    Args:
        params: of an `mlp_vae` or `linear_vae` with Bernoulli likelihood.
        x: data in [0, 1], (n, *data_shape); means are held within 0.001 and 0.999.

    Returns:
        New parameters; those given are unchanged.

    Raises:
        ValueError: if the decoder is not such a network, or x is not of its size.

    >>> vae = mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params = with_output_bias(vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 0.2], [0.0, 1.0, 0.8]]))
    >>> params["decoder"]["network"]["layer_1"]["bias"].round(1).tolist()
    [-6.9..., 6.9..., 0.0]

    Source: the program of Burda, Grosse & Salakhutdinov 2015.
    """
    network = params["decoder"]["network"]
    last = f"layer_{len(network) - 1}"
    x = jnp.asarray(x)
    if last not in network or network[last]["bias"].size != math.prod(x.shape[1:]):
        raise ValueError(
            f"expected the parameters of an mlp_vae or linear_vae with one output for each of {math.prod(x.shape[1:])} "
            f"pixels; got a decoder with {sorted(network)}"
        )
    mean = jnp.clip(x.reshape(len(x), -1).mean(axis=0), 1e-3, 1 - 1e-3)
    layer = {**network[last], "bias": jnp.log(mean / (1 - mean)).astype(network[last]["bias"].dtype)}
    return {**params, "decoder": {**params["decoder"], "network": {**network, last: layer}}}


def params_dtype(params: Params) -> Any:
    """The dtype of a model's densities: float64 where a parameter of the decoder is, else float32.

    >>> params_dtype({"decoder": {"kernel": jnp.zeros(2, jnp.bfloat16)}}).__name__
    'float32'
    """
    return checks.wide_dtype(*(leaf.dtype for leaf in jax.tree.leaves(params["decoder"])))


def _apply(
    name: str,
    network: networks.Network,
    head: Head,
    params: Params,
    inputs: Array,
    input_shape: tuple[int, ...],
    event_shape: tuple[int, ...],
) -> dist.Distribution:
    """Network and head on inputs with any batch axes: the distribution over `event_shape`."""
    batch_shape = inputs.shape[: inputs.ndim - len(input_shape)]
    flat = network.apply(params["network"], inputs.reshape(math.prod(batch_shape), *input_shape))
    arrays = _split_outputs(name, flat, head.num_outputs, math.prod(batch_shape), event_shape)
    arrays = [array.reshape(*batch_shape, *event_shape) for array in arrays]
    arrays = [array.astype(checks.wide_dtype(array.dtype)) for array in arrays]
    distribution = head.apply(params["head"], *arrays)
    return distribution.to_event(len(event_shape) - distribution.event_dim)


def _split_outputs(
    name: str, outputs: Any, num_outputs: int, batch_size: int, event_shape: tuple[int, ...]
) -> list[Array]:
    event_size = math.prod(event_shape)
    arrays = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    if len(arrays) == 1 and arrays[0].size == batch_size * num_outputs * event_size:
        stacked = arrays[0].reshape(batch_size, num_outputs, event_size)
        return [stacked[:, i] for i in range(num_outputs)]
    if len(arrays) != num_outputs or any(array.size != batch_size * event_size for array in arrays):
        raise ValueError(
            f"the {name} must return {num_outputs} x {event_size} numbers for each example, in one array or in a tuple "
            f"of {num_outputs}: its head makes a distribution over shape {event_shape}; got "
            f"{[array.shape for array in arrays]} for {batch_size} examples"
        )
    return arrays
