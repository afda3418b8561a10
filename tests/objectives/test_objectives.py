import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import in_float64, linear_elbo, linear_log_likelihood, with_exact_posterior

from vaejax import distributions, estimators, models, objectives


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_importance_weighted_info(small_problem):
    vae, params, x = small_problem
    value, info = objectives.make_iwae(vae, num_samples=6)(params, jax.random.key(1), x)
    np.testing.assert_allclose(info.elbo, info.log_w.mean(), rtol=1e-6)
    np.testing.assert_allclose(info.per_example, np.log(np.exp(info.log_w).mean(axis=0)), rtol=1e-5)
    np.testing.assert_allclose(value, info.per_example.mean(), rtol=1e-6)


@pytest.mark.slow
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


@pytest.mark.quick_for("estimator1-make_iwae")
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


@pytest.mark.exhaustive
def test_vmap_over_examples_and_keys_equals_a_loop(small_problem):
    vae, params, x = small_problem
    objective = objectives.make_elbo(vae, num_samples=4)
    keys = jax.random.split(jax.random.key(1), 3)
    together, _ = jax.vmap(objective, (None, 0, 0))(params, keys, x)
    one_by_one = [objective(params, key, example)[0] for key, example in zip(keys, x, strict=True)]
    np.testing.assert_allclose(together, one_by_one, rtol=1e-6)


