"""KL divergences and entropies in closed form, against quadrature in float64."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from vaejax import distributions

SCALARS = {
    "Normal": dist.Normal(0.4, 0.7),
    "another Normal": dist.Normal(-0.2, 1.3),
    "HalfNormal": dist.HalfNormal(0.8),
    "TruncatedNormal": dist.TruncatedNormal(0.3, 0.8, low=0.0, high=1.0),
    "LogNormal": dist.LogNormal(0.1, 0.4),
    "Gamma": dist.Gamma(2.5, 1.5),
    "another Gamma": dist.Gamma(1.3, 2.0),
    "Chi2": dist.Chi2(3.0),
    "InverseGamma": dist.InverseGamma(3.0, 2.0),
    "Exponential": dist.Exponential(1.4),
    "Weibull": dist.Weibull(1.2, 1.7),
    "Beta": dist.Beta(2.5, 1.5),
    "another Beta": dist.Beta(1.5, 3.5),
    "Kumaraswamy": dist.Kumaraswamy(1.5, 2.5),
    "Uniform": dist.Uniform(0.0, 1.0),
    "Laplace": dist.Laplace(0.2, 0.8),
    "Logistic": dist.Logistic(0.2, 0.8),
    "Gumbel": dist.Gumbel(0.2, 0.8),
    "StudentT": dist.StudentT(5.0, 0.2, 0.8),
    "Cauchy": dist.Cauchy(0.2, 0.8),
    "HalfCauchy": dist.HalfCauchy(0.8),
    "Pareto": dist.Pareto(0.7, 3.5),
    "Rayleigh": distributions.Rayleigh(1.3),
    "Triangular": distributions.Triangular(0.0, 0.4, 1.0),
    "F": distributions.F(4.0, 6.0),
    "Erlang": distributions.Erlang(3, 2.0),
    "Gompertz": dist.Gompertz(0.7, 1.2),
    "AsymmetricLaplace": dist.AsymmetricLaplace(0.2, 0.8, 1.5),
    "LogUniform": dist.LogUniform(0.4, 3.0),
}


def grid(q):
    """Points inside the support, close together at its ends, with the weights of the trapezoid rule."""
    t, step = np.linspace(-4.2, 4.2, 40_001, retstep=True)
    u = 0.5 * np.pi * np.sinh(t)
    low, high = (
        float(getattr(q.support, name, end)) for name, end in (("lower_bound", -np.inf), ("upper_bound", np.inf))
    )
    if np.isinf(low):
        return np.sinh(u), np.cosh(u) * 0.5 * np.pi * np.cosh(t) * step
    if np.isinf(high):
        return low + np.exp(u), np.exp(u) * 0.5 * np.pi * np.cosh(t) * step
    inside = 1 / (1 + np.exp(-2 * u))
    width = high - low
    return low + width * inside, width * 2 * inside * (1 - inside) * 0.5 * np.pi * np.cosh(t) * step


def mean_under(q, function):
    z, weights = grid(q)
    log_q = np.asarray(distributions.log_prob(q, jnp.asarray(z)))
    mass = weights * np.exp(log_q)
    kept = mass > 0
    np.testing.assert_allclose(mass[kept].sum(), 1, atol=1e-4)
    return (mass[kept] * np.broadcast_to(function(log_q, z), z.shape)[kept]).sum()


@pytest.mark.filterwarnings("ignore:Out-of-support|overflow|invalid value")
def test_every_entropy_in_closed_form_is_that_of_quadrature(x64):
    known = []
    for name, q in SCALARS.items():
        try:
            entropy = distributions.entropy(q)
        except ValueError:
            continue
        known.append(name)
        np.testing.assert_allclose(entropy, mean_under(q, lambda log_q, z: -log_q), rtol=2e-3, atol=2e-3, err_msg=name)
    assert len(known) >= 15


@pytest.mark.filterwarnings("ignore:Out-of-support|overflow|invalid value")
def test_every_kl_in_closed_form_is_that_of_quadrature(x64):
    known = []
    for name, q in SCALARS.items():
        for other, p in SCALARS.items():
            try:
                kl = distributions.kl_divergence(q, p)
            except ValueError:
                continue
            known.append((name, other))
            expected = mean_under(
                q, lambda log_q, z, p=p: log_q - np.asarray(distributions.log_prob(p, jnp.asarray(z)))
            )
            np.testing.assert_allclose(kl, expected, rtol=1e-5, atol=1e-6, err_msg=f"{name}, {other}")
    assert ("Weibull", "Gamma") in known
    assert len(known) >= 15


@pytest.mark.parametrize("p", ["HalfNormal", "TruncatedNormal", "Gamma", "Uniform"])
def test_a_kl_to_a_smaller_support_has_no_closed_form(p):
    with pytest.raises(ValueError, match="needs a closed form"):
        distributions.kl_divergence(SCALARS["Normal"], SCALARS[p])


def test_the_series_of_a_kumaraswamy_is_refused():
    with pytest.raises(ValueError, match="series"):
        distributions.kl_divergence(dist.Kumaraswamy(1.0, 1.0).to_event(0), dist.Beta(1.0, 2.0))


def test_a_kl_of_other_events_is_refused():
    q = dist.Normal(jnp.zeros((3, 2)), 1.0)
    with pytest.raises(ValueError, match=r"event of shape \(2,\); got \(\)"):
        distributions.kl_divergence(q.to_event(1), dist.Normal(jnp.zeros(2), 1.0))
    with pytest.raises(ValueError, match=r"event of shape \(2,\); got \(3, 2\)"):
        distributions.kl_divergence(q.to_event(1), q.to_event(2))
