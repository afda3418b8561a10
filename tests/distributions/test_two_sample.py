import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import spatial, stats

from vaejax import two_sample

BANDWIDTH = 1.5
MEASURES = {
    "energy": two_sample.energy_distance,
    "mmd": functools.partial(two_sample.maximum_mean_discrepancy, bandwidth=BANDWIDTH),
}
KERNELS = {"energy": lambda r: -r, "mmd": lambda r: np.exp(-(r**2) / (2 * BANDWIDTH**2))}
measures = pytest.mark.parametrize("name", MEASURES)


def brute_force(name, x, y):
    """The estimate by its definition, pair by pair, in float64."""

    def mean(xs, ys, same):
        pairs = [(i, j) for i in range(len(xs)) for j in range(len(ys)) if not (same and i == j)]
        return sum(KERNELS[name](math.dist(xs[i], ys[j])) for i, j in pairs) / len(pairs)

    x, y = (np.asarray(examples, np.float64).reshape(len(examples), -1) for examples in (x, y))
    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def brute_force_error(name, x, y):
    """The jackknife by leaving out, and what pairs add as the residuals of least squares on their two members."""
    left_out_x = [brute_force(name, np.delete(x, i, 0), y) for i in range(len(x))]
    left_out_y = [brute_force(name, x, np.delete(y, j, 0)) for j in range(len(y))]
    jackknife = sum((len(terms) - 1) * np.var(terms) for terms in (left_out_x, left_out_y))

    def residual_variance(xs, ys, same):
        pairs = [(i, j) for i in range(len(xs)) for j in range(len(ys)) if not (same and i >= j)]
        kernel = np.array([KERNELS[name](math.dist(xs[i], ys[j])) for i, j in pairs])
        shift = 0 if same else len(xs)
        members = np.zeros((len(pairs), shift + len(ys)))
        for row, (i, j) in enumerate(pairs):
            members[row, i] += 1
            members[row, shift + j] += 1
        fitted = members @ np.linalg.lstsq(members, kernel, rcond=None)[0]
        return ((kernel - fitted) ** 2).sum() / (len(pairs) - np.linalg.matrix_rank(members))

    x, y = (np.asarray(examples, np.float64).reshape(len(examples), -1) for examples in (x, y))
    n, m = len(x), len(y)
    pairs = 2 / n / (n - 1) * residual_variance(x, x, True) + 2 / m / (m - 1) * residual_variance(y, y, True)
    pairs += 4 / n / m * residual_variance(x, y, False)
    return math.sqrt(pairs + max(jackknife - 2 * pairs, 0))


def normal_sets(n, m, shape=(), shift=0.3):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (n, *shape)), 1.5 * jax.random.normal(keys[1], (m, *shape)) + shift


@measures
@pytest.mark.parametrize(("batch_size", "shift"), [(5, 0.0), (100, 3.0)])  # pairs decide the first, examples the other
def test_estimate_and_error_are_those_of_brute_force(name, batch_size, shift, x64):
    x, y = normal_sets(5, 7, (2, 3), shift)
    result = MEASURES[name](x, y, batch_size=batch_size)
    np.testing.assert_allclose(result.estimate, brute_force(name, x, y), rtol=1e-12)
    np.testing.assert_allclose(result.standard_error, brute_force_error(name, x, y), rtol=1e-9)


def test_energy_distance_is_scipys_in_one_dimension(x64):
    x, y = normal_sets(6, 9)
    # Scipy's square counts the n pairs of an example with itself among the n^2 pairs within a set.
    self_pairs = sum(np.abs(a[:, None] - a[None]).mean() / (len(a) - 1) for a in (x, y))
    expected = stats.energy_distance(x, y) ** 2 - self_pairs
    np.testing.assert_allclose(two_sample.energy_distance(x, y).estimate, expected, rtol=1e-12)


@measures
def test_few_examples_have_an_estimate_and_no_standard_error(name, x64):
    x, y = normal_sets(5, 7, (2, 3))
    for few in (2, 3):
        result = MEASURES[name](x, y[:few])
        np.testing.assert_allclose(result.estimate, brute_force(name, x, y[:few]), rtol=1e-12)
        assert jnp.isnan(result.standard_error)


# What the numbers mean: many repeats of two sets of normal variables, x of N(0, 1) and y of N(shift, std^2)


