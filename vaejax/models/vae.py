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
from vaejax.models import layouts, networks, parameters
from vaejax.models.priors import Prior, check_prior, prior_of

LATENTS = "vaejax_latents"
"""The name that latents bear in the program where they enter a decoder: its evaluations can be counted."""


class VAE(NamedTuple):
    """A latent-variable model p(z) p(x|z) and its approximate posterior q(z|x), as pure functions of one `params`.

    Attributes:
        init: `key -> params`, a dict with "encoder", "decoder" and "prior", each a dict of arrays.
        encode: `(params, x, context=None, mask=None) -> q(z|x)`; x of shape (*batch, *data_shape), batch_shape ==
            batch.
        decode: `(params, z, context=None) -> p(x|z)`; z of shape (*batch, latent_dim), event_shape == data_shape.
        prior: `params -> p(z)`, with batch_shape (); one of your own may take a context.

    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> sorted(vae.init(jax.random.key(0)))
    ['decoder', 'encoder', 'prior']
    """

    init: Callable[..., Params]
    encode: Callable[..., dist.Distribution]
    decode: Callable[..., dist.Distribution]
    prior: Callable[..., dist.Distribution]


def make_vae(
    encoder: Any,
    decoder: Any,
    *,
    data_shape: Sequence[int],
    latent_dim: int,
    likelihood: str | Head = "bernoulli",
    posterior: str | Head = "gaussian",
    compute_dtype: Any = None,
    context_shape: Sequence[int] | None = None,
    sees_mask: bool = False,
    prior: Prior | None = None,
) -> VAE:
    """A VAE from any encoder and decoder network.

    The networks see exactly one batch axis. The encoder's output is, for the Gaussian posterior, the means and then the
    unbounded log standard deviations, as one array (n, 2 * latent_dim) or a pair of (n, latent_dim); for the Bernoulli
    one the logits, for a categorical one the logits of the first category, of the second and so on. The decoder's
    output is what the likelihood's head wants, `num_outputs` arrays of the data's shape: a tuple of them, each
    (n, *data_shape); one array (n, num_outputs, *data_shape); or the same numbers flat, (n, num_outputs *
    prod(data_shape)). A grey image may keep a last axis of 1. For a head with `channels="last"` the arrays stand beside
    each other on the last axis, as convolutions emit them: (n, height, width, num_outputs * depth). The decoder sees
    categorical latents one-hot, as (n, latent_dim * num_categories). With `context_shape` both networks get a context
    (n, *context_shape) as their second argument.

    Without `prior`, it is the plainest of the posterior's family: standard normal, fair coins, categories of equal
    probability.

    Args:
        encoder: a pure `(init, apply)` pair, a Linen module, an NNX module or a function that builds one from
            `nnx.Rngs`; see `networks.as_network`.
        decoder: likewise.
        data_shape: shape of one example.
        latent_dim: latents of one example.
        likelihood: a name of `distributions.LIKELIHOODS` or a `distributions.Head` of your own.
        posterior: of q(z|x): a name of `distributions.POSTERIORS` ("gaussian" with diagonal covariance,
            "full_covariance", "flow", "bernoulli", "categorical", "point" for an autoencoder) or a
            `distributions.Head`, such as `distributions.categorical(num_categories=4)`.
        compute_dtype: of the networks' arithmetic, such as `jnp.bfloat16`; by default that of parameters and data.
            Parameters, gradients and densities stay in float32.
        context_shape: of what encoder and decoder condition on; None: nothing. See `Batch`.
        sees_mask: whether the encoder gets, beside data with zeros for what is missing, the mask that says where: both
            on a new last axis, (n, *data_shape, 2). Without it the encoder sees the zeros alone.
        prior: a learned one, of `mixture_prior`, `vamp_prior` or `flow_prior`, or a `models.Prior` of your own.

    Returns:
        The model. Its `init` is jitted; its other functions are plain, for the caller to jit.

    Raises:
        ValueError: if a size is not a positive integer, an option is unknown, a network has state other than its
            parameters; and, when the functions are called, if shapes or dtypes are not the model's.

    >>> from vaejax.models import networks
    >>> vae = make_vae(networks.mlp(3, (), 4), networks.mlp(2, (), 3), data_shape=(3,), latent_dim=2)
    >>> params = vae.init(jax.random.key(0))
    >>> vae.encode(params, jnp.ones((7, 3))).batch_shape
    (7,)
    """
    data_shape = checks.checked_shape("data_shape", data_shape)
    checks.check_count("latent_dim", latent_dim)
    latent_shape = (int(latent_dim),)
    context_shapes = () if context_shape is None else (checks.checked_shape("context_shape", context_shape),)
    encoder = networks.as_network(encoder, (*data_shape, 2) if sees_mask else data_shape, *context_shapes)
    posterior, likelihood = distributions.posterior_head(posterior), distributions.likelihood_head(likelihood)
    input_shape = (latent_dim * (posterior.num_categories or 1),)
    decoder = networks.as_network(decoder, input_shape, *context_shapes)
    if compute_dtype is not None:
        encoder, decoder = (networks.in_dtype(network, compute_dtype) for network in (encoder, decoder))
    _check_context_of_heads(context_shape, likelihood, posterior)
    learned = prior

    @jax.jit
    def draw(key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, 4 if learned is None else 5)
        return {
            "encoder": {"network": encoder.init(keys[0]), "head": posterior.init(keys[1], latent_shape)},
            "decoder": {"network": decoder.init(keys[2]), "head": likelihood.init(keys[3], data_shape)},
            "prior": {} if learned is None else learned.init(keys[4], int(latent_dim), data_shape),
        }

    init, part_of = parameters.checking(draw)

    def encode(
        params: Params, x: ArrayLike, context: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> dist.Distribution:
        part = part_of(params, "encoder")
        whole = jnp.issubdtype(checks.dtype_of(x), jnp.integer) and _takes_integers(likelihood, data_shape)
        x = checks.checked_data(x, data_shape, integers=whole)
        x = x.astype(params_dtype(params)) if whole else x
        context = _checked_context(context, context_shapes, x.shape[: x.ndim - len(data_shape)])
        seen = x if likelihood.seen is None else likelihood.seen(x)
        seen = (_with_mask(seen, mask), (*data_shape, 2)) if sees_mask else (seen, data_shape)
        inputs = [seen, *zip(context, context_shapes, strict=True)]
        return distribution_of("encoder", encoder, posterior, part, inputs, latent_shape)

    def decode(
        params: Params, z: ArrayLike | distributions.Weights, context: ArrayLike | None = None
    ) -> dist.Distribution:
        part = part_of(params, "decoder")
        z = _as_inputs(z, latent_shape, posterior.num_categories, params_dtype(params))
        # Named below one more axis: `vmap` then puts its own axis in front, and the last one always counts the inputs.
        z = checkpoint_name(z[None], LATENTS).squeeze(0)
        context = _checked_context(context, context_shapes, z.shape[:-1])
        inputs = [(z, input_shape), *zip(context, context_shapes, strict=True)]
        return distribution_of("decoder", decoder, likelihood, part, inputs, data_shape)

    def prior(params: Params) -> dist.Distribution:
        checks.check_params(params, "decoder")
        part = {} if learned is None else part_of(params, "prior")
        return prior_of(
            learned, posterior, part, latent_shape, params_dtype(params), lambda x: encode(params, x), context_shape
        )

    check_prior(learned, lambda: prior(draw(jax.random.key(0))))
    return VAE(init, encode, decode, prior)


def _with_mask(x: Array, mask: ArrayLike | None) -> Array:
    """The data and, beside each number, whether it was observed."""
    observed = jnp.ones_like(x) if mask is None else jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    return jnp.stack([x, observed], axis=-1)


def params_dtype(params: Params) -> Any:
    """The dtype of a model's densities: float64 where a parameter of the decoder is, else float32.

    >>> params_dtype({"decoder": {"kernel": jnp.zeros(2, jnp.bfloat16)}}).__name__
    'float32'
    """
    return checks.wide_dtype(*(leaf.dtype for leaf in jax.tree.leaves(params["decoder"])))


def _check_context_of_heads(context_shape: Sequence[int] | None, *heads: Head) -> None:
    if context_shape is None and any(head.takes_context for head in heads):
        raise ValueError(
            "expected a context_shape, for a head takes the context, as likelihoods of counts with library=True do: "
            "context_shape=(1,), with models.Batch(x, context=jnp.log(library_size)); got none"
        )


def _as_inputs(z: Any, latent_shape: tuple[int, ...], num_categories: int | None, dtype: Any) -> Array:
    """Latents as a decoder sees them: (*batch, numbers), of categories one-hot or the weights in their place."""
    weights = z.array if isinstance(z, distributions.Weights) else None
    z = jnp.asarray(checks.as_array(z, "latents")) if weights is None else weights
    expected = latent_shape if weights is None else (*latent_shape, num_categories or 0)
    checks.check_shape("latents", z.shape, ("*batch", *expected))
    if num_categories is not None:
        if weights is None:
            weights = jax.nn.one_hot(z.astype(jnp.int32), num_categories, dtype=dtype)
        return weights.reshape(*weights.shape[:-2], -1)
    return z if jnp.issubdtype(z.dtype, jnp.floating) else z.astype(dtype)


def _takes_integers(likelihood: Head, data_shape: tuple[int, ...]) -> bool:
    """Whether whole numbers are data of the likelihood; of a Bernoulli they would be 8-bit images, which are none."""
    like = jax.ShapeDtypeStruct(data_shape, jnp.float32)
    outputs = [like] * likelihood.outputs_for(data_shape)
    context = {"context": jnp.zeros(1)} if likelihood.takes_context else {}
    p = jax.eval_shape(
        lambda key, *outputs: likelihood.apply(likelihood.init(key, data_shape), *outputs, **context),
        jax.random.key(0),
        *outputs,
    )
    base = distributions.without_wrappers(p)
    return bool(base.is_discrete) and not isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs)


