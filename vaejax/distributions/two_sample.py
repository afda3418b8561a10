"""How far samples are from data: energy distance, maximum mean discrepancy, and a permutation test.

All three rest on a kernel k of the distance between two examples, and on one number,

    D = E k(X, X') + E k(Y, Y') - 2 E k(X, Y)

with X and X' drawn from one distribution, Y and Y' from the other. The energy distance is D of k(x, y) = -|x - y|, the
squared maximum mean discrepancy is D of a Gaussian kernel (Sejdinovic et al. 2013). Both are zero if and only if the
two distributions are the same. The expectations are estimated by means over pairs of two different examples, so that
the estimates are unbiased; they may be negative.

Distances come from the differences of the coordinates, and so are right also for near examples far from the origin.
Those of |x|^2 + |y|^2 - 2 x.y, by a matrix product, are not; they would take half the time (0.5 s instead of 1.0 s for
2,000 against 2,000 examples of 784 numbers, on one CPU core).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, records

Kernel = Callable[[Array], Array]
"""A function of squared distances. Those of this module are pytrees (`Partial`): a new bandwidth compiles nothing."""


class Distance(NamedTuple):
    """An estimate of how far two distributions are from each other.

    The standard error is for two sets of independent draws. Its square adds what single examples contribute to the
    variance and what pairs of them do. The first is the jackknife's, less the pairs, which the jackknife counts twice
    (Efron & Stein 1981); the second comes from the doubly centred kernel. Where the two distributions are the same only
    pairs contribute, and the jackknife alone can come out near zero just where the estimate is far below. There the
    estimate is skewed and not normal: to tell whether two distributions are the same use `p_value`.

    Attributes:
        estimate: of D, unbiased. ()
        standard_error: of the estimate; NaN if a set has fewer than four examples. ()

    >>> energy_distance(jnp.arange(4.0), jnp.arange(4.0) + 10)
    Distance(
      estimate: float32[] 16.6667
      standard_error: float32[] ...
    )
    """

    estimate: Float[Array, ""]
    standard_error: Float[Array, ""]

    __repr__ = records.short_repr


def energy_distance(x: ArrayLike, y: ArrayLike, *, batch_size: int = 100) -> Distance:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, with the Euclidean norm over all numbers of an example.

    Args:
        x: examples, (n, *shape), n >= 2.
        y: examples, (m, *shape), m >= 2, drawn independently of x: of a set and itself the estimate is below 0.
        batch_size: examples whose distances to all n + m are computed at once; memory grows with
            (n + m) * (batch_size + size of an example). Differentiable, with no more memory than that.

    Returns:
        Estimate and standard error, in the unit of the data; zero in expectation if and only if the distributions are
        the same (and have means). Compiled once for each shape; also usable inside `jit`, `vmap` and `grad`.

    Raises:
        ValueError: if there are fewer than two examples, the shapes differ, the numbers are not floats, or are float64
            while JAX runs in 32 bits, or (checked outside `jit` alone) not finite.

    >>> x = jax.random.normal(jax.random.key(0), (200, 8, 8))
    >>> near, far = energy_distance(x[:100], x[100:]), energy_distance(x[:100], x[100:] + 1)
    >>> bool(abs(near.estimate) < 2 * near.standard_error), bool(far.estimate > 5 * far.standard_error)
    (True, True)

    Source: Szekely & Rizzo 2013, "Energy statistics"; the standard error: Efron & Stein 1981, "The jackknife estimate
    of variance".
    """
    x, y = _checked(x, y, batch_size=batch_size)
    return _distance(Partial(_negative_distance), x, y, batch_size)


