import jax
import numpy as np
import pytest

import vaejax
from vaejax import estimators, monte_carlo

# What the module offered before its parts became `signature` and `reductions`.
FORMER = (
    *("Broadcasting", "Estimate", "EstimateFunction", "Estimator", "Integrand", "Reduction", "as_estimator"),
    *("baseline_values", "bounds_with_replaced", "check_count", "log_mean_exp_reduction", "mean_reduction"),
    *("over_draws", "over_examples", "over_indices", "over_samples", "renyi_reduction", "with_baseline"),
    "with_gradient_of",
)


@pytest.mark.parametrize("name", FORMER)
def test_public_names_stay_where_they_were(name):
    assert vaejax.monte_carlo is estimators.monte_carlo
    value = getattr(monte_carlo, name)
    assert value is getattr(estimators, name, value)


def test_one_value_of_a_name():
    """Nothing was left behind: the same objects, wherever they are imported from."""
    from vaejax.estimators import reductions, signature

    assert monte_carlo.Reduction is reductions.Reduction is estimators.Reduction
    assert monte_carlo.Estimator is signature.Estimator is estimators.Estimator


@pytest.mark.parametrize("broadcasting", [False, True])
@pytest.mark.parametrize(("num_samples", "chunk_size"), [(0, None), (5, 0), (5, 2.0), (True, None)])
def test_counts_are_checked(broadcasting, num_samples, chunk_size, no_type_hook):
    integrand = (estimators.Broadcasting if broadcasting else lambda f: f)(lambda z, q: (z, None))
    name = "num_samples" if chunk_size is None else "chunk_size"
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1; got"):
        monte_carlo.over_draws(
            jax.random.normal, lambda z: z, integrand, jax.random.key(0), num_samples, chunk_size=chunk_size
        )


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 9])
def test_draws_at_once_are_the_draws_one_by_one(chunk_size):
    draws = [
        monte_carlo.over_draws(jax.random.normal, lambda z: z, integrand, jax.random.key(0), 7, chunk_size)
        for integrand in (lambda z, q: (z, None), estimators.Broadcasting(lambda z, q: (z, None)))
    ]
    np.testing.assert_array_equal(*draws)


def test_a_surrogate_keeps_its_gradient_inside_another_derivative():
    def value(x):
        out, pull_back = jax.vjp(lambda z: monte_carlo.with_gradient_of(x * z, x**2 * z), 3.0)
        return out, pull_back(1.0)[0]

    gradient, slope = jax.grad(lambda x: value(x)[0])(5.0), jax.grad(lambda x: value(x)[1])(5.0)
    assert gradient == 3.0 + 2 * 5.0 * 3.0
    assert slope == 1.0 + 2 * 5.0
