import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from reference import assert_unbiased, in_float64, linear_elbo

from vaejax import estimators, models, objectives

ELBO_FORMS = ("analytic", "sampled", "entropy")
ESTIMATORS = {
    "pathwise, K=1": (estimators.pathwise(), 1),
    "pathwise, K=3": (estimators.pathwise(), 3),
    "score function, K=1": (estimators.score_function(), 1),
    "score function, K=4": (estimators.score_function(), 4),
    "leave-one-out, K=2": (estimators.score_function(baseline="leave_one_out"), 2),
    "leave-one-out, K=4": (estimators.score_function(baseline="leave_one_out"), 4),
}
REDUCTIONS = {"mean": estimators.mean_reduction(), "log-mean-exp": estimators.log_mean_exp_reduction()}


def detached_pathwise():
    """The wrong one: the gradient moved inside the expectation, and the samples detached."""

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None):
        log_w, terms = estimators.over_samples(
            lambda key: integrand(lax.stop_gradient(q.sample(key)), q), key, num_samples, chunk_size
        )
        return estimators.Estimate(reduce.bound(log_w), terms)

    return estimate


@pytest.fixture
def linear_problem(x64):
    vae = models.linear_vae(data_dim=4, latent_dim=2)
    params = in_float64(vae.init(jax.random.key(0)))
    params["decoder"]["head"]["log_std"] = jnp.array(0.3)
    params["encoder"]["head"]["log_std"] = jnp.array([-0.5, 0.2])
    return vae, params, jax.random.normal(jax.random.key(1), (3, 4))