def _checked_context(
    context: ArrayLike | None, shapes: tuple[tuple[int, ...], ...], batch_shape: tuple[int, ...]
) -> tuple[Array, ...]:
    """The context as a tuple of as many arrays as the model has contexts: of one, or of none."""
    if (context is None) != (not shapes):
        expected = f"a context of shape (*batch, {', '.join(map(str, shapes[0]))})" if shapes else "no context"
        got = "none" if context is None else f"one of shape {jnp.shape(context)}"
        raise ValueError(
            f"expected {expected}, as the model was made with context_shape={shapes[0] if shapes else None}; got "
            f"{got}: give it as models.Batch(x, context=...), or as the last argument of encode and decode"
        )
    if context is None:
        return ()
    if jnp.issubdtype(checks.dtype_of(context), jnp.integer):
        raise ValueError(
            f"expected a context of a floating dtype, with labels one-hot: jax.nn.one_hot(labels, number); got "
            f"{checks.dtype_of(context)} of shape {jnp.shape(context)}"
        )
    context = checks.checked_data(context, shapes[0], "a context")
    own = context.shape[: context.ndim - len(shapes[0])]
    if own and batch_shape and batch_shape[-len(own) :] != own:
        raise ValueError(f"expected a context for each of the examples {batch_shape}; got contexts for {own}")
    return (context,)


