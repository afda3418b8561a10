import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import in_float64, linear_elbo, linear_log_likelihood

from vaejax import autoencoders, inference, models, objectives, training


@pytest.fixture
def problem(x64):
    vae = models.linear_vae(5, 2)
    params = in_float64(vae.init(jax.random.key(0)))
    mixing = jax.random.normal(jax.random.key(1), (2, 5))
    latents, noise = jax.random.normal(jax.random.key(2), (300, 2)), jax.random.normal(jax.random.key(3), (300, 5))
    return vae, params, latents @ mixing + 0.3 * noise + 1


def test_log_likelihood_never_falls_and_the_bound_touches_it(problem):
    vae, params, x = problem
    trained, history = inference.em(vae, params, x, num_steps=60)
    path = np.asarray(history.log_likelihood)
    assert np.diff(path).min() > -1e-9
    assert path[-1] - path[0] > 1
    np.testing.assert_allclose(history.elbo, path, atol=1e-8)
    assert (history.elbo_before <= path + 1e-9).all()
    assert (history.elbo_after >= history.elbo - 1e-9).all()
    # After its M-step log p(x) is at least the bound, and is the next round's.
    assert (path[1:] >= np.asarray(history.elbo_after)[:-1] - 1e-9).all()
    np.testing.assert_allclose(path[0], linear_log_likelihood(params, x).mean(), rtol=1e-10)
    final = linear_log_likelihood(trained, x).mean()
    assert final >= path[-1] - 1e-9


def test_em_ends_at_probabilistic_pca(problem):
    vae, params, x = problem
    trained, history = inference.em(vae, params, x, num_steps=500)
    exact = autoencoders.pca(x, 2)
    np.testing.assert_allclose(history.log_likelihood[-1], exact.log_likelihood(x).mean(), rtol=1e-9)
    kernel = trained["decoder"]["network"]["layer_0"]["kernel"]
    assert autoencoders.subspace_distance(kernel, exact.components) < 1e-8


def test_the_e_step_is_the_posterior_and_changes_no_density(problem):
    vae, params, x = problem
    exact = inference.with_exact_posterior(vae, params)
    np.testing.assert_allclose(linear_log_likelihood(exact, x), linear_log_likelihood(params, x), rtol=1e-10)
    np.testing.assert_allclose(linear_elbo(exact, x), linear_log_likelihood(exact, x).mean(), rtol=1e-10)
    kernel = exact["decoder"]["network"]["layer_0"]["kernel"]
    gram = kernel @ kernel.T
    np.testing.assert_allclose(gram, jnp.diag(jnp.diagonal(gram)), atol=1e-10)


def test_the_m_step_is_the_maximum(problem):
    """At the maximum every derivative of the ELBO in the decoder is zero, and moves in any direction lower it."""
    vae, params, x = problem
    best = inference.with_best_decoder(vae, params, x)
    assert best["encoder"] is params["encoder"]
    gradient = jax.grad(lambda decoder: linear_elbo({**best, "decoder": decoder}, x))(best["decoder"])
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-9
    for seed in range(5):
        noise = jax.tree.map(
            lambda leaf, seed=seed: leaf + 0.1 * jax.random.normal(jax.random.key(seed), leaf.shape), best["decoder"]
        )
        assert linear_elbo({**best, "decoder": noise}, x) < linear_elbo(best, x)


def test_em_is_a_train_step_that_fit_takes(problem):
    vae, params, x = problem
    state = training.init_state(params, optax.identity())
    state, history = training.fit(
        inference.make_em_step(vae), state, jax.random.key(4), x, num_steps=8, batch_size=len(x)
    )
    trained, expected = inference.em(vae, params, x, num_steps=8)
    np.testing.assert_allclose(history.log_likelihood, expected.log_likelihood, rtol=1e-10)
    assert int(state.step) == 8
    chex.assert_trees_all_close(state.params, trained, rtol=1e-7, atol=1e-9)


