"""Log p(x) and the ELBO of each example by sampling, with error bars and a warning where they cannot be trusted.

Each example draws from a key of its own, folded with its index, and each sample from a key split from that. So the
numbers do not depend on how examples and samples are cut into chunks; only memory does.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.evaluation import estimates
from vaejax.evaluation.estimates import Elbo, LogLikelihood
from vaejax.evaluation.examples import checked_examples, over_batch
from vaejax.models import VAE


class Proposal(NamedTuple):
    """Where the samples of an example come from; static for the compiler.

    Attributes:
        density: `(vae, params, x, own) -> distribution` of the latents of one example, with `own` what it brings along.
        words: what warnings call it.
    """

    density: Callable[[VAE, Params, Array, Any], dist.Distribution]
    words: str


ENCODER = Proposal(lambda vae, params, x, own: vae.encode(params, x), "q(z|x)")
PRIOR = Proposal(lambda vae, params, x, own: vae.prior(params), "the prior")
OWN_NORMAL = Proposal(lambda vae, params, x, own: dist.Normal(*own).to_event(1), "q(z)")


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
    """Importance-sampled log p(x) of each example, with the encoder's q(z|x) as the proposal.

    log p(x) = log E_q[p(x, z) / q(z|x)] is estimated by log (1/K) sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x): in
    expectation a lower bound. A warning is logged with the number of examples where the weights say that the estimate
    cannot be trusted (`is_trustworthy`); and where K is below 25, because then they cannot say.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape).
        num_samples: K, samples of z for each example.
        chunk_size: samples evaluated at once.
        batch_size: examples evaluated at once; memory grows with chunk_size * batch_size and with nothing else.

    Returns:
        Estimate in nats, standard error, effective sample size and Pareto index of each example. Compiled once for each
        shape of x.

    Raises:
        ValueError: if a number is not a positive integer, or `models.check_data` refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = log_likelihood(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)), num_samples=100)
    >>> result.estimate.shape, result.num_samples
    ((7,), 100)

    Source: Burda, Grosse & Salakhutdinov 2015, section 5; the standard error is the delta method's.
    """
    return log_likelihoods(ENCODER, vae, params, key, x, (num_samples,), chunk_size, batch_size)[0]


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
    """The importance-weighted bound for each K of a list, from one set of samples: how it rises to log p(x).

    For each K the samples of the largest K are cut into groups of K. The estimate is the mean of the groups' bounds,
    and its standard error comes from their scatter; where there is only one group, it is the delta method's. The bounds
    of two K share samples, so they are not independent.

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

    >>> from vaejax import models
    >>> from vaejax.evaluation import average
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> one, hundred = log_likelihood_sweep(vae, params, jax.random.key(1), x, (1, 100))
    >>> bool(average(one).estimate < average(hundred).estimate)
    True
    """
    if isinstance(num_samples, int) or not len(num_samples):
        raise ValueError(
            f"num_samples must be a list of one or more numbers of samples; got {num_samples!r}: for one number use "
            "log_likelihood"
        )
    return log_likelihoods(ENCODER, vae, params, key, x, tuple(num_samples), chunk_size, batch_size)


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
    """The naive log p(x) = log E_p(z)[p(x|z)] with samples of the prior, which needs no q(z|x) and far more samples.

    In the limit of many samples it agrees with `log_likelihood`. At any K that one can afford almost no latent from the
    prior explains x: the effective sample size is near 1, and the estimate is far below log p(x).

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape).
        num_samples: K.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Returns:
        As `log_likelihood`.

    Raises:
        ValueError: as `log_likelihood`.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> log_likelihood_from_prior(vae, params, jax.random.key(1), x, 100).estimate.shape
    (7,)
    """
    return log_likelihoods(PRIOR, vae, params, key, x, (num_samples,), chunk_size, batch_size)[0]


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

    Returns:
        As `log_likelihood`.

    Raises:
        ValueError: as `log_likelihood`; and if q is not normal, or of another batch shape.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> wide = dist.Normal(jnp.zeros((7, 2)), 2.0 * jnp.ones((7, 2))).to_event(1)
    >>> log_likelihood_from(vae, params, jax.random.key(1), x, wide, 100).estimate.shape
    (7,)
    """
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    if not isinstance(distributions.without_wrappers(q), dist.Normal) or q.batch_shape != batch_shape:
        raise ValueError(
            f"expected a normal q of batch shape {batch_shape}; got {distributions.name_of(q)} of {q.batch_shape}"
        )
    own = (jnp.asarray(q.mean), jnp.sqrt(jnp.asarray(q.variance)))
    return log_likelihoods(OWN_NORMAL, vae, params, key, x, (num_samples,), chunk_size, batch_size, own=own)[0]


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
    """Evidence lower bound of each example, E_q[log p(x|z)] - KL(q(z|x) || p(z)), and its two parts.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`; with the same key the samples are those of `log_likelihood`.
        x: data, (*batch, *data_shape).
        num_samples: K, samples of z for each example, over which also the KL is averaged.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Returns:
        The bound in nats, its standard error, reconstruction and KL of each example, (*batch,).

    Raises:
        ValueError: as `log_likelihood`.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = elbo(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> bool(jnp.allclose(result.estimate, result.reconstruction - result.kl, atol=1e-4))
    True
    """
    checks.check_count("num_samples", num_samples)
    x = checked_examples(vae, params, x, chunk_size=chunk_size, batch_size=batch_size)
    parts = _sample(ENCODER, vae, num_samples, chunk_size, batch_size, _elbo_and_parts, params, key, x, None)
    return Elbo(*parts, num_samples)


