"""A q of named parts, each with its own estimator, against sums and quadrature over all of them."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import assert_unbiased, in_float64

from vaejax import distributions, estimators, models, networks, objectives
from vaejax.distributions import Parts

EACH = {
    "enumeration and pathwise": ({"y": estimators.enumerate_support(), "z": estimators.pathwise()}, 1),
    "enumeration and pathwise, K=3": ({"y": estimators.enumerate_support(), "z": estimators.pathwise()}, 3),
    "DisARM and leave-one-out": ({"y": estimators.disarm(), "z": estimators.score_function("leave_one_out")}, 4),
    "RODEO and sticking the landing": ({"y": estimators.rodeo(5), "z": estimators.sticking_the_landing()}, 2),
    "REBAR and moving average": ({"y": estimators.rebar(), "z": estimators.score_function("moving_average")}, 2),
}
PARAMS = {"y": [0.3, -1.0], "m": [0.4, -0.7], "s": [-0.5, 0.2], "t": 0.7}
DEPENDENT = {"independent": False, "dependent": True}


def make_q(is_dependent):
    def make(params):
        scale = jnp.exp(params["s"])
        y = distributions.BernoulliLogits(params["y"]).to_event(1)
        if not is_dependent:
            return Parts(y=y, z=dist.Normal(params["m"], scale).to_event(1))
        return Parts(y=y, z=lambda before: dist.Normal(params["m"] + 0.8 * before["y"], scale).to_event(1))

    return make


def f(params, v):
    y, z = v[:2], v[2:]
    return (y @ jnp.array([0.8, -0.4]) + y[0] * z[0] + 0.5 * z[1] - params["t"]) ** 2


def exact(is_dependent):
    """Its gradient, by the sum over y and Gauss-Hermite quadrature over z, exact for a polynomial."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    weights = weights / weights.sum()
    points = jnp.array(list(itertools.product((0.0, 1.0), (0.0, 1.0), nodes, nodes)))
    masses = jnp.array([w * v for _, _, w, v in itertools.product((0, 1), (0, 1), weights, weights)])

    def mean(params):
        def term(point, mass):
            y = point[:2]
            z = params["m"] + (0.8 * y if is_dependent else 0) + jnp.exp(params["s"]) * point[2:]
            p = jax.nn.sigmoid(params["y"])
            return jnp.prod(jnp.where(y == 1, p, 1 - p)) * mass * f(params, jnp.concatenate([y, z]))

        return jax.vmap(term)(points, masses).sum()

    return jax.grad(mean)


