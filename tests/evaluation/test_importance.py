import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import in_float64, linear_elbo, linear_gaussian_arrays, linear_log_likelihood, with_exact_posterior

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


@pytest.mark.exhaustive
def test_a_sweep_is_each_bound_by_itself(linear_problem):
    """Of each K the mean over groups agrees with the bound of K fresh samples, and its error is that of the groups."""
    vae, params, x = linear_problem
    sweep = evaluation.log_likelihood_sweep(vae, params, jax.random.key(2), x, (1, 10, 1000))
    assert [result.num_samples for result in sweep] == [1, 10, 1000]
    whole = evaluation.log_likelihood(vae, params, jax.random.key(2), x, 1000)
    chex.assert_trees_all_close(sweep[2], whole, rtol=1e-12)
    elbo = evaluation.elbo(vae, params, jax.random.key(2), x, num_samples=1000)
    np.testing.assert_allclose(sweep[0].estimate, elbo.estimate, rtol=1e-10)
    np.testing.assert_allclose(sweep[0].standard_error, elbo.standard_error, rtol=1e-10)
    fresh = [
        evaluation.log_likelihood(vae, params, jax.random.key(seed), x, num_samples=10).estimate
        for seed in range(10, 60)
    ]
    fresh = np.stack(fresh)
    error = np.hypot(fresh.std(axis=0, ddof=1) / np.sqrt(50), sweep[1].standard_error)
    scores = (fresh.mean(axis=0) - sweep[1].estimate) / error
    assert abs(scores.mean()) < 5 / np.sqrt(len(x))
    assert abs(scores.var() - 1) < 5 * np.sqrt(2 / len(x)) + 0.1
    # The bound rises with K, by more than its error.
    averages = [evaluation.average(result) for result in sweep]
    assert averages[0].estimate + 5 * averages[0].error_over_samples < averages[1].estimate < averages[2].estimate


@pytest.mark.exhaustive
def test_the_prior_as_a_proposal_needs_far_more_samples(linear_problem):
    vae, params, x = linear_problem
    params = with_exact_posterior(params)
    params["decoder"]["head"]["log_std"] = jnp.array(-1.0)
    params = with_exact_posterior(params)
    params["encoder"]["head"]["log_std"] += 0.1
    exact = linear_log_likelihood(params, x)
    naive = evaluation.log_likelihood_from_prior(vae, params, jax.random.key(2), x, num_samples=20_000)
    ours = evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=100)
    scores = np.asarray((naive.estimate - exact) / naive.standard_error)[evaluation.is_trustworthy(naive)]
    assert len(scores) > 50
    assert abs(scores.mean()) < 5 / np.sqrt(len(scores))
    assert naive.ess.mean() / 20_000 < 0.2 * ours.ess.mean() / 100
    # Where samples are few the naive estimate is far below, as a lower bound is; from q it is not.
    few = evaluation.log_likelihood_from_prior(vae, params, jax.random.key(3), x, num_samples=10)
    assert (few.estimate - exact).mean() < -1
    assert abs((ours.estimate - exact).mean()) < 0.05


@pytest.mark.exhaustive
def test_the_unweighted_mean_is_not_the_likelihood(linear_problem):
    """The classic mistake: log E_q[p(x|z)] without p(z) / q(z|x) counts no KL, and is far above log p(x)."""
    vae, params, x = linear_problem
    params = with_exact_posterior(params)
    params["decoder"]["head"]["log_std"] = jnp.array(-1.0)
    params = with_exact_posterior(params)
    exact = linear_log_likelihood(params, x)
    q = vae.encode(params, x)
    keys = jax.random.split(jax.random.key(2), 1000)
    unweighted = jax.vmap(lambda key: vae.decode(params, q.sample(key)).log_prob(x))(keys)
    unweighted = jax.nn.logsumexp(unweighted, axis=0) - np.log(1000)
    assert (unweighted - exact).mean() > 1
    np.testing.assert_allclose(
        evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=10).estimate, exact, rtol=1e-10
    )


