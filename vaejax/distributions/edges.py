"""Families whose samples float32 rounds onto the edge of the support, with a density of what was drawn before rounding.

A beta with concentrations of 0.1 draws 1 - z below 1e-7 in every tenth sample, and float32 has no such z. numpyro clips
those samples, and takes the density at the clipped ones: a finite number, and the score of another sample. The families
here draw the same samples in logarithms: `sample_with_intermediates` hands out the logarithms, and `log_prob` takes
them back. Of a z alone, `rounded` says where it is clipped and how often that happens.
"""
# ruff: noqa: D102

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import random
from jax.scipy.special import betaln, gammaln, log_ndtr
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks
from vaejax.distributions.families import F
from vaejax.distributions.likelihoods.bits import BernoulliLogits

Shape = tuple[int, ...]


class Gamma(dist.Gamma):
    """numpyro's, which draws the logarithm of z: below a concentration of 0.1, z itself is often too small for float32.

    >>> z, log_z = Gamma(1e-3, 1.0).sample_with_intermediates(jax.random.key(0))
    >>> float(z), float(log_z[0]) < -100
    (0.0, True)
    """

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Key[Array, ""], sample_shape: Shape = ()) -> tuple[Array, list[Any]]:
        log_z = random.loggamma(key, self.concentration, sample_shape + self.batch_shape) - jnp.log(self.rate)
        return jnp.exp(log_z), [log_z]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        value = jnp.asarray(value)
        log_z = jnp.log(value) if intermediates is None else intermediates[0]
        log_normalizer = gammaln(self.concentration) - self.concentration * jnp.log(self.rate)
        log_q = _times(self.concentration - 1, log_z) - self.rate * value - log_normalizer
        return jnp.where(value < 0, -jnp.inf, log_q)


class Dirichlet(dist.Dirichlet):
    """numpyro's, which draws the logarithms of the shares too.

    >>> z, log_z = Dirichlet(jnp.full(3, 0.01)).sample_with_intermediates(jax.random.key(0))
    >>> float(log_z[0].min()) < -100
    True
    """

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Key[Array, ""], sample_shape: Shape = ()) -> tuple[Array, list[Any]]:
        logs = random.loggamma(key, self.concentration, sample_shape + self.shape())
        return _clipped(jax.nn.softmax(logs, axis=-1)), [jax.nn.log_softmax(logs, axis=-1)]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        value = jnp.asarray(value)
        log_z = jnp.log(value) if intermediates is None else intermediates[0]
        log_normalizer = gammaln(self.concentration).sum(axis=-1) - gammaln(self.concentration.sum(axis=-1))
        log_q = _times(self.concentration - 1, log_z).sum(axis=-1) - log_normalizer
        total = value.sum(axis=-1)  # of many shares it is not 1 to the 1e-6 that numpyro expects
        outside = (value < 0).any(axis=-1) | (jnp.abs(total - 1) > 1e-5)
        return jnp.where(outside, -jnp.inf, log_q)

    def rounded(self, value: Array) -> Array:
        lowest, _ = _clipping(value)
        return ((value <= lowest) & _often(math.log(lowest), self.concentration)).any(axis=-1)


class Beta(dist.Beta):
    """numpyro's, which draws the logarithms of z and of 1 - z too.

    >>> z, logs = Beta(0.01, 0.01).sample_with_intermediates(jax.random.key(1))
    >>> float(logs[0].min()) < -20
    True
    """

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Key[Array, ""], sample_shape: Shape = ()) -> tuple[Array, list[Any]]:
        shares = jnp.stack(jnp.broadcast_arrays(self.concentration1, self.concentration0), axis=-1)
        logs = random.loggamma(key, shares, sample_shape + self.batch_shape + (2,))
        return _clipped(jax.nn.softmax(logs, axis=-1)[..., 0]), [jax.nn.log_softmax(logs, axis=-1)]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        value = jnp.asarray(value)
        if intermediates is None:
            log_z, log_rest = jnp.log(value), jnp.log1p(-value)
        else:
            log_z, log_rest = intermediates[0][..., 0], intermediates[0][..., 1]
        log_kernel = _times(self.concentration1 - 1, log_z) + _times(self.concentration0 - 1, log_rest)
        log_q = log_kernel - betaln(self.concentration1, self.concentration0)
        return jnp.where((value < 0) | (value > 1), -jnp.inf, log_q)

    def rounded(self, value: Array) -> Array:
        return _rounded_in_unit_interval(value, self.concentration1, self.concentration0)


