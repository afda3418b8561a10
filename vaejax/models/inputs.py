"""Data for a model and from it: checks before a compiled program, a batch axis, samples of p(x|z)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Key

from vaejax import checks, distributions
from vaejax.distributions import Params
from vaejax.models.batches import Batch, given
from vaejax.models.networks import check_alone
from vaejax.models.programs import compiled
from vaejax.models.vae import VAE, params_dtype


def sample_data(vae: VAE, params: Params, key: Key[Array, ""], z: ArrayLike) -> Array:
    """One sample of p(x|z) for each latent, as the encoder takes data.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        z: latents, (*batch, latent_dim).

    Returns:
        (*batch, *data_shape), of a floating dtype where the encoder wants one.

    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> sample_data(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.zeros((7, 2))).dtype
    dtype('float32')
    """
    checks.check_given(vae=vae, params=params, key=key)
    p = vae.decode(params, z)
    x = distributions.sample(p, key)
    is_binary = isinstance(distributions.family_of(p), dist.BernoulliLogits | dist.BernoulliProbs)
    return x.astype(params_dtype(params)) if is_binary else x


def check_data(vae: VAE, params: Params, x: Batch | ArrayLike) -> None:
    """Refuse concrete data that the model cannot have produced, before any of it is lost in a compiled program.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (*batch, *data_shape), or a `Batch`. Nothing but shape and dtype is said of traced data.

    Raises:
        ValueError: if there is no example, shape or dtype are not the model's, or values lie outside the likelihood's
            support (grey pixels under a Bernoulli likelihood, NaN); if a parameter is not finite; or if the model
            breaks its contract: a distribution of another shape, or a network that mixes the examples of a batch.

    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> check_data(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3)))
    """
    checks.check_given(vae=vae, params=params)
    check_params(params)
    batch = x if isinstance(x, Batch) else Batch(x)
    numbers = checks.as_array(batch.x)
    if jnp.issubdtype(numbers.dtype, jnp.floating):
        checks.check_floating(numbers)
    batch = batch._replace(x=jnp.asarray(numbers))
    supported, alone, among = _answers(vae, params, batch)
    if isinstance(supported, Tracer) or not supported:
        model, numbers = given(vae, batch)
        distributions.check_support(_at_zero(model, params, numbers)[1], numbers)
    for network, one, several in zip(("encode", "decode"), alone, among, strict=True):
        check_alone(network, one, several)


def check_params(params: Any) -> None:
    """Refuse concrete parameters that are not finite, or no arrays of numbers.

    Args:
        params: a tree of arrays.

    Raises:
        ValueError: naming the first such array.

    >>> check_params({"decoder": {"bias": jnp.zeros(3)}})
    """
    checks.check_leaves(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not isinstance(leaf, Tracer) and not np.isfinite(leaf).all():  # jnp's answer would be traced, under `jit`
            raise ValueError(
                f"expected finite parameters; got NaN or infinite values in params{jax.tree_util.keystr(path)}: the "
                "training diverged; the usual cure is a smaller learning rate"
            )


def check_distributions(x: ArrayLike, q: dist.Distribution, prior: dist.Distribution) -> None:
    """Refuse a posterior or prior whose shapes are not those of the contract; broadcasting would hide them.

    Args:
        x: data, (*batch, *data_shape).
        q: the posterior: batch_shape must be the batch, event_shape the latents'.
        prior: event_shape must be that of q, batch_shape () or, where it depends on a context, that of q.

    Raises:
        ValueError: saying where `to_event` is missing.

    >>> q = dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1)
    >>> check_distributions(jnp.ones((7, 3)), q, dist.Normal(jnp.zeros(2), 1.0))
    Traceback (most recent call last):
    ...
    ValueError: expected a prior of event_shape (2,) and batch_shape (); got event_shape () and batch_shape (2,): ...
    """
    checks.check_array(x)
    for distribution in (q, prior):
        checks.check_distribution(distribution)
    batch = jnp.shape(x)[: len(q.batch_shape)]
    if not q.event_shape or q.batch_shape != batch or len(batch) == jnp.ndim(x):
        raise ValueError(
            f"expected encode to give one q(z|x) for each example of data of shape {jnp.shape(x)}, its latents in "
            f"event_shape; got batch_shape {q.batch_shape} and event_shape {q.event_shape}: declare the axes of the "
            "latents with q.to_event(1)"
        )
    if prior.event_shape != q.event_shape or prior.batch_shape not in ((), q.batch_shape):
        raise ValueError(
            f"expected a prior of event_shape {q.event_shape} and batch_shape (); got event_shape {prior.event_shape} "
            f"and batch_shape {prior.batch_shape}: declare the axes of the latents with prior.to_event(1)"
        )


def check_likelihood(p: dist.Distribution, batch_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> None:
    """Refuse a likelihood whose shapes are not those of the contract.

    Args:
        p: the likelihood of the latents.
        batch_shape: of the latents.
        data_shape: of one example.

    Raises:
        ValueError: saying where `to_event` is missing.

    >>> check_likelihood(dist.Normal(jnp.zeros((7, 3)), 1.0).to_event(1), (7,), (3,))
    """
    checks.check_distribution(p)
    if p.batch_shape != batch_shape or p.event_shape != data_shape:
        raise ValueError(
            f"expected decode to give a p(x|z) of event_shape {data_shape} for each of the latents {batch_shape}; got "
            f"batch_shape {p.batch_shape} and event_shape {p.event_shape}: declare the axes of an example with "
            f"p.to_event({len(data_shape)})"
        )


@compiled(0)  # operation by operation, compiling the decoder takes a second
def _answers(vae: VAE, params: Params, batch: Batch) -> tuple[Bool[Array, ""], Any, Any]:
    """Whether the data are supported; and what both networks give for the first example alone and among others."""
    model, x = given(vae, batch)
    q, p = _at_zero(model, params, x)
    supported = distributions.in_support(p, x).all()
    if len(q.batch_shape) != 1 or q.batch_shape[0] < 2:
        return supported, ([], []), ([], [])

    def outputs(number: int) -> tuple[Any, Any]:
        model, x = given(vae, jax.tree.map(lambda leaf: leaf[:number], batch))
        z = jnp.arange(number * math.prod(q.event_shape), dtype=params_dtype(params)).reshape(number, *q.event_shape)
        z = jnp.zeros_like(z) if q.is_discrete else z / (3 * math.prod(q.event_shape))
        return jax.tree.leaves(model.encode(params, x)), jax.tree.leaves(model.decode(params, z))

    return supported, outputs(1), outputs(min(len(x), 3))


def _at_zero(model: VAE, params: Params, x: Array) -> tuple[dist.Distribution, dist.Distribution]:
    """The shapes of q(z|x), and p(x|z) at z = 0; both, and the prior, are of the contract's shapes."""
    q, prior = jax.eval_shape(model.encode, params, x), jax.eval_shape(model.prior, params)
    check_distributions(x, q, prior)
    p = model.decode(params, jnp.zeros(q.event_shape, params_dtype(params)))
    batch_shape = p.batch_shape and q.batch_shape  # of a model with a context or a mask, that of these
    check_likelihood(p, batch_shape, jnp.shape(x)[len(q.batch_shape) :])
    return q, p


def with_batch_axis(vae: VAE, params: Params, x: Batch | ArrayLike) -> Any:
    """The data as an array with one batch axis.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), or a `Batch`.

    Returns:
        The same, of JAX arrays.

    Raises:
        ValueError: if there is no batch axis, as for a single example, or more than one.

    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> with_batch_axis(vae, vae.init(jax.random.key(0)), np.ones((7, 3), np.float32)).shape
    (7, 3)
    """
    checks.check_given(vae=vae, params=params)
    model, numbers = given(vae, x)
    x = jax.tree.map(jnp.asarray, x)
    batch_shape = jax.eval_shape(model.encode, params, numbers).batch_shape
    if len(batch_shape) != 1:
        raise ValueError(
            f"expected examples on one batch axis, (n, *data_shape); got data of shape {numbers.shape}, with batch "
            f"axes {batch_shape}: reshape it, a single example by x[None]"
        )
    return x
