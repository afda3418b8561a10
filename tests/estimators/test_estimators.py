import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from reference import (
    assert_unbiased,
    bound_of_two_samples,
    constant_outputs_vae,
    exact_model_gradient,
    in_float64,
    linear_elbo,
    model_gradient,
    with_exact_posterior,
    with_wrong_baseline,
)

from vaejax import estimators, models, objectives

ELBO_FORMS = ("analytic", "sampled", "entropy")
IN_EVERY_FORM = {
    "pathwise, K=1": (estimators.pathwise(), 1),
    "pathwise, K=3": (estimators.pathwise(), 3),
    "score function, K=1": (estimators.score_function(), 1),
    "score function, K=4": (estimators.score_function(), 4),
    "leave-one-out, K=2": (estimators.score_function(baseline="leave_one_out"), 2),
    "measure-valued, K=1": (estimators.measure_valued(), 1),
}
IN_ONE_FORM = {
    "leave-one-out, K=4": (estimators.score_function(baseline="leave_one_out"), 4, "sampled"),
    "measure-valued, K=2": (estimators.measure_valued(), 2, "sampled"),
    "moving average, K=1": (estimators.score_function(baseline="moving_average"), 1, "analytic"),
    "moving average, K=4": (estimators.score_function(baseline="moving_average"), 4, "sampled"),
    "NVIL, K=1": (estimators.score_function(baseline="nvil"), 1, "entropy"),
    "NVIL, K=4": (estimators.score_function(baseline="nvil"), 4, "analytic"),
    "VIMCO, K=3": (estimators.vimco(), 3, "sampled"),
    "sticking the landing, K=1": (estimators.sticking_the_landing(), 1, "sampled"),
    "sticking the landing, K=3": (estimators.sticking_the_landing(), 3, "sampled"),
    "doubly reparameterized, K=3": (estimators.doubly_reparameterized(), 3, "sampled"),
}
# By estimator, its K, and the form of the KL.
CASES = [(name, *case, kl) for name, case in IN_EVERY_FORM.items() for kl in ELBO_FORMS]
CASES += [(name, *case) for name, case in IN_ONE_FORM.items()]
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "estimator", "num_samples", "kl"), CASES, ids=lambda case: case if isinstance(case, str) else ""
)
def test_gradient_is_unbiased(linear_problem, name, estimator, num_samples, kl):
    vae, params, x = linear_problem
    exact = exact_model_gradient(lambda params: linear_elbo(params, x), params)
    params = with_wrong_baseline(params, estimator, x)
    objective = objectives.make_elbo(vae, estimator, num_samples, kl=kl)
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), num_repeats=40_000)


@pytest.mark.quick_for("entropy")
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


BOUND_OF_TWO = {
    "pathwise": estimators.pathwise(),
    "doubly reparameterized": estimators.doubly_reparameterized(),
    "score function": estimators.score_function(),
    "leave-one-out": estimators.score_function(baseline="leave_one_out"),
    "moving average": estimators.score_function(baseline="moving_average"),
    "NVIL": estimators.score_function(baseline="nvil"),
    "VIMCO": estimators.vimco(),
    "measure-valued": estimators.measure_valued(),
}


@pytest.fixture
def narrow_problem(x64):
    """A linear VAE with one latent, and the exact gradient of its importance-weighted bound of two samples."""
    vae = models.linear_vae(data_dim=3, latent_dim=1)
    params = in_float64(vae.init(jax.random.key(0)))
    params["encoder"]["head"]["log_std"] = jnp.array([-0.4])
    x = jax.random.normal(jax.random.key(1), (2, 3))
    return vae, params, x, exact_model_gradient(lambda params: bound_of_two_samples(params, x), params)


@pytest.mark.quick_for("doubly reparameterized", "VIMCO", "pathwise")
@pytest.mark.parametrize("name", BOUND_OF_TWO)
def test_gradient_of_the_importance_weighted_bound_is_unbiased(narrow_problem, name):
    vae, params, x, exact = narrow_problem
    estimator = BOUND_OF_TWO[name]
    params = with_wrong_baseline(params, estimator, x)
    objective = objectives.make_iwae(vae, estimator, 2)
    num_repeats = 400_000 if name == "score function" else 100_000  # without a baseline it takes that many
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), num_repeats)