class Weibull(dist.Weibull):
    """numpyro's, which draws the logarithm of z.

    >>> z, log_z = Weibull(1.0, 1e-3).sample_with_intermediates(jax.random.key(1))
    >>> abs(float(log_z[0])) > 100
    True
    """

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Key[Array, ""], sample_shape: Shape = ()) -> tuple[Array, list[Any]]:
        exponential = -jnp.log1p(-_positive_uniform(key, sample_shape + self.batch_shape))
        log_z = jnp.log(self.scale) + jnp.log(exponential) / self.concentration
        return jnp.exp(log_z), [log_z]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        value = jnp.asarray(value)
        log_z = jnp.log(value) if intermediates is None else intermediates[0]
        log_ratio = log_z - jnp.log(self.scale)
        log_kernel = _times(self.concentration - 1, log_ratio) - jnp.exp(self.concentration * log_ratio)
        return jnp.where(value < 0, -jnp.inf, log_kernel + jnp.log(self.concentration) - jnp.log(self.scale))


class Kumaraswamy(dist.Kumaraswamy):
    """numpyro's, which draws the logarithm of -log z too, where neither end of (0, 1) is rounded.

    >>> z, logs = Kumaraswamy(1.0, 1e-3).sample_with_intermediates(jax.random.key(1))
    >>> float(z) > 0.999, float(logs[0]) < -100
    (True, True)
    """

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Key[Array, ""], sample_shape: Shape = ()) -> tuple[Array, list[Any]]:
        # z^a = 1 - exp(-t) with an exponential t of rate b.
        exponential = -jnp.log(_positive_uniform(key, sample_shape + self.batch_shape))
        logs = _log_minus_log1mexp(jnp.log(exponential) - jnp.log(self.concentration0)) - jnp.log(self.concentration1)
        return _clipped(jnp.exp(-jnp.exp(logs))), [logs]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        value = jnp.asarray(value)
        logs = jnp.log(-jnp.log(value)) if intermediates is None else intermediates[0]
        log_y = jnp.log(self.concentration1) + logs  # y = -log z^a, and the density holds 1 - z^a = 1 - exp(-y)
        log_rest = jnp.where(
            log_y < -10, log_y - 0.5 * jnp.exp(log_y), jnp.log(-jnp.expm1(-jnp.exp(jnp.maximum(log_y, -10))))
        )
        log_kernel = -_times(self.concentration1 - 1, jnp.exp(logs)) + _times(self.concentration0 - 1, log_rest)
        log_q = log_kernel + jnp.log(self.concentration0) + jnp.log(self.concentration1)
        return jnp.where((value < 0) | (value > 1), -jnp.inf, log_q)

    def rounded(self, value: Array) -> Array:
        return _rounded_in_unit_interval(value, self.concentration1, self.concentration0)


class TwoSidedTruncatedNormal(dist.TwoSidedTruncatedDistribution):
    """numpyro's, with a normalizer that does not cancel.

    numpyro 0.22 takes the difference of two probabilities that both round to 1 where the interval lies above the mean:
    five standard deviations above, the density is off by 4 %, and from eight on it is infinite.

    >>> normal = TwoSidedTruncatedNormal(dist.Normal(0.0, 1.0), low=8.0, high=9.0)
    >>> f"{normal.log_prob(8.1):.4f}"
    '1.2897'
    """

    @property
    def _log_diff_tail_probs(self) -> Array:
        low, high = ((end - self.base_dist.loc) / self.base_dist.scale for end in (self.low, self.high))
        above = low + high > 0
        low, high = jnp.where(above, -high, low), jnp.where(above, -low, high)
        width, middle = high - low, 0.5 * (low + high)
        log_low, log_high = log_ndtr(low), log_ndtr(high)
        narrow = width * (1 + jnp.abs(middle)) < 0.1  # the two are nearly equal: the density in the middle instead
        log_ratio = jnp.where(narrow, -1, log_low - log_high)
        by_middle = jnp.log(width) - 0.5 * middle**2 - 0.5 * math.log(2 * math.pi)
        by_middle += jnp.log1p(jnp.where(narrow, width**2 * (middle**2 - 1) / 24, 0))
        return jnp.where(narrow, by_middle, log_high + jnp.log(-jnp.expm1(log_ratio)))


LOGARITHMIC = Gamma | Beta | Dirichlet | Weibull | Kumaraswamy | F


