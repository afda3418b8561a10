import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import in_float64, linear_elbo
from scipy import special

from vaejax import distributions, estimators, models, monte_carlo, objectives, training


@pytest.fixture
def problem():
    vae = models.mlp_vae((2, 2), 3, (5,))
    params = jax.tree.map(lambda leaf: 2 * leaf, vae.init(jax.random.key(0)))
    return vae, params, jax.random.bernoulli(jax.random.key(1), 0.5, (9, 2, 2)).astype(jnp.float32)


def rates(vae, params, x):
    return distributions.kl_per_unit(vae.encode(params, x), vae.prior(params)).mean(axis=0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("per", ["unit", "code"])
def test_free_bits_are_free(problem, per):
    vae, params, x = problem
    key = jax.random.key(2)
    per_unit = np.asarray(rates(vae, params, x))
    free = float(np.sort(per_unit)[1]) + 1e-3 if per == "unit" else float(per_unit.sum()) + 1e-3
    objective = objectives.make_free_bits(vae, free, per=per)
    value, info = objective(params, key, x)
    expected = np.maximum(per_unit, free).sum() if per == "unit" else max(per_unit.sum(), free)
    np.testing.assert_allclose(value, info.reconstruction - expected, rtol=1e-5)
    np.testing.assert_allclose(info.elbo, info.reconstruction - per_unit.sum(), rtol=1e-5)
    # Within the threshold the KL gives no gradient: what is left is the reconstruction's.
    plain = objectives.make_elbo(vae, beta=0.0)
    gradient = jax.grad(lambda params: objective(params, jax.random.clone(key), x)[0])(params)
    sample_key, _ = jax.random.split(jax.random.clone(key))
    alone = jax.grad(lambda params: plain(params, sample_key, x)[0])(params)
    charged = jax.grad(lambda params: -rates(vae, params, x)[per_unit.argmax()])(params)
    if per == "unit":
        alone = jax.tree.map(jnp.add, alone, charged)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_no_free_bits_are_the_elbo(problem):
    vae, params, x = problem
    key = jax.random.key(2)
    sample_key, _ = jax.random.split(jax.random.clone(key))
    value, info = objectives.make_free_bits(vae, 0.0, num_samples=4)(params, key, x)
    expected, plain = objectives.make_elbo(vae, num_samples=4)(params, sample_key, x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(info.per_example, plain.per_example, rtol=1e-4)
    np.testing.assert_allclose(info.log_w, plain.log_w, rtol=1e-4)


def test_free_bits_take_any_estimator(problem):
    vae, params, x = problem
    reinforce = estimators.score_function(baseline="leave_one_out")
    key = jax.random.key(2)
    a = objectives.make_free_bits(vae, 0.1, reinforce, num_samples=4)(params, key, x)[0]
    b = objectives.make_free_bits(vae, 0.1, num_samples=4)(params, jax.random.clone(key), x)[0]
    np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(ValueError, match="KL is in closed form: use pathwise"):
        objectives.make_free_bits(vae, 0.1, estimators.sticking_the_landing())


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_free_bits_below_nothing_are_refused(problem, bad, no_type_hook):
    vae, _, _ = problem
    with pytest.raises(ValueError, match="free_bits must be a number of at least 0; got"):
        objectives.make_free_bits(vae, bad)
    with pytest.raises(ValueError, match="per must be 'unit' or 'code'"):
        objectives.make_free_bits(vae, 0.1, per="dimension")


@pytest.mark.exhaustive
def test_the_best_std_is_the_root_of_the_mean_square(x64):
    """The objective is the greatest ELBO over all stds, at the samples it drew."""
    vae = models.linear_vae(4, 2)
    params = in_float64(vae.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (50, 4))
    key = jax.random.key(2)
    value, info = objectives.make_optimal_std_elbo(vae, num_samples=3)(params, key, x)
    bound = distributions.LOG_STD_BOUND

    def at(log_std):
        raw = bound * jnp.arctanh(log_std / bound)
        moved = {**params, "decoder": {**params["decoder"], "head": {"log_std": raw}}}
        return float(objectives.make_elbo(vae, num_samples=3)(moved, jax.random.clone(key), x)[0])

    best = objectives.with_optimal_std(vae, params, jax.random.clone(key), x, num_samples=3)
    found = float(distributions.bounded_log_std(best["decoder"]["head"]["log_std"]))
    np.testing.assert_allclose(value, at(found), rtol=1e-10)
    np.testing.assert_allclose(info.elbo, value, rtol=1e-12)
    assert at(found) > max(at(found - 0.05), at(found + 0.05))
    gradient = jax.grad(lambda params: objectives.make_optimal_std_elbo(vae)(params, jax.random.key(3), x)[0])(params)
    assert float(gradient["decoder"]["head"]["log_std"]) == 0


@pytest.mark.exhaustive
def test_training_with_the_best_std_finds_the_learned_one():
    vae = models.linear_vae(4, 2)
    x = jax.random.normal(jax.random.key(0), (300, 4)) * jnp.array([[3.0, 2.0, 0.5, 0.5]])
    results = []
    for objective in (objectives.make_optimal_std_elbo(vae), objectives.make_elbo(vae)):
        step = training.make_train_step(objective, optax.adam(1e-2))
        state = training.init_state(vae.init(jax.random.key(1)), optax.adam(1e-2))
        run = jax.jit(
            lambda state, step=step: training.fit(step, state, jax.random.key(2), x, num_steps=1500, batch_size=100)
        )
        results.append(run(state)[0].params)
    results[0] = objectives.with_optimal_std(vae, results[0], jax.random.key(3), x)
    closed, learned = (float(linear_elbo(params, x)) for params in results)
    assert abs(closed - learned) < 0.1


@pytest.mark.exhaustive
def test_the_best_std_has_a_floor_and_needs_a_gaussian():
    vae = models.linear_vae(4, 2)
    params, x = vae.init(jax.random.key(0)), jnp.ones((5, 4))
    params["decoder"]["network"]["layer_0"] = {"kernel": jnp.zeros((2, 4)), "bias": jnp.ones(4)}
    value, _ = objectives.make_optimal_std_elbo(vae, min_std=0.1)(params, jax.random.key(1), x)
    kl = distributions.kl_divergence(vae.encode(params, x), vae.prior(params)).mean()
    np.testing.assert_allclose(value, -2 * np.log(2 * np.pi * 0.01) - kl, rtol=1e-4)
    for likelihood in ("bernoulli", "gaussian"):
        other = models.mlp_vae((4,), 2, (3,), likelihood=likelihood)
        for call in (objectives.make_optimal_std_elbo(other), functools.partial(objectives.with_optimal_std, other)):
            with pytest.raises(ValueError, match=r"'gaussian_shared_std'; got one whose head has no parameters"):
                call(other.init(jax.random.key(0)), jax.random.key(1), x)
    coins = models.mlp_vae((4,), 2, (3,), "gaussian_shared_std", posterior="bernoulli")
    for call in (objectives.make_optimal_std_elbo(coins), functools.partial(objectives.with_optimal_std, coins)):
        with pytest.raises(ValueError, match=r"posterior that can be reparameterized; got Bernoulli.*'gaussian'"):
            call(coins.init(jax.random.key(0)), jax.random.key(1), x)
    with pytest.raises(ValueError, match="min_std must be a number above 0; got 0"):
        objectives.make_optimal_std_elbo(vae, min_std=0.0)


@pytest.mark.exhaustive
def test_the_discrepancy_is_nothing_at_the_prior_and_grows_with_the_weight(problem):
    vae, params, x = problem
    x = jnp.tile(x, (100, 1, 1))
    at_prior = {**params, "encoder": jax.tree.map(jnp.zeros_like, params["encoder"])}
    far = {
        **params,
        "encoder": {**params["encoder"], "network": jax.tree.map(lambda leaf: leaf + 1, params["encoder"]["network"])},
    }
    for given, least, most in ((at_prior, -0.02, 0.02), (far, 0.1, 2.0)):
        values = [objectives.make_info_vae(vae, weight)(given, jax.random.key(2), x)[0] for weight in (0.0, 1.0, 10.0)]
        discrepancy = float(values[0] - values[1])
        assert least < discrepancy < most
        np.testing.assert_allclose(values[0] - values[2], 10 * discrepancy, rtol=1e-3, atol=1e-4)
    gradient = jax.grad(lambda p: objectives.make_info_vae(vae, 1.0)(p, jax.random.key(2), x)[0])(far)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient["encoder"])) > 1e-3


