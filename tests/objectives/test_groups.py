"""MIWAE, CIWAE, PIWAE, wake-sleep and thermodynamic objectives against exact answers on the linear-Gaussian model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from reference import (
    assert_unbiased,
    bound_of_two_samples,
    exact_model_gradient,
    in_float64,
    linear_elbo,
    linear_gaussian_arrays,
    linear_log_likelihood,
    model_gradient,
    with_exact_posterior,
)

from vaejax import estimators, models, objectives

TEMPERATURES = (0.0, 0.2, 0.6)


@pytest.fixture
def narrow_problem(x64):
    vae = models.linear_vae(data_dim=3, latent_dim=1)
    params = in_float64(vae.init(jax.random.key(0)))
    params["encoder"]["head"]["log_std"] = jnp.array([-0.4])
    return vae, params, jax.random.normal(jax.random.key(1), (2, 3))


def two_samples(params, x, num_nodes=60):
    """Log p(x, z), q(z|x) as mean and std, z, and the mass of each pair of nodes: two samples by quadrature."""
    V, c, std, W, b, s = linear_gaussian_arrays(params)
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    weights = weights / weights.sum()
    mean = (x @ V + c[None])[:, 0]
    z = jax.lax.stop_gradient(mean[:, None] + std[0] * nodes[None])
    errors = ((x[:, None] - z[:, :, None] * W[0][None, None] - b[None, None]) ** 2).sum(axis=2)
    log_p = -0.5 * errors / s**2 - x.shape[1] * (0.5 * np.log(2 * np.pi) + jnp.log(s)) - 0.5 * z**2
    log_q = -0.5 * ((z - mean[:, None]) / std[0]) ** 2 - jnp.log(std[0])
    log_p, log_q = log_p - 0.5 * np.log(2 * np.pi), log_q - 0.5 * np.log(2 * np.pi)

    def pairs(array):
        first, second = jnp.broadcast_arrays(array[:, :, None], array[:, None])
        return jnp.stack([first, second])

    return pairs(log_p), pairs(log_q), (weights[:, None] * weights[None])[None]


@pytest.mark.exhaustive
def test_piwae_of_two_samples_has_both_gradients(narrow_problem):
    """With two groups of one sample the encoder follows the ELBO, and the decoder the bound of two samples."""
    vae, params, x = narrow_problem
    exact = {
        "encoder": jax.grad(linear_elbo)(params, x)["encoder"],
        "decoder": jax.grad(bound_of_two_samples)(params, x)["decoder"],
    }
    for estimator in (estimators.pathwise(), estimators.doubly_reparameterized()):
        objective = objectives.make_piwae(vae, estimator, 2, 2)
        assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 60_000)
    wrong = exact_model_gradient(lambda params: bound_of_two_samples(params, x), params)
    with pytest.raises(AssertionError, match="biased: coordinate"):
        assert_unbiased(model_gradient(objective, params, x), wrong, jax.random.key(2), 60_000)


def between(reduce, params, x):
    """The bound of two samples of a reduction, by quadrature with nodes that move with q."""
    V, c, std, W, b, s = linear_gaussian_arrays(params)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    z = (x @ V + c[None]) + std[0] * nodes[None]
    errors = ((x[:, None] - z[:, :, None] * W[0][None, None] - b[None, None]) ** 2).sum(axis=2)
    log_w = -0.5 * errors / s**2 - x.shape[1] * (0.5 * np.log(2 * np.pi) + jnp.log(s))
    log_w = log_w - 0.5 * z**2 + 0.5 * nodes[None] ** 2 + jnp.log(std[0])
    bound = reduce.bound(jnp.stack(jnp.broadcast_arrays(log_w[:, :, None], log_w[:, None])))
    return ((weights[:, None] * weights[None])[None] * bound).sum(axis=(1, 2)).mean()


MEAN, WHOLE = estimators.mean_reduction(), estimators.log_mean_exp_reduction()
SMOOTH = {
    "ciwae": (estimators.combined_reduction(MEAN, WHOLE, 0.4), lambda vae, e: objectives.make_ciwae(vae, 0.4, e, 2)),
    "thermodynamic": (
        estimators.thermodynamic_reduction(TEMPERATURES),
        lambda vae, e: objectives.make_thermodynamic(vae, TEMPERATURES, e, 2),
    ),
}
ESTIMATORS = {
    "pathwise": estimators.pathwise(),
    "doubly reparameterized": estimators.doubly_reparameterized(),
    "leave-one-out": estimators.score_function("leave_one_out"),
    "vimco": estimators.vimco(),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("pathwise", "leave-one-out", "vimco")]


@pytest.mark.quick_for("doubly reparameterized-thermodynamic")
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("estimator", ["doubly reparameterized", *SLOW])
def test_gradients_of_bounds_between_are_unbiased(narrow_problem, name, estimator):
    vae, params, x = narrow_problem
    reduce, make = SMOOTH[name]
    exact = exact_model_gradient(lambda params: between(reduce, params, x), params)
    objective = make(vae, ESTIMATORS[estimator])
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 100_000)


@pytest.mark.parametrize("estimator", [pytest.param(e, marks=pytest.mark.slow) for e in ESTIMATORS])
def test_the_gradient_of_miwae_is_unbiased(narrow_problem, estimator):
    """Two groups of two samples: in expectation, the bound of two samples."""
    vae, params, x = narrow_problem
    exact = exact_model_gradient(lambda params: bound_of_two_samples(params, x), params)
    objective = objectives.make_miwae(vae, ESTIMATORS[estimator], 4, 2)
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 60_000)


@pytest.mark.exhaustive
def test_miwae_of_one_group_is_iwae_and_of_all_the_elbo(narrow_problem):
    vae, params, x = narrow_problem
    elbo = objectives.make_elbo(vae, num_samples=6, kl="sampled")
    for num_groups, same in ((1, objectives.make_iwae(vae, num_samples=6)), (6, elbo)):
        results = [
            jax.jit(jax.value_and_grad(objective, has_aux=True))(params, jax.random.key(1), x)
            for objective in (objectives.make_miwae(vae, None, 6, num_groups), same)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *results)


def test_the_encoder_of_wake_sleep_has_its_own_gradient(narrow_problem):
    """Of two samples, exactly: the weights by quadrature, and the derivative of log q at fixed z."""
    vae, params, x = narrow_problem

    def surrogate(params):
        log_p, log_q, mass = two_samples(params, x)
        weights = jax.lax.stop_gradient(jax.nn.softmax(log_p - log_q, axis=0))
        return (mass * (weights * log_q).sum(axis=0)).sum(axis=(1, 2)).mean()

    exact = {
        "encoder": jax.grad(surrogate)(params)["encoder"],
        "decoder": jax.grad(bound_of_two_samples)(params, x)["decoder"],
    }
    gradient = model_gradient(objectives.make_wake_sleep(vae, 2), params, x)
    assert_unbiased(gradient, exact, jax.random.key(2), 60_000)
    of_bound = exact_model_gradient(lambda params: bound_of_two_samples(params, x), params)
    with pytest.raises(AssertionError, match="biased: coordinate"):
        assert_unbiased(gradient, of_bound, jax.random.key(2), 60_000)


def test_wake_sleep_of_many_samples_descends_the_other_kl(narrow_problem):
    vae, params, x = narrow_problem

    def other_kl(params):
        """KL(p(z|x) || q(z|x)) of Gaussians, mean over the batch."""
        V, c, std, W, b, s = linear_gaussian_arrays(params)
        fixed = jax.tree.map(jax.lax.stop_gradient, (W, b, s))
        variance = 1 / (1 + (fixed[0] ** 2).sum() / fixed[2] ** 2)
        exact = variance * (x - fixed[1][None]) @ fixed[0][0] / fixed[2] ** 2
        away = exact - (x @ V + c[None])[:, 0]
        return (jnp.log(std[0]) + (variance + away**2) / (2 * std[0] ** 2)).mean()

    expected = -ravel_pytree(jax.grad(other_kl)(params)["encoder"])[0]
    gradient = jax.jit(jax.grad(objectives.make_wake_sleep(vae, 4000), has_aux=True))
    draws = np.stack([ravel_pytree(gradient(params, jax.random.key(i), x)[0]["encoder"])[0] for i in range(100)])
    error = draws.std(axis=0) / 10
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected)
    bias = 3 * np.linalg.norm(expected) / 4000  # falls as 1 / K
    assert (np.abs(draws.mean(axis=0) - expected) < 5 * error + bias).all()


def test_wake_sleep_serves_discrete_latents():
    vae = models.mlp_vae((3,), 2, (4,), posterior="bernoulli")
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    for make in (objectives.make_wake_sleep, lambda vae, k: objectives.make_thermodynamic(vae, num_samples=k)):
        grads, info = jax.jit(jax.grad(make(vae, 4), has_aux=True))(params, jax.random.key(1), x)
        assert all((jnp.abs(leaf) > 0).any() for leaf in jax.tree.leaves(grads))
        assert jnp.isfinite(info.bound)


@pytest.mark.slow
def test_the_gradient_of_covariances_is_the_papers(narrow_problem):
    """Of two samples, by quadrature, from the paper's formula: E[grad f] + Cov(grad log p_t, f) at each temperature."""
    vae, params, x = narrow_problem

    def surrogate(params):
        log_p, log_q, mass = two_samples(params, x)
        log_w, total = log_p - log_q, 0
        for t, width in zip(TEMPERATURES, np.diff([*TEMPERATURES, 1.0]), strict=True):
            weights = jax.lax.stop_gradient(jax.nn.softmax(t * log_w, axis=0))
            f = jax.lax.stop_gradient(log_w)
            away = f - (weights * f).sum(axis=0, keepdims=True)
            path = (1 - t) * log_q + t * log_p
            total += width * (weights * (log_w + away * path)).sum(axis=0)
        return (mass * total).sum(axis=(1, 2)).mean()

    exact = exact_model_gradient(surrogate, params)
    objective = objectives.make_thermodynamic(vae, TEMPERATURES, num_samples=2)
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 60_000)


