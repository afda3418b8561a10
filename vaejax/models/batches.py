"""What a batch may carry beside its numbers: what the model conditions on, and which numbers were observed."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike

from vaejax import checks, distributions, records
from vaejax.distributions import Params
from vaejax.models.vae import VAE


class Batch(NamedTuple):
    """Data with what belongs to each example; it stands wherever an array of data does.

    Attributes:
        x: data, (*batch, *data_shape).
        context: what encoder, decoder and prior may condition on, such as a label one-hot. (*batch, *context_shape)
        mask: which numbers of x were observed, booleans of the shape of x. The others may be anything, NaN too: the
            encoder sees zeros there, and the likelihood is that of the observed numbers.

    >>> import jax
    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae((3,), 2, hidden_sizes=(5,), context_shape=(10,))
    >>> batch = Batch(jnp.ones((7, 3)), context=jax.nn.one_hot(jnp.arange(7), 10))
    >>> value, info = objectives.make_elbo(vae)(vae.init(jax.random.key(0)), jax.random.key(1), batch)
    >>> info.per_example.shape
    (7,)
    """

    x: Any
    context: Any = None
    mask: Any = None

    __repr__ = records.short_repr


def given(vae: VAE, batch: Batch | ArrayLike) -> tuple[VAE, Any]:
    """The model of x alone, once what else a batch carries is known, and x; an array is given back as it is.

    The four functions are then those of a model without context: `encode(params, x)` is q(z|x, context),
    `decode(params, z)` the likelihood of the observed numbers given z and the context, `prior(params)` p(z|context). A
    model of your own gets "context" and "mask" where its functions have arguments of these names.

    Args:
        vae: the model.
        batch: data, (*batch, *data_shape), or a `Batch`.

    Returns:
        The model and the data, in which numbers that were not observed are zero.

    Raises:
        ValueError: if the mask is not made of booleans of the shape of x, or the model takes no context and one is
            given.

    >>> import jax
    >>> from vaejax import models
    >>> vae, x = given(models.mlp_vae((3,), 2), Batch(jnp.ones((7, 3)), mask=jnp.ones((7, 3), bool)))
    >>> vae.decode(vae.init(jax.random.key(0)), jnp.zeros((7, 2))).event_shape
    (3,)
    """
    checks.check_model(vae)
    if not isinstance(batch, Batch):
        checks.check_array(batch)
        return vae, batch
    x, context, mask = batch
    checks.check_array(x)
    if context is not None and not any(map(_takes_context, (vae.encode, vae.decode, vae.prior))):
        raise ValueError(
            "expected a model that takes a context, made with context_shape=, or one of your own whose functions have "
            f"an argument `context`; got a batch with a context of shape {jnp.shape(context)}"
        )
    if mask is not None:
        x = checks.as_array(x)
        checks.check_floating(x)
        mask, x = _checked_mask(mask, x), jnp.asarray(x)
        x = jnp.where(mask, x, jnp.zeros((), x.dtype))
    known = {name: value for name, value in (("context", context), ("mask", mask)) if value is not None}

    def decode(params: Params, z: ArrayLike) -> dist.Distribution:
        p = call_with(vae.decode, params, z, **known)
        return p if mask is None else _observed(p, mask)

    model = VAE(
        vae.init,
        lambda params, x: call_with(vae.encode, params, x, **known),
        decode,
        lambda params: call_with(vae.prior, params, **known),
    )
    return model, x


def numbers_of(batch: Batch | ArrayLike) -> Any:
    """The data of a batch, without what else it carries.

    >>> numbers_of(Batch(jnp.ones((7, 3)), mask=jnp.ones((7, 3), bool))).shape
    (7, 3)
    """
    return batch.x if isinstance(batch, Batch) else batch


def _takes_context(function: Callable) -> bool:
    return "context" in _arguments(function)


def call_with(function: Callable, *args: Any, **known: Any) -> Any:
    """The function called with those of the named arguments that it takes.

    >>> call_with(lambda x, context: x + context, 1, context=2, mask=3)
    3
    """
    taken = _arguments(function)
    return function(*args, **{name: value for name, value in known.items() if name in taken})


def _arguments(function: Callable) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _checked_mask(mask: ArrayLike, x: Any) -> Array:
    mask = jnp.asarray(checks.as_array(mask, "a mask"))
    if mask.dtype != jnp.bool_ or mask.shape != x.shape:
        raise ValueError(
            f"expected a mask of booleans, one for each number of the data, {x.shape}, true where it was observed; "
            f"got {mask.dtype} of shape {mask.shape}: write `mask > 0` for zeros and ones"
        )
    return mask


def _observed(p: dist.Distribution, mask: Array) -> dist.Distribution:
    """The likelihood of the numbers where the mask is true."""
    base = distributions.without_wrappers(p)
    if base.event_shape:
        raise ValueError(
            "a mask needs a likelihood whose numbers are independent given z, as those of distributions.LIKELIHOODS "
            f"are; got {distributions.name_of(p)}, whose events have shape {base.event_shape}"
        )
    shape = jnp.broadcast_shapes(mask.shape, p.shape())
    return base.mask(jnp.broadcast_to(mask, shape)).to_event(len(p.event_shape))
