"""Log p(x) and the ELBO of each example by sampling, with error bars and a word on whether they can be believed.

Each example draws from a key of its own, folded with its index, and each sample from a key split from that. So the
numbers do not depend on how examples and samples are cut into chunks, only memory does.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from vaejax import distributions, models, monte_carlo, objectives, pareto
from vaejax.distributions import Params
from vaejax.models import VAE

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


def log_likelihood(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_samples: int = 5000,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> LogLikelihood:
    """Importance-sampled log p(x) = log E_q[p(x, z) / q(z|x)] of each example.

    Where the weights say that the number is not to be trusted (`is_trustworthy`), a warning is logged with how many
    examples that holds for; and where K is below 25, so that they cannot say.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape).
        num_samples: K, samples of z for each example.
        chunk_size: samples evaluated at once.
        batch_size: examples evaluated at once; memory grows with chunk_size * batch_size and with nothing else.

    Returns:
        Estimate, standard error, effective sample size and Pareto index of each example. Compiled once for each shape.

    Raises:
        ValueError: if a number is not a positive integer, or x is refused by `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = log_likelihood(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)), num_samples=100)
    >>> result.estimate.shape, result.num_samples
    ((7,), 100)

    Source: Burda, Grosse & Salakhutdinov 2015, section 5; the standard error is the delta method's.
    """
    result = log_likelihood_unwarned(vae, params, key, x, num_samples, chunk_size=chunk_size, batch_size=batch_size)
    warn_where_not_trustworthy(result, "q(z|x)")
    return result


def log_likelihood_unwarned(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_samples: int = 5000,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> LogLikelihood:
    """`log_likelihood` for callers who look at `is_trustworthy` themselves."""
    (result,) = _log_likelihoods(encoded, vae, params, key, x, (num_samples,), chunk_size, batch_size)
    return result


def log_likelihood_sweep(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_samples: Sequence[int] = (1, 10, 100, 1000, 5000),
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> tuple[LogLikelihood, ...]:
    """The importance-weighted bound of every K of a list, from one set of samples: how it rises to log p(x).

    For each K the samples of the largest are cut into groups of K; the bounds of the groups are averaged, and their
    scatter is the standard error. For the largest K, and wherever there is only one group, it is the delta method's.
    The bounds of two K share samples, and are therefore not independent.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`; the largest K has the numbers that `log_likelihood` has.
        x: data, (*batch, *data_shape).
        num_samples: the K.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Returns:
        One record for each K, in the order given; `ess` is the mean over the groups, `pareto_index` that of all
        samples. A warning is logged as by `log_likelihood`.

    Raises:
        ValueError: as `log_likelihood`; and if no K is given.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> one, hundred = log_likelihood_sweep(vae, params, jax.random.key(1), x, (1, 100))
    >>> bool(average(one).estimate < average(hundred).estimate)
    True
    """
    if isinstance(num_samples, int):
        raise ValueError(f"num_samples must be a list of numbers of samples; got {num_samples!r}: use log_likelihood")
    sweep = tuple(num_samples)
    if not sweep:
        raise ValueError("num_samples must name at least one number of samples; got none")
    results = _log_likelihoods(encoded, vae, params, key, x, sweep, chunk_size, batch_size)
    warn_where_not_trustworthy(results[sweep.index(max(sweep))], "q(z|x)")
    return results


def log_likelihood_from_prior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_samples: int = 5000,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> LogLikelihood:
    """The naive log p(x) = log E_{p(z)}[p(x|z)], which needs no q(z|x), and far too many samples.

    It is as right as `log_likelihood` in the limit. At any K that one can afford almost no code of the prior explains
    x, so that the effective sample size is near 1 and the estimate far below log p(x): that is what q(z|x) is for.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape).
        num_samples: K.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Raises:
        ValueError: as `log_likelihood`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = log_likelihood_from_prior(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> result.estimate.shape
    (7,)
    """
    (result,) = _log_likelihoods(from_prior, vae, params, key, x, (num_samples,), chunk_size, batch_size)
    warn_where_not_trustworthy(result, "the prior")
    return result


def log_likelihood_from(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    q: dist.Distribution,
    num_samples: int = 5000,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> LogLikelihood:
    """Importance-sampled log p(x) from a q of your own for each example, such as `inference.fit_posterior` finds.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape).
        q: normal with independent units, of batch shape (*batch,).
        num_samples: K.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Raises:
        ValueError: as `log_likelihood`; and if q is not normal, or of another batch shape.
    """
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    if not isinstance(distributions.without_wrappers(q), dist.Normal) or q.batch_shape != batch_shape:
        raise ValueError(
            f"expected a normal q of batch shape {batch_shape}; came {distributions.name_of(q)} of {q.batch_shape}"
        )
    own = (jnp.asarray(q.mean), jnp.sqrt(jnp.asarray(q.variance)))
    (result,) = _log_likelihoods(from_own_normal, vae, params, key, x, (num_samples,), chunk_size, batch_size, own)
    warn_where_not_trustworthy(result, "q(z)")
    return result


def elbo(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_samples: int = 100,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> Elbo:
    """Evidence lower bound of each example, and its split into reconstruction and KL.

    Takes the same samples as `log_likelihood` with the same key, and the same arguments.

    Raises:
        ValueError: as `log_likelihood`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = elbo(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> bool(jnp.allclose(result.estimate, result.reconstruction - result.kl, atol=1e-4))
    True
    """
    monte_carlo.check_count("num_samples", num_samples)
    estimate, error, reconstruction, kl = _checked_samples(
        encoded, vae, params, key, x, num_samples, chunk_size, batch_size, _summarize_elbo
    )
    return Elbo(estimate, error, reconstruction, kl, num_samples)


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
    size, and where the weights are all but equal, as those of a collapsed code, it is that of nothing.

    Source: for the threshold, Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling".
    """
    enough = result.ess >= 10
    if result.num_samples < pareto.SMALLEST_K:
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
    if result.num_samples < pareto.SMALLEST_K:
        _LOG.warning(
            "%d samples of each example are too few for the Pareto index, which needs %d and says whether to trust "
            "log p(x): the number is the importance-weighted bound of K = %d. Take more samples from %s",
            result.num_samples,
            pareto.SMALLEST_K,
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


def encoded(vae: VAE, params: Params, x: Array, own: None) -> dist.Distribution:
    """Where samples come from: q(z|x)."""
    del own
    return vae.encode(params, x)


def from_prior(vae: VAE, params: Params, x: Array, own: None) -> dist.Distribution:
    """Where samples come from: p(z), whatever x."""
    del x, own
    return vae.prior(params)


def from_own_normal(vae: VAE, params: Params, x: Array, own: tuple[Array, Array]) -> dist.Distribution:
    """Where samples come from: a normal distribution that each example brings along, as mean and std."""
    del vae, params, x
    return dist.Normal(*own).to_event(1)


def _log_likelihoods(
    proposal, vae, params, key, x, sweep: tuple[int, ...], chunk_size, batch_size, own=None
) -> tuple[LogLikelihood, ...]:
    for number in sweep:
        monte_carlo.check_count("num_samples", number)
    summarize = _summaries(sweep)
    results = _checked_samples(proposal, vae, params, key, x, max(sweep), chunk_size, batch_size, summarize, own)
    return tuple(
        LogLikelihood(bound, error, ess, index, number)
        for (bound, error, ess, index), number in zip(results, sweep, strict=True)
    )


def _checked_samples(proposal, vae, params, key, x, num_samples, chunk_size, batch_size, summarize, own=None) -> Any:
    monte_carlo.check_count("chunk_size", chunk_size)
    monte_carlo.check_count("batch_size", batch_size)
    models.check_data(vae, params, x)
    return importance_sample(
        proposal, vae, num_samples, chunk_size, batch_size, summarize, params, key, jnp.asarray(x), own
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def importance_sample(
    proposal: Callable[[VAE, Params, Array, Any], dist.Distribution],
    vae: VAE,
    num_samples: int,
    chunk_size: int,
    batch_size: int,
    summarize: Callable[[Array, Array], Any],
    params: Params,
    key: Key[Array, ""],
    x: Array,
    own: Any = None,
) -> Any:
    """`summarize(reconstruction, kl)` of each example, given log p(x|z) and log q(z) - log p(z) of its K samples, (K,).

    `own` is a tree of arrays (*batch, ...), of which the proposal of an example sees its own entries.

    Returns:
        What `summarize` returns, each leaf (*batch, ...).
    """
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    x, own = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch_shape) :]), (x, own))
    prior = vae.prior(params)

    def one_example(index_and_x):
        index, x, own = index_and_x
        q = proposal(vae, params, x, own)

        def sample_term(key):
            z = distributions.sample(q, key)
            reconstruction = distributions.data_log_prob(vae.decode(params, z), x)
            return reconstruction, distributions.log_prob(q, z) - distributions.log_prob(prior, z)

        example_key = jax.random.fold_in(key, index)
        return summarize(*monte_carlo.over_samples(sample_term, example_key, num_samples, chunk_size))

    result = monte_carlo.over_examples(one_example, (jnp.arange(x.shape[0]), x, own), batch_size)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), result)