def thermodynamic_bound(params, x):
    """The sum with exact expectations: each distribution of the path is a Gaussian of one latent."""
    V, c, std, W, b, s = linear_gaussian_arrays(params)
    q_mean, q_precision = (x @ V + c[None])[:, 0], 1 / std[0] ** 2
    p_precision = 1 + (W[0] ** 2).sum() / s**2
    p_mean = (x - b[None]) @ W[0] / s**2 / p_precision
    total = 0
    for t, width in zip(TEMPERATURES, np.diff([*TEMPERATURES, 1.0]), strict=True):
        precision = (1 - t) * q_precision + t * p_precision
        mean = ((1 - t) * q_precision * q_mean + t * p_precision * p_mean) / precision
        errors = ((x - mean[:, None] * W[0][None] - b[None]) ** 2).sum(axis=1) + (W[0] ** 2).sum() / precision
        log_p = -0.5 * errors / s**2 - x.shape[1] * (0.5 * np.log(2 * np.pi) + jnp.log(s))
        log_p = log_p - 0.5 * (mean**2 + 1 / precision)
        log_q = -0.5 * q_precision * ((mean - q_mean) ** 2 + 1 / precision) + 0.5 * jnp.log(q_precision)
        total += width * (log_p - log_q)
    return total.mean()


