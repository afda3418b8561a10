"""Samples that float32 rounds onto the edge of the support, infinite densities there, normalizers that cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import assert_unbiased
from scipy import special, stats

from vaejax import distributions, estimators, models, objectives
from vaejax.distributions import edges


def kumaraswamy_mean(a, b):
    return b * np.exp(special.betaln(1 + 1 / a, b))


def weibull_above_one(scale, concentration):
    return np.exp(-(scale**-concentration))


def slopes(function, *arguments):
    """Central differences in each argument."""
    steps = np.diag([1e-4 * argument for argument in arguments])
    return [(function(*(arguments + step)) - function(*(arguments - step))) / (2 * step.max()) for step in steps]


def exact_sigmoid_slopes(loc, scale):
    nodes, width = np.linspace(-12, 12, 200_001, retstep=True)
    weights = stats.norm.pdf(nodes) * width
    return slopes(lambda loc, scale: weights @ special.expit(loc + scale * nodes), loc, scale)


# A family with numpyro's constructor, its parameters, f, and the exact gradient of E[f(z)], one number a parameter.
AT_THE_EDGE = {
    "Beta": (dist.Beta, [0.1, 0.1], lambda z: z, [2.5, -2.5]),
    "Beta, more so": (dist.Beta, [0.01, 0.02], lambda z: z, [0.02 / 9e-4, -0.01 / 9e-4]),
    "Dirichlet": (
        lambda a, b, c: dist.Dirichlet(jnp.stack([a, b, c])),
        [0.01, 0.01, 0.01],
        lambda z: z[0],
        [0.02 / 9e-4, -0.01 / 9e-4, -0.01 / 9e-4],
    ),
    "Gamma": (dist.Gamma, [0.1, 1.0], lambda z: z, [1.0, -0.1]),
    "Gamma, more so": (dist.Gamma, [0.01, 1.0], lambda z: z, [1.0, -0.01]),
    "Chi-squared": (dist.Chi2, [0.05], lambda z: z, [1.0]),
    "F": (distributions.F, [0.2, 0.2], lambda z: 1 / (1 + 1 / z), [1.25 - (1 / 24) / 0.2, -1.25 + (1 / 24) / 0.2]),
    "Kumaraswamy": (dist.Kumaraswamy, [0.1, 0.1], lambda z: z, slopes(kumaraswamy_mean, 0.1, 0.1)),
    "Kumaraswamy, more so": (dist.Kumaraswamy, [0.02, 0.05], lambda z: z, slopes(kumaraswamy_mean, 0.02, 0.05)),
    "Weibull": (dist.Weibull, [1e4, 0.02], lambda z: jnp.where(z > 1, 1.0, 0.0), slopes(weibull_above_one, 1e4, 0.02)),
    "Logit-normal": (
        lambda loc, scale: dist.TransformedDistribution(dist.Normal(loc, scale), dist.transforms.SigmoidTransform()),
        [10.0, 12.0],
        lambda z: z,
        exact_sigmoid_slopes(10.0, 12.0),
    ),
    "Log-normal": (
        lambda loc, scale: dist.LogNormal(loc, scale),
        [10.0, 90.0],
        lambda z: jnp.where(z > 1, 1.0, 0.0),
        [stats.norm.pdf(10 / 90) / 90, -stats.norm.pdf(10 / 90) * 10 / 90**2],
    ),
}


@pytest.mark.quick_for("Log-normal", "Weibull")
@pytest.mark.slow_for("Dirichlet", "Beta")
@pytest.mark.parametrize("name", AT_THE_EDGE)
def test_the_score_function_knows_what_was_drawn(name):
    make, params, f, exact = AT_THE_EDGE[name]
    params = [jnp.array(value) for value in params]
    estimate = estimators.expectation(
        estimators.score_function("leave_one_out"), lambda params: make(*params), lambda params, z: f(z), 4
    )
    gradient = jax.grad(estimate, has_aux=True)
    exact = [jnp.array(value) for value in exact]
    assert_unbiased(lambda key: gradient(params, key)[0], exact, jax.random.key(0), 50_000)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda q: q.to_event(1), lambda q: q.expand((3, 2)).to_event(1)])
@pytest.mark.parametrize(
    "name", ["Beta", "Dirichlet", "Gamma", "Kumaraswamy", "Weibull", "Logit-normal", "InverseGamma"]
)
def test_held_samples_in_the_middle_are_ordinary_ones(name, wrap):
    parameters = jnp.array([2.5, 3.5])
    make = {
        "Beta": dist.Beta,
        "Dirichlet": lambda a, b: dist.Dirichlet(jnp.stack([a, b, a + b], axis=-1)),
        "Gamma": dist.Gamma,
        "Kumaraswamy": dist.Kumaraswamy,
        "Weibull": dist.Weibull,
        "InverseGamma": dist.InverseGamma,
        "Logit-normal": lambda a, b: dist.TransformedDistribution(
            dist.Normal(a, b), dist.transforms.SigmoidTransform()
        ),
    }[name]

    def log_q(parameters, own):
        q = wrap(make(parameters, 1 + parameters))
        z, drawn = distributions.held_sample(q, jax.random.key(4))
        assert z.shape == q.shape()
        own_log_q = distributions.held_log_prob(q, z, drawn)
        return (own_log_q if own else distributions.log_prob(q, z)).sum()

    own, numpyros = (jax.grad(log_q)(parameters, own) for own in (True, False))
    np.testing.assert_allclose(own, numpyros, rtol=2e-3, atol=1e-3)


@pytest.mark.slow
def test_samples_are_numpyros():
    for numpyros in (
        dist.Beta(0.7, 1.3),
        dist.Dirichlet(jnp.array([0.7, 1.3, 2.0])),
        dist.Kumaraswamy(0.7, 1.3),
        dist.Gamma(0.7, 2.0),
        dist.Weibull(0.7, 2.0),
    ):
        ours, theirs = (
            jax.vmap(q.sample)(jax.random.split(jax.random.key(0), 100))
            for q in (distributions.stable(numpyros), numpyros)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("name", ["Beta", "Kumaraswamy", "Gamma", "Weibull"])
def test_log_prob_of_our_families_is_scipys(name, x64):
    z = jnp.array([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
    oracle = {
        "Beta": (dist.Beta(0.3, 0.6), stats.beta(0.3, 0.6).logpdf),
        "Gamma": (dist.Gamma(0.3, 2.0), stats.gamma(0.3, scale=0.5).logpdf),
        "Weibull": (dist.Weibull(0.5, 0.3), stats.weibull_min(0.3, scale=0.5).logpdf),
        "Kumaraswamy": (
            dist.Kumaraswamy(0.3, 0.6),
            lambda z: np.log(0.18) - 0.7 * np.log(z) - 0.4 * np.log1p(-(z**0.3)),
        ),
    }[name]
    np.testing.assert_allclose(distributions.log_prob(oracle[0], z), oracle[1](np.asarray(z)), rtol=1e-8)
    assert distributions.log_prob(oracle[0], jnp.array(-0.5)) == -jnp.inf


@pytest.mark.parametrize("log_t", [-200.0, -12.0, -9.9, -1.0, 0.0, 1.0, 2.2, 2.4, 5.0])
def test_the_double_logarithm(log_t, x64):
    t = np.exp(np.float64(log_t))
    expected = np.log(-log_t) if log_t < -30 else np.log(-np.log(-np.expm1(-t))) if t < 5 else -t + 0.5 * np.exp(-t)
    np.testing.assert_allclose(edges._log_minus_log1mexp(jnp.array(log_t)), expected, rtol=1e-5)


@pytest.mark.slow
def test_density_at_own_samples_is_nan_where_they_are_rounded_often():
    at_one = jnp.array(1 - jnp.finfo(jnp.float32).eps)
    assert jnp.isnan(distributions.own_log_prob(dist.Beta(0.1, 0.1), at_one))
    assert jnp.isfinite(distributions.own_log_prob(dist.Beta(0.5, 0.5), at_one))
    assert jnp.isfinite(distributions.own_log_prob(dist.Exponential(2.0), jnp.array(0.0)))
    mixture = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.ones(2) / 2), dist.Beta(jnp.full(2, 0.1), jnp.full(2, 0.1))
    )
    slope = jax.grad(lambda q, z: distributions.own_log_prob(q, z), argnums=0)(mixture, at_one)
    assert jnp.isnan(slope.component_distribution.concentration0).all()


@pytest.mark.slow
def test_a_sampled_kl_of_rounded_samples_is_no_number():
    vae = models.linear_vae(data_dim=2, latent_dim=2)
    vae = vae._replace(
        encode=lambda params, x: dist.Beta(jnp.full((*x.shape[:-1], 2), 0.05), 0.05).to_event(1),
        prior=lambda params: dist.Beta(jnp.ones(2), 1.0).to_event(1),
    )
    params, x = vae.init(jax.random.key(0)), jnp.ones((20, 2))
    assert jnp.isnan(objectives.make_elbo(vae, kl="sampled")(params, jax.random.key(1), x)[0])
    assert jnp.isfinite(objectives.make_elbo(vae, kl="analytic")(params, jax.random.key(1), x)[0])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_numpyros_bernoulli_has_the_right_gradient_at_a_logit_of_zero(value):
    slope = jax.grad(lambda logits: distributions.log_prob(dist.Bernoulli(logits=logits), value))(0.0)
    assert slope == value - 0.5


@pytest.mark.parametrize(
    "standardized", [(-1, 1), (3, 5), (-12, -10), (5, 5.1), (8, 9), (20, 20.5), (-8, 8), (0, 1e-3)]
)
def test_the_truncated_gaussian_is_scipys(standardized):
    low, high = standardized
    loc, scale = 0.3, 0.7
    z = np.linspace(low, high, 5)
    numpyros = dist.TruncatedNormal(loc, scale, low=loc + scale * low, high=loc + scale * high)
    log_q = distributions.log_prob(numpyros, jnp.asarray(loc + scale * z, jnp.float32)[1:-1])
    ends = np.float64(np.float32(loc + scale * np.array([low, high])))
    middle = np.float64(np.float32(loc + scale * z))[1:-1]
    oracle = stats.truncnorm((ends[0] - loc) / scale, (ends[1] - loc) / scale, loc, scale).logpdf(middle)
    np.testing.assert_allclose(log_q, oracle, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_the_bound_of_a_truncated_likelihood():
    """A standard deviation of 0.3 and a mean of -1.5: numpyro's normalizer was 0.039 nats off for each pixel."""
    vae = models.linear_vae(data_dim=3, latent_dim=2)
    means = lambda z: jnp.full((*z.shape[:-1], 3), -1.5)  # noqa: E731
    vae = vae._replace(decode=lambda params, z: dist.TruncatedNormal(means(z), 0.3, low=0.0, high=1.0).to_event(1))
    x = jnp.array([[0.1, 0.2, 0.05]])
    _, info = objectives.make_elbo(vae)(vae.init(jax.random.key(0)), jax.random.key(1), x)
    oracle = stats.truncnorm(5, 2.5 / 0.3, -1.5, 0.3).logpdf(np.float64(x)).sum()
    np.testing.assert_allclose(info.reconstruction, oracle, rtol=1e-4)


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_data_of_infinite_density_are_refused(x):
    p, data = dist.Beta(jnp.full(2, 0.5), 0.5).to_event(1), jnp.array([[0.5, 0.5], [0.5, x]])
    with pytest.raises(ValueError, match=r"infinite for 1 of 2 examples, the first at index \(1,\)"):
        distributions.data_log_prob(p, data)
    log_likelihood = jax.jit(distributions.data_log_prob)(p, data)
    assert jnp.isnan(log_likelihood).tolist() == [False, True]


def test_data_where_the_density_is_zero_have_a_likelihood_of_zero():
    p = dist.Beta(jnp.full(2, 2.0), 2.0).to_event(1)
    assert distributions.data_log_prob(p, jnp.array([[0.5, 0.0]])) == -jnp.inf


def test_log_prob_outside_the_support_has_no_gradient():
    q = dist.LogNormal(0.0, 1.0)
    value, slope = jax.value_and_grad(lambda z: distributions.log_prob(q, z))(-1.0)
    assert value == -jnp.inf
    assert slope == 0
    assert jnp.isnan(distributions.log_prob(q, jnp.nan))
