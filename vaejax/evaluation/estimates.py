"""Estimates with their errors: records, averages over examples, the Pareto index, when to trust them."""

import logging
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

_LOG = logging.getLogger(__name__)


class LogLikelihood(NamedTuple):
    """An estimate of log p(x) for each example, in nats.

    Attributes:
        estimate: log of the mean importance weight; in expectation a lower bound on log p(x). (*batch,)
        standard_error: of the estimate, over the samples, by the delta method; NaN for K = 1. (*batch,)
        ess: effective sample size, from 1 to K. (*batch,)
        pareto_index: of the tail of the weights, see `pareto.pareto_index`; NaN for K < 25. (*batch,)
        num_samples: K. A bound of K samples must be reported with it.
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    ess: Float[Array, " *batch"]
    pareto_index: Float[Array, " *batch"]
    num_samples: int


class Elbo(NamedTuple):
    """The evidence lower bound of each example and its parts, in nats; estimate = reconstruction - kl.

    Attributes:
        estimate: mean over K samples of log p(x, z) - log q(z|x). (*batch,)
        standard_error: of the estimate, over the samples; NaN for K = 1. (*batch,)
        reconstruction: mean of log p(x|z). (*batch,)
        kl: mean of log q(z|x) - log p(z). (*batch,)
        num_samples: K.
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    reconstruction: Float[Array, " *batch"]
    kl: Float[Array, " *batch"]
    num_samples: int


class Average(NamedTuple):
    """The mean over examples of an estimate that is itself random, in nats per example.

    Attributes:
        estimate: the mean. ()
        error_over_data: standard error of the mean over examples, which other examples would move; it contains the
            error over samples. NaN for one example. ()
        error_over_samples: standard error over the samples alone, which another key would move. ()
    """

    estimate: Float[Array, ""]
    error_over_data: Float[Array, ""]
    error_over_samples: Float[Array, ""]


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

    >>> import types
    >>> two = types.SimpleNamespace(estimate=jnp.array([-1.0, -3.0]), standard_error=jnp.array([0.3, 0.4]))
    >>> [round(float(number), 3) for number in average(two)]
    [-2.0, 1.0, 0.25]
    """
    number = result.estimate.size
    spread = result.estimate.std(ddof=1) if number > 1 else jnp.asarray(math.nan, result.estimate.dtype)
    over_samples = jnp.sqrt((result.standard_error**2).sum()) / number
    return Average(result.estimate.mean(), spread / math.sqrt(number), over_samples)


def is_trustworthy(result: LogLikelihood) -> Bool[Array, " *batch"]:
    """Where the weights speak for the estimate and its standard error.

    That is where the effective sample size is at least 10 and the Pareto index below min(0.7, 1 - 1 / log10(K)), from
    where on even the log of a sum of K weights hangs on a few of them. Elsewhere the estimate is, in expectation, still
    a lower bound on log p(x), but how far below cannot be read off. For K < 25 the index is not known, and the
    effective sample size decides alone. So it does above 95% of K: the index is of the shape of the tail and not of its
    size, and where the weights are nearly equal, as for a collapsed latent, it says nothing.

    Source: for the threshold, Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling".
    """
    enough = result.ess >= 10
    if result.num_samples < SMALLEST_K:
        return enough
    light = result.pareto_index < min(0.7, 1 - 1 / math.log10(result.num_samples))
    return enough & (light | (result.ess > 0.95 * result.num_samples))


def warn_where_not_trustworthy(result: LogLikelihood, proposal: str) -> None:
    """Log a warning if there are such examples, or if K is too small to tell; say nothing of traced numbers.

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
        return
    if trusted.all():
        return
    _LOG.warning(
        "log p(x) of %d of %d examples is not to be trusted: of their %d weights a few decide all (effective sample "
        "size down to %.1f, Pareto index up to %.2f). The estimate stays a lower bound in expectation, but its "
        "standard error may be far too small: take more samples from %s, annealed_log_likelihood, or for codes of one "
        "or two numbers quadrature_log_likelihood",
        int((~trusted).sum()),
        trusted.size,
        result.num_samples,
        float(result.ess.min()),
        float(result.pareto_index.max()),
        proposal,
    )


# Below this K the tail is less than five weights, and nothing can be said of it.
SMALLEST_K = 25


def pareto_index(log_w: Float[Array, "K *batch"]) -> Float[Array, " *batch"]:
    """Shape of the generalized Pareto distribution that fits the largest of K importance weights.

    Weights of index k have moments below 1 / k: from 0.5 on their variance is infinite, and with it the error of the
    mean; from 1 on the mean itself is. Where the largest exceeds the least of the tail by less than a thousandth there
    is nothing to fear from it, and the index is -inf.

    Args:
        log_w: of the weights, in nats. The largest min(K / 5, 3 sqrt(K)) are the tail.

    Returns:
        The index, drawn a little towards 0.5 where the tail is short.

    Raises:
        ValueError: if K is below 25.

    >>> log_w = 0.8 * jax.random.exponential(jax.random.key(0), (20_000,))  # Pareto weights of index 0.8
    >>> bool(0.7 < pareto_index(log_w) < 0.9)
    True

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024; the fit: Zhang & Stephens 2009, "A new and efficient estimation
    method for the generalized Pareto distribution".
    """
    num_samples = log_w.shape[0]
    if num_samples < SMALLEST_K:
        raise ValueError(
            f"the Pareto index needs at least {SMALLEST_K} weights, of which it takes the largest fifth; got "
            f"{num_samples}: draw more samples"
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