@pytest.mark.exhaustive
def test_many_samples_give_the_thermodynamic_bound_and_its_gradient(narrow_problem):
    vae, params, x = narrow_problem
    exact, slopes = jax.value_and_grad(thermodynamic_bound)(params, x)
    elbo, log_p = linear_elbo(params, x), linear_log_likelihood(params, x).mean()
    assert elbo < exact < log_p
    objective = objectives.make_thermodynamic(vae, TEMPERATURES, num_samples=4000)
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    results = [gradient(params, jax.random.key(i), x) for i in range(100)]
    values = np.array([value for (value, _), _ in results])
    assert abs(values.mean() - exact) < 5 * values.std() / 10 + 1e-3 * (log_p - elbo)
    draws = np.stack([ravel_pytree(grads)[0] for _, grads in results])
    expected = np.asarray(ravel_pytree(slopes)[0])
    error = draws.std(axis=0) / 10
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected)
    bias = 3 * np.linalg.norm(expected) / 4000  # falls as 1 / K
    assert (np.abs(draws.mean(axis=0) - expected) < 5 * error + bias).all()


@pytest.mark.exhaustive
def test_at_the_exact_posterior_every_bound_is_log_p(narrow_problem):
    vae, params, x = narrow_problem
    params = with_exact_posterior(params)
    log_p = linear_log_likelihood(params, x)
    for objective in (
        objectives.make_miwae(vae, None, 4, 2),
        objectives.make_piwae(vae, None, 4, 2),
        objectives.make_ciwae(vae, 0.3, None, 4),
        objectives.make_wake_sleep(vae, 4),
        objectives.make_thermodynamic(vae, TEMPERATURES, None, 4),
    ):
        bounds, info = objectives.per_example(objective)(params, jax.random.key(3), x)
        np.testing.assert_allclose(bounds, log_p, rtol=1e-9)
        np.testing.assert_allclose([info.bound, info.elbo], log_p.mean(), rtol=1e-9)


@pytest.mark.exhaustive
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunks_change_nothing(narrow_problem, chunk_size):
    vae, params, x = narrow_problem
    for make in (
        lambda size: objectives.make_piwae(vae, None, 4, 2, chunk_size=size),
        lambda size: objectives.make_wake_sleep(vae, 4, chunk_size=size),
        lambda size: objectives.make_thermodynamic(vae, TEMPERATURES, None, 4, chunk_size=size),
    ):
        whole, parts = (
            jax.jit(jax.value_and_grad(make(size), has_aux=True))(params, jax.random.key(1), x)
            for size in (None, chunk_size)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), whole, parts)


def test_bad_options_are_refused(no_type_hook):
    vae = models.linear_vae(3, 2)
    for make in (objectives.make_miwae, objectives.make_piwae):
        with pytest.raises(ValueError, match="num_samples must be divisible by the 4 groups; got 6"):
            make(vae, num_samples=6, num_groups=4)
        with pytest.raises(ValueError, match="num_groups must be an integer of at least 1; got 0"):
            make(vae, num_groups=0)
    with pytest.raises(ValueError, match="elbo_weight must be a number of at least 0 and at most 1"):
        objectives.make_ciwae(vae, -0.1)
    with pytest.raises(ValueError, match="expected temperatures that rise from 0"):
        objectives.make_thermodynamic(vae, (0.5,))
