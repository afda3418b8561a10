import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import linear_log_likelihood

from vaejax import data, evaluation, inference, models, objectives, training
from vaejax.evaluation import hamiltonian


@pytest.fixture(scope="module")
def linear_problem():
    """Twenty latents, and a posterior far from the prior in some of them; single precision, as users have it."""
    vae = models.linear_vae(data_dim=30, latent_dim=20)
    params = vae.init(jax.random.key(0))
    kernel = params["decoder"]["network"]["layer_0"]["kernel"]
    rows = kernel / jnp.linalg.norm(kernel, axis=1, keepdims=True)
    params["decoder"]["network"]["layer_0"]["kernel"] = rows * jnp.linspace(0.3, 3.0, 20)[:, None]
    params["decoder"]["head"]["log_std"] = jnp.array(-0.5)
    return vae, inference.with_exact_posterior(vae, params)


@pytest.mark.exhaustive
def test_three_ways_to_the_same_number(linear_problem):
    """Importance sampling from a q that is off, annealing from the prior, and the closed form."""
    vae, params = linear_problem
    bounds = evaluation.bidirectional_bounds(vae, params, jax.random.key(1), 20, 32, 3000, num_leapfrog=5)
    exact = linear_log_likelihood(params, bounds.x)
    np.testing.assert_allclose(evaluation.linear_log_likelihood(vae, params, bounds.x), exact, rtol=1e-4)
    off = jax.tree.map(lambda leaf: leaf, params)
    off["encoder"]["head"]["log_std"] = params["encoder"]["head"]["log_std"] + 0.1
    sampled = evaluation.log_likelihood(vae, off, jax.random.key(2), bounds.x, num_samples=5000)
    annealed = evaluation.annealed_log_likelihood(vae, off, jax.random.key(3), bounds.x, 32, 3000, num_leapfrog=5)
    for result in (sampled, annealed):
        mean = evaluation.average(result)
        assert mean.error_over_samples < 0.05
        assert abs(mean.estimate - exact.mean()) < 3 * mean.error_over_samples

    # The sandwich: on the right sides, beyond the errors or not at all, and tight.
    lower, upper = bounds.lower.mean(), bounds.upper.mean()
    lower_error = float(jnp.linalg.norm(bounds.lower_standard_error)) / 20
    upper_error = float(jnp.linalg.norm(bounds.upper_standard_error)) / 20
    assert lower < exact.mean() + 3 * lower_error
    assert upper > exact.mean() - 3 * upper_error
    assert abs(lower - exact.mean()) < 0.1
    assert abs(upper - exact.mean()) < 0.1
    assert bounds.acceptance.min() > 0.4
    assert bounds.acceptance.max() < 0.95


@pytest.fixture(scope="module")
def digits_of_two_numbers():
    """Digits, and a VAE of two latents trained on them for a while."""
    images = {split: data.load("digits", split=split).images for split in ("train", "test")}
    vae = models.mlp_vae((8, 8), 2, (32,))
    optimizer = optax.adam(5e-3)
    step = training.make_train_step(objectives.make_elbo(vae), optimizer, prepare=data.binarize_dynamic)
    state = training.init_state(vae.init(jax.random.key(0)), optimizer)
    run = jax.jit(
        lambda state: training.fit(step, state, jax.random.key(1), images["train"], num_steps=1500, batch_size=100)
    )
    return vae, run(state)[0].params, data.binarize_dynamic(jax.random.key(2), images["test"])


@pytest.mark.exhaustive
def test_three_ways_on_digits(digits_of_two_numbers):
    """Each example by itself: within 3 standard errors of the integral, for 95 of 100."""
    vae, params, x = digits_of_two_numbers
    exact = evaluation.quadrature_log_likelihood(vae, params, x, 201)
    assert exact.error.max() < 1e-3
    sampled = evaluation.log_likelihood(vae, params, jax.random.key(3), x, 2000)
    annealed = evaluation.annealed_log_likelihood(vae, params, jax.random.key(4), x, 32, 200, num_leapfrog=3)
    for result, enough in ((sampled, 0.1), (annealed, 0.3)):
        off = np.abs(result.estimate - exact.estimate)
        assert (off < 3 * result.standard_error).mean() >= 0.95
        assert np.median(result.standard_error) < enough
    assert exact.estimate.mean() > -25  # a model that has learned something


