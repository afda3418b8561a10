"""Distributions without what only declares axes of them, or leaves numbers out."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from vaejax import checks


def without_wrappers(distribution: dist.Distribution) -> dist.Distribution:
    """The distribution without the wrappers that only declare axes.

    >>> without_wrappers(dist.Normal(jnp.zeros(3), 1.0).to_event(1)).event_shape
    ()
    """
    checks.check_distribution(distribution)
    while isinstance(distribution, dist.Independent | dist.ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution


def family_of(distribution: dist.Distribution) -> dist.Distribution:
    """The distribution without wrappers that declare axes or leave numbers out, for a question about its family.

    >>> type(family_of(dist.Normal(jnp.zeros(3), 1.0).mask(jnp.ones(3, bool)).to_event(1))).__name__
    'Normal'
    """
    base = without_wrappers(distribution)
    return family_of(base.base_dist) if isinstance(base, dist.MaskedDistribution) else base


def mask_of(distribution: dist.Distribution) -> Array | None:
    """Which numbers of a sample the density counts, (*batch, *event); None: all of them.

    >>> mask_of(dist.Normal(jnp.zeros(2), 1.0).mask(jnp.array([True, False])).to_event(1)).tolist()
    [True, False]
    """
    base = without_wrappers(distribution)
    return jnp.asarray(base._mask) if isinstance(base, dist.MaskedDistribution) else None
