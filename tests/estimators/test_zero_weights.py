"""An example whose weights are all zero has a bound of -inf and no gradient, in every estimator and reduction."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from vaejax import distributions, estimators, models, monte_carlo, objectives
from vaejax.estimators.reductions import rewards

REDUCTIONS = {
    "mean": estimators.mean_reduction(),
    "log-mean-exp": estimators.log_mean_exp_reduction(),
    "renyi 0.5": estimators.renyi_reduction(0.5),
    "renyi 2": estimators.renyi_reduction(2.0),
    "renyi -1": estimators.renyi_reduction(-1.0),
    "largest": estimators.renyi_reduction(-math.inf),
    "smallest": estimators.renyi_reduction(math.inf),
}
ESTIMATORS = {
    "pathwise": estimators.pathwise(),
    "sticking the landing": estimators.sticking_the_landing(),
    "doubly reparameterized": estimators.doubly_reparameterized(),
    "score function": estimators.score_function(),
    "leave-one-out": estimators.score_function("leave_one_out"),
    "moving average": estimators.score_function("moving_average"),
    "VIMCO": estimators.vimco(),
    "measure-valued": estimators.measure_valued(),
}


def bounds(estimator, reduce, high):
    """`params -> (2,)`: of q = N(mean, 0.1) under a prior on (-1, high), for two examples."""

    def function(params):
        q = dist.Normal(params["mean"], 0.1).to_event(1)

        def integrand(z, q):
            log_likelihood = -0.5 * ((z - params["theta"]) ** 2).sum(axis=-1)
            # Its logarithm is NaN below the support, and would poison the gradient.
            log_prior = distributions.log_prob(
                dist.TransformedDistribution(dist.Beta(2.0, 2.0), prior_range).to_event(1), z
            )
            return log_likelihood + log_prior - distributions.log_prob(q, z), None

        prior_range = dist.transforms.AffineTransform(
            -1.0, jnp.full(1, high + 1.0), domain=dist.constraints.unit_interval
        )
        baseline = params["baseline"] if estimator.baseline else None
        return estimator(jax.random.key(0), q, integrand, 3, reduce, baseline).bound

    return function


PAIRS = [(name, reduction) for name in ESTIMATORS for reduction in ("mean", "log-mean-exp")]
PAIRS += [(name, reduction) for name in ("doubly reparameterized", "VIMCO") for reduction in list(REDUCTIONS)[2:]]


@pytest.mark.parametrize(
    ("name", "reduction"),
    [pytest.param(*pair, marks=[] if pair[1] in ("mean", "log-mean-exp") else [pytest.mark.slow]) for pair in PAIRS],
)
def test_an_impossible_example_has_no_gradient(name, reduction, caplog):
    params = {"mean": jnp.array([[50.0], [0.0]]), "theta": jnp.array(0.3), "baseline": jnp.array([1.0, 1.0])}
    function = bounds(ESTIMATORS[name], REDUCTIONS[reduction], 1.0)
    value, pull_back = jax.vjp(function, params)
    (both,), (second,) = pull_back(jnp.ones(2)), pull_back(jnp.array([0.0, 1.0]))
    assert value[0] == -jnp.inf
    assert jnp.isfinite(value[1])
    assert jnp.all(both["mean"][0] == 0)
    assert both["baseline"][0] == 0
    jax.tree.map(np.testing.assert_array_equal, both, second)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(both))
    assert jnp.abs(both["mean"][1]) > 0


@pytest.mark.parametrize("reduction", [name for name in REDUCTIONS if name not in ("mean", "renyi 2", "smallest")])
def test_the_gradient_of_a_bound_leaves_out_the_samples_of_weight_zero(reduction):
    reduce, rest = REDUCTIONS[reduction], jnp.array([0.3, 1.2, -0.5])
    value, slope = jax.value_and_grad(reduce.bound)(jnp.array([0.3, -jnp.inf, 1.2, -0.5, -jnp.inf]))
    power = {"log-mean-exp": 1.0, "renyi 0.5": 0.5, "renyi -1": 2.0, "largest": np.inf}[reduction]
    if power == np.inf:
        expected, weights = 1.2, jnp.array([0.0, 1.0, 0.0])
    else:
        expected, weights = np.log(np.exp(power * np.float64(rest)).sum() / 5) / power, jax.nn.softmax(power * rest)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, jnp.array([weights[0], 0, weights[1], weights[2], 0]), atol=1e-6)
    loo = reduce.leave_one_out(jnp.array([0.3, -jnp.inf, 1.2, -0.5, -jnp.inf]))
    np.testing.assert_allclose(loo[0], reduce.bound(jnp.array([-jnp.inf, 1.2, -0.5, -jnp.inf])), rtol=1e-6)


@pytest.mark.parametrize("name", ["leave-one-out", "VIMCO"])
def test_rewards_are_finite_where_one_sample_alone_is_possible(name):
    def bound(logit):
        q = distributions.BernoulliLogits(logit)
        integrand = lambda z, q: (jnp.where(z == 1, 2.0, -jnp.inf), z)  # noqa: E731
        return ESTIMATORS[name](jax.random.key(2), q, integrand, 3, estimators.log_mean_exp_reduction())

    gradient, z = jax.grad(lambda logit: tuple(bound(logit)), has_aux=True)(0.0)
    assert z.tolist().count(1) == 1
    # The reward of the possible sample is the bound; those of the others 0, or the bound less the bound without them.
    alone = 2 - np.log(3)
    others = np.log(2 / 3) if name == "leave-one-out" else 0.0
    np.testing.assert_allclose(gradient, 0.5 * alone - 0.5 * 2 * others, rtol=1e-5)


def test_rewards_of_an_impossible_example_are_zero():
    assert rewards(jnp.array([-jnp.inf]), jnp.full((3, 1), -jnp.inf)).tolist() == [[0.0]] * 3


def test_enumeration_of_impossible_states():
    def bound(logits):
        q = distributions.BernoulliLogits(logits)
        log_w = jnp.array([[0.5, 0.7, 0.9], [-jnp.inf, 0.2, -jnp.inf]])
        integrand = lambda z, q: (jnp.take_along_axis(log_w, z.astype(int)[None], axis=0)[0], None)  # noqa: E731
        return estimators.enumerate_support()(None, q, integrand, 1, estimators.mean_reduction()).bound

    logits = jnp.array([0.0, 0.0, -200.0])  # the last gives the impossible state no probability
    values = bound(logits)
    np.testing.assert_allclose(values, [-jnp.inf, 0.45, 0.9], rtol=1e-6)
    slopes = jax.vjp(bound, logits)[1](jnp.array([1.0, 1.0, 0.0]))[0]
    np.testing.assert_allclose(slopes, [0, -0.125, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "make", [objectives.make_iwae, lambda vae, **options: objectives.make_elbo(vae, kl="sampled", **options)]
)
def test_one_impossible_example_leaves_the_parameters_alone(make):
    vae = models.linear_vae(data_dim=2, latent_dim=2)
    vae = vae._replace(prior=lambda params: dist.Uniform(-jnp.ones(2), 1.0).to_event(1))
    params = vae.init(jax.random.key(0))
    params["encoder"]["head"]["log_std"] = jnp.full(2, -5.0)
    params["encoder"]["network"]["layer_0"]["kernel"] = jnp.eye(2)
    gradient = jax.jit(jax.grad(make(vae, num_samples=3), has_aux=True))
    both, info = gradient(params, jax.random.key(1), jnp.array([[0.1, 0.2], [50.0, 0.2]]))
    assert jnp.isneginf(info.per_example).tolist() == [False, True]
    assert info.ess[1] == 0
    assert info.bound == -jnp.inf
    impossible, _ = gradient(params, jax.random.key(1), jnp.array([[50.0, 0.2], [50.0, 0.2]]))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(impossible))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(both))
    assert jnp.abs(both["decoder"]["network"]["layer_0"]["kernel"]).max() > 0


@pytest.mark.slow
def test_an_impossible_latent_costs_nothing_where_the_kl_has_no_weight():
    vae = models.linear_vae(data_dim=2, latent_dim=2)
    vae = vae._replace(prior=lambda params: dist.Uniform(jnp.full(2, 50.0), 51.0).to_event(1))
    elbo = objectives.make_elbo(vae, kl="sampled", beta=lambda step: 0.0 * step)
    value, gradient = jax.value_and_grad(elbo, has_aux=True)(
        vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((1, 2)), step=0
    )
    assert jnp.isfinite(value[0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("surrogate", [jnp.inf, -jnp.inf, jnp.nan])
def test_an_infinite_surrogate_keeps_the_value_and_has_no_number_for_a_gradient(surrogate):
    value, slope = jax.value_and_grad(lambda x: monte_carlo.with_gradient_of(jnp.array(7.0), x * surrogate))(3.0)
    assert value == 7
    assert jnp.isnan(slope)