def test_info_vae_of_full_kl_is_the_elbo(problem):
    vae, params, x = problem
    key = jax.random.key(2)
    value, info = objectives.make_info_vae(vae, 0.0, beta=1.0)(params, key, x)
    np.testing.assert_allclose(value, info.elbo, rtol=1e-5)


def test_info_vae_refuses_what_it_cannot_push(problem):
    vae, _, x = problem
    with pytest.raises(ValueError, match="mmd_weight must be a number of at least 0"):
        objectives.make_info_vae(vae, -1.0)
    with pytest.raises(ValueError, match="bandwidth must be a number above 0; got 0"):
        objectives.make_info_vae(vae, 1.0, bandwidth=0.0)
    coins = models.mlp_vae((2, 2), 3, (5,), posterior="bernoulli")
    with pytest.raises(ValueError, match="needs a posterior that can be reparameterized; got Bernoulli"):
        objectives.make_info_vae(coins, 1.0, estimators.score_function())(
            coins.init(jax.random.key(0)), jax.random.key(1), x
        )


RENYI = [-np.inf, -2.0, 0.0, 0.5, 1.0, 3.0, np.inf]


@pytest.mark.exhaustive
def test_renyi_bounds_are_power_means_and_fall_with_alpha(problem, x64):
    vae, params, x = problem
    params, x = in_float64(params), in_float64(x)
    key = jax.random.key(2)
    log_w = np.asarray(objectives.make_iwae(vae, num_samples=6)(params, key, x)[1].log_w)
    values = []
    for alpha in RENYI:
        value, info = objectives.make_renyi(vae, alpha, num_samples=6)(params, jax.random.clone(key), x)
        if np.isinf(alpha):
            expected = log_w.max(axis=0) if alpha < 0 else log_w.min(axis=0)
        elif alpha == 1:
            expected = log_w.mean(axis=0)
        else:
            expected = (special.logsumexp((1 - alpha) * log_w, axis=0) - np.log(6)) / (1 - alpha)
        np.testing.assert_allclose(info.per_example, expected, rtol=1e-9)
        values.append(float(value))
    assert np.diff(values).max() < 0


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, -1.0])
@pytest.mark.parametrize("estimator", ["vimco", "doubly_reparameterized", "leave_one_out"])
def test_renyi_bounds_have_the_same_gradient_by_every_estimator(problem, x64, alpha, estimator):
    """Against pathwise, coordinate by coordinate, over the same number of repeats."""
    vae, params, x = problem
    params, x = in_float64(params), in_float64(x[:2])
    named = {
        "vimco": estimators.vimco(),
        "doubly_reparameterized": estimators.doubly_reparameterized(),
        "leave_one_out": estimators.score_function(baseline="leave_one_out"),
    }

    def draws(estimator, seed):
        objective = objectives.make_renyi(vae, alpha, estimator, num_samples=3)

        def gradient(key):
            grads = jax.grad(lambda params: objective(params, key, x)[0])(params)
            return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(grads)])

        keys = jax.random.split(jax.random.key(seed), 4000)
        return np.asarray(jax.jit(lambda keys: jax.lax.map(gradient, keys, batch_size=500))(keys))

    ours, theirs = draws(named[estimator], 3), draws(estimators.pathwise(), 4)
    error = np.sqrt((ours.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)) / 4000)
    distance = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
    assert (distance < 5 * error + 1e-12).all()
    assert np.linalg.norm(error) < 0.2 * np.linalg.norm(theirs.mean(axis=0))


