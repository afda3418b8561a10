"""The estimators of discrete latents against sums over all states, and wrong forms of them that fail the same test."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from enumerated import (
    bound_of,
    check_unbiased,
    make_q,
    parameters,
    with_trained,
)
from jax.flatten_util import ravel_pytree

from vaejax import distributions, estimators, models, objectives
from vaejax.estimators.discrete import control_variates, coupled, relaxations

UNBIASED = {
    "DisARM": estimators.disarm(),
    "ARMS": estimators.arms(),
    "ARMS, Gaussian": estimators.arms("gaussian"),
    "MuProp": estimators.muprop(),
    "double control variates": estimators.double_control_variates(),
    "RODEO": estimators.rodeo(10),
    "REBAR": estimators.rebar(),
    "RELAX": estimators.relax((7,)),
    "RELAX, network alone": estimators.relax((7,), through_model=False),
    "OVIS": estimators.ovis(),
    "OVIS, auxiliary": estimators.ovis(3),
}
BIASED = {
    "Gumbel-softmax": estimators.gumbel_softmax(0.5),
    "straight-through": estimators.straight_through(),
    "ReinMax": estimators.reinmax(),
}
# By estimator, family, K, whether the bound is the importance-weighted one, and the number of repeats.
QUICK = [
    ("DisARM", "bernoulli", 2, True, 6_000),
]
SLOW = [
    ("DisARM", "bernoulli", 2, False, 10_000),
    ("DisARM", "bernoulli", 3, True, 10_000),
    ("DisARM", "categorical", 2, False, 10_000),
    ("DisARM", "categorical", 2, True, 10_000),
    ("ARMS", "bernoulli", 3, False, 10_000),
    ("ARMS", "bernoulli", 4, True, 10_000),
    ("ARMS", "categorical", 2, False, 10_000),
    ("ARMS", "categorical", 3, True, 20_000),
    ("ARMS, Gaussian", "bernoulli", 3, False, 10_000),
    ("MuProp", "bernoulli", 1, False, 10_000),
    ("MuProp", "bernoulli", 2, True, 10_000),
    ("double control variates", "bernoulli", 2, False, 10_000),
    ("RODEO", "bernoulli", 2, False, 4_000),
    ("RODEO", "bernoulli", 3, False, 2_000),
    ("REBAR", "bernoulli", 1, False, 10_000),
    ("REBAR", "bernoulli", 3, True, 10_000),
    ("REBAR", "categorical", 2, True, 10_000),
    ("RELAX", "bernoulli", 2, False, 3_000),
    ("RELAX", "categorical", 1, False, 4_000),
    ("RELAX, network alone", "bernoulli", 1, False, 8_000),
    ("OVIS", "bernoulli", 2, True, 10_000),
    ("OVIS, auxiliary", "bernoulli", 4, True, 10_000),
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("name", "kind", "num_samples", "is_weighted", "num_repeats"), CASES)
def test_gradient_is_unbiased(name, kind, num_samples, is_weighted, num_repeats, x64):
    check_unbiased(kind, UNBIASED[name], num_samples, is_weighted, num_repeats)


def without_the_own_weight_left_out():
    """OVIS with a baseline that its own sample moves."""

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None):
        own = reduce._replace(leave_one_out=lambda log_w: 0.9 * jnp.broadcast_to(reduce.bound(log_w), log_w.shape))
        return estimators.ovis()(key, q, integrand, num_samples, own, baseline, chunk_size)

    return estimate


def with_its_own_slope():
    """Double control variates whose expansion holds the derivative at the sample itself."""

    def gradient(trained, f, slope, c, p):
        mean = slope.mean(axis=0)
        h = f - trained["scale"] * (c * mean[None]).sum(axis=-1)
        reward = (h - h.mean(axis=0, keepdims=True)) / (len(f) - 1)
        return (reward[..., None] * c).sum(axis=0) + trained["scale"] * p * (1 - p) * mean

    init = estimators.double_control_variates().baseline.init
    return control_variates._with_slopes("wrong", gradient, init)


def without_its_correction():
    """MuProp that subtracts the expansion and does not add its gradient."""

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None):
        p = jax.nn.sigmoid(q.base_dist.logits)
        at_mean, slope = jax.value_and_grad(lambda z: integrand(z, distributions.relaxed(q))[0])(p)

        def less_expansion(z, q):
            log_w, terms = integrand(z, q)
            return log_w - jax.lax.stop_gradient(
                at_mean + ((z.astype(p.dtype) - p[None]) * slope[None]).sum(axis=-1)
            ), terms

        less = estimators.Broadcasting(less_expansion)
        return estimators.score_function()(key, q, less, num_samples, reduce, None, chunk_size)

    return estimate


def with_one_path(monkeypatch):
    """REBAR that takes the same path for both terms, as an undetached noise has it."""
    plain = relaxations.relaxation_of

    def one_path(name, q):
        relaxation = plain(name, q)

        def noise(key, z):
            y, kept = relaxation.noise(key, z)
            return y, jnp.ones_like(kept)

        return relaxation._replace(noise=noise)

    monkeypatch.setattr(relaxations, "relaxation_of", one_path)
    return estimators.rebar()


def with_one_coupling(monkeypatch):
    """DisARM with the factor of pairs that always differ."""
    plain = coupled.coupled_gradient
    wrong = lambda bits, excess, *rest: plain(bits, 0.5 * jnp.ones_like(excess), *rest)  # noqa: E731
    monkeypatch.setattr(coupled, "coupled_gradient", wrong)
    return estimators.disarm()


def with_independent_samples(monkeypatch):
    """ARMS of coupled samples with the factor of independent ones."""
    monkeypatch.setitem(
        coupled.COPULAS, "dirichlet", (*coupled.COPULAS["dirichlet"][:2], lambda logits, num: logits * 0 + 1)
    )
    return estimators.arms()


def with_half_an_operator():
    """RODEO with h' c taken off and not its other half."""

    def gradient(trained, f, slope, c, p):
        t = (slope[::-1] * c).sum(axis=-1)
        return (((f - f[::-1]) - 0.5 * t)[..., None] * c).mean(axis=0)

    return control_variates._with_slopes("wrong", gradient, estimators.double_control_variates().baseline.init)


