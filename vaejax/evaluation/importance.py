"""Log p(x) and the ELBO of each example by sampling, with error bars and a word on whether they can be believed.

Each example draws from a key of its own, folded with its index, and each sample from a key split from that. So the
numbers do not depend on how examples and samples are cut into chunks, only memory does.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, estimators, models
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.evaluation import estimates
from vaejax.evaluation.estimates import Elbo, LogLikelihood, warn_where_not_trustworthy
from vaejax.models import VAE

_LOG = logging.getLogger(__name__)


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
    >>> from vaejax.evaluation import average
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
            f"expected a normal q of batch shape {batch_shape}; got {distributions.name_of(q)} of {q.batch_shape}"
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
    checks.check_count("num_samples", num_samples)
    estimate, error, reconstruction, kl = _checked_samples(
        encoded, vae, params, key, x, num_samples, chunk_size, batch_size, _summarize_elbo
    )
    return Elbo(estimate, error, reconstruction, kl, num_samples)


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
        checks.check_count("num_samples", number)
    summarize = _summaries(sweep)
    results = _checked_samples(proposal, vae, params, key, x, max(sweep), chunk_size, batch_size, summarize, own)
    return tuple(
        LogLikelihood(bound, error, ess, index, number)
        for (bound, error, ess, index), number in zip(results, sweep, strict=True)
    )


def _checked_samples(proposal, vae, params, key, x, num_samples, chunk_size, batch_size, summarize, own=None) -> Any:
    checks.check_count("chunk_size", chunk_size)
    checks.check_count("batch_size", batch_size)
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
        short = log_w.shape[0] < estimates.SMALLEST_K
        index = jnp.full_like(log_w[0], math.nan) if short else estimates.pareto_index(log_w)
        return tuple((*_bound(log_w, number), index) for number in sweep)

    return summarize


def _bound(log_w: Float[Array, " K"], size: int) -> tuple[Array, Array, Array]:
    """The bound of `size` samples, its standard error, and the effective sample size."""
    num_groups = log_w.shape[0] // size
    groups = log_w[: num_groups * size].reshape(num_groups, size)
    bounds = jax.nn.logsumexp(groups, axis=1) - math.log(size)
    ess = estimators.effective_sample_size(groups.T)
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
