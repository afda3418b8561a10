"""Simulation-based calibration: uniform ranks of an exact posterior, and of no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import with_exact_posterior
from scipy import stats

from vaejax import evaluation, inference, models
from vaejax.evaluation import calibration


@pytest.fixture(scope="module")
def exact():
    vae = models.linear_vae(data_dim=3, latent_dim=2)
    return vae, with_exact_posterior(vae.init(jax.random.key(0)))


def changed(params, narrower=0.0, shift=0.0):
    params = jax.tree.map(lambda leaf: leaf, params)
    params["encoder"]["head"]["log_std"] = params["encoder"]["head"]["log_std"] - narrower
    bias = params["encoder"]["network"]["layer_0"]["bias"]
    params["encoder"]["network"]["layer_0"]["bias"] = bias + shift * jnp.array([1.0, 0.0])
    return params


@pytest.mark.slow
def test_ranks_of_the_exact_posterior_are_uniform(exact):
    result = evaluation.simulation_based_calibration(*exact, jax.random.key(1))
    assert result.ranks.shape == (1000, 2)
    assert (result.ranks.min(), result.ranks.max()) == (0, 99)
    assert (result.p_values > 0.01).all()
    for unit in range(2):
        counts = np.bincount(np.asarray(result.ranks[:, unit]) // 5, minlength=20)
        assert float(result.p_values[unit]) == pytest.approx(stats.chisquare(counts).pvalue, rel=1e-3)


@pytest.mark.parametrize(("change", "wrong"), [({"narrower": 0.25}, [0, 1]), ({"shift": 0.2}, [0])])
def test_ranks_of_another_posterior_are_not(exact, change, wrong):
    vae, params = exact
    result = evaluation.simulation_based_calibration(vae, changed(params, **change), jax.random.key(1))
    assert (result.p_values[jnp.array(wrong)] < 1e-4).all()
    ranks = np.asarray(result.ranks)
    if "narrower" in change:  # at both ends
        assert np.mean((ranks < 10) | (ranks >= 90)) > 0.25
    else:  # too large a mean: few samples below
        assert ranks[:, 0].mean() < 47
        assert result.p_values[1] > 0.01


def test_p_values_are_uniform_for_any_number_of_ranks():
    """Of 200 repeats with 8 ranks, which 7 bins do not divide, of an exact posterior."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(200):
        draws = rng.standard_normal((140, 8, 1)).astype(np.float32)
        _, p_value = calibration._ranked(jax.random.key(seed), jnp.asarray(draws[:, 0]), jnp.asarray(draws[:, 1:]))
        found.append(float(p_value[0]))
    assert stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.slow
def test_ties_of_discrete_latents_are_broken_at_random():
    """A q that is the prior, of a decoder that ignores it, is exact."""
    vae = models.mlp_vae((3,), 2, (), posterior="bernoulli")
    params = jax.tree.map(jnp.zeros_like, vae.init(jax.random.key(0)))
    result = evaluation.simulation_based_calibration(vae, params, jax.random.key(1))
    assert (result.p_values > 0.01).all()
    params["encoder"]["network"]["layer_0"]["bias"] += 1.0
    assert (evaluation.simulation_based_calibration(vae, params, jax.random.key(1)).p_values < 1e-4).all()


@pytest.mark.exhaustive
def test_markov_chains_are_calibrated(exact):
    draw = inference.chain_draws(num_warmup=60, thinning=2)
    result = evaluation.simulation_based_calibration(*exact, jax.random.key(1), 60, 11, draw=draw)
    assert (result.p_values > 0.01).all()


def test_bad_input_is_refused(exact, no_type_hook):
    vae, params = exact
    with pytest.raises(ValueError, match="num_simulations must be an integer of at least 40; got 10"):
        evaluation.simulation_based_calibration(vae, params, jax.random.key(1), 10)
    flat = jnp.ones((40, 2))
    with pytest.raises(ValueError, match=r"samples of the posteriors of shape \(40, 5, 2\); got \(40, 2\)"):
        evaluation.simulation_based_calibration(vae, params, jax.random.key(1), 40, 5, draw=lambda *_: flat)
    blurred = models.mlp_vae((3,), 2, (4,), posterior="point")
    with pytest.raises(ValueError, match="a distribution with a density"):
        evaluation.simulation_based_calibration(blurred, blurred.init(jax.random.key(0)), jax.random.key(1), 40, 5)