def test_a_proposal_of_ones_own(linear_problem):
    vae, params, x = linear_problem
    good = vae.encode(with_exact_posterior(params), x[:6])
    turned = with_exact_posterior(params)
    far = {**turned, "encoder": params["encoder"]}  # whose own q is not the posterior
    result = evaluation.log_likelihood_from(vae, far, jax.random.key(2), x[:6], good, num_samples=10)
    np.testing.assert_allclose(result.estimate, linear_log_likelihood(turned, x[:6]), rtol=1e-12)
    with pytest.raises(ValueError, match=r"q of batch shape \(6,\) and event shape \(2,\); got Normal of \(2,\)"):
        evaluation.log_likelihood_from(vae, far, jax.random.key(2), x[:6], vae.encode(turned, x[:2]))


@pytest.mark.exhaustive
def test_any_family_may_propose(linear_problem):
    """Full covariance, the exact posterior: no noise at all. A mixture and a Student's t: within their errors."""
    vae, params, x = linear_problem
    x = x[:6].reshape(2, 3, 4)
    *_, W, b, s = linear_gaussian_arrays(params)
    covariance = jnp.linalg.inv(jnp.eye(2) + W @ W.T / s**2)
    means = (x - b[None, None]) @ W.T @ covariance / s**2
    exact = linear_log_likelihood(params, x)
    full = dist.MultivariateNormal(means, covariance)
    found = evaluation.log_likelihood_from(vae, params, jax.random.key(2), x, full, 10)
    np.testing.assert_allclose(found.estimate, exact, rtol=1e-12)
    apart = means[..., None, :] + jnp.array([[-0.3, 0.0], [0.3, 0.1]])[None, None]
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.zeros((2, 3, 2))), dist.Normal(apart, jnp.ones_like(apart)).to_event(1)
    )
    heavy = dist.StudentT(5.0 * jnp.ones_like(means), means, 1.0).to_event(1)
    for q in (mixture, heavy):
        found = evaluation.log_likelihood_from(vae, params, jax.random.key(2), x, q, 4000, chunk_size=1000)
        assert found.standard_error.max() < 0.05
        assert (abs(found.estimate - exact) < 4 * found.standard_error).all()
    expanded = dist.Normal(jnp.zeros(2), 1.0).to_event(1).expand((2, 3))
    with pytest.raises(ValueError, match=r"arrays have the batch axes \(2, 3\).*without expand"):
        evaluation.log_likelihood_from(vae, params, jax.random.key(2), x, expanded, 10)


def test_averages_over_examples_and_over_samples():
    estimates, errors = jnp.array([-1.0, -2.0, -6.0]), jnp.array([0.1, 0.2, 0.2])
    result = evaluation.LogLikelihood(estimates, errors, estimates, estimates, 7)
    mean = evaluation.average(result)
    np.testing.assert_allclose(mean, [-3.0, np.std([1, 2, 6], ddof=1) / np.sqrt(3), 0.1], rtol=1e-6)


@pytest.mark.slow
def test_numbers_that_are_not_to_be_trusted_are_announced(linear_problem, caplog, no_type_hook):
    vae, params, x = linear_problem
    good = with_exact_posterior(params)
    evaluation.log_likelihood(vae, good, jax.random.key(2), x, num_samples=100)
    assert not caplog.records
    bad = with_exact_posterior(params)
    bad["encoder"]["head"]["log_std"] -= 2.0  # far too narrow: the weights have no variance
    result = evaluation.log_likelihood(vae, bad, jax.random.key(2), x, num_samples=1000)
    trusted = evaluation.is_trustworthy(result)
    assert trusted.mean() < 0.5
    (record,) = caplog.records
    assert f"{int((~trusted).sum())} of 200 examples is not to be trusted" in record.getMessage()
    assert "annealed_log_likelihood" in record.getMessage()
    # There the error that is stated is too small, which is what the warning is for.
    scores = (result.estimate - linear_log_likelihood(bad, x)) / result.standard_error
    assert np.mean(np.asarray(scores) ** 2) > 2
    # Under `jit` nothing can be said; the numbers are there to be looked at.
    caplog.clear()
    jax.jit(lambda x: evaluation.log_likelihood(vae, bad, jax.random.key(2), x, num_samples=100))(x)
    assert not caplog.records
    few = evaluation.log_likelihood(vae, bad, jax.random.key(2), x, num_samples=10)
    assert jnp.isnan(few.pareto_index).all()
    assert "10 samples of each example are too few for the Pareto index, which needs 25" in caplog.text
    with pytest.raises(
        ValueError, match=r"must be a list of one or more numbers of samples; got 10: .*use log_likelihood"
    ):
        evaluation.log_likelihood_sweep(vae, bad, jax.random.key(2), x, 10)
    with pytest.raises(ValueError, match=r"one or more numbers of samples; got a tuple of 0"):
        evaluation.log_likelihood_sweep(vae, bad, jax.random.key(2), x, ())