@functools.cache  # a function of its own for each list of K, and the same one each time: it is a static argument
def _summaries(sweep: tuple[int, ...]) -> Callable[[Array, Array], Any]:
    def summarize(reconstruction: Float[Array, " K"], kl: Float[Array, " K"]):
        log_w = reconstruction - kl
        short = log_w.shape[0] < pareto.SMALLEST_K
        index = jnp.full_like(log_w[0], math.nan) if short else pareto.pareto_index(log_w)
        return tuple((*_bound(log_w, number), index) for number in sweep)

    return summarize


def _bound(log_w: Float[Array, " K"], size: int) -> tuple[Array, Array, Array]:
    """The bound of `size` samples, its standard error, and the effective sample size."""
    num_groups = log_w.shape[0] // size
    groups = log_w[: num_groups * size].reshape(num_groups, size)
    bounds = jax.nn.logsumexp(groups, axis=1) - math.log(size)
    ess = objectives.effective_sample_size(groups.T)
    if num_groups > 1:
        return bounds.mean(), bounds.std(ddof=1) / math.sqrt(num_groups), ess.mean()
    # Delta method: sd(w) / (sqrt(K) mean(w)), with the unbiased variance.
    unbiased = size / (size - 1) if size > 1 else math.nan
    return bounds[0], jnp.sqrt(unbiased * jnp.maximum(1 / ess[0] - 1 / size, 0)), ess[0]


def _summarize_elbo(reconstruction: Float[Array, " K"], kl: Float[Array, " K"]):
    log_w = reconstruction - kl
    num_samples = log_w.shape[0]
    error = log_w.std(ddof=1) / math.sqrt(num_samples) if num_samples > 1 else jnp.full_like(log_w[0], math.nan)
    return log_w.mean(), error, reconstruction.mean(), kl.mean()