def test_em_in_single_precision_stays_finite():
    vae = models.linear_vae(5, 2)
    x = jnp.tile(jax.random.normal(jax.random.key(0), (2, 5)), (20, 1))  # without noise: s runs into its floor
    trained, history = inference.em(vae, vae.init(jax.random.key(1)), x, num_steps=100)
    assert jnp.isfinite(history.log_likelihood).all()
    chex.assert_tree_all_finite(trained)


def test_em_refuses_what_it_cannot_solve():
    x = jnp.ones((4, 5))
    for vae, words in (
        (models.mlp_vae((5,), 2, (3,), "gaussian_shared_std"), "expected a linear network"),
        (models.linear_vae(5, 2, "gaussian_fixed_std"), "one learned std"),
        (models.linear_vae(5, 2, "bernoulli"), "std does not depend on z"),
    ):
        with pytest.raises(ValueError, match=words):
            inference.em(vae, vae.init(jax.random.key(0)), x, num_steps=1)


@pytest.mark.exhaustive
def test_variational_em_moves_one_group_at_a_time():
    vae = models.mlp_vae((3,), 2, (4,), "gaussian_shared_std")
    params, x = vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, 3))
    elbo, still = objectives.make_elbo(vae), optax.sgd(0.0)
    for optimizers, moves in (((optax.sgd(0.1), still), "encoder"), ((still, optax.sgd(0.1)), "decoder")):
        step = inference.make_variational_em_step(elbo, *optimizers, num_e_steps=2, num_m_steps=3)
        state, info = step(inference.init_groups(params, *optimizers), jax.random.key(2), x)
        for part in ("encoder", "decoder"):
            if part == moves:
                assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), state.params[part], params[part])))
            else:
                chex.assert_trees_all_equal(state.params[part], params[part])
        assert jnp.isfinite(info.bound)
        assert int(state.step) == 1


@pytest.mark.slow
def test_variational_em_of_one_step_each_is_gradient_ascent_by_turns():
    """By hand: the encoder's step first, then the decoder's at the new encoder."""
    vae = models.linear_vae(3, 2)
    params, x = vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, 3))
    objective = objectives.make_linear_elbo(vae)
    step = inference.make_variational_em_step(objective, optax.sgd(0.1), optax.sgd(0.01))
    state, _ = step(inference.init_groups(params, optax.sgd(0.1), optax.sgd(0.01)), jax.random.key(2), x)
    grads = jax.grad(lambda params: linear_elbo(params, x))(params)
    encoder = jax.tree.map(lambda leaf, g: leaf + 0.1 * g, params["encoder"], grads["encoder"])
    moved = {**params, "encoder": encoder}
    grads = jax.grad(lambda params: linear_elbo(params, x))(moved)
    decoder = jax.tree.map(lambda leaf, g: leaf + 0.01 * g, params["decoder"], grads["decoder"])
    chex.assert_trees_all_close(state.params, {**moved, "decoder": decoder}, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_variational_em_raises_the_bound():
    vae = models.linear_vae(5, 2)
    x = jax.random.normal(jax.random.key(0), (200, 5)) * jnp.array([[3.0, 2.0, 1.0, 1.0, 1.0]])
    optimizers = optax.adam(1e-2), optax.adam(1e-2)
    step = inference.make_variational_em_step(objectives.make_elbo(vae), *optimizers, 5, 1)
    state = inference.init_groups(vae.init(jax.random.key(1)), *optimizers)
    run = jax.jit(lambda state: training.fit(step, state, jax.random.key(2), x, num_steps=600, batch_size=50))
    state, history = run(state)
    exact = autoencoders.pca(x, 2).log_likelihood(x).mean()
    assert exact - 0.3 < linear_elbo(state.params, x) <= exact
    assert history.bound[:10].mean() < history.bound[-10:].mean()
