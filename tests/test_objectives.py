import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import in_float64, linear_elbo, linear_log_likelihood, with_exact_posterior

from vaejax import estimators, models, objectives


@pytest.fixture
def linear_problem(x64):
    vae = models.linear_vae(data_dim=4, latent_dim=2)
    params = in_float64(vae.init(jax.random.key(0)))
    return vae, params, jax.random.normal(jax.random.key(1), (3, 4))


@pytest.fixture
def small_problem():
    vae = models.mlp_vae((3,), 2, (5,))
    x = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    return vae, vae.init(jax.random.key(0)), x


def draws_of(objective, params, x, key, num_repeats):
    keys = jax.random.split(key, num_repeats)
    evaluate = jax.jit(lambda keys: jax.lax.map(lambda k: objective(params, k, x)[0], keys, batch_size=1000))
    return np.asarray(evaluate(keys))


@pytest.mark.parametrize("kl", objectives.KL_FORMS)
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_three_forms_have_the_closed_form_as_their_mean(linear_problem, kl, beta):
    vae, params, x = linear_problem
    draws = draws_of(objectives.make_elbo(vae, kl=kl, beta=beta), params, x, jax.random.key(2), 100_000)
    error = draws.std() / np.sqrt(len(draws))
    assert error < 0.01
    assert abs(draws.mean() - linear_elbo(params, x, beta)) < 5 * error


def test_bounds_are_ordered_below_log_likelihood(linear_problem):
    vae, params, x = linear_problem
    means, errors = [], []
    for num_samples in (1, 2, 3, 10):
        draws = draws_of(objectives.make_iwae(vae, num_samples=num_samples), params, x, jax.random.key(2), 100_000)
        means.append(draws.mean())
        errors.append(draws.std() / np.sqrt(len(draws)))
    assert max(errors) < 0.01
    for lower, upper, *pair in zip(means, means[1:], errors, errors[1:], strict=False):
        assert upper - lower > 3 * np.hypot(*pair)
    assert linear_log_likelihood(params, x).mean() - means[-1] > 3 * errors[-1]
    assert abs(means[0] - linear_elbo(params, x)) < 5 * errors[0]


def test_importance_weighted_bound_with_one_sample_is_the_elbo(small_problem):
    vae, params, x = small_problem
    elbo, _ = objectives.make_elbo(vae, kl="sampled")(params, jax.random.key(1), x)
    iwae, _ = objectives.make_iwae(vae, num_samples=1)(params, jax.random.key(1), x)
    assert elbo == iwae


@pytest.mark.parametrize("num_samples", [1, 5])
def test_bounds_are_tight_at_the_exact_posterior(linear_problem, num_samples):
    vae, params, x = linear_problem
    params = with_exact_posterior(params)
    exact = linear_log_likelihood(params, x)
    elbo = objectives.make_elbo(vae, num_samples=num_samples, kl="sampled")
    _, info = elbo(params, jax.random.key(2), x)
    np.testing.assert_allclose(info.log_w, np.broadcast_to(exact, (num_samples, 3)), rtol=1e-12)
    np.testing.assert_allclose(info.ess, num_samples, rtol=1e-10)
    iwae, _ = objectives.make_iwae(vae, num_samples=num_samples)(params, jax.random.key(3), x)
    np.testing.assert_allclose(iwae, exact.mean(), rtol=1e-12)
    np.testing.assert_allclose(linear_elbo(params, x), exact.mean(), rtol=1e-12)


def test_info_is_the_plain_elbo_whatever_the_weight(small_problem):
    vae, params, x = small_problem
    key = jax.random.key(1)
    plain, info = objectives.make_elbo(vae, num_samples=4)(params, key, x)
    weighted, weighted_info = objectives.make_elbo(vae, num_samples=4, beta=3.0)(params, jax.random.clone(key), x)
    assert info.elbo == weighted_info.elbo
    np.testing.assert_allclose(info.elbo, plain, rtol=1e-6)
    np.testing.assert_allclose(info.elbo, info.reconstruction - info.kl, rtol=1e-6)
    np.testing.assert_allclose(weighted, info.reconstruction - 3 * info.kl, rtol=1e-6)
    assert weighted == weighted_info.bound
    np.testing.assert_allclose(weighted, weighted_info.per_example.mean(), rtol=1e-6)
    assert (info.per_example.shape, info.log_w.shape, info.ess.shape) == ((3,), (4, 3), (3,))
    np.testing.assert_allclose(info.ess, np.exp(info.log_w).sum(0) ** 2 / (np.exp(info.log_w) ** 2).sum(0), rtol=1e-5)