@pytest.fixture(scope="module")
def repeats():
    """(name, n, m, shift, std) -> the estimates and the standard errors of many repeats, fewer of larger sets."""

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(n, m, shift, std):
        num_repeats = 20_000 if n < 20 else 2_000
        keys = jax.random.split(jax.random.key(1))
        sets = jax.random.normal(keys[0], (num_repeats, n)), shift + std * jax.random.normal(keys[1], (num_repeats, m))
        return {name: jax.lax.map(lambda xy, f=f: f(*xy), sets, batch_size=500) for name, f in MEASURES.items()}

    def of_name(name, *args):
        with jax.enable_x64(True):
            result = run(*args)[name]
            return np.asarray(result.estimate), np.asarray(result.standard_error)

    return of_name


def exact(name, shift, std):
    """D in closed form, for the differences are normal."""

    def mean(shift, variance):
        if name == "energy":
            return -stats.foldnorm(shift / variance**0.5, scale=variance**0.5).mean()
        total = BANDWIDTH**2 + variance
        return BANDWIDTH / total**0.5 * math.exp(-(shift**2) / (2 * total))

    return mean(0, 2) + mean(0, 2 * std**2) - 2 * mean(shift, 1 + std**2)


def relative_variance(estimates, standard_errors):
    """Mean squared standard error over the variance of the estimates, and the error of this ratio."""
    squares = (estimates - estimates.mean()) ** 2
    errors = [a.std() / a.mean() / len(estimates) ** 0.5 for a in (squares, standard_errors**2)]
    ratio = (standard_errors**2).mean() / squares.mean()
    return ratio, ratio * math.hypot(*errors)


@pytest.mark.quick_for("1.0-1.5-mmd", "3.0-2.0-energy")
@measures
@pytest.mark.parametrize(("shift", "std"), [(0.0, 1.0), (1.0, 1.5), (3.0, 2.0)])
def test_estimates_are_unbiased(name, shift, std, repeats):
    estimates, standard_errors = repeats(name, 8, 12, shift, std)
    error = estimates.std() / len(estimates) ** 0.5
    assert error < 0.01
    assert abs(estimates.mean() - exact(name, shift, std)) < 5 * error
    ratio, error = relative_variance(estimates, standard_errors)
    assert ratio > 1 - 5 * error  # the standard errors are not too small


@pytest.mark.quick_for("mmd")
@measures
def test_standard_errors_are_right_where_the_distributions_differ(name, repeats):
    estimates, standard_errors = repeats(name, 60, 90, 3.0, 2.0)
    ratio, error = relative_variance(estimates, standard_errors)
    assert error < 0.04
    assert abs(ratio - 1) < 5 * error
    assert 0.9 < ((estimates - exact(name, 3.0, 2.0)) / standard_errors).std() < 1.1


@measures
def test_standard_errors_cover_where_the_distributions_are_the_same(name, repeats):
    estimates, standard_errors = repeats(name, 8, 12, 0.0, 1.0)
    ratio, error = relative_variance(estimates, standard_errors)
    assert error < 0.06
    assert 1 < ratio - 5 * error < ratio < 2.2
    # The estimate is skewed: it cannot be far below zero, and may be far above.
    z = estimates / standard_errors
    assert z.min() > -1.5
    assert (z > 2).mean() < 0.01


# Numbers and gradients


@measures
def test_single_precision_is_enough_far_from_the_origin(name):
    # Two clouds of std 0.1, 2,000 apart: |x|^2 + |y|^2 - 2 x.y would know the squares within a cloud to 0.1 at best.
    x, y = (1000 * jnp.sign(a) * jnp.array([[1.0, 0.0]]) + 0.1 * a for a in normal_sets(30, 40, (2,)))
    near_x, near_y = (examples[examples[:, 0] > 0] for examples in (x, y))
    np.testing.assert_allclose(MEASURES[name](near_x, near_y).estimate, brute_force(name, near_x, near_y), atol=1e-5)
    np.testing.assert_allclose(MEASURES[name](x, y).estimate, brute_force(name, x, y), rtol=1e-4, atol=1e-4)


