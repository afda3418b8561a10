"""Estimates with their errors: the records, averages over examples, and when to trust log p(x)."""

import logging
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from vaejax import estimators, records

_LOG = logging.getLogger(__name__)

# Fewer samples have a tail of fewer than five weights, which tells nothing.
SMALLEST_K = 25


class LogLikelihood(NamedTuple):
    """An estimate of log p(x) for each example, in nats.

    Attributes:
        estimate: log of the mean importance weight; in expectation a lower bound on log p(x). (*batch,)
        standard_error: of the estimate over the samples, by the delta method, with the rounding; NaN for K = 1.
            (*batch,)
        ess: effective sample size, from 1 to K. (*batch,)
        pareto_index: shape of the tail of the weights, see `pareto_index`; NaN for K < 25. (*batch,)
        num_samples: K. A bound of K samples must be reported together with K.
        half_estimate: the same from the two halves of the samples, averaged, to know the bias. NaN for K = 1. (*batch,)
        rounding: what floating point adds to the standard error, and does not average out over examples. (*batch,)

    >>> columns = jnp.array([[-90.0], [0.125], [40.0], [0.25]])
    >>> result = LogLikelihood(*columns, num_samples=100, half_estimate=jnp.array([-90.5]))
    >>> round(float(result.bias[0]), 3)  # half the samples gave 0.5 nats less: about as much is still missing
    -0.5
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    ess: Float[Array, " *batch"]
    pareto_index: Float[Array, " *batch"]
    num_samples: int
    half_estimate: Float[Array, " *batch"] | None = None
    rounding: Float[Array, " *batch"] | None = None

    __repr__ = records.short_repr

    @property
    def bias(self) -> Float[Array, " *batch"] | None:
        """How far the estimate's expectation lies above log p(x), see `bias_of_log_mean`: mostly a negative number.

        It is noisy for one example, and meant for the mean over many. None where `half_estimate` is.
        """
        if self.half_estimate is None:
            return None
        return bias_of_log_mean(self.estimate, self.half_estimate, self.num_samples, self.pareto_index)


class Elbo(NamedTuple):
    """The evidence lower bound of each example and its parts, in nats; estimate = reconstruction - kl.

    Attributes:
        estimate: mean over K samples of log p(x, z) - log q(z|x). (*batch,)
        standard_error: of the estimate over the samples, with the rounding; NaN for K = 1. (*batch,)
        reconstruction: mean of log p(x|z). (*batch,)
        kl: mean of log q(z|x) - log p(z). (*batch,)
        num_samples: K.
        rounding: as of `LogLikelihood`. (*batch,)

    >>> bounds = Elbo(*jnp.array([[-92.0, -92.0], [0.5, 0.0], [-80.0, -92.0], [12.0, 0.0]]), num_samples=100)
    >>> (bounds.reconstruction - bounds.kl).tolist(), (bounds.kl == 0).tolist()  # the second latent says nothing
    ([-92.0, -92.0], [False, True])
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    reconstruction: Float[Array, " *batch"]
    kl: Float[Array, " *batch"]
    num_samples: int
    rounding: Float[Array, " *batch"] | None = None

    __repr__ = records.short_repr


class Average(NamedTuple):
    """The mean over examples of an estimate that is itself random, in nats per example.

    Attributes:
        estimate: the mean. ()
        error_over_data: standard error of the mean over examples: how far other examples would move it. It includes the
            noise of the samples, but not their bias, which all examples share. NaN for one example. ()
        error_over_samples: of these examples' mean, due to a finite number of samples: the root of its variance over
            keys plus its squared bias plus the variance of the bias. ()

    >>> rows = jnp.array([[-90.0, -94.0], [0.25, 0.25], [-80.0, -84.0], [10.0, 10.0]])
    >>> result = average(Elbo(*rows, num_samples=100))
    >>> round(float(result.estimate), 3), round(float(result.error_over_data), 3)
    (-92.0, 2.0)
    >>> bool(result.error_over_samples < result.error_over_data)  # more examples help, more samples hardly
    True
    """

    estimate: Float[Array, ""]
    error_over_data: Float[Array, ""]
    error_over_samples: Float[Array, ""]

    __repr__ = records.short_repr


@runtime_checkable
class Estimate(Protocol):
    """What `average` takes: a record with an estimate for each example and its standard error over samples."""

    @property
    def estimate(self) -> Array:
        """(*batch,), nats."""
        ...

    @property
    def standard_error(self) -> Array:
        """(*batch,), nats."""
        ...