@pytest.mark.exhaustive
def test_memory_of_training_is_set_by_the_chunk_whatever_k():
    vae = models.mlp_vae((28, 28), 50, (200,))
    params = jax.eval_shape(vae.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((20, 28, 28), jnp.float32)

    def temporary_bytes(num_samples, chunk_size):
        objective = objectives.make_iwae(vae, num_samples=num_samples, chunk_size=chunk_size)
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        return gradient.lower(params, jax.random.key(1), x).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(200, 50), temporary_bytes(5000, 50)
    assert large < 1.25 * small, "25 times as many samples"
    assert large < temporary_bytes(200, None)


@pytest.mark.parametrize("make", [objectives.make_elbo, objectives.make_iwae])
def test_data_that_are_not_finite_are_counted(small_problem, make):
    vae, params, x = small_problem
    with pytest.raises(ValueError, match=r"expected finite data, got 1 NaN or infinite value of 9, .* index \(1, 0\)"):
        make(vae)(params, jax.random.key(1), x.at[1, 0].set(jnp.nan))


def test_grey_pixels_raise_and_are_nan_under_jit(small_problem):
    vae, params, _ = small_problem
    objective = objectives.make_elbo(vae)
    grey = jnp.full((2, 3), 0.5)
    with pytest.raises(ValueError, match=r"exactly 0 or 1; got 6 others.*Binarize: data.binarize_dynamic\(key, x\)"):
        objective(params, jax.random.key(1), grey)
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        jax.grad(objective, has_aux=True)(params, jax.random.key(1), grey)
    assert jnp.isnan(jax.jit(objective)(params, jax.random.key(1), grey)[0])


def test_the_elbo_without_samples_is_the_closed_form(linear_problem):
    vae, params, x = linear_problem
    params["encoder"]["head"]["log_std"] = jnp.array([0.4, -0.7])
    params["decoder"]["head"]["log_std"] = jnp.array(-0.5)
    closed_form, key = jax.jit(jax.value_and_grad(objectives.make_linear_elbo(vae), has_aux=True)), jax.random.key(2)
    (value, info), grads = closed_form(params, key, x)
    exact, exact_grads = jax.jit(jax.value_and_grad(linear_elbo))(params, x)
    np.testing.assert_allclose([value, info.elbo, info.bound, info.per_example.mean()], exact, rtol=1e-12)
    chex.assert_trees_all_close(grads, exact_grads, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(info.reconstruction - info.kl, exact, rtol=1e-12)
    np.testing.assert_allclose(info.per_example[0], linear_elbo(params, x[:1]), rtol=1e-12)
    assert (info.ess == 1).all()
    np.testing.assert_array_equal(info.log_w, info.per_example[None])
    jax.random.normal(key)  # which nobody has used, or this would be refused
    (_, info), _ = closed_form(params, key, x.at[1, 2].set(jnp.nan))
    assert np.isnan(info.per_example).tolist() == [False, True, False]


@pytest.mark.exhaustive
def test_the_elbo_without_samples_is_the_mean_of_that_with_samples(x64):
    # Images, each pixel with a standard deviation of its own.
    vae = models.linear_vae((2, 3), 2, distributions.gaussian_shared_std((2, 3)))
    params, x = in_float64(vae.init(jax.random.key(0))), jax.random.normal(jax.random.key(1), (4, 2, 3))
    params["encoder"]["head"]["log_std"] = jnp.array([0.4, -0.7])
    params["decoder"]["head"]["log_std"] = jnp.linspace(-0.5, 0.5, 6).reshape(2, 3)
    exact, info = objectives.make_linear_elbo(vae)(params, jax.random.key(2), x)
    draws = draws_of(objectives.make_elbo(vae), params, x, jax.random.key(3), 50_000)
    error = draws.std() / np.sqrt(len(draws))
    assert error < 0.03
    assert abs(draws.mean() - exact) < 5 * error
    assert info.per_example.shape == (4,)


def test_the_elbo_without_samples_refuses_what_has_no_closed_form():
    def vae_of(likelihood="gaussian_fixed_std", posterior="gaussian", hidden_sizes=()):
        return models.mlp_vae((3,), 2, hidden_sizes, likelihood, posterior=posterior)

    for vae, message in (
        (vae_of(hidden_sizes=(5,)), r"expected a linear network, .*got one with \['layer_0', 'layer_1'\]"),
        (vae_of("gaussian"), "std does not depend on z: .* got one that needs 2 outputs .* Use make_elbo"),
        (vae_of("bernoulli"), "needs a Gaussian likelihood .* or BernoulliLogits. Use make_elbo"),
        (vae_of(posterior="point"), "a point mass, as the posterior 'point' of an autoencoder is"),
        (vae_of(posterior=distributions.categorical(3)), "q = CategoricalLogits, which it sees one-hot. Use make_elbo"),
    ):
        params = jax.eval_shape(vae.init, jax.random.key(0))
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(objectives.make_linear_elbo(vae), params, jax.random.key(1), jnp.ones((7, 3)))
    vae = vae_of()
    params = vae.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"expected data of shape \(\*batch, 3\).*got \(7, 2\)"):
        objectives.make_linear_elbo(vae)(params, jax.random.key(1), jnp.ones((7, 2)))


@pytest.mark.parametrize("make", [objectives.make_elbo, objectives.make_iwae])
@pytest.mark.parametrize("num_samples", [0, -1, 1.0, True])
def test_number_of_samples_must_be_a_positive_integer(make, num_samples, no_type_hook):
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1; got"):
        make(models.linear_vae(3, 2), num_samples=num_samples)


def test_bad_options_name_the_good_ones(no_type_hook):
    vae = models.linear_vae(3, 2)
    with pytest.raises(ValueError, match="kl must be 'analytic', 'sampled' or 'entropy'; got 'exact'"):
        objectives.make_elbo(vae, kl="exact")
    with pytest.raises(ValueError, match="beta must be a number of at least 0"):
        objectives.make_elbo(vae, beta=-0.5)
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1; got 0"):
        objectives.make_elbo(vae, num_samples=4, chunk_size=0)


@pytest.mark.slow
@pytest.mark.parametrize("kl", objectives.KL_FORMS)
def test_a_reduction_of_ones_own_makes_a_bound(small_problem, kl):
    """The mean of two bounds, between the ELBO and the importance-weighted bound, by every estimator."""
    vae, params, x = small_problem
    elbo, iwae = estimators.mean_reduction(), estimators.log_mean_exp_reduction()

    def half(name):
        of_elbo, of_iwae = getattr(elbo, name), getattr(iwae, name)
        return lambda log_w: (of_elbo(log_w) + of_iwae(log_w)) / 2

    own = estimators.Reduction(*map(half, ("bound", "leave_one_out", "credit", "path_weights")), linear=False)
    for estimator in (estimators.pathwise(), estimators.vimco(), estimators.score_function("leave_one_out")):
        value, info = objectives.make_bound(vae, own, estimator, 5, kl=kl)(params, jax.random.key(1), x)
        mean = objectives.make_bound(vae, elbo, estimator, 5, kl=kl)(params, jax.random.key(1), x)[0]
        largest = objectives.make_bound(vae, iwae, estimator, 5, kl=kl)(params, jax.random.key(1), x)[0]
        np.testing.assert_allclose(value, (mean + largest) / 2, rtol=1e-6)
        assert mean < value < largest
        assert info.bound == value
    assert mean == objectives.make_elbo(vae, num_samples=5, kl=kl)(params, jax.random.key(1), x)[0]
    if kl == "sampled":
        assert largest == objectives.make_iwae(vae, num_samples=5)(params, jax.random.key(1), x)[0]


def test_an_objectives_info_prints_shapes_and_means(small_problem):
    vae, params, x = small_problem
    _, info = objectives.make_elbo(vae, num_samples=4)(params, jax.random.key(1), x)
    lines = repr(info).splitlines()
    assert lines[0] == "ObjectiveInfo("
    assert lines[-2].startswith("  log_w: float32[4,3], mean ")


def test_an_objective_is_traced_once(small_problem):
    vae, params, x = small_problem
    objective = jax.jit(chex.assert_max_traces(objectives.make_elbo(vae, num_samples=2), 1))
    for seed in range(3):
        objective(params, jax.random.key(seed), x)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["pathwise", "doubly_reparameterized", "score_function", "vimco"])
def test_no_number_that_is_none_on_the_way(name):
    """With jax_debug_nans, JAX stops at the first NaN: none of ours is in its way, eager or compiled."""
    posterior = "bernoulli" if name in ("score_function", "vimco") else "gaussian"
    vae = models.mlp_vae((3,), 2, (4,), posterior=posterior)
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    gradient = jax.grad(objectives.make_iwae(vae, getattr(estimators, name)(), num_samples=3), has_aux=True)
    with jax.debug_nans(True):
        eager = gradient(params, jax.random.key(1), x)
        compiled = jax.jit(gradient)(params, jax.random.key(1), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), eager, compiled)
