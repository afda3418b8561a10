"""Data for a model and from it: checks before a compiled program, a batch axis, samples of p(x|z)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Key

from vaejax import distributions
from vaejax.checks import check_floating, dtype_of
from vaejax.distributions import Params
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
    p = vae.decode(params, z)
    x = distributions.sample(p, key)
    is_binary = isinstance(distributions.without_wrappers(p), dist.BernoulliLogits | dist.BernoulliProbs)
    return x.astype(params_dtype(params)) if is_binary else x


def check_data(vae: VAE, params: Params, x: ArrayLike) -> None:
    """Refuse concrete data that the model cannot have produced, before any of it is lost in a compiled program.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (*batch, *data_shape). Nothing but shape and dtype is said of traced data.

    Raises:
        ValueError: if there is no example, shape or dtype are not the model's, or values lie outside the likelihood's
            support (grey pixels under a Bernoulli likelihood, NaN); or if a parameter is not finite.

    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> check_data(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3)))
    """
    if jnp.issubdtype(dtype_of(x), jnp.floating):
        check_floating(x)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not isinstance(leaf, Tracer) and not np.isfinite(leaf).all():  # jnp's answer would be traced, under `jit`
            raise ValueError(
                f"expected finite parameters; got NaN or infinite values in params{jax.tree_util.keystr(path)}: the "
                "training diverged; the usual cure is a smaller learning rate"
            )
    x = jnp.asarray(x)
    supported = _is_supported(vae, params, x)
    if isinstance(supported, Tracer) or not supported:
        distributions.check_support(_at_zero(vae, params, x), x)


@functools.partial(jax.jit, static_argnums=0)  # operation by operation, compiling the decoder takes a second
def _is_supported(vae: VAE, params: Params, x: Array) -> Bool[Array, ""]:
    return distributions.in_support(_at_zero(vae, params, x), x).all()


def _at_zero(vae: VAE, params: Params, x: Array) -> dist.Distribution:
    q = jax.eval_shape(vae.encode, params, x)
    return vae.decode(params, jnp.zeros(q.event_shape, params_dtype(params)))


def with_batch_axis(vae: VAE, params: Params, x: ArrayLike) -> Array:
    """The data as an array with one batch axis.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape).

    Returns:
        The same numbers.

    Raises:
        ValueError: if there is no batch axis, as for a single example, or more than one.

    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> with_batch_axis(vae, vae.init(jax.random.key(0)), np.ones((7, 3), np.float32)).shape
    (7, 3)
    """
    x = jnp.asarray(x)
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    if len(batch_shape) != 1:
        raise ValueError(
            f"expected examples on one batch axis, (n, *data_shape); got data of shape {x.shape}, with batch axes "
            f"{batch_shape}: reshape it, a single example by x[None]"
        )
    return x
