"""What the estimators of discrete latents cannot serve, they refuse, and name one that can."""

import inspect

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from vaejax import distributions, estimators, models, objectives

BITS = dist.BernoulliLogits(jnp.zeros((7, 2))).to_event(1)
CATEGORIES = dist.CategoricalLogits(jnp.zeros((7, 2, 3))).to_event(1)
GAUSSIAN = dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1)
POISSON = dist.Poisson(jnp.ones((7, 2))).to_event(1)
PARTS = distributions.Parts(y=BITS, z=GAUSSIAN)
MEAN, WEIGHTED = estimators.mean_reduction(), estimators.log_mean_exp_reduction()
NEW = ("arms", "disarm", "double_control_variates", "muprop", "rebar", "reinmax", "relax", "rodeo", "straight_through")


def refusal(estimator, q, num_samples=2, reduce=MEAN):
    """The message, asked for without running anything."""
    integrand = lambda z, q: (jnp.asarray(z, float).sum(axis=-1), None)  # noqa: E731
    with pytest.raises(ValueError, match="got") as caught:
        jax.eval_shape(lambda key: estimator(key, q, integrand, num_samples, reduce), jax.random.key(0))
    return str(caught.value)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("q", [GAUSSIAN, POISSON], ids=["gaussian", "poisson"])
def test_another_q_is_refused_by_name(name, q):
    message = refusal(getattr(estimators, name)(), q)
    assert message.startswith(f"{name}() serves Bernoulli")
    assert f"got q = {distributions.name_of(q)}" in message
    assert ("pathwise()" in message) == (q is GAUSSIAN)
    assert "score_function(baseline='leave_one_out')" in message


@pytest.mark.parametrize("name", ["double_control_variates", "muprop", "rodeo"])
def test_those_of_bits_alone_name_one_for_categories(name):
    assert refusal(getattr(estimators, name)(), CATEGORIES).endswith("Use disarm()")


def test_pairs_are_even():
    assert "score_function('leave_one_out') serves an odd number" in refusal(estimators.disarm(), BITS, 3)
    vae = models.mlp_vae((3,), 2, (4,), posterior="bernoulli")
    params = jax.eval_shape(vae.init, jax.random.key(0))
    with pytest.raises(ValueError, match="num_samples must be divisible by the 2 samples of a pair; got 3"):
        jax.eval_shape(objectives.make_elbo(vae, estimators.disarm(), 3), params, jax.random.key(1), jnp.ones((2, 3)))


@pytest.mark.parametrize("name", ["arms", "double_control_variates", "rodeo", "ovis"])
def test_one_sample_is_too_few(name):
    message = refusal(getattr(estimators, name)(), BITS, 1, WEIGHTED if name == "ovis" else MEAN)
    assert message.startswith("num_samples must be an integer of at least 2; got 1")
    assert "score_function()" in message


def test_a_bound_that_is_not_served_is_refused():
    for name in ("double_control_variates", "rodeo"):
        assert "got a bound that is none, as the importance-weighted one. Use disarm()" in refusal(
            getattr(estimators, name)(), BITS, 2, WEIGHTED
        )
    assert "got a mean over samples, as the ELBO is. Use score_function" in refusal(estimators.ovis(), BITS)
    by_part = estimators.by_part({"y": estimators.disarm(), "z": estimators.pathwise()})
    assert "got a bound that is none" in refusal(by_part, PARTS, 2, WEIGHTED)


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, jnp.nan, "low", None])
@pytest.mark.parametrize("make", [estimators.gumbel_softmax, estimators.rebar, estimators.relax])
def test_a_temperature_is_positive(make, temperature, no_type_hook):
    arguments = {"temperature": temperature}
    with pytest.raises(ValueError, match="temperature must be a number above 0; got"):
        make(**arguments)


def test_a_poisson_is_told_what_serves_it():
    message = refusal(estimators.pathwise(), POISSON)
    assert "enumerate_support" not in message
    assert "Use score_function(baseline='leave_one_out') with num_samples >= 2" in message
    assert "enumerate_support()" in refusal(estimators.pathwise(), BITS)
    assert "enumerate_support" not in refusal(
        estimators.pathwise(), dist.BernoulliLogits(jnp.zeros((7, 20))).to_event(1)
    )


def test_parts_and_their_estimators_belong_together(no_type_hook):
    pathwise = estimators.pathwise()
    message = refusal(estimators.by_part({"y": estimators.disarm(), "z": pathwise}), PARTS, 3)
    assert "num_samples must be divisible by the 2 samples that the parts' estimators need; got 3" in message
    with pytest.raises(ValueError, match=r"each part of q, y, z; got z: add one for y"):
        estimators.by_part({"z": pathwise})(jax.random.key(0), PARTS, None, 1, MEAN)
    with pytest.raises(ValueError, match=r"got y, z, w: q has no part w"):
        estimators.by_part(dict.fromkeys("yzw", pathwise))(jax.random.key(0), PARTS, None, 1, MEAN)
    with pytest.raises(ValueError, match="serves a q of named parts"):
        estimators.by_part({"z": pathwise})(jax.random.key(0), GAUSSIAN, None, 1, MEAN)
    with pytest.raises(ValueError, match="for each part by name; got none"):
        estimators.by_part({})
    with pytest.raises(ValueError, match="a dict of estimators by the names"):
        estimators.by_part([pathwise])
    with pytest.raises(TypeError, match=r"call it, pathwise\(\)"):
        estimators.by_part({"z": estimators.pathwise})


def factories():
    """Every function of the room that makes an estimator."""
    found = {name: getattr(estimators, name) for name in estimators.__all__}
    return [
        name
        for name, value in found.items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation is estimators.Estimator
    ]


def test_every_factory_is_named_where_it_was_not_called():
    names = set(factories()) - {"as_estimator"}
    assert {*NEW, "gumbel_softmax", "ovis", "by_part", "pathwise", "vimco"} <= names
    for name in names:
        with pytest.raises(TypeError, match=rf"call it, {name}\("):
            estimators.as_estimator(getattr(estimators, name))
    with pytest.raises(TypeError, match=r"call it, gumbel_softmax\(temperature\)"):
        objectives.make_elbo(models.mlp_vae((3,), 2, (4,)), estimators.gumbel_softmax)


def test_an_estimator_is_no_word(no_type_hook):
    with pytest.raises(TypeError, match=r"expected an estimator, such as .*; got 'disarm'"):
        estimators.as_estimator("disarm")


@pytest.mark.parametrize("name", ["rebar", "relax", "rodeo", "double_control_variates"])
def test_what_is_trained_along_must_be_there(name):
    vae = models.mlp_vae((3,), 2, (4,), posterior="bernoulli")
    objective = objectives.make_elbo(vae, getattr(estimators, name)(), 2)
    with pytest.raises(ValueError, match=r"got only \['decoder', 'encoder', 'prior'\]. Add them: .*with_baseline\("):
        jax.eval_shape(objective, jax.eval_shape(vae.init, jax.random.key(0)), jax.random.key(1), jnp.ones((2, 3)))
