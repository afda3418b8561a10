"""Reconstruction errors: what an autoencoder minimizes, for each example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from vaejax import checks, distributions

ErrorFunction = Callable[[dist.Distribution, Array], Array]
"""An error of a reconstruction, `(p(x|z), x) -> (*batch,)`, for instance `squared_error`."""


def squared_error(p: dist.Distribution, x: Array) -> Array:
    """The squared distance of the data from the reconstruction, |x - mean of p|^2, summed over an example.

    Args:
        p: what the decoder returns, of batch_shape (*batch,) and event_shape data_shape.
        x: the data. (*batch, *data_shape)

    Returns:
        The error of each example, in the squared units of x. (*batch,)

    Raises:
        ValueError: if p is Bernoulli, whose mean lies between 0 and 1, and x is concrete and does not; under `jit` the
            error is then NaN.

    >>> squared_error(dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(1), jnp.full((2, 3), 2.0)).tolist()
    [12.0, 12.0]
    """
    _check(p, x)
    squares = (x - jnp.asarray(p.mean)) ** 2
    if isinstance(distributions.without_wrappers(p), dist.BernoulliLogits):
        squares = jnp.where(_in_unit_interval("squared_error of a Bernoulli decoder", x), squares, jnp.nan)
    return squares.sum(axis=_event_axes(p))


def negative_log_likelihood(p: dist.Distribution, x: Array) -> Array:
    """Minus the decoder's log-likelihood, -log p(x | z), summed over an example.

    It is not the -log p(x) of a model, which an autoencoder does not have: the latents were computed from x.

    Args:
        p: what the decoder returns, of batch_shape (*batch,) and event_shape data_shape.
        x: the data. (*batch, *data_shape)

    Returns:
        The error of each example, in nats. (*batch,)

    Raises:
        ValueError: if x is concrete and outside the support; under `jit` the error of such an example is NaN.

    >>> negative_log_likelihood(dist.BernoulliLogits(jnp.zeros((2, 1))).to_event(1), jnp.ones((2, 1))).round(4).tolist()
    [0.693..., 0.693...]
    """
    _check(p, x)
    return -distributions.data_log_prob(p, x)


def cross_entropy(p: dist.Distribution, x: Array) -> Array:
    """The cross-entropy -sum_i [x_i log m_i + (1 - x_i) log(1 - m_i)], with m the mean of a Bernoulli p.

    It is the mean of `negative_log_likelihood` over dynamic binarizations of x. For grey pixels it is no likelihood:
    its smallest value is the entropy of the pixels, not 0.

    Args:
        p: what a decoder with likelihood="bernoulli" returns, of batch_shape (*batch,) and event_shape data_shape.
        x: pixels in [0, 1], grey ones too. (*batch, *data_shape)

    Returns:
        The error of each example, in nats. (*batch,)

    Raises:
        ValueError: if p is not Bernoulli, or x is concrete and not in [0, 1]; under `jit` the error is then NaN.

    >>> cross_entropy(dist.BernoulliLogits(jnp.zeros((2, 3))).to_event(1), jnp.full((2, 3), 0.2)).round(4).tolist()
    [2.0794..., 2.0794...]
    """
    _check(p, x)
    base = distributions.without_wrappers(p)
    if not isinstance(base, dist.BernoulliLogits):
        raise ValueError(
            f"cross_entropy needs a decoder with likelihood='bernoulli'; got {distributions.name_of(p)}: use "
            "squared_error or negative_log_likelihood"
        )
    inside = _in_unit_interval("cross_entropy", x)
    logits = jnp.asarray(base.logits)
    return jnp.where(inside, jax.nn.softplus(logits) - x * logits, jnp.nan).sum(axis=_event_axes(p))


def _check(p: Any, x: Any) -> None:
    checks.check_distribution(p)
    checks.check_array(x)


def numbers_of(x: ArrayLike) -> Array:
    """Data that an error can be of: finite floating-point numbers, or they are refused."""
    x = checks.as_array(x)
    checks.check_floating(x)
    checks.check_finite(x, "data")
    return jnp.asarray(x)


def of_shape(name: str, result: Array, shape: tuple[int, ...]) -> Array:
    """What a function given by the user returned, or a refusal of its shape."""
    checks.check_shape(f"what {name} returns to be", jnp.shape(result), shape)
    return result


def _in_unit_interval(what: str, x: Array) -> Array:
    """Where x lies in [0, 1]; everywhere, if x is concrete: else it is refused."""
    checks.check_finite(x, "pixels")
    inside = (x >= 0) & (x <= 1)
    if not isinstance(inside, Tracer) and not inside.all():
        raise ValueError(
            f"{what} expects pixels in [0, 1]; got values from {float(x.min()):.4g} to {float(x.max()):.4g}: rescale "
            "the data, or use squared_error and a decoder with likelihood='gaussian_fixed_std'"
        )
    return inside


def _event_axes(p: dist.Distribution) -> tuple[int, ...]:
    return tuple(range(-len(p.event_shape), 0))