def stable(distribution: dist.Distribution) -> dist.Distribution:
    """The same distribution by a family of ours, where numpyro's rounds to wrong numbers.

    Every density and sample of this room goes through here. The families are numpyro's Gamma, Chi2, Beta, Dirichlet,
    Weibull and Kumaraswamy, its truncated Gaussian, and its Bernoulli, whose gradient at a logit of exactly 0 is 0 or 1
    instead of 1/2; also as parts of mixtures and under wrappers and transforms.

    Args:
        distribution: any of numpyro's.

    Returns:
        One that draws the same samples; itself if it holds none of those families.

    >>> type(stable(dist.Chi2(jnp.ones(3)).to_event(1)).base_dist).__name__
    'Gamma'
    """
    checks.check_distribution(distribution)
    make = _OURS.get(type(distribution))
    if make is not None:
        return make(distribution)
    if isinstance(distribution, dist.TwoSidedTruncatedDistribution) and isinstance(distribution.base_dist, dist.Normal):
        return TwoSidedTruncatedNormal(
            distribution.base_dist, distribution.low, distribution.high, validate_args=distribution._validate_args
        )
    if not isinstance(distribution, _WITH_PARTS):
        return distribution
    parts, structure = jax.tree.flatten(
        distribution, is_leaf=lambda part: part is not distribution and isinstance(part, dist.Distribution)
    )
    ours = [stable(part) if isinstance(part, dist.Distribution) else part for part in parts]
    return distribution if all(map(operator.is_, parts, ours)) else structure.unflatten(ours)


_OURS: dict[type, Callable[[Any], dist.Distribution]] = {
    dist.BernoulliLogits: lambda q: BernoulliLogits(q.logits, validate_args=False),
    dist.Gamma: lambda q: Gamma(q.concentration, q.rate, validate_args=False),
    dist.Chi2: lambda q: Gamma(q.concentration, q.rate, validate_args=False),
    dist.Beta: lambda q: Beta(q.concentration1, q.concentration0, validate_args=False),
    dist.Dirichlet: lambda q: Dirichlet(q.concentration, validate_args=False),
    dist.Weibull: lambda q: Weibull(q.scale, q.concentration, validate_args=False),
    dist.Kumaraswamy: lambda q: Kumaraswamy(q.concentration1, q.concentration0, validate_args=False),
}

_WITH_PARTS = (
    dist.Independent,
    dist.ExpandedDistribution,
    dist.MaskedDistribution,
    dist.TransformedDistribution,
    dist.MixtureSameFamily,
    dist.MixtureGeneral,
)


def _clipping(value: Array) -> tuple[float, float]:
    """The least and the largest sample of a family on (0, 1), as numpyro clips them."""
    info = jnp.finfo(value.dtype)
    return float(info.tiny), 1 - float(info.eps)


def _clipped(value: Array) -> Array:
    return jnp.clip(value, *_clipping(value))


def _rounded_in_unit_interval(value: Array, low_concentration: ArrayLike, high_concentration: ArrayLike) -> Array:
    lowest, highest = _clipping(value)
    low = (value <= lowest) & _often(math.log(lowest), low_concentration)
    return low | ((value >= highest) & _often(math.log1p(-highest), high_concentration))


def _often(log_edge: float, concentration: ArrayLike) -> Array:
    """Whether more than about one sample in a thousand is nearer to an end than that."""
    return jnp.asarray(concentration) * log_edge > math.log(1e-3)


def _positive_uniform(key: Key[Array, ""], shape: Shape) -> Array:
    return random.uniform(key, shape, minval=jnp.finfo(jnp.result_type(float)).tiny)


def _times(factor: ArrayLike, log: Array) -> Array:
    """Their product, and 0 for 0 times infinity, with the derivative in the factor where the logarithm is finite."""
    return factor * jnp.where((jnp.asarray(factor) == 0) & jnp.isinf(log), 0, log)


def _log_minus_log1mexp(log_t: Array) -> Array:
    """log(-log(1 - exp(-t))), of t from 0 to infinity."""
    t = jnp.exp(log_t)
    middle = jnp.clip(t, math.exp(-10), 10)
    by_expm1 = jnp.log(-jnp.log(-jnp.expm1(-jnp.minimum(middle, 0.7))))
    by_log1p = jnp.log(-jnp.log1p(-jnp.exp(-jnp.maximum(middle, 0.7))))
    by_log = jnp.log(-jnp.minimum(log_t, -10))
    return jnp.where(log_t < -10, by_log, jnp.where(t < 0.7, by_expm1, jnp.where(t < 10, by_log1p, -t)))