def test_importance_weighted_info(small_problem):
    vae, params, x = small_problem
    value, info = objectives.make_iwae(vae, num_samples=6)(params, jax.random.key(1), x)
    np.testing.assert_allclose(info.elbo, info.log_w.mean(), rtol=1e-6)
    np.testing.assert_allclose(info.per_example, np.log(np.exp(info.log_w).mean(axis=0)), rtol=1e-5)
    np.testing.assert_allclose(value, info.per_example.mean(), rtol=1e-6)


def test_no_gradient_flows_through_info(small_problem):
    vae, params, x = small_problem
    objective = objectives.make_elbo(vae, num_samples=2)
    grads = jax.grad(lambda params: sum(jnp.sum(leaf) for leaf in objective(params, jax.random.key(1), x)[1]))(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_a_schedule_of_the_step(small_problem):
    vae, params, x = small_problem
    scheduled = objectives.make_elbo(vae, beta=optax.linear_schedule(0.0, 1.0, 10))
    for step, beta in ((0, 0.0), (5, 0.5), (20, 1.0)):
        value, _ = scheduled(params, jax.random.key(1), x, step=step)
        expected, _ = objectives.make_elbo(vae, beta=beta)(params, jax.random.key(1), x)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"beta is a schedule of the step, .* called without one: expected .*step=\.\.\."
    ):
        scheduled(params, jax.random.key(1), x)


@pytest.mark.parametrize("make", [objectives.make_elbo, objectives.make_iwae])
@pytest.mark.parametrize("estimator", [estimators.pathwise(), estimators.score_function("leave_one_out")])
def test_chunks_of_samples_give_the_same_value_and_gradient(x64, make, estimator):
    vae = models.mlp_vae((3,), 2, (5,))
    params, x = in_float64(vae.init(jax.random.key(0))), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    whole, *chunked = (
        jax.jit(jax.value_and_grad(make(vae, estimator, 6, chunk_size=chunk_size), has_aux=True))(
            params, jax.random.key(1), x
        )
        for chunk_size in (None, 1, 2, 4)
    )
    for other in chunked:
        chex.assert_trees_all_close(whole, other, rtol=1e-10)


def test_an_example_does_not_hear_of_its_batch(small_problem):
    vae, params, x = small_problem
    objective = jax.jit(objectives.make_elbo(vae, num_samples=4))
    _, info = objective(params, jax.random.key(1), x)
    _, other = objective(params, jax.random.key(1), x.at[1:].set(0.0))
    assert info.per_example[0] == other.per_example[0]
    assert info.per_example[1] != other.per_example[1]


def test_vmap_over_examples_and_keys_equals_a_loop(small_problem):
    vae, params, x = small_problem
    objective = objectives.make_elbo(vae, num_samples=4)
    keys = jax.random.split(jax.random.key(1), 3)
    together, _ = jax.vmap(objective, (None, 0, 0))(params, keys, x)
    one_by_one = [objective(params, key, example)[0] for key, example in zip(keys, x, strict=True)]
    np.testing.assert_allclose(together, one_by_one, rtol=1e-6)


def test_grey_pixels_raise_and_are_nan_under_jit(small_problem):
    vae, params, _ = small_problem
    objective = objectives.make_elbo(vae)
    grey = jnp.full((2, 3), 0.5)
    with pytest.raises(ValueError, match=r"exactly 0 or 1; came 6 others.*Binarize: data.binarize_dynamic\(key, x\)"):
        objective(params, jax.random.key(1), grey)
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        jax.grad(objective, has_aux=True)(params, jax.random.key(1), grey)
    assert jnp.isnan(jax.jit(objective)(params, jax.random.key(1), grey)[0])


@pytest.mark.parametrize("make", [objectives.make_elbo, objectives.make_iwae])
@pytest.mark.parametrize("num_samples", [0, -1, 1.0, True])
def test_number_of_samples_must_be_a_positive_integer(make, num_samples, no_type_hook):
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1; got"):
        make(models.linear_vae(3, 2), num_samples=num_samples)


def test_bad_options_name_the_good_ones(no_type_hook):
    vae = models.linear_vae(3, 2)
    with pytest.raises(ValueError, match=r"kl must be one of \('analytic', 'sampled', 'entropy'\); got 'exact'"):
        objectives.make_elbo(vae, kl="exact")
    with pytest.raises(ValueError, match="beta must be a number of at least 0"):
        objectives.make_elbo(vae, beta=-0.5)
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1; got 0"):
        objectives.make_elbo(vae, num_samples=4, chunk_size=0)


def test_an_objective_is_traced_once(small_problem):
    vae, params, x = small_problem
    objective = jax.jit(chex.assert_max_traces(objectives.make_elbo(vae, num_samples=2), 1))
    for seed in range(3):
        objective(params, jax.random.key(seed), x)