def test_renyi_refuses_no_number(problem, no_type_hook):
    vae, _, _ = problem
    for alpha in (float("nan"), "half"):
        with pytest.raises(ValueError, match="alpha must be a number"):
            objectives.make_renyi(vae, alpha)


@pytest.mark.slow
@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-7, -1e-6])
def test_renyi_bounds_near_the_elbo_keep_their_digits(distance):
    """In float32, where the log of a power mean of exponent 1e-7 has none left."""
    log_w = 30 * jax.random.normal(jax.random.key(0), (50, 7))
    reduce = monte_carlo.renyi_reduction(1 - distance)
    exact = np.asarray(log_w, np.float64)

    def power_mean(log_w):
        return (special.logsumexp(distance * log_w, axis=0) - np.log(len(log_w))) / distance

    others = [np.delete(exact, k, axis=0) for k in range(50)]
    np.testing.assert_allclose(reduce.bound(log_w), power_mean(exact), atol=1e-4)
    np.testing.assert_allclose(reduce.leave_one_out(log_w), [power_mean(each) for each in others], atol=1e-4)
    slope = jax.grad(lambda log_w: reduce.bound(log_w).sum())(log_w)
    np.testing.assert_allclose(slope, special.softmax(distance * exact, axis=0), atol=1e-7)
