"""A Bernoulli that is faster than numpyro's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike


class BernoulliLogits(dist.BernoulliLogits):
    """numpyro's, with a log-probability and a gradient in half the time.

    At 784 pixels of a thousand latents that is a third of a training step. numpyro's guards infinite logits by two
    selections, through which the gradient passes too; written like this an infinite logit needs no guard. Other values
    are refused here, pixel by pixel, which saves a pass over the data.

    >>> BernoulliLogits(jnp.array([1e4, 1e4])).log_prob(jnp.array([1.0, 0.0])).tolist()
    [-0.0, -10000.0]
    """

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        """Log-probability in nats of zeros and ones, of any dtype; of any other value NaN, and so is its gradient."""
        del intermediates  # of numpyro's transformed distributions
        return _log_prob_of_bits(*self._with_bits(value))

    def log_prob_of_vector(self, value: ArrayLike) -> Array:
        """The sum of `log_prob` over the last axis; on a CPU with fewer logarithms, which take most of its time.

        Args:
            value: zeros and ones of any dtype, (*batch, size), or what broadcasts against the logits.

        Returns:
            Nats, (*batch,); NaN, and so is its gradient, where a value is neither 0 nor 1.

        >>> f"{BernoulliLogits(jnp.zeros(784)).log_prob_of_vector(jnp.ones(784)):.2f}"
        '-543.43'
        """
        return _log_prob_of_vector(*self._with_bits(value))

    def _with_bits(self, value: ArrayLike) -> tuple[Array, Array]:
        logits = jnp.asarray(self.logits)
        logits, bits = jnp.broadcast_arrays(logits, jnp.asarray(value).astype(logits.dtype))
        return logits, bits


@jax.custom_jvp
def _log_prob_of_bits(logits: Array, bits: Array) -> Array:
    return _log_prob_against(_logit_against(logits, bits))


@functools.partial(_log_prob_of_bits.defjvp, symbolic_zeros=True)
def _log_prob_of_bits_jvp(primals, tangents):
    value = _log_prob_of_bits(*primals)
    return value, sum(_tangents_of_bits(primals, tangents), start=jnp.zeros_like(value))


@jax.custom_jvp
def _log_prob_of_vector(logits: Array, bits: Array) -> Array:
    x = _logit_against(logits, bits)
    if _size_of_group(x.shape[-1]) == 1:
        return _a_logarithm_each(x)
    # An accelerator waits for memory here, not for logarithms, and would need one kernel more. The compiler keeps the
    # branch of its platform alone.
    return jax.lax.platform_dependent(x, cpu=_few_logarithms, default=_a_logarithm_each)


@functools.partial(_log_prob_of_vector.defjvp, symbolic_zeros=True)
def _log_prob_of_vector_jvp(primals, tangents):
    value = _log_prob_of_vector(*primals)
    terms = (tangent.sum(-1) for tangent in _tangents_of_bits(primals, tangents))
    return value, sum(terms, start=jnp.zeros_like(value))


def _log_prob_against(x: Array) -> Array:
    return -(jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))))


def _a_logarithm_each(x: Array) -> Array:
    return _log_prob_against(x).sum(-1)


def _few_logarithms(x: Array) -> Array:
    """The same sum, in groups: log(1 + e) + log(1 + e') is the logarithm of (1 + e)(1 + e').

    Of a product its distance from 1 is kept, so that the smallest e counts. It is below 2^8.
    """
    groups = x.reshape(*x.shape[:-1], _size_of_group(x.shape[-1]), -1)
    zero = jnp.zeros((), x.dtype)
    product, positive = jax.lax.reduce(
        (jnp.exp(-jnp.abs(groups)), jnp.maximum(groups, 0)),
        (zero, zero),
        lambda a, b: (a[0] + b[0] + a[0] * b[0], a[1] + b[1]),
        (groups.ndim - 2,),
    )
    return -(positive + jnp.log1p(product)).sum(-1)


def _size_of_group(size: int) -> int:
    """The largest up to 8 that leaves a multiple of 16 groups, a vector or two of any CPU's: of 784 bits 7; else 1."""
    return next((number for number in range(8, 1, -1) if size % (16 * number) == 0), 1)


def _tangents_of_bits(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> list[Array]:
    """What a change of logits and bits does to the log-probability of each bit."""
    logits, bits = primals
    slope = jnp.where(bits == 1, 1, -1).astype(logits.dtype) * jax.nn.sigmoid(_logit_against(logits, bits))
    return [
        factor * tangent
        for factor, tangent in zip((slope, logits), tangents, strict=True)
        if not isinstance(tangent, jax.custom_derivatives.SymbolicZero)  # zero times an infinite logit is no number
    ]


def _logit_against(logits: Array, bits: Array) -> Array:
    """Of the other value; NaN, and so is the gradient, where a bit is neither."""
    of_other = jnp.where(bits == 1, -logits, logits)
    return jnp.where((bits == 0) | (bits == 1), of_other, jnp.nan)  # no NaN on the way to a number: jax_debug_nans
