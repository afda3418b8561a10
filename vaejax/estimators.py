"""How the gradient of an expectation under q is estimated: a strategy, passed as a value.

Every estimator is a function of one signature,

    estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate

where `integrand(z, q) -> (log_w, terms)` is what stands inside the expectation for one sample of the whole batch, and
`reduce` says how the log-weights (K, *batch) become a bound. The value of the bound is the same for all estimators that
draw the same samples; its `jax.grad` is the estimator. To that end the terms that only exist for their gradient are
added as `value + (s - stop_gradient(s))`: the bracket is an exact zero, so the value keeps every digit.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, Key

from vaejax import distributions

Integrand = Callable[[Array, dist.Distribution], tuple[Array, Any]]


class Reduction(NamedTuple):
    """How the log-weights of K samples become a bound. All functions shift with their argument: f(l + c) = f(l) + c.

    Attributes:
        bound: (K, *batch) -> (*batch,).
        leave_one_out: (K, *batch) -> (K, *batch); entry k is the bound of the other K - 1 samples.
        credit: (K, *batch) -> (K, *batch); entry k is the part of the bound that sample k can have changed, the reward
            of the score function without a leave-one-out baseline. For a mean that is its own term, l_k / K; for a
            log-mean-exp it is all of it.
    """

    bound: Callable[[Array], Array]
    leave_one_out: Callable[[Array], Array]
    credit: Callable[[Array], Array]


class Estimate(NamedTuple):
    """What an estimator returns.

    Attributes:
        bound: (*batch,), nats; its gradient is the estimator.
        terms: what the integrand returned beside the log-weight, stacked over samples: leaves (K, *batch, ...).
    """

    bound: Array
    terms: Any


@runtime_checkable
class Estimator(Protocol):
    """The signature that all estimators share; see the head of this module."""

    def __call__(
        self,
        key: Key[Array, ""],
        q: dist.Distribution,
        integrand: Integrand,
        num_samples: int,
        reduce: Reduction,
        baseline: Array | None = None,
        chunk_size: int | None = None,
    ) -> Estimate:
        """The bound and the integrand's terms."""
        ...