@pytest.mark.parametrize(
    ("name", "beta"),
    [("doubly reparameterized", 0.3), ("doubly reparameterized", 2.0)]
    + [
        pytest.param(name, 0.3, marks=pytest.mark.slow)
        for name in BOUND_OF_TWO
        if name not in ("score function", "doubly reparameterized")
    ],
)
def test_gradient_of_a_bound_whose_kl_is_weighted_is_unbiased(narrow_problem, name, beta):
    """As under a warm-up: what replaces the score of q has the weight that log q has."""
    vae, params, x, _ = narrow_problem
    exact = exact_model_gradient(lambda params: bound_of_two_samples(params, x, beta=beta), params)
    estimator = BOUND_OF_TWO[name]
    params = with_wrong_baseline(params, estimator, x)
    objective = objectives.make_iwae(vae, estimator, 2, beta=beta)
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 100_000)


def test_without_a_kl_the_doubly_reparameterized_gradient_is_the_pathwise_one(narrow_problem):
    vae, params, x, _ = narrow_problem
    first, second = (
        jax.jit(jax.grad(objectives.make_iwae(vae, estimator, 5, beta=lambda step: 0.1 * step), has_aux=True))(
            params, jax.random.key(1), x, step=jnp.array(0)
        )[0]
        for estimator in (estimators.pathwise(), estimators.doubly_reparameterized())
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), first, second)


def test_sticking_the_landing_is_biased_for_the_importance_weighted_bound(narrow_problem, caplog):
    vae, params, x, exact = narrow_problem
    objective = objectives.make_iwae(vae, estimators.sticking_the_landing(), 2)
    with pytest.raises(AssertionError, match="biased: coordinate"):
        assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 100_000)
    assert "biased for the importance-weighted bound of K = 2 > 1" in caplog.text
    assert "doubly_reparameterized() is its unbiased form" in caplog.text


def test_sticking_the_landing_of_the_bound_of_one_sample_is_unbiased(linear_problem, caplog):
    vae, params, x = linear_problem
    objective = objectives.make_iwae(vae, estimators.sticking_the_landing(), 1)
    exact = exact_model_gradient(lambda params: linear_elbo(params, x), params)
    assert_unbiased(model_gradient(objective, params, x), exact, jax.random.key(2), 40_000)
    assert not caplog.text


@pytest.mark.parametrize("make", [objectives.make_elbo, objectives.make_iwae])
@pytest.mark.parametrize("name", ["sticking the landing", "doubly reparameterized"])
def test_encoder_gradient_is_zero_for_each_sample_at_the_exact_posterior(linear_problem, name, make):
    vae, params, x = linear_problem
    params = with_exact_posterior(params)
    of_name = {
        "sticking the landing": estimators.sticking_the_landing(),
        "doubly reparameterized": estimators.doubly_reparameterized(),
    }
    arguments = {"kl": "sampled"} if make is objectives.make_elbo else {}
    for estimator in (of_name[name], estimators.pathwise()):
        gradient = model_gradient(make(vae, estimator, 3, **arguments), params, x)
        keys = jax.random.split(jax.random.key(0), 20)
        encoder = jax.jit(jax.vmap(lambda key, of=gradient: ravel_pytree(of(key)["encoder"])[0]))(keys)
        if estimator is of_name[name]:
            assert np.abs(encoder).max() < 1e-12
        else:
            assert np.abs(encoder).max(axis=1).min() > 1e-3


@pytest.mark.quick_for("importance-weighted")
@pytest.mark.parametrize("form", ["sampled", "importance-weighted"])
def test_value_does_not_depend_on_the_estimator(form):
    vae = models.mlp_vae((3,), 2, (5,))
    params, x = vae.init(jax.random.key(0)), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    values = {}
    for name, estimator in (BOUND_OF_TWO | {"sticking the landing": estimators.sticking_the_landing()}).items():
        if form == "importance-weighted":
            objective = objectives.make_iwae(vae, estimator, 4)
        else:
            objective = objectives.make_elbo(vae, estimator, 4, kl=form)
        own = with_wrong_baseline(params, estimator, x)
        values[name] = float(jax.jit(objective)(own, jax.random.key(1), x)[0])
    assert len(values) >= 7
    assert len(set(values.values())) == 1


