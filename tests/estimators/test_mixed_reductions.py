"""Reductions between ELBO and importance-weighted bound: their definitions, derivatives and leave-one-outs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import estimators

MEAN, WHOLE = estimators.mean_reduction(), estimators.log_mean_exp_reduction()
TEMPERATURES = (0.0, 0.1, 0.5)


def miwae(log_w, num_groups=3):
    groups = np.asarray(log_w).reshape(num_groups, -1, *log_w.shape[1:])
    return np.log(np.exp(groups).mean(axis=1)).mean(axis=0)


def ciwae(log_w):
    return 0.3 * np.mean(log_w, axis=0) + 0.7 * np.log(np.exp(log_w).mean(axis=0))


def thermodynamic(log_w):
    total = 0
    for t, width in zip(TEMPERATURES, np.diff([*TEMPERATURES, 1.0]), strict=True):
        weights = np.exp(t * np.asarray(log_w))
        total = total + width * (weights * log_w).sum(axis=0) / weights.sum(axis=0)
    return total


REDUCTIONS = {
    "groups": (estimators.grouped_reduction(3), miwae),
    "combined": (estimators.combined_reduction(MEAN, WHOLE, 0.3), ciwae),
    "thermodynamic": (estimators.thermodynamic_reduction(TEMPERATURES), thermodynamic),
}


@pytest.fixture
def log_w(x64):
    return 3 * jax.random.normal(jax.random.key(0), (6, 2))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_bounds_equal_their_definitions_and_lie_between(log_w, name):
    reduce, exact = REDUCTIONS[name]
    np.testing.assert_allclose(reduce.bound(log_w), exact(log_w), rtol=1e-12)
    assert (MEAN.bound(log_w) < reduce.bound(log_w)).all()
    assert (reduce.bound(log_w) < WHOLE.bound(log_w)).all()
    for function in (reduce.bound, reduce.leave_one_out):
        np.testing.assert_allclose(function(log_w + 7), function(log_w) + 7, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCTIONS)
def test_path_weights_are_differences_of_derivatives(log_w, name):
    reduce, _ = REDUCTIONS[name]
    first = jax.grad(lambda log_w: reduce.bound(log_w).sum())
    hessian = jax.jacfwd(first)(log_w)
    second = np.einsum("kbkb->kb", hessian)
    np.testing.assert_allclose(reduce.path_weights(log_w), first(log_w) - second, rtol=1e-9)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_credit_holds_all_that_depends_on_a_sample(log_w, name):
    """What is left of the bound without the credit of sample k does not change with l_k."""
    reduce, _ = REDUCTIONS[name]
    for k in range(6):
        rest = [reduce.bound(each) - reduce.credit(each)[k] for each in (log_w, log_w.at[k].add(1.3))]
        np.testing.assert_allclose(*rest, atol=1e-10)


def test_leave_one_out_of_groups(log_w):
    reduce, _ = REDUCTIONS["groups"]
    groups = np.asarray(log_w).reshape(3, 2, 2)
    for k in range(6):
        bounds = np.log(np.exp(groups).mean(axis=1))
        bounds[k // 2] = groups[k // 2, 1 - k % 2]
        np.testing.assert_allclose(reduce.leave_one_out(log_w)[k], bounds.mean(axis=0), rtol=1e-10)


@pytest.mark.parametrize("name", ["combined", "thermodynamic"])
def test_leave_one_out_is_the_bound_of_the_others(log_w, name):
    reduce, exact = REDUCTIONS[name]
    for k in range(6):
        np.testing.assert_allclose(
            reduce.leave_one_out(log_w)[k], exact(np.delete(np.asarray(log_w), k, axis=0)), rtol=1e-10
        )


@pytest.mark.slow
def test_the_ends_are_the_two_bounds(log_w):
    pairs = (
        (estimators.grouped_reduction(1), WHOLE),
        (estimators.grouped_reduction(6), MEAN),
        (estimators.combined_reduction(MEAN, WHOLE, 1.0), MEAN),
        (estimators.combined_reduction(MEAN, WHOLE, 0.0), WHOLE),
        (estimators.thermodynamic_reduction([0.0]), MEAN),
    )
    for reduce, same in pairs:
        for function in ("bound", "leave_one_out", "path_weights"):
            np.testing.assert_allclose(getattr(reduce, function)(log_w), getattr(same, function)(log_w), rtol=1e-9)
    fine = estimators.thermodynamic_reduction((np.arange(400) / 400).tolist())
    np.testing.assert_allclose(fine.bound(log_w), WHOLE.bound(log_w), rtol=0.02)
    assert (fine.bound(log_w) < WHOLE.bound(log_w)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCTIONS)
def test_samples_of_weight_zero(name):
    reduce, _ = REDUCTIONS[name]
    one, every = jnp.zeros((6, 1)).at[1].set(-jnp.inf), jnp.full((6, 1), -jnp.inf)
    assert reduce.bound(every) == -jnp.inf
    assert jnp.isneginf(reduce.bound(one)) == (name != "groups")
    for log_w in (one, every):
        assert jnp.isfinite(jax.grad(lambda log_w: reduce.bound(log_w).sum())(log_w)).all()


def test_what_does_not_fit_is_refused(no_type_hook):
    with pytest.raises(ValueError, match="num_samples must be divisible by the 4 groups; got 6"):
        estimators.grouped_reduction(4).bound(jnp.zeros((6, 2)))
    with pytest.raises(ValueError, match=r"weight must be a number of at least 0 and at most 1; got 1\.5"):
        estimators.combined_reduction(MEAN, WHOLE, 1.5)
    for wrong in ([], [0.1, 0.5], [0.0, 0.5, 0.5], [0.0, 0.5, 0.2]):
        with pytest.raises(ValueError, match="expected temperatures that rise from 0 to below 1; got"):
            estimators.thermodynamic_reduction(wrong)
    with pytest.raises(ValueError, match=r"a temperature must be a number of at least 0 and below 1; got 1\.0"):
        estimators.thermodynamic_reduction([0.0, 1.0])