def pathwise() -> Estimator:
    """Reparameterized gradient: z = g(eps, params), and the gradient flows through g.

        grad E_q[f(z)] = E_eps[grad f(g(eps, params))]

    Serves every q whose samples are a differentiable function of its parameters (`q.has_rsample`), and needs f
    differentiable in z.

    Returns:
        An estimator. Called with a q that cannot be reparameterized it raises a ValueError that names one that can.

    Source: Kingma & Welling 2014, "Auto-encoding variational Bayes", section 2.4.
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        if not q.has_rsample:
            raise ValueError(
                "pathwise() needs samples that are a differentiable function of q's parameters; q = "
                f"{distributions.name_of(q)} has none. Use estimators.score_function(baseline='leave_one_out')"
            )

        def sample_term(key):
            return integrand(q.rsample(key), q)

        log_w, terms = over_samples(sample_term, key, num_samples, chunk_size)
        return Estimate(reduce.bound(log_w), terms)

    return estimate


def score_function(baseline: str | None = None) -> Estimator:
    """Score-function gradient, or REINFORCE: the samples are held fixed and their log-probability is reweighted.

        grad E_q[f(z)] = E_q[(f(z) - b) grad log q(z) + grad f(z)]

    The last term is the direct dependence of f on the parameters, at fixed z. Serves discrete and continuous q, needs
    no derivative of f in z, and pays with variance. A bound of K samples that does not split into a sum over them, such
    as the importance-weighted one, is credited whole to each sample.

    Args:
        baseline: None, or "leave_one_out": for each sample, the bound of the other K - 1, which does not depend on it
            and so leaves the gradient unbiased (Mnih & Rezende 2016; Kool et al. 2019). Needs K >= 2.

    Returns:
        An estimator. Called with leave-one-out and K = 1 it raises a ValueError. A per-example array given to the
        estimator itself as `baseline` is subtracted from the reward where the leave-one-out baseline is not asked for.

    Raises:
        ValueError: if the baseline is unknown.

    Source: Williams 1992, "Simple statistical gradient-following algorithms"; Mohamed et al. 2020, section 4.
    """
    if baseline not in (None, "leave_one_out"):
        raise ValueError(f"baseline must be None or 'leave_one_out'; got {baseline!r}")

    leave_one_out = baseline == "leave_one_out"

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        if leave_one_out and num_samples < 2:
            raise ValueError(
                f"a leave-one-out baseline needs num_samples >= 2, for there is no other sample; got {num_samples}. "
                "Raise num_samples, or use score_function() or pathwise()"
            )

        def sample_term(key):
            z = lax.stop_gradient(q.sample(key))
            return *integrand(z, q), distributions.log_prob(q, z)

        log_w, terms, log_q = over_samples(sample_term, key, num_samples, chunk_size)
        if leave_one_out:
            reward = reduce.bound(log_w)[None] - reduce.leave_one_out(log_w)
        else:
            reward = reduce.credit(log_w if baseline is None else log_w - baseline[None])
        surrogate = (lax.stop_gradient(reward) * log_q).sum(axis=0)
        return Estimate(_with_gradient_of(reduce.bound(log_w), surrogate), terms)

    return estimate


def over_samples(
    sample_term: Callable[[Key[Array, ""]], Any], key: Key[Array, ""], num_samples: int, chunk_size: int | None = None
) -> Any:
    """Evaluate `sample_term(key_k)` for K keys made from `key`, and stack the results on a new first axis.

    Args:
        sample_term: a function of one key.
        key: consumed; sample k has a key of its own, whatever K and the chunks.
        num_samples: K.
        chunk_size: how many are evaluated at once; the rest waits, and nothing of a chunk is kept for the backward pass
            (it is computed anew). Memory is then that of `chunk_size` samples, whatever K. None: all at once.

    Raises:
        ValueError: if num_samples or chunk_size is not a positive integer.
    """
    check_count("num_samples", num_samples)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    # The split consumes the key, so that jax_debug_key_reuse notices where a caller uses it again.
    (key,) = jax.random.split(key, 1)
    indices = jnp.arange(num_samples)

    def indexed_term(index: Array) -> Any:
        return sample_term(jax.random.fold_in(key, index))

    if chunk_size is None or chunk_size >= num_samples:
        return jax.vmap(indexed_term)(indices)
    return lax.map(jax.checkpoint(indexed_term), indices, batch_size=chunk_size)


def check_count(name: str, number: int) -> None:
    """Refuse a number of samples, or of anything done at once, that is not a positive integer.

    Raises:
        ValueError: naming the argument and what came.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {number!r}")


def mean_reduction() -> Reduction:
    """The mean over samples: the ELBO."""

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        return (log_w.sum(axis=0, keepdims=True) - log_w) / (log_w.shape[0] - 1)

    return Reduction(
        bound=lambda log_w: log_w.mean(axis=0),
        leave_one_out=leave_one_out,
        credit=lambda log_w: log_w / log_w.shape[0],
    )


def log_mean_exp_reduction() -> Reduction:
    """The log of the mean weight, log (1/K) sum_k exp(l_k): the importance-weighted bound (Burda et al. 2015)."""

    def bound(log_w: Float[Array, "K ..."]) -> Float[Array, "..."]:
        return jax.nn.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        # From both ends, so that the largest weight is never subtracted from a sum that it dominates.
        nothing = jnp.full_like(log_w[:1], -jnp.inf)
        before = lax.associative_scan(jnp.logaddexp, log_w[:-1], axis=0)
        after = lax.associative_scan(jnp.logaddexp, log_w[1:], axis=0, reverse=True)
        others = jnp.logaddexp(jnp.concatenate([nothing, before]), jnp.concatenate([after, nothing]))
        return others - math.log(log_w.shape[0] - 1)

    return Reduction(
        bound=bound,
        leave_one_out=leave_one_out,
        credit=lambda log_w: jnp.broadcast_to(bound(log_w)[None], log_w.shape),
    )


def _with_gradient_of(value: Array, surrogate: Array) -> Array:
    """`value`, to the last bit, with the gradient of `surrogate` added to its own."""
    return value + (surrogate - lax.stop_gradient(surrogate))
