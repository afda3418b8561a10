"""Likelihoods of counts: Poisson, negative binomial, and one with more zeros, also as shares of a library size.

Densities are computed by Loader's saddle-point form: log-gamma functions of a thousand, whose difference is a few nats,
would lose three digits in float32.
"""
# ruff: noqa: D102, RUF012

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import random
from jaxtyping import Array, ArrayLike, Key
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from vaejax.distributions.heads import Head, Params, bounded_log_std, no_params

# exp(15) is 3.3 million counts.
LOG_RATE_BOUND = 15.0

# What the sampler of Poisson counts can still write as an integer.
_LOG_LARGEST_RATE = 20.0

Shape = tuple[int, ...]


def poisson(library: bool = False) -> Head:
    """Poisson counts, whose log rate is the network's output, squashed into (-15, 15).

    Args:
        library: whether the rates are shares of the example's library size, the number of all its counts. The shares
            are the softmax of the outputs over the whole example. The *last number of the context must be the logarithm
            of the library size*, `models.Batch(x, context=jnp.log(x.sum(axis=-1, keepdims=True)))`, with a model of
            `context_shape=(1,)`, or more where it conditions on other things too. Encoder and decoder see it as well.

    Returns:
        A head of whole numbers of at least 0, integers or floats, which the encoder sees as log(1 + x).

    >>> poisson().apply({}, jnp.array([0.0, -1e4])).mean.round(3).tolist()
    [1.0, 0.0]
    >>> poisson(library=True).apply({}, jnp.zeros(4), context=jnp.log(jnp.array([200.0]))).mean.round(1).tolist()
    [50.0, 50.0, 50.0, 50.0]
    """

    def make(log_rate: Array) -> dist.Distribution:
        return Poisson(log_rate)

    return _of_counts(1, library, make)


def negative_binomial(library: bool = False) -> Head:
    """Negative binomial counts, a mixture of Poissons: a log rate m and a concentration r, both from the network.

    The variance is m + m^2 / r. The second output, squashed into (-8, 8), is log r.

    Args:
        library: as in `poisson`.

    Returns:
        A head as `poisson` gives.

    >>> p = negative_binomial().apply({}, jnp.zeros(2), jnp.array([0.0, 1e4]))
    >>> p.variance.round(2).tolist()
    [2.0, 1.0]

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics".
    """

    def make(log_rate: Array, raw: Array) -> dist.Distribution:
        return NegativeBinomial(log_rate, bounded_log_std(raw))

    return _of_counts(2, library, make)


def zero_inflated_negative_binomial(library: bool = False) -> Head:
    """Negative binomial counts with more zeros: the network's third output is the log-odds of a zero that is no count.

    Args:
        library: as in `poisson`.

    Returns:
        A head as `poisson` gives.

    >>> p = zero_inflated_negative_binomial().apply({}, jnp.zeros(1), jnp.zeros(1), jnp.array([1e4]))
    >>> p.mean.tolist(), p.log_prob(jnp.array([0.0])).tolist()
    ([0.0], [0.0])

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics".
    """

    def make(log_rate: Array, raw: Array, logits: Array) -> dist.Distribution:
        return ZeroInflatedNegativeBinomial(log_rate, bounded_log_std(raw), logits)

    return _of_counts(3, library, make)


def _of_counts(num_outputs: int, library: bool, make: Callable[..., dist.Distribution]) -> Head:
    def alone(params: Params, rate: Array, *others: Array) -> dist.Distribution:
        del params
        return make(bounded_log_std(rate, LOG_RATE_BOUND), *others)

    def shares(params: Params, rate: Array, *others: Array, context: Array) -> dist.Distribution:
        del params
        axes = tuple(range(context.ndim - 1, rate.ndim))
        log_library = context[..., -1].reshape(*context.shape[:-1], *[1] * len(axes)).astype(rate.dtype)
        return make(log_library + jax.nn.log_softmax(rate, axis=axes), *others)

    return Head(num_outputs, no_params, shares if library else alone, takes_context=library, seen=jnp.log1p)


class _Counts(dist.Distribution):
    support = constraints.nonnegative_integer

    def unsupported(self, x: Array) -> str:
        """The message about data that are no counts."""
        values = np.asarray(x)
        bad = (values < 0) | (values != np.floor(values))
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        return (
            f"a likelihood of counts expects whole numbers of at least 0; got {int(bad.sum())} others, the first at "
            f"index {first} with value {float(values[first]):.4g}: give the raw counts, not scaled, not in logarithms"
        )