@pytest.mark.parametrize(
    ("make", "num_samples", "is_weighted"),
    [
        (with_one_coupling, 2, False),
        pytest.param(with_independent_samples, 3, False, marks=pytest.mark.slow),
        (with_its_own_slope, 2, False),
        pytest.param(with_half_an_operator, 2, False, marks=pytest.mark.slow),
        pytest.param(without_its_correction, 1, False, marks=pytest.mark.slow),
        pytest.param(with_one_path, 1, False, marks=pytest.mark.slow),
        pytest.param(without_the_own_weight_left_out, 3, True, marks=pytest.mark.slow),
        *(pytest.param(lambda own=own: own, 2, False, marks=pytest.mark.slow) for own in BIASED.values()),
    ],
)
def test_a_wrong_form_fails_the_same_test(make, num_samples, is_weighted, x64, monkeypatch):
    estimator = make(monkeypatch) if make.__code__.co_varnames[:1] == ("monkeypatch",) else make()
    with pytest.raises(AssertionError, match="biased: coordinate"):
        check_unbiased("bernoulli", estimator, num_samples, is_weighted, 10_000, num_latents=4)


# The samples of a mean are coupled, and so others.
COUPLED = {"DisARM", "ARMS", "ARMS, Gaussian"}
NOT_SERVED = {
    ("bernoulli", False): {*COUPLED, "OVIS", "OVIS, auxiliary"},
    ("bernoulli", True): {"double control variates", "RODEO"},
    ("categorical", False): {*COUPLED, "OVIS", "OVIS, auxiliary", "MuProp", "double control variates", "RODEO"},
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "is_weighted"), NOT_SERVED)
def test_the_value_is_that_of_the_samples(kind, is_weighted):
    """All but the coupled samples of a mean are those of the score function."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(kind, 4))
    every = {**UNBIASED, **BIASED, "score function": estimators.score_function()}
    served = sorted(set(every) - NOT_SERVED[kind, is_weighted])

    @jax.jit
    def values(key):
        bounds = {name: bound_of(every[name], 3, is_weighted) for name in served}
        return {name: bound(with_trained(params, every[name]), jax.random.clone(key)) for name, bound in bounds.items()}

    found = values(jax.random.key(1))
    assert len(found) >= 7
    assert len({float(value) for value in found.values()}) == 1


@pytest.mark.parametrize(
    "name",
    ["DisARM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("RODEO", "ReinMax"))],
)
def test_samples_in_chunks_give_the_same_gradient(name, x64):
    estimator = {**UNBIASED, **BIASED}[name]
    full = with_trained(parameters("bernoulli", 3), estimator)
    whole, chunked = (
        jax.jit(jax.value_and_grad(bound_of(estimator, 4, False, size)))(full, jax.random.key(1)) for size in (None, 3)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), whole, chunked)


@pytest.mark.parametrize(
    "name",
    ["REBAR", *(pytest.param(name, marks=pytest.mark.slow) for name in ("double control variates", "RODEO", "RELAX"))],
)
def test_what_is_trained_along_lowers_the_variance(name, x64):
    """Its gradient is minus that of the squared gradient of the logits, draw by draw."""
    estimator = UNBIASED[name]
    full = with_trained(parameters("bernoulli", 3), estimator)
    bound = bound_of(estimator, 2, False)
    gradient = jax.jit(lambda full: jax.grad(bound)(full, jax.random.key(4)))
    trained, unravel = ravel_pytree(full["baseline"])
    direction = jax.random.normal(jax.random.key(6), trained.shape) / np.sqrt(len(trained))

    def by_log_q(params):
        """The part of the gradient that comes with log q inside the bound."""
        z = estimators.over_samples(lambda key: distributions.sample(make_q(params), key), jax.random.key(4), 2)
        return -jax.vmap(lambda z: distributions.log_prob(make_q(params), z))(z).mean()

    direct = jax.grad(by_log_q)(full)["logits"]

    def energy(step):
        moved = {**full, "baseline": unravel(trained + step * direction)}
        return float(((gradient(moved)["logits"] - direct) ** 2).sum())

    slope = (energy(1e-5) - energy(-1e-5)) / 2e-5
    own = ravel_pytree(gradient(full)["baseline"])[0] @ direction
    np.testing.assert_allclose(own, -slope, rtol=1e-5)
    assert abs(slope) > 1e-4


@pytest.mark.parametrize("name", ["dirichlet", pytest.param("gaussian", marks=pytest.mark.slow)])
def test_coupled_bits_have_their_probabilities_and_their_correlation(name, x64):
    draw, make, excess = coupled.COPULAS[name]
    logits, num, count = jnp.array([-3.0, -0.8, 0.0, 0.4, 2.0]), 4, 20_000
    noise = draw(jax.random.key(0), (num, count, 5))
    bits = make(noise, jnp.broadcast_to(logits, (count, 5))).astype(float)
    p = jax.nn.sigmoid(logits)
    error = np.sqrt(p * (1 - p) / count)
    assert (np.abs(bits.mean(axis=1) - p[None]) < 5 * error[None]).all()
    away = bits - p[None, None]
    products = (away.sum(axis=0) ** 2 - (away**2).sum(axis=0)) / (num * (num - 1))  # of all pairs, (count, 5)
    rho = 1 - 1 / np.asarray(excess(logits, num))
    assert (rho < 0).all()
    assert (np.abs(products.mean(axis=0) - rho * p * (1 - p)) < 5 * products.std(axis=0) / np.sqrt(count)).all()


@pytest.mark.exhaustive
def test_gradients_are_finite_for_every_logit():
    params = {"logits": jnp.array([1e4, -1e4, 0.0, 200.0]), "theta": jnp.array(0.3)}
    every = {**UNBIASED, **BIASED}

    @jax.jit
    def gradients(key):
        return {
            name: jax.grad(bound_of(own, 2, name.startswith("OVIS")))(with_trained(params, own), jax.random.clone(key))
            for name, own in every.items()
        }

    for name, grads in gradients(jax.random.key(1)).items():
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)), name


@pytest.mark.slow
def test_straight_through_is_exact_to_first_order_and_reinmax_to_second(x64):
    logits = jnp.array([2.0, -1.5, 1.0])
    matrix = jax.random.normal(jax.random.key(0), (3, 3)) + 2 * jnp.eye(3)
    linear = lambda logits, z: z.astype(float) @ matrix[0]  # noqa: E731
    quadratic = lambda logits, z: z.astype(float) @ matrix @ z.astype(float)  # noqa: E731

    def gradient(estimator, f, num_samples=1):
        mean_of = estimators.expectation(estimator, distributions.BernoulliLogits, f, num_samples)
        return jax.jit(jax.grad(mean_of, has_aux=True))(logits, jax.random.key(1))[0]

    linear_truth, truth = (gradient(estimators.enumerate_support(), f) for f in (linear, quadratic))
    np.testing.assert_allclose(gradient(BIASED["straight-through"], linear), linear_truth, rtol=1e-9)
    np.testing.assert_allclose(gradient(BIASED["ReinMax"], quadratic, 20_000), truth, atol=0.02)
    assert np.abs(gradient(BIASED["straight-through"], quadratic, 20_000) - truth).max() > 0.1


@pytest.mark.exhaustive
def test_the_signal_of_ovis_grows_with_the_samples_beside_its_noise(x64):
    params = parameters("bernoulli", 4)

    def signal_to_noise(estimator, num_samples):
        gradient = jax.grad(bound_of(estimator, num_samples, True))
        keys = jax.random.split(jax.random.key(0), 8_000)
        draws = jax.jit(lambda keys: jax.lax.map(lambda key: gradient(params, key)["logits"], keys, batch_size=1000))
        found = draws(keys)
        return np.median(np.abs(found.mean(axis=0)) / found.std(axis=0))

    few, many = (
        [signal_to_noise(make(), k) for k in (6, 32)]
        for make in (estimators.ovis, lambda: estimators.score_function("leave_one_out"))
    )
    assert few[1] > few[0]
    assert few[1] > many[1]


@pytest.mark.parametrize(
    ("posterior", "kl"),
    [
        ("bernoulli", "analytic"),
        (distributions.categorical(3), "sampled"),
    ],
)
@pytest.mark.slow
def test_softened_samples_have_densities_in_every_form_of_the_kl(posterior, kl):
    vae = models.mlp_vae((3,), 2, (4,), posterior=posterior)
    x, estimator = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]), estimators.rebar()
    params = estimators.with_baseline(vae.init(jax.random.key(0)), estimator, jax.random.key(1), x)
    objective = objectives.make_elbo(vae, estimator, 1, kl=kl)
    grads, _ = jax.jit(jax.grad(objective, has_aux=True))(params, jax.random.key(2), x)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert jnp.abs(grads["encoder"]["network"]["layer_0"]["kernel"]).max() > 0
    assert grads["baseline"]["log_temperature"] != 0


def test_a_prior_without_softened_samples_is_refused():
    vae = models.mlp_vae((3,), 2, (4,), posterior="bernoulli")
    vae = vae._replace(prior=lambda params: dist.Poisson(jnp.ones(2)).to_event(1))
    objective = objectives.make_elbo(vae, estimators.gumbel_softmax(0.5), kl="sampled")
    params = jax.eval_shape(vae.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"got Poisson: use estimators.disarm\(\)"):
        jax.eval_shape(objective, params, jax.random.key(1), jnp.ones((2, 3)))