@measures
def test_gradients_are_those_of_the_definition(name, x64):
    x, y = normal_sets(4, 5, (2,))

    def definition(x, y):
        def mean(xs, ys, chosen):
            squares = jnp.where(chosen, ((xs[:, None] - ys[None]) ** 2).sum(axis=2), 1.0)
            values = -jnp.sqrt(squares) if name == "energy" else jnp.exp(-squares / (2 * BANDWIDTH**2))
            return values[chosen].mean()

        within = [mean(a, a, ~np.eye(len(a), dtype=bool)) for a in (x, y)]
        return within[0] + within[1] - 2 * mean(x, y, np.ones((len(x), len(y)), bool))

    def measure(x, y):
        return MEASURES[name](x, y, batch_size=4).estimate

    got, expected = (jax.jit(jax.grad(function, argnums=(0, 1)))(x, y) for function in (measure, definition))
    chex.assert_trees_all_close(got, expected, rtol=1e-10)


@measures
def test_gradients_are_finite_where_examples_coincide(name):
    x = jnp.ones((4, 2))
    gradient = jax.jit(jax.grad(lambda x: MEASURES[name](x, jnp.ones((5, 2))).estimate))(x)
    np.testing.assert_array_equal(gradient, 0)


def test_half_precision_is_widened():
    x, y = (examples.astype(jnp.bfloat16) for examples in normal_sets(5, 7, (2, 3)))
    result = two_sample.energy_distance(x, y.astype(jnp.float32))
    assert result.estimate.dtype == jnp.float32
    np.testing.assert_allclose(result.estimate, brute_force("energy", x, y), rtol=1e-5)


def test_memory_is_set_by_the_batch():
    examples = jax.ShapeDtypeStruct((3000, 50), jnp.float32)

    def temporary_bytes(function):
        return jax.jit(function).lower(examples).compile().memory_analysis().temp_size_in_bytes

    def value(x):
        return two_sample.energy_distance(x, jnp.ones((3000, 50)), batch_size=10).estimate

    # The 6,000 examples are 1.2 MB, one batch of rows is 0.24 MB; all rows would be 144 MB.
    assert temporary_bytes(value) < 10e6
    assert temporary_bytes(jax.grad(value)) < 20e6


def test_a_new_bandwidth_compiles_nothing():
    x, y = normal_sets(5, 7)
    kernel = chex.assert_max_traces(two_sample._gaussian, 2)  # of one program: for a constant, and for the rows
    for bandwidth in (1.0, 2.0):
        result = two_sample._distance(two_sample.Partial(kernel, jnp.float32(bandwidth)), x[:, None], y[:, None], 100)
        again = two_sample.maximum_mean_discrepancy(x, y, bandwidth=bandwidth)
        chex.assert_trees_all_close(result, again, rtol=1e-6)


# The bandwidth and the test


def test_median_bandwidth_is_the_median_of_the_pairs(x64):
    x, y = normal_sets(5, 7, (2, 3))
    pooled = np.concatenate([x, y]).reshape(12, 6)
    np.testing.assert_allclose(two_sample.median_bandwidth(x, y), np.median(spatial.distance.pdist(pooled)), rtol=1e-12)


def test_median_bandwidth_of_large_sets_is_that_of_examples_spread_over_them():
    x, y = np.arange(10, dtype=np.float32), np.array([30, 31], np.float32)
    expected = np.median(spatial.distance.pdist(np.array([0, 2, 5, 7, 30, 31])[:, None]))
    assert two_sample.median_bandwidth(x, y, max_examples=4) == expected


@pytest.mark.parametrize("bandwidth", [None, BANDWIDTH])
@pytest.mark.parametrize("discrete", [False, True])
def test_p_value_is_that_of_all_deals(bandwidth, discrete):
    x, y = normal_sets(3, 4, shift=1.0)
    if discrete:  # with many deals of equal estimates
        x, y = jnp.array([0.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 1.0, 1.0])
    pooled = np.concatenate([x, y])[:, None]
    deals = [(list(deal), [i for i in range(7) if i not in deal]) for deal in itertools.combinations(range(7), 3)]
    estimates = np.array([brute_force("mmd" if bandwidth else "energy", pooled[a], pooled[b]) for a, b in deals])
    expected = (estimates >= estimates[0] - 1e-9).mean()
    assert 0.1 < expected < 0.9
    got = two_sample.p_value(jax.random.key(3), x, y, bandwidth=bandwidth, num_permutations=9999)
    assert abs(got - expected) < 5 * (expected * (1 - expected) / 10_000) ** 0.5


