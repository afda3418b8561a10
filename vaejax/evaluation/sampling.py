"""The loops over examples and samples beneath `log_likelihood`, `elbo` and their relatives.

Each example draws from a key of its own, folded with its index, and each sample from a key split from that. So the
numbers do not depend on how examples and samples are cut into chunks; only memory does.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.evaluation import estimates
from vaejax.evaluation.estimates import LogLikelihood
from vaejax.evaluation.examples import checked_examples, over_batch
from vaejax.models import VAE, Batch, Functions, functions
from vaejax.models.programs import compiled


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


@functools.cache  # a value of its own for each kind of q, and the same one each time: it is a static argument
def own_proposal(structure: Any, num_axes: int) -> Proposal:
    """The proposal whose `own` are the leaves of a q of the user's, (*batch, ...), of `leaves_of_examples`."""

    def density(vae: VAE, params: Params, x: Array, own: Any) -> dist.Distribution:
        return _without_batch_axes(jax.tree.unflatten(structure, own), num_axes)

    return Proposal(density, "q(z)")


def leaves_of_examples(q: dist.Distribution, batch_shape: tuple[int, ...], event_shape: tuple[int, ...]) -> list[Array]:
    """The arrays of a distribution with the batch axes in full, so that each example can take its own entries.

    Raises:
        ValueError: if q is not of these shapes, or does not hold all that depends on the example in its arrays.
    """
    if not isinstance(q, dist.Distribution) or (q.batch_shape, q.event_shape) != (batch_shape, event_shape):
        got = f"{distributions.name_of(q)} of {q.batch_shape} and {q.event_shape}" if hasattr(q, "batch_shape") else q
        raise ValueError(f"expected a q of batch shape {batch_shape} and event shape {event_shape}; got {got}")
    distributions.check_has_density(q)
    number = len(batch_shape)
    leaves, structure = jax.tree.flatten(q)
    try:
        leaves = [jnp.broadcast_to(leaf, (*batch_shape, *jnp.shape(leaf)[number:])) for leaf in leaves]
        first = jax.tree.unflatten(structure, [leaf[(0,) * number] for leaf in leaves])
        alone = jax.eval_shape(lambda: distributions.sample(_without_batch_axes(first, number), jax.random.key(0)))
        fits = alone.shape == event_shape
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"expected a q whose arrays have the batch axes {batch_shape}, for each example takes its own entries; got "
            f"{distributions.name_of(q)} with arrays of {[jnp.shape(leaf) for leaf in jax.tree.leaves(q)]}: make "
            "it of arrays of full shape, without expand"
        )
    return leaves


def _without_batch_axes(q: dist.Distribution, number: int) -> dist.Distribution:
    """The distribution and those within it, of arrays that have lost their first axes, with the shapes that fit."""
    if number:
        q._batch_shape = q._batch_shape[number:]
        for part in vars(q).values():
            if isinstance(part, dist.Distribution):
                _without_batch_axes(part, number)
    return q


def log_likelihoods(
    proposal: Proposal,
    vae: VAE | Functions,
    params: Params | None,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    sweep: tuple[int, ...],
    chunk_size: int = 50,
    batch_size: int = 100,
    *,
    own: Any = None,
    warn: bool = True,
) -> tuple[LogLikelihood, ...]:
    """What log p(x) by importance sampling calls: the bound of each K of a sweep, from one set of samples.

    Args and errors are those of `log_likelihood`. `own` is a tree of arrays, (*batch, ...), of which the proposal of an
    example gets its own entries; without `warn` nothing is logged.
    """
    for number in sweep:
        checks.check_count("num_samples", number)
    summarize = _bounds_of(sweep)
    if isinstance(vae, Functions):
        checks.check_given(key=key, chunk_size=chunk_size)
        log_joint, log_q = functions.sampled_log_densities(vae, key, x, max(sweep), chunk_size)
        rounding = estimates.rounding_of_sum(log_joint.mean(axis=1), math.prod(jnp.shape(x)[1:]))
        bounds = jax.vmap(summarize)(log_joint, log_q, rounding)
        return _records(bounds, sweep, proposal.words, warn)
    x = checked_examples(vae, params, x, key=key, chunk_size=chunk_size, batch_size=batch_size)
    bounds = sampled(proposal, vae, max(sweep), chunk_size, batch_size, summarize, params, key, x, own)
    return _records(bounds, sweep, proposal.words, warn)


def _records(bounds: Any, sweep: tuple[int, ...], words: str, warn: bool) -> tuple[LogLikelihood, ...]:
    results = tuple(LogLikelihood(*first, number, *last) for (first, last), number in zip(bounds, sweep, strict=True))
    if warn:
        estimates.warn_where_not_trustworthy(results[sweep.index(max(sweep))], words)
    return results


@compiled(0, 1, 2, 3, 4, 5)
def sampled(proposal: Proposal, vae, num_samples, chunk_size, batch_size, summarize, params, key, x, own) -> Any:
    """`summarize(reconstruction, kl, rounding)` of each example.

    Its arguments are log p(x|z) and log q(z) - log p(z) of the K samples, (K,), and the rounding of log p(x|z).
    """

    def one_example(index, x, own):
        model, x = models.given(vae, x)
        prior, q = model.prior(params), proposal.density(model, params, x, own)

        def sample_term(key):
            z, log_q = distributions.sample_with_log_prob(q, key)
            reconstruction = distributions.data_log_prob(model.decode(params, z), x)
            return reconstruction, log_q - distributions.log_prob(prior, z)

        example_key = jax.random.fold_in(key, index)
        reconstruction, kl = monte_carlo.over_samples(sample_term, example_key, num_samples, chunk_size)
        return summarize(reconstruction, kl, estimates.rounding_of_sum(reconstruction.mean(), x.size))

    return over_batch(one_example, vae, params, x, batch_size, own)


@functools.cache  # a function of its own for each list of K, and the same one each time: it is a static argument
def _bounds_of(sweep: tuple[int, ...]) -> Callable[[Array, Array], Any]:
    def summarize(reconstruction: Float[Array, " K"], kl: Float[Array, " K"], rounding: Array):
        log_w = reconstruction - kl
        short = log_w.shape[0] < estimates.SMALLEST_K
        index = jnp.full_like(log_w[0], math.nan) if short else pareto_index(log_w)
        return tuple(_bound(log_w, number, index, rounding) for number in sweep)

    return summarize


def _bound(log_w: Float[Array, " K"], size: int, index: Array, rounding: Array) -> tuple[tuple, tuple]:
    """The fields of `LogLikelihood` before and after `num_samples`, which is `size`.

    The mean of several groups estimates the bound of their size, and that without bias: the halves then say the same.
    """
    num_groups = log_w.shape[0] // size
    groups = log_w[: num_groups * size].reshape(num_groups, size)
    bounds, errors, ess = estimates.log_mean_weight(groups)
    bound, error, half = bounds[0], errors[0], estimates.log_mean_weight_of_half(groups[0])
    if num_groups > 1:
        bound, error = estimates.mean_and_error(bounds)
        half = bound
    return (bound, jnp.hypot(error, rounding), ess.mean(), index), (half, rounding)


def elbo_and_parts(reconstruction: Float[Array, " K"], kl: Float[Array, " K"], rounding: Array):
    """The fields of `Elbo` before and after `num_samples`."""
    bound, error = estimates.mean_and_error(reconstruction - kl)
    return (bound, jnp.hypot(error, rounding), reconstruction.mean(), kl.mean()), (rounding,)


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
        "the number of weights",
        num_samples,
        estimates.SMALLEST_K,
        "draw more samples, the largest fifth of which are the tail",
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
