"""Estimates with their errors: the records, averages over examples, the Pareto index, and when to trust log p(x)."""

import logging
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from vaejax import checks, estimators, records

_LOG = logging.getLogger(__name__)

# Fewer samples have a tail of fewer than five weights, which tells nothing.
SMALLEST_K = 25


class LogLikelihood(NamedTuple):
    """An estimate of log p(x) for each example, in nats.

    Attributes:
        estimate: log of the mean importance weight; in expectation a lower bound on log p(x). (*batch,)
        standard_error: of the estimate over the samples, by the delta method; NaN for K = 1. (*batch,)
        ess: effective sample size, from 1 to K. (*batch,)
        pareto_index: shape of the tail of the weights, see `pareto_index`; NaN for K < 25. (*batch,)
        num_samples: K. A bound of K samples must be reported together with K.
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    ess: Float[Array, " *batch"]
    pareto_index: Float[Array, " *batch"]
    num_samples: int

    __repr__ = records.short_repr


class Elbo(NamedTuple):
    """The evidence lower bound of each example and its parts, in nats; estimate = reconstruction - kl.

    Attributes:
        estimate: mean over K samples of log p(x, z) - log q(z|x). (*batch,)
        standard_error: of the estimate over the samples; NaN for K = 1. (*batch,)
        reconstruction: mean of log p(x|z). (*batch,)
        kl: mean of log q(z|x) - log p(z). (*batch,)
        num_samples: K.
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    reconstruction: Float[Array, " *batch"]
    kl: Float[Array, " *batch"]
    num_samples: int

    __repr__ = records.short_repr


class Average(NamedTuple):
    """The mean over examples of an estimate that is itself random, in nats per example.

    Attributes:
        estimate: the mean. ()
        error_over_data: standard error of the mean over examples: how far other examples would move it. It includes the
            error over samples. NaN for one example. ()
        error_over_samples: standard error over the samples alone: how far another key would move the mean. ()
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

    Args:
        result: one estimate and one standard error for each of N examples, (*batch,).

    Returns:
        The mean; its standard error over examples, std / sqrt(N); and its error over samples, sqrt(sum of squares) / N.

    >>> import types
    >>> two = types.SimpleNamespace(estimate=jnp.array([-1.0, -3.0]), standard_error=jnp.array([0.3, 0.4]))
    >>> [round(float(number), 3) for number in average(two)]
    [-2.0, 1.0, 0.25]
    """
    over_samples = jnp.sqrt((result.standard_error**2).sum()) / result.estimate.size
    return Average(*mean_and_error(result.estimate), over_samples)


def mean_and_error(terms: Float[Array, "*n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean of independent numbers and its standard error, std / sqrt(n) with the unbiased variance.

    Args:
        terms: of any shape, n in all.

    Returns:
        Both, in the units of the terms; the error of one term is NaN.

    >>> [round(float(number), 3) for number in mean_and_error(jnp.array([1.0, 3.0]))]
    [2.0, 1.0]
    """
    spread = terms.std(ddof=1) if terms.size > 1 else jnp.asarray(math.nan, terms.dtype)
    return terms.mean(), spread / math.sqrt(terms.size)


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


def is_trustworthy(result: LogLikelihood) -> Bool[Array, " *batch"]:
    """Where an estimate of log p(x) and its standard error can be trusted, judged by the importance weights.

    An example is trusted where both of these hold:

    - ess >= 10: at least ten weights matter.
    - pareto_index < min(0.7, 1 - 1 / log10(K)), or ess > 0.95 K. A heavier tail holds rare, huge weights that would
      change the estimate, and that were probably not drawn. Nearly equal weights, such as those of a collapsed
      latent, pass whatever the shape of their tail, because that tail is too small to matter.

    For K < 25 the Pareto index is not known, and ess >= 10 decides alone. Elsewhere the estimate is still a lower bound
    on log p(x) in expectation, but it may be far below, and the standard error does not show it.

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


def pareto_index(log_w: Float[Array, "K *batch"]) -> Float[Array, " *batch"]:
    """Shape k of the generalized Pareto distribution that fits the largest of K importance weights.

    Weights of index k have finite moments below 1 / k only: for k >= 0.5 their variance is infinite, and so is the
    error of their mean; for k >= 1 the mean is infinite. Where the largest weights are equal to a thousandth there is
    no tail, and the index is -inf.

    Args:
        log_w: logs of the weights, in nats, K >= 25. The largest min(K / 5, 3 sqrt(K)) are the tail.

    Returns:
        The index; a short tail pulls it a little towards 0.5.

    Raises:
        ValueError: if K is below 25.

    >>> log_w = 0.8 * jax.random.exponential(jax.random.key(0), (20_000,))  # Pareto weights of index 0.8
    >>> bool(0.7 < pareto_index(log_w) < 0.9)
    True

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024; the fit: Zhang & Stephens 2009, "A new and efficient estimation
    method for the generalized Pareto distribution".
    """
    num_samples = log_w.shape[0]
    checks.check_count(
        "the number of weights", num_samples, SMALLEST_K, "draw more samples, the largest fifth of which are the tail"
    )
    length = min(num_samples // 5, math.ceil(3 * math.sqrt(num_samples)))
    largest = jax.lax.top_k(jnp.moveaxis(log_w, 0, -1), length + 1)[0]
    weights = jnp.exp(largest - largest[..., :1])
    excess = (weights[..., :-1] - weights[..., -1:])[..., ::-1]  # over the weight below the tail, rising
    return jnp.vectorize(_pareto_shape, signature="(n)->()")(excess)


def _pareto_shape(excess: Float[Array, " n"]) -> Float[Array, ""]:
    """Zhang and Stephens' estimate: the mean of the likelihood over a grid of one parameter, the other profiled out."""
    number = excess.shape[0]
    largest, quartile = excess[-1], excess[int(number / 4 + 0.5) - 1]
    no_tail = largest <= 1e-3
    largest, quartile = (jnp.maximum(part, jnp.finfo(excess.dtype).tiny) for part in (largest, quartile))
    num_nodes = 30 + math.isqrt(number)
    nodes = jnp.arange(1, num_nodes + 1, dtype=excess.dtype)
    rates = 1 / largest + (1 - jnp.sqrt(num_nodes / (nodes - 0.5))) / (3 * quartile)

    def shape(rate):
        return jnp.log1p(-rate * excess).mean()

    shapes = jax.vmap(shape)(rates)
    log_likelihoods = number * (jnp.log(-rates / shapes) - shapes - 1)
    posterior = jax.nn.softmax(jnp.where(jnp.isnan(log_likelihoods), -jnp.inf, log_likelihoods))
    fitted = (number * shape((posterior * rates).sum()) + 10 * 0.5) / (number + 10)
    return jnp.where(no_tail, -jnp.inf, fitted)