@pytest.mark.quick_for("leave-one-out", "VIMCO")
@pytest.mark.parametrize("name", ["doubly reparameterized", "leave-one-out", "VIMCO", "measure-valued", "NVIL"])
def test_gradients_are_finite_for_every_network_output(name):
    vae = constant_outputs_vae("bernoulli", [0.0] * 4, [0.0] * 3, jnp.float32)
    x = jnp.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    params = with_wrong_baseline(vae.init(jax.random.key(0)), BOUND_OF_TWO[name], x)
    gradient = jax.jit(jax.grad(objectives.make_iwae(vae, BOUND_OF_TWO[name], 3), has_aux=True))
    for mean in (-1e4, 0.0, 1e4):
        for raw in (-1e4, -100.0, 0.0, 100.0, 1e4):
            params["encoder"]["network"]["row"] = jnp.array([mean, -mean, raw, raw])
            params["decoder"]["network"]["row"] = jnp.array([mean, raw, -mean])
            grads, _ = gradient(params, jax.random.key(1), x)
            assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["doubly reparameterized", "measure-valued"])
def test_samples_in_chunks_give_the_same_gradient(name, x64):
    vae = models.mlp_vae((3,), 2, (5,))
    params, x = in_float64(vae.init(jax.random.key(0))), jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    params = with_wrong_baseline(params, BOUND_OF_TWO[name], x)
    whole, chunked = (
        jax.jit(jax.value_and_grad(objectives.make_iwae(vae, BOUND_OF_TWO[name], 5, chunk_size=size), has_aux=True))(
            params, jax.random.key(1), x
        )
        for size in (None, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), whole, chunked)


@pytest.mark.slow
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


def test_unknown_baseline_names_the_known():
    with pytest.raises(ValueError, match=r"None, 'leave_one_out', 'moving_average', 'nvil' or .*; got 'mean'"):
        estimators.score_function(baseline="mean")


def test_what_is_no_baseline_is_refused(no_type_hook):
    with pytest.raises(ValueError, match=r"or a baselines.Baseline; got 3"):
        estimators.score_function(baseline=3)


@pytest.mark.parametrize("kl", ["analytic", "entropy"])
@pytest.mark.parametrize("make", [estimators.sticking_the_landing, estimators.doubly_reparameterized])
def test_a_detached_q_asks_for_the_sampled_kl(make, kl):
    with pytest.raises(ValueError, match=r"here the KL is in closed form: use pathwise.*, or kl='sampled'"):
        objectives.make_elbo(models.linear_vae(3, 2), make(), 2, kl=kl)


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (estimators.pathwise, "score_function"),
        (estimators.sticking_the_landing, "score_function"),
        (estimators.doubly_reparameterized, "vimco"),
        (estimators.measure_valued, "score_function"),
    ],
)
def test_a_discrete_posterior_is_refused_by_name(make, instead):
    vae = models.mlp_vae((3,), 2, (5,), posterior="bernoulli")
    objective = objectives.make_elbo(vae, make(), 2, kl="sampled")
    name = make.__name__
    with pytest.raises(ValueError, match=rf"{name}\(\) .* q = BernoulliLogits.*Use .*{instead}"):
        objective(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((2, 3)))


def test_measure_valued_refuses_dependent_coordinates():
    q = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(ValueError, match=r"independent coordinates; got q = MultivariateNormal. Use pathwise"):
        estimators.measure_valued()(jax.random.key(0), q, lambda z, q: (z.sum(), None), 1, estimators.mean_reduction())


@pytest.mark.parametrize("make", [estimators.vimco, lambda: estimators.score_function("leave_one_out")])
def test_one_sample_has_no_others(make):
    vae = models.linear_vae(3, 2)
    with pytest.raises(
        ValueError, match=r"num_samples .* least 2; got 1: .* raise num_samples, or use score_function\(\)"
    ):
        objectives.make_iwae(vae, make(), 1)(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((2, 3)))


@pytest.mark.parametrize("baseline", ["moving_average", "nvil"])
def test_a_trained_baseline_without_parameters_is_told_how_to_get_them(baseline):
    vae = models.linear_vae(3, 2)
    objective = objectives.make_elbo(vae, estimators.score_function(baseline))
    with pytest.raises(ValueError, match=r"got only \['decoder', 'encoder', 'prior'\]. Add them: .*with_baseline\("):
        objective(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((2, 3)))