def log_likelihoods(
    proposal: Proposal,
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    sweep: tuple[int, ...],
    chunk_size: int = 50,
    batch_size: int = 100,
    *,
    own: Any = None,
    warn: bool = True,
) -> tuple[LogLikelihood, ...]:
    """What all functions above but the ELBO call: the bound of each K of a sweep, from one set of samples.

    Args and errors are those of `log_likelihood`. `own` is a tree of arrays, (*batch, ...), of which the proposal of an
    example gets its own entries; without `warn` nothing is logged.
    """
    for number in sweep:
        checks.check_count("num_samples", number)
    x = checked_examples(vae, params, x, chunk_size=chunk_size, batch_size=batch_size)
    summarize = _bounds_of(sweep)
    bounds = _sample(proposal, vae, max(sweep), chunk_size, batch_size, summarize, params, key, x, own)
    results = tuple(LogLikelihood(*bound, number) for bound, number in zip(bounds, sweep, strict=True))
    if warn:
        estimates.warn_where_not_trustworthy(results[sweep.index(max(sweep))], proposal.words)
    return results


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _sample(proposal: Proposal, vae, num_samples, chunk_size, batch_size, summarize, params, key, x, own) -> Any:
    """`summarize(reconstruction, kl)` of each example: of log p(x|z) and log q(z) - log p(z) of its K samples, (K,)."""
    prior = vae.prior(params)

    def one_example(index, x, own):
        q = proposal.density(vae, params, x, own)

        def sample_term(key):
            z = distributions.sample(q, key)
            reconstruction = distributions.data_log_prob(vae.decode(params, z), x)
            return reconstruction, distributions.log_prob(q, z) - distributions.log_prob(prior, z)

        example_key = jax.random.fold_in(key, index)
        return summarize(*monte_carlo.over_samples(sample_term, example_key, num_samples, chunk_size))

    return over_batch(one_example, vae, params, x, batch_size, own)


@functools.cache  # a function of its own for each list of K, and the same one each time: it is a static argument
def _bounds_of(sweep: tuple[int, ...]) -> Callable[[Array, Array], Any]:
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
    bounds, errors, ess = estimates.log_mean_weight(groups)
    if num_groups > 1:
        return *estimates.mean_and_error(bounds), ess.mean()
    return bounds[0], errors[0], ess[0]


def _elbo_and_parts(reconstruction: Float[Array, " K"], kl: Float[Array, " K"]):
    return *estimates.mean_and_error(reconstruction - kl), reconstruction.mean(), kl.mean()