@pytest.mark.slow
def test_weights_that_are_all_but_equal_are_trusted_whatever_their_tail():
    """A latent that is ignored: log weights of a heavy tail, but of a thousandth of its size."""
    tail = 1e-3 * jax.random.pareto(jax.random.key(0), 0.7, (1000,))
    index = float(evaluation.pareto_index(tail))
    assert index > 0.7
    several = jnp.ones(4)
    result = evaluation.LogLikelihood(several, several, jnp.array([9.0, 940.0, 960.0, 999.0]), index * several, 1000)
    assert evaluation.is_trustworthy(result).tolist() == [False, False, True, True]
    # A bound of one sample says nothing of how far it is from log p(x).
    one = result._replace(ess=several, pareto_index=jnp.full(4, jnp.nan), num_samples=1)
    assert not evaluation.is_trustworthy(one).any()


def test_one_sample_has_no_standard_error(small_problem):
    vae, params, x = small_problem
    one = evaluation.log_likelihood(vae, params, jax.random.key(2), x, num_samples=1)
    elbo = evaluation.elbo(vae, params, jax.random.key(2), x, num_samples=1)
    assert jnp.isnan(one.standard_error).all()
    assert jnp.isnan(elbo.standard_error).all()
    np.testing.assert_allclose(one.estimate, elbo.estimate, rtol=1e-5)
    np.testing.assert_allclose(one.ess, 1, rtol=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
def test_any_batch_axes(small_problem):
    vae, params, x = small_problem
    flat = evaluation.log_likelihood(vae, params, jax.random.key(2), x[:6], num_samples=10)
    shaped = evaluation.log_likelihood(vae, params, jax.random.key(2), x[:6].reshape(2, 3, 2, 2), num_samples=10)
    np.testing.assert_allclose(shaped.estimate, flat.estimate.reshape(2, 3), rtol=1e-6)
    single = evaluation.log_likelihood(vae, params, jax.random.key(2), x[0], num_samples=10)
    assert single.estimate.shape == ()


def test_evaluation_is_traced_once(small_problem):
    vae, params, x = small_problem
    traced = vae._replace(decode=chex.assert_max_traces(vae.decode, 1 + 4))
    for seed in range(4):
        # One trace is the evaluation's; the check of the data decodes one code each time, which is no trace.
        evaluation.log_likelihood(traced, params, jax.random.key(seed), x, num_samples=10)


def test_bad_data_are_refused(small_problem):
    vae, params, x = small_problem
    key = jax.random.key(2)
    with pytest.raises(ValueError, match="exactly 0 or 1; got 28 others"):
        evaluation.log_likelihood(vae, params, key, x * 0 + 0.5)
    with pytest.raises(ValueError, match="expected at least one example"):
        evaluation.log_likelihood(vae, params, key, x[:0])
    with pytest.raises(ValueError, match="expected float32"):
        evaluation.log_likelihood(vae, params, key, np.ones((3, 2, 2)))


@pytest.mark.parametrize(
    "bad", [{"num_samples": 0}, {"num_samples": 10.0}, {"chunk_size": 0}, {"batch_size": 0}, {"batch_size": -5}]
)
def test_numbers_must_be_positive_integers(small_problem, bad, no_type_hook):
    vae, params, x = small_problem
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1; got"):
        evaluation.log_likelihood(vae, params, jax.random.key(2), x, **bad)


@pytest.mark.exhaustive
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