def test_p_values_are_uniform_where_the_distributions_are_the_same_and_small_where_not():
    num_repeats, num_permutations = 500, 99
    key_x, key_y, *keys = jax.random.split(jax.random.key(4), 5)
    x = jax.random.normal(key_x, (num_repeats, 8, 2))
    y = jax.random.normal(key_y, (num_repeats, 12, 2))
    test = jax.jit(jax.vmap(functools.partial(two_sample.p_value, num_permutations=num_permutations)))
    p = test(jax.random.split(keys[0], num_repeats), x, y)
    assert p.min() > 0.0099
    for level in (0.05, 0.2, 0.5, 0.8):
        error = (level * (1 - level) / num_repeats) ** 0.5
        assert abs((p <= level + 1e-6).mean() - level) < 5 * error
    far = test(jax.random.split(keys[1], num_repeats), x, y + 1.5)
    assert (far <= 0.05).mean() > 0.8
    # A quarter of both sets is 1 and the rest 0: no deal is nearer than the given one, and rounding must not say so.
    ones = (jnp.arange(n) % 4 == 0 for n in (8, 12))
    x, y = (jnp.broadcast_to(one.astype(jnp.float32)[None, :, None], (num_repeats, len(one), 2)) for one in ones)
    assert (test(jax.random.split(keys[2], num_repeats), x, y) == 1).all()


def test_p_value_of_equal_examples_is_one_and_of_nan_is_nan():
    test = jax.jit(functools.partial(two_sample.p_value, num_permutations=9))
    assert test(jax.random.key(5), jnp.ones(3), jnp.ones(4)) == 1
    assert jnp.isnan(test(jax.random.key(5), jnp.ones(3), jnp.full(4, jnp.nan)))


# Refusals


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((1, 3), np.float32), np.ones((5, 3), np.float32), r"expected x of shape \(n, \*shape\) with n >= 2"),
        (np.ones((5, 3), np.float32), np.ones((0, 3), np.float32), "expected y of shape"),
        (np.float32(1), np.ones(5, np.float32), r"got \(\)"),
        (
            np.ones((5, 3), np.float32),
            np.ones((5, 1), np.float32),
            r"expected y of shape \(m, 3\); got \(5, 1\): reshape it",
        ),
        (np.ones((5, 3), np.uint8), np.ones((5, 3), np.float32), "floating dtype; got uint8"),
        (np.ones((5, 3), np.float32), np.ones((5, 3)), "got float64"),
        (np.ones(2, np.float32), np.array([1, np.nan, 2], np.float32), "finite numbers in y, got 1 NaN"),
    ],
)
def test_bad_examples_are_refused(x, y, message):
    key = jax.random.key(0)
    for function in (*MEASURES.values(), two_sample.median_bandwidth, functools.partial(two_sample.p_value, key)):
        with pytest.raises(ValueError, match=message):
            function(x, y)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf, np.ones(3, np.float32)])
def test_a_bandwidth_must_be_one_positive_number(bandwidth):
    x, y = normal_sets(5, 7)
    with pytest.raises(ValueError, match="bandwidth must be a number above 0; got"):
        two_sample.maximum_mean_discrepancy(x, y, bandwidth=bandwidth)
    with pytest.raises(ValueError, match="bandwidth must be a number above 0; got"):
        two_sample.p_value(jax.random.key(0), x, y, bandwidth=bandwidth)


def test_a_median_of_zero_is_refused():
    with pytest.raises(ValueError, match="half of the pairs or more are equal"):
        two_sample.median_bandwidth(jnp.ones(5), jnp.ones(5).at[0].set(2))


@pytest.mark.parametrize("bad", [0, -5, 2.0, True])
def test_counts_must_be_positive_integers(bad, no_type_hook):
    x, y = normal_sets(5, 7)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1; got"):
        two_sample.energy_distance(x, y, batch_size=bad)
    with pytest.raises(ValueError, match="max_examples must be an integer of at least 1; got"):
        two_sample.median_bandwidth(x, y, max_examples=bad)
    with pytest.raises(ValueError, match="num_permutations must be an integer of at least 1; got"):
        two_sample.p_value(jax.random.key(0), x, y, num_permutations=bad)
