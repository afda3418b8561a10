"""How the log-weights of K samples become a bound: their mean, log-mean-exp, and the family between.

Each also knows its leave-one-out: the bound of the other K - 1 samples, a baseline of the score function.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class Reduction(NamedTuple):
    """How the log-weights l_1, ..., l_K of K samples become a bound, and what estimators need to know of it.

    A constant may be added to all log-weights: bound(l + c) = bound(l) + c, and so for `leave_one_out`. The log-weight
    of a sample that is impossible, as under a prior of bounded support, is -inf. A bound of -inf has no gradient:
    objectives take it off, and the reductions of this file have none, by `without_gradient_of_nothing`.

    Attributes:
        bound: (K, *batch) -> (*batch,).
        leave_one_out: (K, *batch) -> (K, *batch); entry k is the bound of the other K - 1 samples.
        credit: (K, *batch) -> (K, *batch); entry k is the part of the bound that depends on sample k, the reward of the
            score function without a leave-one-out baseline. For a mean that is its own term, l_k / K; for a
            log-mean-exp it is the whole bound.
        path_weights: (K, *batch) -> (K, *batch); entry k is d bound / d l_k - d^2 bound / d l_k^2, the weight that
            `doubly_reparameterized` gives to the path derivative of an l_k that holds log q once: 1 / K for a mean.
        linear: whether the bound is linear in the log-weights.

    >>> log_w, reduction = jnp.array([1.0, 3.0, 8.0]), mean_reduction()
    >>> reduction.bound(log_w).tolist(), reduction.leave_one_out(log_w).tolist()
    (4.0, [5.5, 4.5, 2.0])
    >>> bool(jnp.allclose(reduction.credit(log_w).sum(), reduction.bound(log_w)))  # a mean is the sum of its terms
    True
    """

    bound: Callable[[Array], Array]
    leave_one_out: Callable[[Array], Array]
    credit: Callable[[Array], Array]
    path_weights: Callable[[Array], Array]
    linear: bool


def without_gradient_of_nothing(reduction: Reduction) -> Reduction:
    """The same reduction, with a gradient of zero where the bound is -inf: where too many weights are zero.

    The derivative of a logarithm at zero is infinite, and one such example would make all parameters NaN.

    Args:
        reduction: how log-weights become a bound.

    Returns:
        A reduction of the same values.

    >>> plain = Reduction(lambda log_w: jnp.log(jnp.exp(log_w).sum(axis=0)), *[lambda log_w: log_w] * 3, linear=False)
    >>> safe = without_gradient_of_nothing(plain)
    >>> jax.value_and_grad(safe.bound)(jnp.array([-jnp.inf, -jnp.inf]))
    (Array(-inf, dtype=float32...), Array([0., 0.], dtype=float32))
    """

    def bound(log_w: Float[Array, "K ..."]) -> Float[Array, "..."]:
        nothing = jnp.isneginf(reduction.bound(lax.stop_gradient(log_w)))
        return jnp.where(nothing, -jnp.inf, reduction.bound(jnp.where(nothing[None], 0, log_w)))

    return reduction._replace(bound=bound)


def mean_reduction() -> Reduction:
    """The mean of the log-weights, (1/K) sum_k l_k: the ELBO.

    >>> mean_reduction().bound(jnp.array([1.0, 3.0])).tolist()
    2.0
    """

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        # Infinite ones are counted, for the difference of two infinities is no number.
        nothing = jnp.isneginf(log_w)
        finite = jnp.where(nothing, 0, log_w)
        count = nothing.astype(log_w.dtype)
        mean = (finite.sum(axis=0, keepdims=True) - finite) / (log_w.shape[0] - 1)
        return jnp.where(count.sum(axis=0, keepdims=True) > count, -jnp.inf, mean)

    return without_gradient_of_nothing(
        Reduction(
            bound=lambda log_w: log_w.mean(axis=0),
            leave_one_out=leave_one_out,
            credit=lambda log_w: log_w / log_w.shape[0],
            path_weights=lambda log_w: jnp.full_like(log_w, 1 / log_w.shape[0]),
            linear=True,
        )
    )


def log_mean_exp_reduction() -> Reduction:
    """The log of the mean weight, log (1/K) sum_k exp(l_k): the importance-weighted bound.

    >>> round(float(log_mean_exp_reduction().bound(jnp.log(jnp.array([1.0, 3.0])))), 4)  # log 2
    0.6931

    Source: Burda, Grosse & Salakhutdinov 2015, "Importance weighted autoencoders".
    """

    def bound(log_w: Float[Array, "K ..."]) -> Float[Array, "..."]:
        return jax.nn.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        # From both ends, so that the largest weight is never subtracted from a sum that it dominates.
        nothing = jnp.full_like(log_w[:1], -jnp.inf)
        before = lax.associative_scan(jnp.logaddexp, log_w[:-1], axis=0)
        after = lax.associative_scan(jnp.logaddexp, log_w[1:], axis=0, reverse=True)
        others = jnp.logaddexp(jnp.concatenate([nothing, before]), jnp.concatenate([after, nothing]))
        return others - math.log(log_w.shape[0] - 1)

    return without_gradient_of_nothing(
        Reduction(
            bound=bound,
            leave_one_out=leave_one_out,
            credit=lambda log_w: jnp.broadcast_to(bound(log_w)[None], log_w.shape),
            # The softmax w has derivative w (1 - w).
            path_weights=lambda log_w: jax.nn.softmax(log_w, axis=0) ** 2,
            linear=False,
        )
    )


def renyi_reduction(alpha: float) -> Reduction:
    """The log of the power mean of the weights with exponent 1 - alpha: the variational Renyi bound.

        1 / (1 - alpha) log (1/K) sum_k exp((1 - alpha) l_k)

    Args:
        alpha: the order: 1 is the mean of the log-weights, 0 the log of the mean weight, -inf the largest log-weight
            and inf the smallest.

    Raises:
        ValueError: if alpha is not a number.

    >>> renyi_reduction(math.inf).bound(jnp.array([1.0, 3.0])).tolist()
    1.0

    Source: Li & Turner 2016, "Renyi divergence variational inference".
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or math.isnan(alpha):
        raise ValueError(f"alpha must be a number, or math.inf or -math.inf; got {alpha!r}")
    if alpha == 1:
        return mean_reduction()
    if math.isinf(alpha):
        return _extreme_reduction(jnp.max if alpha < 0 else jnp.min)
    power, plain = 1 - alpha, log_mean_exp_reduction()

    def near_one(log_w: Float[Array, "K ..."], mean_excess: Callable[[Array], Array], far: Callable[[Array], Array]):
        """`far(power * log_w) / power`; by expm1 and log1p where the log-weights times the power are small.

        For alpha near 1 the rounding error of a logarithm would otherwise be divided by a power near 0.
        """
        largest = log_w.max(axis=0, keepdims=True)
        largest = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
        excess = power * (log_w - largest)
        small = (jnp.abs(excess) < 0.5).all(axis=0, keepdims=True)
        little = jnp.log1p(mean_excess(jnp.expm1(jnp.where(small, excess, 0))))
        return largest + jnp.where(small, little, far(jnp.where(small, 0, excess))) / power

    def bound(log_w: Float[Array, "K ..."]) -> Float[Array, "..."]:
        return near_one(log_w, lambda e: e.mean(axis=0, keepdims=True), lambda log_w: plain.bound(log_w)[None])[0]

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        return near_one(log_w, mean_reduction().leave_one_out, plain.leave_one_out)

    def path_weights(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        shares = jax.nn.softmax(power * log_w, axis=0)
        return shares - power * shares * (1 - shares)  # a share has derivative power * share * (1 - share)

    return without_gradient_of_nothing(
        Reduction(
            bound=bound,
            leave_one_out=leave_one_out,
            credit=lambda log_w: jnp.broadcast_to(bound(log_w)[None], log_w.shape),
            path_weights=path_weights,
            linear=False,
        )
    )


def _extreme_reduction(extreme: Callable[..., Array]) -> Reduction:
    """The largest or the smallest of the log-weights."""

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        nothing = -jnp.inf if extreme is jnp.max else jnp.inf
        own = jnp.eye(len(log_w), dtype=bool).reshape(len(log_w), len(log_w), *[1] * (log_w.ndim - 1))
        return extreme(jnp.where(own, nothing, log_w[None]), axis=1)

    def chosen(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        return jax.grad(lambda log_w: extreme(log_w, axis=0).sum())(log_w)

    return without_gradient_of_nothing(
        Reduction(
            bound=lambda log_w: extreme(log_w, axis=0),
            leave_one_out=leave_one_out,
            credit=lambda log_w: jnp.broadcast_to(extreme(log_w, axis=0)[None], log_w.shape),
            path_weights=chosen,
            linear=False,
        )
    )


def rewards(bound: Float[Array, " *batch"], baselines: Float[Array, "K *batch"]) -> Float[Array, "K *batch"]:
    """How far the bound of K samples is above what is expected without each of them: zero where it is -inf.

    Args:
        bound: of all samples.
        baselines: entry k does not depend on sample k. One of -inf, where all other weights are zero, is taken for 0:
            any number that does not depend on sample k will do.

    Returns:
        The rewards of the score function, without gradient.

    >>> rewards(jnp.array([2.0, -jnp.inf]), jnp.array([[1.5, 1.0], [-jnp.inf, 1.0]])).tolist()
    [[0.5, 0.0], [2.0, 0.0]]
    """
    excess = bound[None] - jnp.where(jnp.isneginf(baselines), 0, baselines)
    return lax.stop_gradient(jnp.where(jnp.isneginf(bound)[None], 0, excess))


def bounds_with_replaced(reduce: Reduction, log_w: Array, replacements: Array) -> Array:
    """Entry k is the bound with the k-th log-weight replaced.

    Args:
        reduce: how log-weights become a bound.
        log_w: (K, *batch).
        replacements: (K, *others, *batch); entry k holds one or several numbers to put in the place of `log_w[k]`.

    Returns:
        The bounds, (K, *others, *batch).

    >>> bounds_with_replaced(mean_reduction(), jnp.array([1.0, 3.0]), jnp.array([5.0, 9.0])).tolist()
    [4.0, 5.0]
    """
    flat = replacements.reshape(len(log_w), -1, *log_w.shape[1:])

    def bounds(args: tuple[Array, Array]) -> Array:
        k, news = args
        return jax.vmap(lambda new: reduce.bound(log_w.at[k].set(new)))(news)

    # One sample after another, because K bounds of K log-weights at once would take K times their memory.
    return lax.map(bounds, (jnp.arange(len(log_w)), flat)).reshape(replacements.shape)


def effective_sample_size(log_w: Float[Array, "K *batch"]) -> Float[Array, " *batch"]:
    """Effective size of K weighted samples, from 1 to K.

        (sum_k w_k)^2 / sum_k w_k^2

    Args:
        log_w: logarithms of the weights.

    Returns:
        A number of samples, for each example of the batch; 0 where every weight is zero.

    >>> effective_sample_size(jnp.log(jnp.array([[1.0, 1.0], [1.0, 1e-9]]))).tolist()
    [2.0, 1.0]

    Source: Kish 1965, "Survey sampling".
    """
    nothing = (log_w == -jnp.inf).all(axis=0)
    log_w = jnp.where(nothing[None], 0, log_w)
    size = jnp.exp(2 * jax.nn.logsumexp(log_w, axis=0) - jax.nn.logsumexp(2 * log_w, axis=0))
    return jnp.where(nothing, 0, size)