@pytest.mark.exhaustive
def test_few_temperatures_leave_a_gap_on_both_sides(linear_problem):
    vae, params = linear_problem
    bounds = evaluation.bidirectional_bounds(vae, params, jax.random.key(1), 30, num_chains=4, num_temperatures=8)
    exact = linear_log_likelihood(params, bounds.x)
    for distance in (exact - bounds.lower, bounds.upper - exact):
        distance = np.asarray(distance)
        assert distance.mean() > 5 * distance.std(ddof=1) / np.sqrt(30)
    assert bounds.x.shape == (30, 30)
    assert bounds.z.shape == (30, 20)


@pytest.mark.exhaustive
def test_weights_are_unbiased_however_few_the_temperatures(x64):
    """E[w] = p(x) exactly: the mean of many single chains is p(x), to a z-test that also bounds the error."""
    vae = models.linear_vae(3, 2)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), vae.init(jax.random.key(0)))
    params["decoder"]["head"]["log_std"] = jnp.array(0.3)
    x = jax.random.normal(jax.random.key(1), (1, 3))
    exact = linear_log_likelihood(params, x)
    many = jnp.tile(x, (4000, 1))
    result = evaluation.annealed_log_likelihood(
        vae, params, jax.random.key(2), many, num_chains=1, num_temperatures=4, num_leapfrog=3, batch_size=4000
    )
    ratios = np.exp(np.asarray(result.estimate) - exact)
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert error < 0.02
    assert abs(ratios.mean() - 1) < 4 * error
    assert jnp.isnan(result.standard_error).all()


@pytest.mark.exhaustive
def test_backward_weights_are_unbiased(x64):
    """Likewise E[1 / w] = 1 / p(x) from an exact posterior sample."""
    vae = models.linear_vae(3, 2)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), vae.init(jax.random.key(0)))
    params["decoder"]["head"]["log_std"] = jnp.array(1.0)
    bounds = evaluation.bidirectional_bounds(
        vae, params, jax.random.key(2), 4000, num_chains=1, num_temperatures=4, num_leapfrog=3, batch_size=4000
    )
    ratios = np.exp(linear_log_likelihood(params, bounds.x) - np.asarray(bounds.upper))
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert error < 0.02
    assert abs(ratios.mean() - 1) < 4 * error


def test_hamiltonian_moves_leave_their_density_alone():
    def log_density(z):  # two modes, unequal
        return jnp.logaddexp(jnp.log(0.3) - 2 * (z[0] + 1.5) ** 2, jnp.log(0.7) - 2 * (z[0] - 1.0) ** 2)

    modes = jax.random.bernoulli(jax.random.key(0), 0.7, (20_000,))
    start = jnp.where(modes, 1.0, -1.5) + 0.5 * jax.random.normal(jax.random.key(1), (20_000,))

    def walk(z, key):
        def move(z, number):
            return hamiltonian.move(log_density, 5, jax.random.fold_in(key, number), z, 0.4)

        return jax.lax.scan(move, z, jnp.arange(10))

    ends, accepted = jax.jit(jax.vmap(walk))(start[:, None], jax.random.split(jax.random.key(2), 20_000))
    assert 0.2 < accepted.mean() < 0.99
    assert np.abs(np.corrcoef(start, ends[:, 0])[0, 1]) < 0.99  # they have moved
    for function in (lambda z: z, lambda z: z**2, lambda z: (z > 0).astype(jnp.float32)):
        before, after = function(start), function(ends[:, 0])
        error = np.hypot(before.std(), after.std()) / np.sqrt(20_000)
        assert abs(before.mean() - after.mean()) < 4 * error


@pytest.mark.slow
def test_the_step_size_is_found_from_far_off(linear_problem, caplog):
    vae, params = linear_problem
    x = vae.decode(params, jax.random.normal(jax.random.key(1), (3, 20))).mean
    results = [
        evaluation.annealed_log_likelihood(
            vae, params, jax.random.key(2), x, 4, 100, num_leapfrog=3, step_size=step_size
        )
        for step_size in (1e-3, 0.1, 30.0)
    ]
    for result in results:
        assert ((result.acceptance > 0.4) & (result.acceptance < 0.95)).all()
    assert not caplog.records


@pytest.mark.exhaustive
def test_chains_that_stand_still_are_announced(linear_problem, caplog, monkeypatch):
    vae, params = linear_problem
    for rate in ("ADAPTATION_RATE", "BURN_IN_RATE"):
        monkeypatch.setattr(hamiltonian, rate, 0.0)
    x = vae.decode(params, jax.random.normal(jax.random.key(1), (3, 20))).mean
    evaluation.annealed_log_likelihood(vae, params, jax.random.key(2), x, 4, 11, num_leapfrog=3, step_size=1e4)
    (record,) = caplog.records
    assert "moves of 3 of 3 examples were accepted (of one only 0.0%)" in record.getMessage()


