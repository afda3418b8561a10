"""The families that the lectures reparameterize and numpyro lacks.

They follow numpyro, whose documents say what each method takes and returns.
"""
# ruff: noqa: D102, RUF012

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import random
from jax.core import Tracer
from jax.scipy.special import betainc, betaln, digamma
from jaxtyping import Array, ArrayLike, Key
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample

from vaejax import checks

Shape = tuple[int, ...]
"""The shape of an array."""


class Rayleigh(dist.Distribution):
    """Rayleigh: the length of a vector of two independent Gaussians, q(z) = z / scale^2 exp(-z^2 / (2 scale^2)).

    Sampled by its inverse CDF, scale sqrt(-2 log(1 - u)).

    Args:
        scale: the Gaussians' standard deviation, positive; any shape, which is the batch shape.
        validate_args: as everywhere in numpyro.

    >>> f"{Rayleigh(2.0).cdf(2.0):.4f}"
    '0.3935'
    """

    arg_constraints = {"scale": constraints.positive}
    reparametrized_params = ["scale"]
    support = constraints.positive

    def __init__(self, scale: ArrayLike = 1.0, *, validate_args: bool | None = None):
        _check_parameters("Rayleigh", scale=scale)
        self.scale = scale
        super().__init__(jnp.shape(scale), validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return self.icdf(_open_uniform(key, sample_shape + self.batch_shape))

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        return jnp.log(value) - 2 * jnp.log(self.scale) - 0.5 * (value / self.scale) ** 2

    def cdf(self, value: ArrayLike) -> Array:
        return -jnp.expm1(-0.5 * (value / self.scale) ** 2)

    def icdf(self, q: ArrayLike) -> Array:
        return self.scale * jnp.sqrt(-2 * jnp.log1p(-q))

    @property
    def mean(self) -> Array:
        return jnp.asarray(math.sqrt(math.pi / 2) * self.scale)

    @property
    def variance(self) -> Array:
        return jnp.asarray((2 - math.pi / 2) * self.scale**2)

    def entropy(self) -> Array:
        return jnp.log(self.scale) + (1 + 0.5 * jnp.euler_gamma - 0.5 * math.log(2))


class Triangular(dist.Distribution):
    """Triangular: a density that climbs from 0 at `low` to 2 / (high - low) at `peak`, and falls to 0 at `high`.

    Sampled by its inverse CDF. Its support moves with `low` and `high`, but the density vanishes there, so the score
    function is unbiased in them too. *Its variance in them is infinite*: near `low` the score is -1 / (z - low) and the
    density proportional to z - low, so that the integral of score^2 q diverges as a logarithm. Take pathwise.

    Args:
        low: left end.
        peak: mode, low <= peak <= high.
        high: right end. All three broadcast to the batch shape.
        validate_args: as everywhere in numpyro.

    >>> Triangular(0.0, 1.0, 4.0).icdf(jnp.array([0.0, 0.25, 1.0])).tolist()
    [0.0, 1.0, 4.0]
    """

    arg_constraints = dict.fromkeys(("low", "peak", "high"), constraints.dependent(is_discrete=False, event_dim=0))
    reparametrized_params = ["low", "peak", "high"]

    def __init__(self, low: ArrayLike, peak: ArrayLike, high: ArrayLike, *, validate_args: bool | None = None):
        _check_parameters("Triangular", low=low, peak=peak, high=high)
        if not any(isinstance(number, Tracer) for number in (low, peak, high)):
            low_, peak_, high_ = map(np.asarray, (low, peak, high))
            if not ((low_ <= peak_) & (peak_ <= high_) & (low_ < high_)).all():
                raise ValueError(f"Triangular expects low <= peak <= high; got {low}, {peak} and {high}")
        self.low, self.peak, self.high = promote_shapes(low, peak, high)
        batch_shape = jnp.broadcast_shapes(jnp.shape(low), jnp.shape(peak), jnp.shape(high))
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return self.icdf(_open_uniform(key, sample_shape + self.batch_shape))

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        from_end, side = self._side_of(value)
        return jnp.log(from_end) - jnp.log(side) - jnp.log(0.5 * (self.high - self.low))

    def cdf(self, value: ArrayLike) -> Array:
        value = jnp.clip(value, self.low, self.high)
        from_end, side = self._side_of(value)
        beyond = from_end**2 / (side * (self.high - self.low))
        return jnp.where(value < self.peak, beyond, 1 - beyond)

    def icdf(self, q: ArrayLike) -> Array:
        width = self.high - self.low
        rising = (self.peak - self.low) / width
        left = q < rising
        # One root of what was selected: a root on each side has an infinite gradient on the side that was not.
        from_end = jnp.sqrt(jnp.where(left, q * rising, (1 - q) * (1 - rising)))
        return self.low + width * jnp.where(left, from_end, 1 - from_end)

    @property
    def mean(self) -> Array:
        return jnp.asarray((self.low + self.peak + self.high) / 3)

    @property
    def variance(self) -> Array:
        rise, fall = self.peak - self.low, self.high - self.peak
        return jnp.asarray((rise**2 + rise * fall + fall**2) / 18)

    def entropy(self) -> Array:
        return jnp.broadcast_to(0.5 + jnp.log(0.5 * (self.high - self.low)), self.batch_shape)

    def _side_of(self, value: ArrayLike) -> tuple[Array, Array]:
        """The distance of `value` from the end on its side of the peak, and the length of that side."""
        left = value < self.peak
        from_end = jnp.where(left, value - self.low, self.high - value)
        return from_end, jnp.where(left, self.peak - self.low, self.high - self.peak)


class F(dist.Distribution):
    """Fisher's F: the ratio of two independent chi-squared numbers, each divided by its degrees of freedom.

    Sampled as that composition of two gammas, and so an implicit reparameterization.

    Args:
        df1: degrees of freedom of the numerator, positive.
        df2: those of the denominator, positive. Both broadcast to the batch shape.
        validate_args: as everywhere in numpyro.

    >>> f"{F(3.0, 5.0).cdf(1.0):.4f}"
    '0.5351'
    """

    arg_constraints = {"df1": constraints.positive, "df2": constraints.positive}
    reparametrized_params = ["df1", "df2"]
    support = constraints.positive

    def __init__(self, df1: ArrayLike, df2: ArrayLike, *, validate_args: bool | None = None):
        _check_parameters("F", df1=df1, df2=df2)
        self.df1, self.df2 = promote_shapes(df1, df2)
        super().__init__(jnp.broadcast_shapes(jnp.shape(df1), jnp.shape(df2)), validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Key[Array, ""], sample_shape: Shape = ()) -> tuple[Array, list[Any]]:
        key1, key2 = random.split(key)
        shape = sample_shape + self.batch_shape
        # In logarithms, for with few degrees of freedom a chi-squared number underflows to zero.
        log_ratio = random.loggamma(key1, 0.5 * self.df1, shape) - random.loggamma(key2, 0.5 * self.df2, shape)
        log_z = log_ratio + jnp.log(self.df2 / self.df1)
        return jnp.exp(log_z), [log_z]

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        value = jnp.asarray(value)
        log_z = jnp.log(value) if intermediates is None else intermediates[0]
        log_ratio = jnp.log(self.df1 / self.df2)
        log_kernel = (0.5 * self.df1 - 1) * log_z - 0.5 * (self.df1 + self.df2) * jax.nn.softplus(log_ratio + log_z)
        log_q = log_kernel + 0.5 * self.df1 * log_ratio - betaln(0.5 * self.df1, 0.5 * self.df2)
        return jnp.where(value < 0, -jnp.inf, log_q)

    def cdf(self, value: ArrayLike) -> Array:
        return betainc(0.5 * self.df1, 0.5 * self.df2, self.df1 * value / (self.df1 * value + self.df2))

    @property
    def mean(self) -> Array:
        mean = jnp.where(jnp.greater(self.df2, 2), self.df2 / (self.df2 - 2), jnp.inf)
        return jnp.broadcast_to(mean, self.batch_shape)

    @property
    def variance(self) -> Array:
        d1, d2 = self.df1, self.df2
        return jnp.where(jnp.greater(d2, 4), 2 * d2**2 * (d1 + d2 - 2) / (d1 * (d2 - 2) ** 2 * (d2 - 4)), jnp.inf)

    def entropy(self) -> Array:
        a, b = 0.5 * self.df1, 0.5 * self.df2
        digammas = (1 - a) * digamma(a) - (1 + b) * digamma(b) + (a + b) * digamma(a + b)
        return betaln(a, b) + jnp.log(b / a) + digammas


class Erlang(dist.Distribution):
    """Erlang: the time until the `concentration`-th event of a Poisson process, a gamma with an integer shape.

    Sampled as the sum of that many exponentials, each by its inverse CDF, -log(u) / rate. Other shapes, and a gradient
    in the shape, are for `numpyro.distributions.Gamma`.

    Args:
        concentration: the number of events, an integer, one for the whole batch.
        rate: events per unit of time, positive; any shape, which is the batch shape.
        validate_args: as everywhere in numpyro.

    Raises:
        ValueError: if the concentration is not a positive integer.

    >>> float(Erlang(3, rate=2.0).mean)
    1.5
    """

    arg_constraints = {"rate": constraints.positive}
    reparametrized_params = ["rate"]
    support = constraints.positive
    pytree_aux_fields = ("concentration",)

    def __init__(self, concentration: int, rate: ArrayLike = 1.0, *, validate_args: bool | None = None):
        advice = "another shape has numpyro.distributions.Gamma"
        checks.check_count("concentration", concentration, advice=advice)
        _check_parameters("Erlang", rate=rate)
        self.concentration, self.rate = int(concentration), rate
        super().__init__(jnp.shape(rate), validate_args=validate_args)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Array:
        u = _open_uniform(key, (*sample_shape, *self.batch_shape, self.concentration))
        return -jnp.log(u).sum(axis=-1) / self.rate

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        return self._gamma.log_prob(value)

    def cdf(self, value: ArrayLike) -> Array:
        return self._gamma.cdf(value)

    @property
    def mean(self) -> Array:
        return self._gamma.mean

    @property
    def variance(self) -> Array:
        return self._gamma.variance

    def entropy(self) -> Array:
        return self._gamma.entropy()

    @property
    def _gamma(self) -> dist.Gamma:
        return dist.Gamma(float(self.concentration), self.rate, validate_args=False)


def _check_parameters(family: str, **parameters: Any) -> None:
    """Refuse parameters that are no real numbers, or concrete and not finite; numpyro looks at their signs."""
    for name, value in parameters.items():
        if isinstance(value, Tracer):
            continue
        array = np.asarray(value)
        real = array.dtype != bool and jnp.issubdtype(array.dtype, jnp.number) and not np.iscomplexobj(array)
        if not real or not np.isfinite(array.astype(float)).all():
            raise ValueError(f"{name} of {family} must be made of finite real numbers; got {value!r}")


def _open_uniform(key: Key[Array, ""], shape: Shape) -> Array:
    """Uniform, but never 0 or 1, where inverse CDFs and densities are infinite."""
    return random.uniform(key, shape, minval=jnp.finfo(jnp.result_type(float)).eps)