def average(result: Estimate) -> Average:
    """The mean over examples of a `LogLikelihood`, an `Elbo` or any record with `estimate` and `standard_error`.

    The mean of estimates of log p(x) has a bias that does not fall with the number of examples N, so their error is

        error_over_samples^2 = sum_n s_n^2 / N^2 + (mean_n b_n)^2 + Var_n(b_n) / N + (mean_n r_n)^2

    with s_n the standard error, b_n the estimated bias and r_n the rounding of example n. A `result` without `bias`, as
    an `Elbo`, or without `rounding` has not their terms.

    Intervals of ±1.96 such errors hold the mean log p(x) in 0.92 to 0.98 of repeats where the weights' Pareto index is
    up to 0.7. Where it is above for some examples, which `is_trustworthy` does not trust, they hold it less often: of
    100 digits of a model trained by the ELBO in 0.86 at K = 100 and 0.72 at K = 1,000 (0.24 and 0.30 without the bias).
    Take a larger K there, train by `objectives.make_iwae`, or use `annealed_log_likelihood`.

    Args:
        result: one estimate and one standard error for each of N examples, (*batch,); and, where it has one, the bias.

    Returns:
        The mean; its standard error over examples, std / sqrt(N); and its error over samples.

    >>> import types
    >>> two = types.SimpleNamespace(estimate=jnp.array([-1.0, -3.0]), standard_error=jnp.array([0.3, 0.4]))
    >>> [round(float(number), 3) for number in average(two)]
    [-2.0, 1.0, 0.25]
    >>> two.bias = jnp.array([-0.6, -0.6])
    >>> round(float(average(two).error_over_samples), 3)
    0.65
    """
    squared = (result.standard_error**2).sum() / result.estimate.size**2
    bias, rounding = (getattr(result, name, None) for name in ("bias", "rounding"))
    if rounding is not None:
        squared = squared + rounding.mean() ** 2
    if bias is not None:
        squared = squared + bias.mean() ** 2 + (bias.var(ddof=1) / bias.size if bias.size > 1 else 0)
    return Average(*mean_and_error(result.estimate), jnp.sqrt(squared))