def distribution_of(
    name: str,
    network: networks.Network,
    head: Head,
    params: Params,
    inputs: list[tuple[Array, tuple[int, ...]]],
    event_shape: tuple[int, ...],
) -> dist.Distribution:
    """What network and head make of inputs of any batch axes.

    Args:
        name: of the network, for messages.
        network: a pure pair, of one batch axis.
        head: what makes a distribution of its outputs.
        params: {"network": ..., "head": ...}.
        inputs: each with the shape of one, (*batch, *shape); their batch axes are broadcast.
        event_shape: of the distribution.

    Returns:
        A distribution of batch shape (*batch,) and that event shape.

    Raises:
        ValueError: if the network's outputs or the head's distribution are of another shape.
    """
    batch_shape = jnp.broadcast_shapes(*(array.shape[: array.ndim - len(shape)] for array, shape in inputs))
    size = math.prod(batch_shape)
    flat = [jnp.broadcast_to(array, (*batch_shape, *shape)).reshape(size, *shape) for array, shape in inputs]
    outputs = network.apply(params["network"], *flat)
    if head.apply_stacked is None:
        arrays, apply = layouts.split(name, outputs, head, size, event_shape), head.apply
    else:
        arrays, apply = [layouts.stack(name, outputs, head, size, event_shape)], head.apply_stacked
    arrays = [array.reshape(*batch_shape, *array.shape[1:]) for array in arrays]
    arrays = [array.astype(checks.wide_dtype(array.dtype)) for array in arrays]
    context = {"context": flat[-1].reshape(*batch_shape, -1)} if head.takes_context else {}
    distribution = apply(params["head"], *arrays, **context)
    num_open = len(event_shape) - distribution.event_dim
    if num_open < 0 or distribution.shape() != (*batch_shape, *event_shape):
        raise ValueError(
            f"the head of the {name} must make a distribution over shape {event_shape} for each of {batch_shape}, "
            "whose axes it may leave as batch axes or declare with `to_event`; got "
            f"{distributions.name_of(distribution)} with batch_shape {distribution.batch_shape} and event_shape "
            f"{distribution.event_shape}"
        )
    return distribution.to_event(num_open)
