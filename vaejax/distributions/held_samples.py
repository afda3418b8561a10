"""Samples that are held fixed, with the density of what was drawn before it was rounded."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Key
from numpyro.distributions.distribution import validation_enabled
from numpyro.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    ParameterFreeTransform,
    PowerTransform,
    Transform,
)

from vaejax.distributions.densities import FINITE, check_has_density, log_prob, sample
from vaejax.distributions.edges import LOGARITHMIC, stable
from vaejax.distributions.simplex import Weights, is_relaxed
from vaejax.distributions.structured.named_parts import Parts
from vaejax.distributions.wrappers import without_wrappers


def held_sample(q: dist.Distribution, key: Key[Array, ""]) -> tuple[Array, Any]:
    """One sample of q without gradient, and what was drawn before it was rounded.

    Float32 rounds a sample of a beta with small concentrations to 0 or 1, and a sigmoid of 20 to 1. There the density
    at z is not the density of what was drawn.

    Args:
        q: any of numpyro's distributions.
        key: consumed.

    Returns:
        z (*batch, *event); and a tree for `held_log_prob`.

    >>> z, drawn = held_sample(dist.Beta(0.01, 0.01), jax.random.key(1))
    >>> z.shape
    ()
    """
    q = stable(q)
    if isinstance(without_wrappers(q), LOGARITHMIC):
        with jax.numpy_rank_promotion("allow"):
            z, drawn = q.sample_with_intermediates(key)
    elif (untransformed := _untransformed(q)) is not None:
        inner, transforms = untransformed
        inner_z, inner_drawn = held_sample(inner, key)
        z, drawn = inner_z, (inner_z, inner_drawn)
        for transform in transforms:
            z = transform(z)
    else:
        z, drawn = sample(q, key), None
    return lax.stop_gradient((jnp.asarray(z), drawn))


def held_log_prob(q: dist.Distribution, z: Array, drawn: Any) -> Array:
    """Log density in nats of what `held_sample` drew, to be differentiated in the parameters of q: the score.

    Args:
        q: as in `held_sample`.
        z: its sample, (*samples, *batch, *event).
        drawn: what it returned beside.

    Returns:
        (*samples, *batch); where q ends in transforms without parameters, the density before them, whose score is the
        same. NaN where z is on the edge of the support and nothing is known of what was drawn.

    >>> q = dist.LogNormal(0.0, 1.0)
    >>> bool(held_log_prob(q, *held_sample(q, jax.random.key(0))) < 0)
    True
    """
    q = stable(q)
    if isinstance(without_wrappers(q), LOGARITHMIC):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(q.log_prob(z, drawn))
    untransformed = _untransformed(q)
    if untransformed is None:
        return own_log_prob(q, z)
    inner = untransformed[0]
    density = held_log_prob(inner, *drawn)
    return density.sum(axis=tuple(range(density.ndim - len(inner.batch_shape) + len(q.batch_shape), density.ndim)))


class Told(NamedTuple):
    """A q that has told log q of the sample at hand; what else is asked of it, q answers.

    Attributes:
        q: the distribution.
        log_q: its log density at the sample, in nats, (*samples, *batch).

    >>> Told(dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1), jnp.zeros(7)).event_shape
    (2,)
    """

    q: dist.Distribution
    log_q: Array

    def __getattr__(self, name: str) -> Any:
        """Whatever the distribution has."""
        return getattr(self.q, name)


def sample_with_log_prob(q: dist.Distribution, key: Key[Array, ""]) -> tuple[Array, Array]:
    """One sample of q and its log density in nats.

    A q that computes both in one pass, as a flow does whose inverse is slow, has a method `rsample_with_log_prob(key)`
    that returns them; of any other q they are `sample` and `own_log_prob`.

    Args:
        q: any of numpyro's distributions.
        key: consumed.

    Returns:
        z (*batch, *event) and log q(z), (*batch,).

    >>> z, log_q = sample_with_log_prob(dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1), jax.random.key(0))
    >>> z.shape, log_q.shape
    ((7, 2), (7,))
    """
    if hasattr(q, "rsample_with_log_prob"):
        return q.rsample_with_log_prob(key)
    z = sample(q, key)
    return z, own_log_prob(q, z)


def own_log_prob(q: dist.Distribution | Told, z: Array | Weights) -> Array:
    """Log density in nats of q at its own samples; NaN where they are rounded so often that it would be wrong.

    A beta with a concentration below 0.43 has more than one sample in a thousand that float32 rounds to 1; below 0.08,
    to 0; and so has a Dirichlet below 0.08. There the density at z is not that of what was drawn, by many nats. A KL in
    closed form is right there, and so is the score of `held_log_prob`.

    Args:
        q: any of numpyro's distributions, or one that has told it.
        z: its samples, (*samples, *batch, *event).

    Returns:
        (*samples, *batch).

    >>> q = dist.Beta(jnp.array([0.1, 5.0]), jnp.array([0.1, 5.0]))
    >>> own_log_prob(q, sample(q, jax.random.key(2))).shape
    (2,)
    """
    if isinstance(q, Told):
        return q.log_q
    if isinstance(q, Parts):
        first, *others = (own_log_prob(part, own) for part, own in q.given(z))
        return sum(others, start=first)
    if is_relaxed(q):
        return log_prob(q, z)
    q = stable(q)
    base = without_wrappers(q)
    if isinstance(base, FINITE):
        return log_prob(q, z)
    check_has_density(q)
    # Not validated: a sample of an exponential is 0 once in ten million, which its open support does not hold.
    rank, dtype = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with validation_enabled(False), rank, dtype:
        log_q = jnp.asarray(q.log_prob(z))
        if isinstance(base, dist.MixtureSameFamily):
            base = without_wrappers(base.component_distribution)
            z = jnp.expand_dims(z, z.ndim - len(base.event_shape))
        lost = jnp.asarray(base.rounded(z) if hasattr(base, "rounded") else False)
    lost = lost.any(axis=tuple(range(log_q.ndim, lost.ndim))) | ~jnp.isfinite(log_q)
    return log_q * jnp.where(lost, jnp.nan, 1).astype(log_q.dtype)  # the gradient is NaN too, which `where` would stop


def _untransformed(q: dist.Distribution) -> tuple[dist.Distribution, list[Any]] | None:
    """The distribution before the last transforms of q, those without parameters, and those; None where it has none."""
    while isinstance(q, dist.Independent):
        q = q.base_dist
    if not isinstance(q, dist.TransformedDistribution):
        return None
    num_kept = len(q.transforms)
    while num_kept and _is_fixed(q.transforms[num_kept - 1]):
        num_kept -= 1
    kept, last = q.transforms[:num_kept], q.transforms[num_kept:]
    if not last:
        return None
    return (dist.TransformedDistribution(q.base_dist, kept) if kept else q.base_dist), last


def _is_fixed(transform: Transform) -> bool:
    """Whether it has no parameters: a Python or NumPy number is none, as in `check_fixed_support`."""
    if isinstance(transform, AffineTransform | PowerTransform):
        return not any(isinstance(leaf, Array) for leaf in jax.tree.leaves(transform))
    return isinstance(transform, ParameterFreeTransform | ExpTransform)