def maximum_mean_discrepancy(x: ArrayLike, y: ArrayLike, *, bandwidth: ArrayLike, batch_size: int = 100) -> Distance:
    """Squared maximum mean discrepancy of the kernel k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)).

    Differentiable, also in the bandwidth.

    Args:
        x: examples, (n, *shape), n >= 2.
        y: examples, (m, *shape), m >= 2.
        bandwidth: of the kernel, in the unit of the data; `median_bandwidth(x, y)` is the usual choice. ()
        batch_size: as in `energy_distance`.

    Returns:
        Estimate and standard error, without unit; the discrepancy lies between 0 and 2.

    Raises:
        ValueError: as `energy_distance`; and if the bandwidth is not one positive number.

    >>> x = jax.random.normal(jax.random.key(0), (200, 3))
    >>> bool(maximum_mean_discrepancy(x[:100], x[100:] + 1, bandwidth=2.0).estimate > 0.1)
    True

    Source: Gretton et al. 2012, "A kernel two-sample test", lemma 6.
    """
    x, y = _checked(x, y, batch_size=batch_size)
    return _distance(_gaussian_kernel(bandwidth, x.dtype), x, y, batch_size)


def median_bandwidth(x: ArrayLike, y: ArrayLike, *, max_examples: int = 500) -> Float[Array, ""]:
    """Median of the distances between two examples of x and y together: the usual bandwidth of a Gaussian kernel.

    Inside an objective it has a gradient; `jax.lax.stop_gradient` takes it off.

    Args:
        x: examples, (n, *shape).
        y: examples, (m, *shape).
        max_examples: of a larger set so many are used, evenly spread over it.

    Returns:
        The median, in the unit of the data. ()

    Raises:
        ValueError: as `energy_distance`; and (checked outside `jit` alone) if the median is zero.

    >>> median_bandwidth(jnp.array([0.0, 1.0]), jnp.array([10.0, 11.0])).tolist()
    9.5

    Source: Gretton et al. 2012, section 8.
    """
    x, y = _checked(x, y, max_examples=max_examples)
    chosen = [np.arange(num := min(len(each), max_examples)) * len(each) // num for each in (x, y)]
    median = _median_distance(x[chosen[0]], y[chosen[1]])
    if not isinstance(median, Tracer) and median == 0:
        raise ValueError(
            "expected examples that differ; got sets of which half of the pairs or more are equal, so that the median "
            "distance is zero: give a bandwidth of your own, or use energy_distance, which needs none"
        )
    return median


def p_value(
    key: Key[Array, ""],
    x: ArrayLike,
    y: ArrayLike,
    *,
    bandwidth: ArrayLike | None = None,
    num_permutations: int = 999,
    batch_size: int = 100,
) -> Float[Array, ""]:
    """Permutation test of the hypothesis that x and y come from the same distribution.

    The examples are pooled and dealt out anew, to sets of the same sizes. The p-value is the fraction of the deals, the
    given one counted in, whose estimate is not below the given one's. If the hypothesis is true a p-value of alpha or
    less has a probability of at most alpha, whatever the distribution and the sizes.

    Args:
        key: consumed.
        x: examples, (n, *shape), n >= 2.
        y: examples, (m, *shape), m >= 2.
        bandwidth: of the Gaussian kernel; None tests with the energy distance. It must not depend on which examples
            are x's: `median_bandwidth(x, y)` does not where n and m are at most its max_examples.
        num_permutations: how often the examples are dealt out; no p-value is below 1 / (num_permutations + 1).
        batch_size: rows of the kernel matrix computed at once. The matrix is kept: memory grows with
            (n + m) * (n + m + num_permutations), so this is for some thousands of examples.

    Returns:
        The p-value, from 1 / (num_permutations + 1) to 1. ()

    Raises:
        ValueError: as `maximum_mean_discrepancy`; and if num_permutations is not a positive integer.

    >>> x = jax.random.normal(jax.random.key(0), (200, 3))
    >>> round(float(p_value(jax.random.key(1), x[:100], x[100:] + 1, num_permutations=99)), 3)
    0.01

    Source: Gretton et al. 2012; Phipson & Smyth 2010, "Permutation p-values should never be zero".
    """
    x, y = _checked(x, y, key=key, batch_size=batch_size, num_permutations=num_permutations)
    kernel = Partial(_negative_distance) if bandwidth is None else _gaussian_kernel(bandwidth, x.dtype)
    return _permutation_test(kernel, key, x, y, num_permutations, batch_size)


@functools.partial(jax.jit, static_argnums=3)
def _distance(kernel: Kernel, x: Float[Array, "n d"], y: Float[Array, "m d"], batch_size: int) -> Distance:
    n, m = len(x), len(y)
    pooled = jnp.concatenate([x, y])

    # A constant in the kernel cancels; without one of the size of k the sums below lose less to rounding.
    constant = lax.stop_gradient(_kernel_row(kernel, pooled, jnp.asarray(0)).mean())

    def mean_rows(index):
        row = _kernel_row(kernel, pooled, index) - constant
        row = jnp.where(jnp.arange(n + m) == index, 0, row)  # an example is no pair with itself
        return row[:n].mean(), row[n:].mean(), (row[:n] ** 2).mean(), (row[n:] ** 2).mean()

    to_x, to_y, squares_x, squares_y = _map_rows(mean_rows, n + m, batch_size)
    within_x, within_y, between = to_x[:n], to_y[n:], to_y[:n]
    estimate = within_x.mean() * n / (n - 1) + within_y.mean() * m / (m - 1) - 2 * between.mean()
    if min(n, m) < 4:
        return Distance(estimate, jnp.full_like(estimate, math.nan))
    pairs = (
        2 * _pair_variance(within_x, squares_x[:n]) / (n * (n - 1))
        + 2 * _pair_variance(within_y, squares_y[n:]) / (m * (m - 1))
        + 4 * _pair_variance_between(between, to_x[n:], squares_y[:n]) / (n * m)
    )
    jackknife = _jackknife_variance(within_x, between) + _jackknife_variance(within_y, to_x[n:])
    return Distance(estimate, jnp.sqrt(pairs + jnp.maximum(jackknife - 2 * pairs, 0)))


def _pair_variance(means: Float[Array, " n"], squares: Float[Array, " n"]) -> Float[Array, ""]:
    """Variance of what pairs within a set add beyond their members: mean square of the U-centred kernel, unbiased.

    From the means over n of each row of the kernel, without the diagonal, and of its square (Szekely & Rizzo 2014).
    """
    n = len(means)
    total = squares.sum() - 2 * n / (n - 2) * (means**2).sum() + n**3 / ((n - 1) * (n - 2)) * means.mean() ** 2
    return jnp.maximum(total / (n - 3), 0)


def _pair_variance_between(to_y: Array, to_x: Array, squares: Array) -> Float[Array, ""]:
    """The same of the pairs between the sets: mean square of the doubly centred kernel, unbiased."""
    n, m = len(to_y), len(to_x)
    total = squares.mean() - (to_y**2).mean() - (to_x**2).mean() + to_y.mean() ** 2
    return jnp.maximum(total * n * m / ((n - 1) * (m - 1)), 0)


def _jackknife_variance(within: Float[Array, " n"], between: Float[Array, " n"]) -> Float[Array, ""]:
    """(n - 1) / n times the sum over i of (D_i - their mean)^2, where D_i is the estimate without example i.

    Without example i the sum over pairs within the set loses 2 n within_i, that of the pairs between the sets
    m between_i, and the numbers of pairs are (n - 1) (n - 2) and (n - 1) m. So D_i is, but for what is the same for
    all i, -2 / (n - 1) times n / (n - 2) within_i - between_i.
    """
    n = len(within)
    return 4 / n * (within * (n / (n - 2)) - between).var(ddof=1)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _permutation_test(kernel, key, x, y, num_permutations, batch_size) -> Float[Array, ""]:
    n, m = len(x), len(y)
    pooled = jnp.concatenate([x, y])
    matrix = _map_rows(lambda index: _kernel_row(kernel, pooled, index), n + m, batch_size)
    # Another constant in the kernel changes no estimate, and that of mean zero makes the rounding errors smallest.
    mean = matrix.mean() * ((n + m) / (n + m - 1))
    matrix = jnp.where(np.eye(n + m, dtype=bool), 0, matrix - mean)
    given = (jnp.arange(n + m) < n).astype(x.dtype)
    deal = jax.vmap(lambda key: jax.random.permutation(key, given))
    in_x = jnp.concatenate([given[None], deal(jax.random.split(key, num_permutations))])
    to_x = jnp.matmul(in_x, matrix, precision=lax.Precision.HIGHEST)
    within_x, between = (to_x * in_x).sum(axis=1), (to_x * (1 - in_x)).sum(axis=1)
    within_y = matrix.sum() - within_x - 2 * between
    estimates = within_x / n / (n - 1) + within_y / m / (m - 1) - 2 * between / n / m
    tie = 8 * jnp.finfo(x.dtype).eps * jnp.abs(matrix).max()  # so far apart can rounding set two equal estimates
    return jnp.where(jnp.isnan(tie), tie, (estimates >= estimates[0] - tie).mean(dtype=x.dtype))


@jax.jit
def _median_distance(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, ""]:
    pooled = jnp.concatenate([x, y])
    num = len(pooled)
    matrix = _map_rows(lambda index: -_kernel_row(_negative_distance, pooled, index), num, batch_size=100)
    # All but the diagonal: written in one line after its first entry, it is the last column of num - 1 rows.
    return jnp.median(matrix.reshape(-1)[1:].reshape(num - 1, num + 1)[:, :-1])


def _map_rows(function: Callable, num: int, batch_size: int):
    """`function` of each index, at most `batch_size` at once; for the gradient a row is computed anew."""
    return lax.map(jax.checkpoint(function), jnp.arange(num), batch_size=min(batch_size, num))


def _kernel_row(kernel: Kernel, examples: Float[Array, "n d"], index: Array) -> Float[Array, " n"]:
    """The kernel between one example and all; zero in its own place."""

    # Sixteen coordinates at a time, added to a row that stays in the processor's cache: four times as fast as a sum
    # over the last axis. Checkpointed, for the differences would be kept for the gradient: n * d numbers for each row.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(squares, coordinate):
        own, of_all = coordinate
        return squares + jnp.square(own - of_all), None

    start = jnp.zeros_like(examples, shape=len(examples))
    squares, _ = lax.scan(add, start, (examples[index], examples.T), unroll=16)
    return jnp.where(jnp.arange(len(examples)) == index, 0, kernel(squares))


def _negative_distance(squares: Array) -> Array:
    # Where two examples are equal the root has no derivative; zero is the symmetric choice.
    equal = squares == 0
    return jnp.where(equal, 0, -jnp.sqrt(jnp.where(equal, 1, squares)))


def _gaussian(bandwidth: Array, squares: Array) -> Array:
    return jnp.exp(-0.5 * squares / bandwidth**2)


def _gaussian_kernel(bandwidth: ArrayLike, dtype) -> Kernel:
    checks.check_number("bandwidth", bandwidth, above=0, advice="take for instance median_bandwidth(x, y)")
    return Partial(_gaussian, jnp.asarray(bandwidth, dtype))


def _checked(x: ArrayLike, y: ArrayLike, **given: Any) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """The examples as vectors of one dtype, of single precision at least; or an error, also for what else is given."""
    checks.check_given(**given)
    for name, examples in (("x", x), ("y", y)):
        checks.check_floating(examples)
        if np.ndim(examples) < 1 or np.shape(examples)[0] < 2:
            raise ValueError(
                f"expected {name} of shape (n, *shape) with n >= 2, for distances are between pairs of examples; "
                f"got {np.shape(examples)}"
            )
        checks.check_finite(examples, f"numbers in {name}")
    checks.check_shape("y", np.shape(y), ("m", *np.shape(x)[1:]), "reshape it as x is, or x as it is")
    arrays = [jnp.asarray(examples) for examples in (x, y)]
    dtype = checks.wide_dtype(*(array.dtype for array in arrays))
    x, y = (array.astype(dtype).reshape(len(array), math.prod(array.shape[1:])) for array in arrays)
    return x, y