CASES = [
    pytest.param(
        name, kind, marks=[] if (name, kind) == ("enumeration and pathwise", "dependent") else pytest.mark.slow
    )
    for name in EACH
    for kind in DEPENDENT
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_gradient_is_unbiased(name, kind, x64):
    own, num_samples = EACH[name]
    estimator, params = estimators.by_part(own), {k: jnp.array(v) for k, v in PARAMS.items()}
    full = in_float64(estimators.with_baseline(params, estimator, jax.random.key(3), jnp.zeros(1)))
    assert set(full.get("baseline", {})) == {part for part in own if own[part].baseline is not None}
    bound = jax.grad(estimators.expectation(estimator, make_q(DEPENDENT[kind]), f, num_samples), has_aux=True)

    def gradient(key):
        grads, _ = bound(full, key)
        return {name: grads[name] for name in params}

    assert_unbiased(
        gradient,
        exact(DEPENDENT[kind])(params),
        jax.random.key(1),
        {"DisARM": 40_000, "REBAR ": 60_000}.get(name[:6], 8_000),
        largest_error=0.03,
    )


@pytest.mark.slow
def test_a_part_that_is_detached_is_biased(x64):
    def detached(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None):
        stopped = jax.lax.stop_gradient(q)
        return estimators.pathwise()(key, stopped, integrand, num_samples, reduce, baseline, chunk_size)

    params = {k: jnp.array(v) for k, v in PARAMS.items()}
    estimator = estimators.by_part({"y": estimators.enumerate_support(), "z": detached})
    gradient = jax.grad(estimators.expectation(estimator, make_q(False), f, 1), has_aux=True)
    with pytest.raises(AssertionError, match="biased: coordinate"):
        assert_unbiased(lambda key: gradient(params, key)[0], exact(False)(params), jax.random.key(1), 10_000)


TWO_LAYERS = {
    "DisARM": (estimators.disarm(), estimators.disarm(), 4),
    "double control variates and MuProp": (estimators.double_control_variates(), estimators.muprop(), 2),
    "leave-one-out and enumeration": (estimators.score_function("leave_one_out"), estimators.enumerate_support(), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_LAYERS)
def test_two_layers_of_bits_where_the_second_depends_on_the_first(name, x64):
    lower, upper, num_samples = TWO_LAYERS[name]
    weights = jax.random.normal(jax.random.key(0), (3, 4))
    matrix = jax.random.normal(jax.random.key(1), (7, 5))

    def make(params):
        def second(before):
            return distributions.BernoulliLogits(before["lower"] @ (weights * params["scale"])).to_event(1)

        return Parts(lower=distributions.BernoulliLogits(params["logits"]).to_event(1), upper=second)

    def energy(params, v):
        return 2 * jnp.tanh(v @ matrix + params["theta"]).sum()

    states = jnp.array(list(itertools.product((0.0, 1.0), repeat=7)))

    def mean(params):
        log_q = distributions.log_prob(make(params), states)
        return (jnp.exp(log_q) * jax.vmap(lambda v: energy(params, v))(states)).sum()

    params = {"logits": jnp.array([0.4, -1.0, 0.2]), "scale": jnp.array(0.7), "theta": jnp.array(0.3)}
    estimator = estimators.by_part({"lower": lower, "upper": upper})
    full = in_float64(estimators.with_baseline(params, estimator, jax.random.key(3), jnp.zeros(1)))
    value = jax.grad(estimators.expectation(estimator, make, energy, num_samples), has_aux=True)

    def gradient(key):
        grads, _ = value(full, key)
        return {name: grads[name] for name in params}

    assert_unbiased(gradient, jax.grad(mean)(params), jax.random.key(1), 20_000, largest_error=0.03)


def mixed_vae():
    """Three classes and two Gaussians behind five pixels."""
    encoder, decoder = networks.mlp(5, (4,), 7), networks.mlp(5, (4,), 5)

    def init(key):
        keys = jax.random.split(key)
        return {"encoder": encoder.init(keys[0]), "decoder": decoder.init(keys[1]), "prior": {}}

    def encode(params, x):
        outputs = encoder.apply(params["encoder"], x.reshape(-1, 5)).reshape(*x.shape[:-1], 7)
        z = dist.Normal(outputs[..., 3:5], jnp.exp(outputs[..., 5:])).to_event(1)
        return Parts(y=dist.CategoricalLogits(outputs[..., :3]), z=z)

    def decode(params, z):
        inputs = jnp.concatenate([jax.nn.one_hot(z[..., 0].astype(int), 3, dtype=z.dtype), z[..., 1:]], axis=-1)
        logits = decoder.apply(params["decoder"], inputs.reshape(-1, 5)).reshape(*z.shape[:-1], 5)
        return distributions.BernoulliLogits(logits).to_event(1)

    def prior(params):
        del params
        return Parts(y=dist.CategoricalLogits(jnp.zeros(3)), z=dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1))

    return models.VAE(init, encode, decode, prior)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kl", objectives.KL_FORMS)
def test_a_model_of_parts_is_trained_by_part_in_every_form_of_the_kl(kl):
    vae = mixed_vae()
    params, x = vae.init(jax.random.key(0)), jax.random.bernoulli(jax.random.key(1), 0.5, (7, 5)).astype(float)
    estimator = estimators.by_part({"y": estimators.enumerate_support(), "z": estimators.pathwise()})
    whole, chunked = (
        jax.jit(jax.value_and_grad(objectives.make_elbo(vae, estimator, 4, kl=kl, chunk_size=size), has_aux=True))(
            params, jax.random.key(2), x
        )
        for size in (None, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, chunked)
    (value, info), _ = whole
    assert info.log_w.shape == (4, 7)
    reference, _ = objectives.make_elbo(vae, estimators.score_function(), 4000, kl=kl)(params, jax.random.key(3), x)
    np.testing.assert_allclose(value, reference, atol=0.3)


@pytest.mark.slow
def test_rodeo_of_a_part_under_vmap():
    # Of products with seven axes jaxlib 0.10 made a program that crashed on CPUs.
    posterior = distributions.side_by_side(bits=(3, distributions.bernoulli()), numbers=(2, distributions.gaussian()))
    vae = models.mlp_vae((8, 8), 5, (4,), posterior=posterior)
    estimator = estimators.by_part({"bits": estimators.rodeo(4), "numbers": estimators.pathwise()})
    elbo = objectives.make_elbo(vae, estimator, num_samples=2)
    x = jax.random.bernoulli(jax.random.key(1), shape=(100, 8, 8)).astype(float)

    def gradient(keys):
        params = estimators.with_baseline(vae.init(keys[0]), estimator, keys[1], x[:1])
        return jax.grad(lambda params: elbo(params, keys[2], x)[0])(params)

    keys = jax.random.split(jax.random.key(0), (2, 3))
    together = jax.jit(jax.vmap(gradient))(jax.random.clone(keys))
    apart = [jax.jit(gradient)(jax.random.clone(own)) for own in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart)
    chex.assert_trees_all_close(together, stacked, rtol=1e-4, atol=1e-5)
