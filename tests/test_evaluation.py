import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import in_float64, linear_elbo, linear_log_likelihood, with_exact_posterior

from vaejax import evaluation, models


@pytest.fixture
def linear_problem(x64):
    vae = models.linear_vae(data_dim=4, latent_dim=2)
    params = in_float64(vae.init(jax.random.key(0)))
    return vae, params, jax.random.normal(jax.random.key(1), (200, 4))


@pytest.fixture
def small_problem():
    vae = models.mlp_vae((2, 2), 2, (5,))
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (7, 2, 2)).astype(jnp.float32)
    return vae, vae.init(jax.random.key(0)), x


def test_log_likelihood_agrees_with_the_closed_form(linear_problem):
    vae, params, x = linear_problem
    params = with_exact_posterior(params)
    params["encoder"]["head"]["log_std"] += 0.3  # too wide, and off its place
    params["encoder"]["network"]["layer_0"]["bias"] += 0.3
    result = evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=5000)
    exact = linear_log_likelihood(params, x)
    assert result.num_samples == 5000
    assert ((result.ess > 1000) & (result.ess < 4900)).all()
    assert result.standard_error.max() < 0.05
    scores = (result.estimate - exact) / result.standard_error
    # The standard errors are right: the scores have mean 0 and variance 1, to 5 standard errors of 200 examples.
    assert abs(scores.mean()) < 5 / np.sqrt(200)
    assert abs(scores.var() - 1) < 5 * np.sqrt(2 / 200)


def test_log_likelihood_is_exact_at_the_exact_posterior(linear_problem):
    vae, params, x = linear_problem
    params = with_exact_posterior(params)
    result = evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=10)
    np.testing.assert_allclose(result.estimate, linear_log_likelihood(params, x), rtol=1e-12)
    np.testing.assert_allclose(result.ess, 10, rtol=1e-10)
    np.testing.assert_allclose(result.standard_error, 0, atol=1e-6)


def test_elbo_agrees_with_the_closed_form(linear_problem):
    vae, params, x = linear_problem
    result = evaluation.elbo(vae, params, jax.random.key(2), x, num_samples=2000)
    error = np.sqrt((result.standard_error**2).sum()) / 200
    assert error < 0.01
    assert abs(result.estimate.mean() - linear_elbo(params, x)) < 5 * error
    np.testing.assert_allclose(result.estimate, result.reconstruction - result.kl, rtol=1e-10)


def test_one_sample_has_no_standard_error(small_problem):
    vae, params, x = small_problem
    one = evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=1)
    elbo = evaluation.elbo(vae, params, jax.random.key(2), x, num_samples=1)
    assert jnp.isnan(one.standard_error).all()
    assert jnp.isnan(elbo.standard_error).all()
    np.testing.assert_allclose(one.estimate, elbo.estimate, rtol=1e-5)
    np.testing.assert_allclose(one.ess, 1, rtol=1e-5)


@pytest.mark.parametrize(("chunk_size", "batch_size"), [(1, 1), (3, 2), (10, 7), (100, 100)])
def test_chunks_change_memory_and_nothing_else(small_problem, chunk_size, batch_size):
    vae, params, x = small_problem
    expected = evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=10)
    got = evaluation.log_likelihood(
        vae, params, jax.random.key(2), x, num_samples=10, chunk_size=chunk_size, batch_size=batch_size
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-5)


def test_an_example_is_evaluated_alike_alone_and_in_company(small_problem):
    vae, params, x = small_problem
    together = evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=10)
    alone = evaluation.log_likelihood(vae, params, jax.random.key(2), x[:1], num_samples=10)
    np.testing.assert_allclose(alone.estimate[0], together.estimate[0], rtol=1e-6)


def test_any_batch_axes(small_problem):
    vae, params, x = small_problem
    flat = evaluation.log_likelihood(vae, params, jax.random.key(2), x[:6], num_samples=10)
    shaped = evaluation.log_likelihood(vae, params, jax.random.key(2), x[:6].reshape(2, 3, 2, 2), num_samples=10)
    np.testing.assert_allclose(shaped.estimate, flat.estimate.reshape(2, 3), rtol=1e-6)
    single = evaluation.log_likelihood(vae, params, jax.random.key(2), x[0], num_samples=10)
    assert single.estimate.shape == ()


