import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vaejax import evaluation


@pytest.mark.slow
@pytest.mark.parametrize("index", [0.1, 0.5, 0.9, 1.5])
def test_weights_of_a_known_index(index, x64):
    """Twenty sets of generalized Pareto weights: the mean estimate is right, but for the pull towards 0.5."""
    rng = np.random.default_rng(0)
    weights = 1 + stats.genpareto(index).rvs((5000, 20), random_state=rng)
    found = np.asarray(evaluation.pareto_index(jnp.log(weights)))
    length = 213  # ceil(3 sqrt(5000)), of which the estimate has a pull of 10 / (n + 10)
    expected = (index * length + 5) / (length + 10)
    error = found.std(ddof=1) / np.sqrt(20)
    assert error < 0.05
    assert abs(found.mean() - expected) < 4 * error + 0.02


def test_the_tail_of_a_proposal_that_is_too_narrow(x64):
    """Weights of N(0, s^2) over N(0, 1) have the index 1 - 1 / s^2 in the limit of their largest."""
    z = jax.random.normal(jax.random.key(0), (200_000,))
    found = [float(evaluation.pareto_index(z**2 / 2 * (1 - 1 / s**2))) for s in (1.2, 1.5, 2.0)]
    assert np.diff(found).min() > 0.1
    assert abs(found[1] - (1 - 1 / 1.5**2)) < 0.15


def test_a_common_factor_changes_nothing():
    log_w = 2 * jax.random.normal(jax.random.key(0), (1000, 3))
    np.testing.assert_allclose(evaluation.pareto_index(log_w + 80), evaluation.pareto_index(log_w), rtol=1e-3)


@pytest.mark.slow
def test_equal_weights_have_no_tail():
    assert evaluation.pareto_index(jnp.full((100, 2), -90.0)).tolist() == [-np.inf, -np.inf]
    # Nor have those that only rounding parts, however heavy the tail of their differences.
    log_w = 1e-7 * jnp.exp(4 * jax.random.normal(jax.random.key(0), (1000,)))
    assert evaluation.pareto_index(jnp.minimum(log_w, 1e-4)) == -np.inf
    assert evaluation.pareto_index(1e5 * log_w) > 0.7


def test_nothing_can_be_said_of_few_weights():
    assert evaluation.pareto_index(jax.random.normal(jax.random.key(0), (25,))).shape == ()
    with pytest.raises(ValueError, match="number of weights must be an integer of at least 25; got 24: draw more"):
        evaluation.pareto_index(jnp.zeros(24))


@pytest.mark.slow
def test_a_short_tail_is_pulled_towards_a_half():
    """Of exponential weights, index 0, a tail of n = 5 says 0.29, and counts for 5 parts of 15; a half for 10."""
    weights = jax.random.exponential(jax.random.key(0), (25, 4000))
    short = evaluation.pareto_index(jnp.log(weights)).mean()
    assert 0.39 < short < 0.47
    long = evaluation.pareto_index(jnp.log(jax.random.exponential(jax.random.key(1), (5000, 20)))).mean()
    assert -0.05 < long < 0.1