@pytest.mark.parametrize("kl", ELBO_FORMS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradient_is_unbiased(linear_problem, name, kl):
    vae, params, x = linear_problem
    estimator, num_samples = ESTIMATORS[name]
    objective = objectives.make_elbo(vae, estimator, num_samples, kl=kl)
    exact = jax.grad(linear_elbo)(params, x)
    assert_unbiased(
        lambda key: jax.grad(objective, has_aux=True)(params, key, x)[0], exact, jax.random.key(2), num_repeats=40_000
    )


@pytest.mark.parametrize("kl", ELBO_FORMS)
def test_detached_samples_are_biased(linear_problem, kl):
    vae, params, x = linear_problem
    objective = objectives.make_elbo(vae, detached_pathwise(), 4, kl=kl)
    with pytest.raises(AssertionError, match="biased: coordinate"):
        assert_unbiased(
            lambda key: jax.grad(objective, has_aux=True)(params, key, x)[0],
            jax.grad(linear_elbo)(params, x),
            jax.random.key(2),
            num_repeats=40_000,
        )


def test_opposite_biases_do_not_cancel(x64):
    exact = jnp.array([1.0, 1.0])
    with pytest.raises(AssertionError, match="biased: coordinate"):
        assert_unbiased(
            lambda key: exact + jnp.array([0.1, -0.1]) + jax.random.normal(key, (2,)), exact, jax.random.key(0), 40_000
        )


def test_noise_does_not_pass_for_agreement(x64):
    with pytest.raises(AssertionError, match="too little power"):
        assert_unbiased(lambda key: 100 * jax.random.normal(key, (2,)), jnp.ones(2), jax.random.key(0), 100)


@pytest.mark.parametrize("baseline", [None, "leave_one_out"])
def test_score_function_of_the_importance_weighted_bound_agrees_with_pathwise(linear_problem, baseline):
    vae, params, x = linear_problem
    draws = []
    num_repeats = 400_000 if baseline is None else 40_000  # without a baseline it takes that many
    for i, estimator in enumerate((estimators.pathwise(), estimators.score_function(baseline))):
        objective = objectives.make_iwae(vae, estimator, 3)
        keys = jax.random.split(jax.random.key(i), num_repeats)

        def flat_grad(key, objective=objective):
            return ravel_pytree(jax.grad(objective, has_aux=True)(params, key, x)[0])[0]

        draws.append(jax.jit(lambda keys, grad=flat_grad: lax.map(grad, keys, batch_size=1000))(keys))
    means = [draw.mean(axis=0) for draw in draws]
    error = np.sqrt(sum(draw.var(axis=0) for draw in draws) / num_repeats)
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(means[0])
    assert (np.abs(means[0] - means[1]) < 5 * error).all()


@pytest.mark.parametrize("kl", ELBO_FORMS)
def test_value_does_not_depend_on_the_estimator(kl):
    vae = models.mlp_vae((3,), 2, (5,))
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    chosen = (estimators.pathwise(), estimators.score_function(), estimators.score_function(baseline="leave_one_out"))
    for make in (lambda e: objectives.make_elbo(vae, e, 4, kl=kl), lambda e: objectives.make_iwae(vae, e, 4)):
        values = [jax.jit(make(estimator))(params, jax.random.key(1), x)[0] for estimator in chosen]
        assert values[0] == values[1] == values[2]


def test_a_baseline_changes_neither_value_nor_mean(x64):
    q = lambda mean: dist.Normal(mean, jnp.ones(())).expand((1,)).to_event(1)  # noqa: E731
    estimator = estimators.score_function()

    def value(mean, key, baseline):
        integrand = lambda z, q: ((z[0] - 2.0) ** 2, None)  # noqa: E731
        return estimator(key, q(mean), integrand, 1, estimators.mean_reduction(), baseline).bound

    key, mean = jax.random.key(0), jnp.array(0.5)
    assert value(mean, key, None) == value(mean, jax.random.clone(key), jnp.array(100.0))
    # E (x - k)^2 has gradient 2 (mean - k).
    for baseline in (None, jnp.array(3.0)):
        assert_unbiased(
            lambda key, b=baseline: jax.grad(value)(mean, key, b), jnp.array(-3.0), jax.random.key(1), 100_000
        )


@pytest.mark.parametrize("baseline", [None, "leave_one_out"])
def test_score_function_takes_no_derivative_in_the_sample(baseline):
    def value(mean, hide):
        q = dist.Normal(mean, jnp.exp(mean)).to_event(1)
        integrand = lambda z, q: ((jnp.exp(hide(z)) * mean).sum(), None)  # noqa: E731
        estimate = estimators.score_function(baseline)
        return estimate(jax.random.key(0), q, integrand, 3, estimators.mean_reduction()).bound

    mean = jnp.array([0.5, -1.0])
    seen, hidden = (jax.grad(value)(mean, hide) for hide in (lambda z: z, lax.stop_gradient))
    np.testing.assert_array_equal(seen, hidden)
    assert (seen != 0).all()


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_equal_their_definitions(name, x64):
    reduce = REDUCTIONS[name]
    log_w = 10 * jax.random.normal(jax.random.key(0), (5, 3))
    of = {"mean": np.mean, "log-mean-exp": lambda a, axis: np.log(np.mean(np.exp(a), axis=axis))}[name]
    np.testing.assert_allclose(reduce.bound(log_w), of(np.asarray(log_w), axis=0), rtol=1e-12)
    for k in range(5):
        others = np.delete(np.asarray(log_w), k, axis=0)
        np.testing.assert_allclose(reduce.leave_one_out(log_w)[k], of(others, axis=0), rtol=1e-10)
    for function in (reduce.bound, reduce.leave_one_out):
        np.testing.assert_allclose(function(log_w + 7), function(log_w) + 7, rtol=1e-10)


def test_leave_one_out_keeps_digits_beside_a_dominant_weight():
    log_w = jnp.array([[-800.0], [-100.0], [-801.0]])
    left_out = estimators.log_mean_exp_reduction().leave_one_out(log_w)
    np.testing.assert_allclose(left_out[1], np.logaddexp(-800, -801) - np.log(2), rtol=1e-6)


def test_samples_in_chunks_or_a_loop_are_the_same_samples():
    draw = lambda key: jax.random.normal(key, (3,))  # noqa: E731
    (base,) = jax.random.split(jax.random.key(0), 1)
    loop = np.stack([draw(jax.random.fold_in(base, k)) for k in range(7)])
    for chunk_size in (None, 1, 2, 3, 7, 100):
        np.testing.assert_array_equal(
            jax.jit(lambda key, c=chunk_size: estimators.over_samples(draw, key, 7, c))(jax.random.key(0)), loop
        )


def test_pathwise_on_a_discrete_q_names_an_estimator_that_can():
    q = dist.BernoulliLogits(jnp.zeros(3)).to_event(1)
    with pytest.raises(ValueError, match=r"q = BernoulliLogits has none. Use estimators.score_function"):
        estimators.pathwise()(jax.random.key(0), q, lambda z, q: (z.sum(), None), 1, estimators.mean_reduction())


def test_leave_one_out_with_one_sample_names_estimators_that_can():
    vae = models.linear_vae(3, 2)
    objective = objectives.make_elbo(vae, estimators.score_function(baseline="leave_one_out"), 1)
    with pytest.raises(ValueError, match=r"num_samples >= 2, .* got 1. Raise num_samples, or use score_function\(\)"):
        objective(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((2, 3)))


def test_unknown_baseline_names_the_known():
    with pytest.raises(ValueError, match="baseline must be None or 'leave_one_out'; got 'nvil'"):
        estimators.score_function(baseline="nvil")