def test_active_units_are_those_that_the_data_move(x64):
    vae = models.linear_vae(data_dim=4, latent_dim=3)
    params = in_float64(vae.init(jax.random.key(0)))
    kernel = jnp.zeros((4, 3)).at[0, 0].set(1.0).at[1, 2].set(0.05)
    params["encoder"]["network"]["layer_0"]["kernel"] = kernel
    x = jax.random.normal(jax.random.key(1), (1000, 4))
    result = evaluation.active_units(vae, params, x, batch_size=64)
    np.testing.assert_allclose(result.variance, [x[:, 0].var(), 0.0, 0.0025 * x[:, 1].var()], rtol=1e-9, atol=1e-12)
    assert result.active.tolist() == [True, False, False]
    assert int(result.num_active) == 1
    assert int(evaluation.active_units(vae, params, x, threshold=0.001).num_active) == 2


def test_evaluation_is_traced_once(small_problem):
    vae, params, x = small_problem
    traced = vae._replace(decode=chex.assert_max_traces(vae.decode, 3))
    for seed in range(4):
        # One trace is the evaluation's, two are of the check of the data (on shapes, and on one code).
        evaluation._importance_sample(
            traced, 10, 5, 7, evaluation._summarize_likelihood, params, jax.random.key(seed), x
        )


def test_bad_data_are_refused(small_problem):
    vae, params, x = small_problem
    key = jax.random.key(2)
    with pytest.raises(ValueError, match="exactly 0 or 1; came 28 others"):
        evaluation.log_likelihood(vae, params, key, x * 0 + 0.5)
    with pytest.raises(ValueError, match="expected at least one example"):
        evaluation.log_likelihood(vae, params, key, x[:0])
    with pytest.raises(ValueError, match="expected float32"):
        evaluation.log_likelihood(vae, params, key, np.ones((3, 2, 2)))
    with pytest.raises(ValueError, match="expected at least two examples"):
        evaluation.active_units(vae, params, x[:1])


@pytest.mark.parametrize(
    "bad", [{"num_samples": 0}, {"num_samples": 10.0}, {"chunk_size": 0}, {"batch_size": 0}, {"batch_size": -5}]
)
def test_numbers_must_be_positive_integers(small_problem, bad, no_type_hook):
    vae, params, x = small_problem
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1; got"):
        evaluation.log_likelihood(vae, params, jax.random.key(2), x, **bad)


@pytest.mark.slow
def test_memory_is_set_by_the_chunks():
    # The peak of a process of its own: 1,000,000 images of 784 pixels, decoded at once, are 3 GiB.
    # Not getrusage's maximum, which a child inherits from the process that started it.
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("reads the peak memory from /proc, which this system has not")
    program = """
import jax, jax.numpy as jnp, pathlib, re
from vaejax import evaluation, models
vae = models.mlp_vae((28, 28), 50, (200,))
params = vae.init(jax.random.key(0))
x = jnp.ones((500, 28, 28))
jax.block_until_ready(evaluation.log_likelihood(vae, params, jax.random.key(1), x, num_samples=2000)[:3])
print(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1024**2, "more than 1 GiB"


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quadrature_is_the_closed_form(latent_dim, x64):
    vae = models.linear_vae(data_dim=4, latent_dim=latent_dim)
    params = in_float64(vae.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    result = evaluation.quadrature_log_likelihood(vae, params, x, 101, chunk_size=30, batch_size=4)
    exact = linear_log_likelihood(params, x.reshape(6, 4)).reshape(2, 3)
    np.testing.assert_allclose(result.estimate, exact, rtol=1e-10)
    assert result.num_nodes == 101
    assert result.error.max() < 1e-6
    # Where p(x|z) is narrower than the nodes are apart, the error says so.
    params["decoder"]["head"]["log_std"] = jnp.array(-4.0)
    narrow = evaluation.quadrature_log_likelihood(vae, params, x, 101)
    off = np.abs(narrow.estimate - linear_log_likelihood(params, x.reshape(6, 4)).reshape(2, 3))
    assert off.max() > 0.1
    assert narrow.error.max() > 0.1


def test_quadrature_refuses_what_it_cannot_integrate(no_type_hook):
    x, quadrature = jnp.ones((2, 4)), evaluation.quadrature_log_likelihood
    wide, narrow = (models.linear_vae(4, latent_dim) for latent_dim in (3, 1))
    params = narrow.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"one or two dimensions; came a continuous one of shape \(3,\): use log_like"):
        quadrature(wide, wide.init(jax.random.key(0)), x)
    coins = models.mlp_vae((4,), 2, (3,), posterior="bernoulli")
    with pytest.raises(ValueError, match="came a discrete one"):
        quadrature(coins, coins.init(jax.random.key(0)), x)
    with pytest.raises(ValueError, match=r"num_nodes must be odd and at least 3.*; got 100"):
        quadrature(narrow, params, x, 100)
    with pytest.raises(ValueError, match=r"expected nodes that hold the prior.*use more nodes, or another bound"):
        quadrature(narrow, params, x, 101, bound=1.0)
