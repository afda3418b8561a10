"""Bounds between the mean of the log-weights and the log of the mean weight: in groups, in parts, along a path."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vaejax import checks
from vaejax.estimators.reductions import Reduction, log_mean_exp_reduction, mean_reduction, without_gradient_of_nothing


def grouped_reduction(num_groups: int) -> Reduction:
    """The mean over groups of samples of each group's log of the mean weight: the MIWAE bound.

        (1/M) sum_m log (1/L) sum_l exp(l_{m, l}),  K = M L

    With one group it is the importance-weighted bound; with as many groups as samples it is the ELBO.

    Args:
        num_groups: M, which divides the number of samples K; the first K / M samples are the first group.

    Raises:
        ValueError: if num_groups is not a positive integer; when the bound is made, if it does not divide K.

    >>> grouped_reduction(2).bound(jnp.log(jnp.array([1.0, 3.0, 2.0, 2.0]))).round(4).tolist()  # log 2, twice
    0.693...

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better".
    """
    checks.check_count("num_groups", num_groups)
    whole, mean = log_mean_exp_reduction(), mean_reduction()

    def grouped(log_w: Array) -> Array:
        """(L, M, *batch)."""
        checks.check_divides("num_samples", len(log_w), num_groups, "groups")
        return jnp.moveaxis(log_w.reshape(num_groups, -1, *log_w.shape[1:]), 1, 0)

    def flat(groups: Array, log_w: Array) -> Array:
        return jnp.moveaxis(groups, 0, 1).reshape(log_w.shape)

    def bound(log_w: Float[Array, "K ..."]) -> Float[Array, "..."]:
        return whole.bound(grouped(log_w)).mean(axis=0)

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        groups = grouped(log_w)
        if len(groups) == 1:
            return mean.leave_one_out(log_w)
        own = whole.leave_one_out(groups)
        if num_groups == 1:
            return flat(own, log_w)
        others = mean.leave_one_out(whole.bound(groups))[None]
        return flat((own + (num_groups - 1) * others) / num_groups, log_w)

    def credit(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        return flat(whole.credit(grouped(log_w)), log_w) / num_groups

    def path_weights(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        return flat(whole.path_weights(grouped(log_w)), log_w) / num_groups

    return without_gradient_of_nothing(Reduction(bound, leave_one_out, credit, path_weights, linear=False))


def combined_reduction(first: Reduction, second: Reduction, weight: float) -> Reduction:
    """A convex combination of two bounds, weight times the first and 1 - weight times the second.

    Of the ELBO and the importance-weighted bound it is the CIWAE bound.

    Args:
        first: a reduction.
        second: another.
        weight: from 0 to 1.

    Raises:
        ValueError: if the weight is not a number from 0 to 1.

    >>> half = combined_reduction(mean_reduction(), log_mean_exp_reduction(), 0.5)
    >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
    >>> bool(mean_reduction().bound(log_w) < half.bound(log_w) < log_mean_exp_reduction().bound(log_w))
    True

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better".
    """
    for reduction in (first, second):
        checks.check_kind("a part", reduction, Reduction, "an estimators.Reduction, such as mean_reduction()")
    checks.check_number("weight", weight, least=0, most=1, advice="it is the share of the first bound")
    if weight in (0, 1):  # else an infinite bound that does not count would spoil the other
        return first if weight == 1 else second

    def both(one: Callable[[Array], Array], other: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda log_w: weight * one(log_w) + (1 - weight) * other(log_w)

    return without_gradient_of_nothing(
        Reduction(
            bound=both(first.bound, second.bound),
            leave_one_out=both(first.leave_one_out, second.leave_one_out),
            credit=both(first.credit, second.credit),
            path_weights=both(first.path_weights, second.path_weights),
            linear=first.linear and second.linear,
        )
    )


def thermodynamic_reduction(temperatures: Sequence[float]) -> Reduction:
    """The thermodynamic bound: the sum, from below, of the integral of E_t[log w] over the path from q to p(z|x).

        sum_j (t_{j+1} - t_j) sum_k W_{j, k} l_k,  W_{j, k} = softmax over k of t_j l_k

    where 0 = t_0 < t_1 < ... < 1 and the last interval ends at 1. The integral itself, for these K samples, is the
    importance-weighted bound: log (1/K) sum_k exp(t l_k) has the derivative sum_k W_k l_k in t, which rises. So the
    bound lies between the ELBO, at one temperature, and the importance-weighted bound, at infinitely many.

    Args:
        temperatures: t_0 to the last below 1, rising; the first is 0.

    Raises:
        ValueError: if they are no numbers that rise from 0 to below 1.

    >>> log_w = jnp.array([1.0, 3.0])
    >>> thermodynamic_reduction([0.0]).bound(log_w).tolist(), thermodynamic_reduction([0.0, 0.5]).bound(log_w) > 2.0
    (2.0, Array(True, dtype=bool))

    Source: Masrani, Le & Wood 2019, "The thermodynamic variational objective".
    """
    levels, widths = intervals(temperatures)

    def of_softmax(log_w: Array, function: Callable[[Array, float, float], Array]) -> Array:
        """Sum over the temperatures of function(softmax, t, width)."""
        shares = (jax.nn.softmax(t * log_w, axis=0) for t in levels)
        terms = [function(share, t, width) for share, t, width in zip(shares, levels, widths, strict=True)]
        return sum(terms[1:], start=terms[0])

    def bound(log_w: Float[Array, "K ..."]) -> Float[Array, "..."]:
        # One weight of zero makes the mean of the logarithms, and with it the sum, infinite.
        nothing = jnp.isneginf(log_w)
        finite = jnp.where(nothing, 0, log_w)
        total = of_softmax(finite, lambda share, t, width: width * (share * finite).sum(axis=0))
        return jnp.where(nothing.any(axis=0), -jnp.inf, total)

    def leave_one_out(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        # One after another, because K bounds of K - 1 log-weights at once would take K times their memory.
        def without(k: Array) -> Array:
            places = jnp.arange(len(log_w) - 1)
            return bound(log_w[places + (places >= k).astype(places.dtype)])

        return jax.lax.map(without, jnp.arange(len(log_w)))

    def path_weights(log_w: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
        # The derivative b_k is the sum of width * share * (1 + t (l_k - mean)), and its own derivative follows.
        def term(share: Array, t: float, width: float) -> Array:
            away = t * (log_w - (share * log_w).sum(axis=0, keepdims=True))
            second = t * (share * (1 - share) * (1 + away) + share * (1 - share - share * away))
            return width * (share * (1 + away) - second)

        return of_softmax(log_w, term)

    return without_gradient_of_nothing(
        Reduction(
            bound=bound,
            leave_one_out=leave_one_out,
            credit=lambda log_w: jnp.broadcast_to(bound(log_w)[None], log_w.shape),
            path_weights=path_weights,
            linear=len(levels) == 1,
        )
    )


def intervals(temperatures: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The temperatures, and the widths of the intervals that they begin."""
    numbers = np.asarray(temperatures, dtype=object).reshape(-1)
    for number in numbers:
        checks.check_number("a temperature", number, least=0, below=1, advice="they rise from 0 to below 1")
    levels = np.asarray(numbers, float)
    if not len(levels) or levels[0] != 0 or (np.diff(levels) <= 0).any():
        raise ValueError(f"expected temperatures that rise from 0 to below 1; got {list(numbers)}")
    return tuple(levels.tolist()), tuple(np.diff([*levels, 1.0]).tolist())