class Poisson(_Counts):
    """numpyro's, in terms of the log rate, which does not underflow, and exact for large counts in float32.

    Args:
        log_rate: logarithm of the mean; any shape, which is the batch shape.
        validate_args: as everywhere in numpyro.

    >>> Poisson(jnp.log(10_000.0)).log_prob(10_000).round(3).tolist()
    -5.52...
    """

    arg_constraints = {"log_rate": constraints.real}

    def __init__(self, log_rate: ArrayLike, *, validate_args: bool | None = None):
        self.log_rate = log_rate
        super().__init__(jnp.shape(log_rate), validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return random.poisson(key, _rate(self.log_rate), sample_shape + self.batch_shape)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        del intermediates  # of numpyro's transformed distributions
        log_rate = jnp.asarray(self.log_rate)
        count, some, log_some = _counts(value, log_rate.dtype)
        of_some = -some * _excess(log_some - log_rate) - 0.5 * (math.log(2 * math.pi) + log_some) - _stirling(some)
        return jnp.where(count > 0, of_some, -jnp.exp(log_rate))

    @property
    def mean(self) -> Array:
        return jnp.exp(self.log_rate)

    @property
    def variance(self) -> Array:
        return jnp.exp(self.log_rate)


class NegativeBinomial(_Counts):
    """Negative binomial of a mean m and a concentration r: a Poisson whose rate is a gamma of that mean and shape.

    Args:
        log_rate: log m.
        log_concentration: log r. Both broadcast to the batch shape.
        validate_args: as everywhere in numpyro.

    >>> NegativeBinomial(jnp.log(3.0), jnp.log(1.0)).log_prob(0).round(4).tolist()  # log 1/4, of a geometric
    -1.386...
    """

    arg_constraints = {"log_rate": constraints.real, "log_concentration": constraints.real}

    def __init__(self, log_rate: ArrayLike, log_concentration: ArrayLike, *, validate_args: bool | None = None):
        self.log_rate, self.log_concentration = promote_shapes(log_rate, log_concentration)
        shape = jnp.broadcast_shapes(jnp.shape(log_rate), jnp.shape(log_concentration))
        super().__init__(shape, validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        rate_key, count_key = random.split(key)
        shape = sample_shape + self.batch_shape
        log_gamma = random.loggamma(rate_key, jnp.exp(self.log_concentration), shape)
        return random.poisson(count_key, _rate(log_gamma + self.log_rate - self.log_concentration), shape)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        # r / (r + k) times the binomial of r among r + k, whose mean is r (r + k) / (r + m).
        del intermediates  # of numpyro's transformed distributions
        log_m, log_r = jnp.asarray(self.log_rate), jnp.asarray(self.log_concentration)
        count, some, log_some = _counts(value, log_m.dtype)
        r = jnp.exp(log_r)
        total, log_mean_and_r = r + some, jnp.logaddexp(log_m, log_r)
        log_total = jnp.log(total)
        away = r * _excess(log_mean_and_r - log_total) + some * _excess(log_some + log_mean_and_r - log_total - log_m)
        errors = _stirling(total) - _stirling(r) - _stirling(some)
        of_some = errors - away + 0.5 * (log_r - log_total - log_some - math.log(2 * math.pi))
        return jnp.where(count > 0, of_some, -r * jax.nn.softplus(log_m - log_r))

    @property
    def mean(self) -> Array:
        return jnp.broadcast_to(jnp.exp(self.log_rate), self.batch_shape)

    @property
    def variance(self) -> Array:
        mean = jnp.exp(self.log_rate)
        return mean + mean**2 * jnp.exp(-self.log_concentration)


class ZeroInflatedNegativeBinomial(_Counts):
    """A negative binomial, or, with a probability, a zero.

    Args:
        log_rate: log of the negative binomial's mean.
        log_concentration: log of its concentration.
        logits: log-odds of the zero. All three broadcast to the batch shape.
        validate_args: as everywhere in numpyro.

    >>> ZeroInflatedNegativeBinomial(jnp.log(3.0), 0.0, 0.0).log_prob(0).round(4).tolist()  # log (1/2 + 1/2 1/4)
    -0.4699...
    """

    arg_constraints = {name: constraints.real for name in ("log_rate", "log_concentration", "logits")}

    def __init__(
        self,
        log_rate: ArrayLike,
        log_concentration: ArrayLike,
        logits: ArrayLike,
        *,
        validate_args: bool | None = None,
    ):
        self.log_rate, self.log_concentration, self.logits = promote_shapes(log_rate, log_concentration, logits)
        shape = jnp.broadcast_shapes(*map(jnp.shape, (log_rate, log_concentration, logits)))
        super().__init__(shape, validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        count_key, zero_key = random.split(key)
        count = jnp.broadcast_to(self._inner.sample(count_key, sample_shape), sample_shape + self.batch_shape)
        return jnp.where(random.bernoulli(zero_key, jax.nn.sigmoid(self.logits), count.shape), 0, count)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        del intermediates  # of numpyro's transformed distributions
        counted = jax.nn.log_sigmoid(-jnp.asarray(self.logits)) + self._inner.log_prob(value)
        is_zero = jnp.asarray(value) == 0
        return jnp.where(is_zero, jnp.logaddexp(jax.nn.log_sigmoid(self.logits), counted), counted)

    @property
    def mean(self) -> Array:
        return jnp.broadcast_to(jax.nn.sigmoid(-self.logits) * self._inner.mean, self.batch_shape)

    @property
    def variance(self) -> Array:
        kept, inner = jax.nn.sigmoid(-self.logits), self._inner
        return kept * (inner.variance + jax.nn.sigmoid(self.logits) * inner.mean**2)

    @property
    def _inner(self) -> NegativeBinomial:
        return NegativeBinomial(self.log_rate, self.log_concentration, validate_args=False)


def _rate(log_rate: ArrayLike) -> Array:
    return jnp.exp(jnp.minimum(log_rate, _LOG_LARGEST_RATE))


def _counts(value: ArrayLike, dtype: Any) -> tuple[Array, Array, Array]:
    """The counts, those of at least 1, and the logarithm of these."""
    count = jnp.asarray(value).astype(dtype)
    some = jnp.maximum(count, 1)
    return count, some, jnp.log(some)


def _excess(log_ratio: Array) -> Array:
    """K log (k / m) + m - k, over k, for log k / m: how far a count is from its mean, 0 where it is there."""
    return log_ratio + jnp.expm1(-log_ratio)


def _stirling(x: Array) -> Array:
    """Log Gamma(x + 1) less Stirling's formula for it, (x + 1/2) log x - x + log(2 pi) / 2."""
    small, large = jnp.minimum(x, 16), jnp.maximum(x, 16)
    exact = jax.scipy.special.gammaln(small + 1) - (small + 0.5) * jnp.log(small) + small - 0.5 * math.log(2 * math.pi)
    square = large**-2
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))) / large
    return jnp.where(x < 16, exact, series)