def mean_and_error(terms: Float[Array, "*n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean of independent numbers and its standard error, std / sqrt(n) with the unbiased variance.

    Args:
        terms: of any shape, n in all.

    Returns:
        Both, in the units of the terms; the error of one term is NaN.

    >>> [round(float(number), 3) for number in mean_and_error(jnp.array([1.0, 3.0]))]
    [2.0, 1.0]
    """
    first = terms.reshape(-1)[0]  # a sum of large terms would lose the digits in which they differ
    terms = terms - first
    spread = terms.std(ddof=1) if terms.size > 1 else jnp.asarray(math.nan, terms.dtype)
    return first + terms.mean(), spread / math.sqrt(terms.size)


def log_mean_weight(log_w: Float[Array, "*batch K"]) -> tuple[Array, Array, Array]:
    """Log of the mean of K importance weights, log (1/K) sum_k w_k, with what is known of its error.

    Args:
        log_w: logs of the weights, in nats.

    Returns:
        The log of the mean; its standard error by the delta method, sd(w) / (sqrt(K) mean(w)) with the unbiased
        variance, NaN for K = 1; and the effective sample size. Each (*batch,).

    >>> [round(float(number), 3) for number in log_mean_weight(jnp.log(jnp.array([1.0, 3.0])))]
    [0.693, 0.5, 1.6]
    """
    number = log_w.shape[-1]
    ess = estimators.effective_sample_size(jnp.moveaxis(log_w, -1, 0))
    unbiased = number / (number - 1) if number > 1 else math.nan
    error = jnp.sqrt(unbiased * jnp.maximum(1 / ess - 1 / number, 0))
    return jax.nn.logsumexp(log_w, axis=-1) - math.log(number), error, ess


def log_mean_weight_of_half(log_w: Float[Array, "*batch K"]) -> Float[Array, " *batch"]:
    """Log of the mean of K / 2 weights (rounded down), from both halves of K, averaged; NaN for K = 1.

    >>> round(float(log_mean_weight_of_half(jnp.log(jnp.array([1.0, 3.0, 4.0, 4.0])))), 3)  # (log 2 + log 4) / 2
    1.04
    """
    half = log_w.shape[-1] // 2
    if not half:
        return jnp.full_like(log_w[..., 0], math.nan)
    halves = log_w[..., : 2 * half].reshape(*log_w.shape[:-1], 2, half)
    return jax.nn.logsumexp(halves, axis=-1).mean(axis=-1) - math.log(half)


def bias_of_log_mean(
    whole: Float[Array, " *batch"],
    of_half: Float[Array, " *batch"],
    num_samples: int,
    index: Float[Array, " *batch"] | float = math.nan,
) -> Float[Array, " *batch"]:
    """The bias of the log of the mean of K weights, estimated from the same log of half as many.

    With a tail of Pareto index k the bias is about -c / K^a, a = min(1, 1 / k - 1): twice the samples take off a factor
    2^a, and for large k that is little. So the difference between K samples and the halves of them gives

        bias = -(L_K - L_{K/2}) / (2^a - 1)

    Args:
        whole: L_K, log of the mean weight, in nats.
        of_half: L_{K/2}, the mean of the same log of both halves.
        num_samples: K.
        index: `pareto_index` of the weights; where it is NaN, a = 1, as of weights of finite variance.

    Returns:
        The bias in nats, noisy and mostly negative; NaN for K = 1. (*batch,)

    >>> round(float(bias_of_log_mean(jnp.array(-3.0), jnp.array(-3.2), 100)), 3)
    -0.2

    Source: Quenouille 1956 for the halves; the rate is that of sums of weights without a finite variance.
    """
    if num_samples < 2:
        return of_half - whole
    index = jnp.where(jnp.isnan(index), 0, index).astype(whole.dtype)
    rate = jnp.clip(1 / jnp.maximum(index, 0.5) - 1, 0.1, 1)
    return -(whole - of_half) / ((num_samples / (num_samples // 2)) ** rate - 1)


def rounding_of_sum(total: Float[Array, " *batch"], size: int) -> Float[Array, " *batch"]:
    """How far rounding may move a log density that was summed over `size` numbers, as a standard deviation in nats.

    Each term of about one nat is rounded, all of them alike where they hold the same constant; and so is the sum, of
    which float32 knows 7 digits. Sums of XLA are exact to the last of these digits, so that a compensated sum gains
    nothing: more digits need `jax.config.update("jax_enable_x64", True)`.

    >>> round(float(rounding_of_sum(jnp.array(-280_000.0), 256 * 256 * 3)), 3)
    0.028
    """
    return jnp.asarray(jnp.finfo(total.dtype).eps / 2, total.dtype) * (jnp.abs(total) + size)


def is_trustworthy(result: LogLikelihood) -> Bool[Array, " *batch"]:
    """Where an estimate of log p(x) and its standard error can be trusted, judged by the importance weights.

    An example is trusted where both of these hold:

    - ess >= 10: at least ten weights matter.
    - pareto_index < min(0.7, 1 - 1 / log10(K)), or ess > 0.95 K. A heavier tail holds rare, huge weights that would
      change the estimate, and that were probably not drawn. Nearly equal weights, such as those of a collapsed
      latent, pass whatever the shape of their tail, because that tail is too small to matter.

    For K < 25 the Pareto index is not known, and ess >= 10 decides alone. Elsewhere the estimate is still a lower bound
    on log p(x) in expectation, but it may be far below, and the standard error does not show it. No weight tells of a
    mode of the posterior that q misses: `annealed_log_likelihood` or, in two dimensions, quadrature does.

    Args:
        result: of `log_likelihood` or one of its relatives.

    Returns:
        True where the number can be trusted. (*batch,)

    >>> three = jnp.ones(3)
    >>> result = LogLikelihood(three, three, jnp.array([5.0, 500.0, 500.0]), jnp.array([0.2, 0.2, 0.9]), 1000)
    >>> is_trustworthy(result).tolist()
    [False, True, False]

    Source: for the threshold, Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling".
    """
    enough = result.ess >= 10
    if result.num_samples < SMALLEST_K:
        return enough
    light = result.pareto_index < min(0.7, 1 - 1 / math.log10(result.num_samples))
    return enough & (light | (result.ess > 0.95 * result.num_samples))


def warn_where_not_trustworthy(result: LogLikelihood, proposal: str) -> None:
    """Log a warning if some examples are not to be trusted, or if K is too small to tell; nothing of traced numbers.

    Args:
        result: of any number of examples.
        proposal: where the samples come from, in words.
    """
    trusted = is_trustworthy(result)
    if isinstance(trusted, Tracer):
        return
    if result.num_samples < SMALLEST_K:
        _LOG.warning(
            "%d samples of each example are too few for the Pareto index, which needs %d and says whether to trust "
            "log p(x): the number is the importance-weighted bound of K = %d. Take more samples from %s",
            result.num_samples,
            SMALLEST_K,
            result.num_samples,
            proposal,
        )
    elif not trusted.all():
        _LOG.warning(
            "log p(x) of %d of %d examples is not to be trusted: of their %d weights a few decide all (effective "
            "sample size down to %.1f, Pareto index up to %.2f). The estimate stays a lower bound in expectation, but "
            "its standard error may be far too small: take more samples from %s, annealed_log_likelihood, or for "
            "latents of one or two dimensions quadrature_log_likelihood",
            int((~trusted).sum()),
            trusted.size,
            result.num_samples,
            float(result.ess.min()),
            float(result.pareto_index.max()),
            proposal,
        )