@pytest.mark.exhaustive
def test_where_the_chains_start_does_not_matter(linear_problem):
    vae, params = linear_problem
    x = vae.decode(params, jax.random.normal(jax.random.key(1), (5, 20))).mean
    exact = linear_log_likelihood(params, x)
    near = evaluation.annealed_log_likelihood(
        vae, params, jax.random.key(2), x, num_temperatures=2, initial=evaluation.encoder_density
    )
    np.testing.assert_allclose(near.estimate, exact, atol=1e-3)  # q is the posterior: nothing is left to anneal
    np.testing.assert_allclose(near.ess, 16, rtol=1e-4)


@pytest.mark.exhaustive
def test_an_example_is_evaluated_alike_in_any_batch():
    vae = models.linear_vae(3, 2)
    params = vae.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (6, 3))
    results = [
        evaluation.annealed_log_likelihood(vae, params, jax.random.key(2), x, 2, 5, num_leapfrog=2, batch_size=size)
        for size in (1, 4)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-4)
    shaped = evaluation.annealed_log_likelihood(
        vae, params, jax.random.key(2), x.reshape(2, 3, 3), 2, 5, num_leapfrog=2
    )
    np.testing.assert_allclose(shaped.estimate, results[0].estimate.reshape(2, 3), rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"num_chains": 0}, "num_chains must be an integer of at least 1; got 0"),
        ({"num_temperatures": 1}, "num_temperatures must be an integer of at least 2; got 1"),
        ({"step_size": 0.0}, "step_size must be a number above 0; got 0.0"),
        ({"step_size": float("nan")}, "step_size must be a number above 0; got nan"),
        ({"num_leapfrog": 0}, "num_leapfrog must be an integer of at least 1; got 0"),
    ],
)
def test_bad_numbers_are_refused(bad, words):
    vae = models.linear_vae(3, 2)
    with pytest.raises(ValueError, match=words):
        evaluation.annealed_log_likelihood(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((2, 3)), **bad)


def test_discrete_latents_are_refused():
    vae = models.mlp_vae((4,), 2, (3,), posterior="bernoulli")
    params = vae.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"expected continuous latents.*Bernoulli.*: .*use log_likelihood"):
        evaluation.annealed_log_likelihood(vae, params, jax.random.key(1), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="expected continuous latents"):
        evaluation.bidirectional_bounds(vae, params, jax.random.key(1))


@pytest.mark.exhaustive
def test_simulated_data_are_binary_where_the_likelihood_is():
    vae = models.mlp_vae((2, 2), 2, (5,))
    bounds = evaluation.bidirectional_bounds(vae, vae.init(jax.random.key(0)), jax.random.key(1), 5, 2, 10)
    assert bounds.x.shape == (5, 2, 2)
    assert set(np.unique(bounds.x)) <= {0.0, 1.0}
    assert bounds.x.dtype == jnp.float32


@pytest.mark.exhaustive
def test_two_temperatures_are_importance_sampling(x64):
    """Log of the mean weight, and not the mean of the logs, which is the ELBO."""
    vae = models.linear_vae(3, 1)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), vae.init(jax.random.key(0)))
    params = inference.with_exact_posterior(vae, params)
    params["encoder"]["head"]["log_std"] += 0.5
    x = jax.random.normal(jax.random.key(1), (4, 3))
    exact = linear_log_likelihood(params, x)
    settings = {"num_leapfrog": 1, "initial": evaluation.encoder_density}
    found = evaluation.annealed_log_likelihood(vae, params, jax.random.key(2), x, 2000, 2, **settings)
    assert found.standard_error.max() < 0.02
    assert (abs(found.estimate - exact) < 4.5 * found.standard_error).all()
    bound = evaluation.elbo(vae, params, jax.random.key(3), x, 1000)
    assert (bound.estimate < exact - 0.1).all()


@pytest.mark.slow
def test_the_run_that_counts_does_not_adapt(monkeypatch):
    rates = []

    def walk(*args):
        rates.append(args[7] if len(args) > 7 else None)
        return real(*args)

    real = hamiltonian.walk
    monkeypatch.setattr(hamiltonian, "walk", walk)
    vae = models.linear_vae(3, 2)
    evaluation.annealed_log_likelihood(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((2, 3)), 2, 4)
    assert rates == [hamiltonian.BURN_IN_RATE, hamiltonian.ADAPTATION_RATE, None]
