"""Posteriors with dependent latents: their densities against scipy, quadrature and numerical Jacobians."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import in_float64
from scipy import stats

from vaejax import distributions, evaluation, models, objectives

EXTREMES = (-1e4, -100.0, 0.0, 1.0, 1e4)


def covariant(key, size, batch=4):
    """A Gaussian of full covariance and what it was made of."""
    head = distributions.full_covariance()
    outputs = 1.5 * jax.random.normal(key, (head.outputs_for((size,)), batch, size))
    return head.apply({}, *outputs), np.asarray(outputs)


def flow_of(size, num_layers=3, hidden_size=7, batch=4, strength=20.0):
    """A flow far from a Gaussian."""
    head = distributions.autoregressive_flow(num_layers, hidden_size)
    weights = head.init(jax.random.key(0), (size,))
    for layer in weights.values():
        layer["output_kernel"] = strength * layer["output_kernel"]
    return head.apply(weights, *jax.random.normal(jax.random.key(1), (3, batch, size)))


@pytest.mark.quick_for("2")
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_a_full_covariance_has_a_place_for_every_pair(x64, size):
    q, outputs = covariant(jax.random.key(size), size)
    lower = np.tril_indices(size, -1)
    unit = np.asarray(q.scale_tril / jnp.diagonal(q.scale_tril, axis1=-2, axis2=-1)[..., None])
    squashed = 8 * np.tanh(outputs[2:] / 8)
    for example in range(4):
        numbers = unit[example][lower]
        assert len(np.unique(numbers)) == len(numbers) == size * (size - 1) // 2
        assert np.isclose(numbers[:, None], squashed[:, example].reshape(1, -1), rtol=1e-12).any(axis=1).all()
    assert (np.asarray(q.scale_tril)[:, *np.triu_indices(size, 1)] == 0).all()
    std = np.exp(8 * np.tanh(outputs[1] / 8))
    np.testing.assert_allclose(np.diagonal(q.scale_tril, axis1=1, axis2=2), std, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_a_full_covariance_equals_scipy(x64, size):
    q, _ = covariant(jax.random.key(0), size)
    z = 2 * jax.random.normal(jax.random.key(1), (5, 4, size))
    tril = np.asarray(q.scale_tril)
    for example in range(4):
        normal = stats.multivariate_normal(np.asarray(q.loc)[example], tril[example] @ tril[example].T)
        np.testing.assert_allclose(
            distributions.log_prob(q, z)[:, example], np.atleast_1d(normal.logpdf(z[:, example])), rtol=1e-7
        )
        np.testing.assert_allclose(distributions.entropy(q)[example], normal.entropy(), rtol=1e-9)
    np.testing.assert_allclose(q.variance, np.diagonal(tril @ np.swapaxes(tril, 1, 2), axis1=1, axis2=2), rtol=1e-9)


@pytest.mark.slow
def test_the_kl_of_a_full_covariance_equals_numpyros(x64):
    q, _ = covariant(jax.random.key(0), 4)
    for loc, scale in ((jnp.zeros(4), jnp.ones(4)), (jnp.arange(4.0), jnp.array([0.5, 1.0, 2.0, 3.0]))):
        prior = dist.Normal(loc, scale).to_event(1)
        full = dist.MultivariateNormal(loc, scale_tril=jnp.diag(scale))
        np.testing.assert_allclose(
            distributions.kl_divergence(q, prior), distributions.kl_divergence(q, full), rtol=1e-10
        )
    diagonal = distributions.full_covariance().apply({}, *jax.random.normal(jax.random.key(1), (2, 5, 1)))
    one = dist.Normal(diagonal.loc, diagonal.scale_tril[..., 0]).to_event(1)
    prior = dist.Normal(jnp.zeros(1), jnp.ones(1)).to_event(1)
    np.testing.assert_allclose(distributions.kl_divergence(diagonal, prior), distributions.kl_divergence(one, prior))


@pytest.mark.slow
def test_the_density_of_a_flow_integrates_to_one(x64):
    q = flow_of(2, batch=1)
    center, width = np.asarray(q.mean[0]), 9 * np.sqrt(np.asarray(q.variance[0]))
    axes = [np.linspace(c - w, c + w, 801) for c, w in zip(center, width, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    density = np.exp(np.asarray(jax.jit(q.log_prob)(grid))).reshape(801, 801)
    np.testing.assert_allclose(np.trapezoid(np.trapezoid(density, axes[1]), axes[0]), 1, rtol=1e-5)
    # It is no Gaussian: the mean is not the mode, and one of the moments is far from a Gaussian's.
    first = np.trapezoid(density, axes[1], axis=1)
    mean = np.trapezoid(first * axes[0], axes[0])
    third, second = (np.trapezoid(first * (axes[0] - mean) ** n, axes[0]) for n in (3, 2))
    np.testing.assert_allclose(mean, center[0], atol=0.1 * np.sqrt(second))
    assert abs(third) > 0.05 * second**1.5 or abs(second - np.exp(2 * q.log_std[0, 0])) > 0.05 * second


@pytest.mark.quick_for("5")
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_the_inversion_of_a_flow_agrees_with_the_sampling_pass(x64, size):
    q = flow_of(size)
    z, log_q = q.rsample_with_log_prob(jax.random.key(2))
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-9)
    np.testing.assert_array_equal(q.sample(jax.random.key(2)), z)


@pytest.mark.slow
def test_the_density_of_a_flow_is_that_of_its_jacobian(x64):
    q = flow_of(4, batch=1)
    noise = jax.random.normal(jax.random.key(2), (4,))
    jacobian = jax.jacobian(lambda noise: q._bent(noise[None])[0][0])(noise)
    expected = stats.norm.logpdf(noise).sum() - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(q._bent(noise[None])[1][0], expected, rtol=1e-10)
    assert (np.abs(jacobian) > 1e-9).all(), "with two orders, every latent depends on every other"
    one_layer = flow_of(4, num_layers=1, batch=1)
    jacobian = jax.jacobian(lambda noise: one_layer._bent(noise[None])[0][0])(noise)
    assert (np.triu(jacobian, 1) == 0).all()
    assert (jacobian[np.tril_indices(4)] != 0).all()


@pytest.mark.quick_for("3")
@pytest.mark.parametrize("hidden_size", [1, 3, 40])
def test_a_flow_of_any_hidden_size_is_inverted(x64, hidden_size):
    q = flow_of(6, hidden_size=hidden_size)
    z, log_q = q.rsample_with_log_prob(jax.random.key(2))
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-9)


@pytest.mark.slow
def test_gradients_of_the_inversion_equal_differences(x64):
    q = flow_of(3, num_layers=2, batch=2)
    z = q.sample(jax.random.key(2))

    def value(z, weights):
        other = distributions.AutoregressiveFlow(q.loc, q.log_std, q.context, weights)
        return other.log_prob(z).sum()

    jax.test_util.check_grads(value, (z, q.weights), order=1, modes=("rev",), rtol=1e-5)


@pytest.mark.slow
def test_moments_of_a_flow_are_those_of_its_samples(x64):
    q = flow_of(3)
    z = jax.vmap(q.sample)(jax.random.split(jax.random.key(5), 40_000))
    std = np.sqrt(np.asarray(q.variance))
    np.testing.assert_allclose((q.mean - z.mean(axis=0)) / std, 0, atol=0.1)
    np.testing.assert_allclose(std, z.std(axis=0), rtol=0.15)


@pytest.mark.quick_for("full_covariance")
@pytest.mark.parametrize("name", ["full_covariance", "flow"])
def test_dependent_posteriors_are_finite_for_every_network_output(name):
    head = distributions.posterior_head(name)
    number = head.outputs_for((2,))
    grid = np.stack(np.meshgrid(*[EXTREMES] * number)).reshape(number, -1).astype(np.float32)
    outputs = jnp.stack([jnp.asarray(grid), jnp.asarray(-grid[::-1])], axis=-1)
    params = head.init(jax.random.key(0), (2,))
    prior = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)

    def terms(outputs, params):
        q = head.apply(params, *outputs)
        z, log_q = distributions.sample_with_log_prob(q, jax.random.key(1))
        kl = distributions.kl_divergence(q, prior) if name == "full_covariance" else 0 * log_q
        return jnp.stack([log_q, distributions.log_prob(prior, z), kl]).sum(axis=1)

    assert jnp.isfinite(jax.jit(terms)(outputs, params)).all()
    assert all(
        jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.jacrev(terms, (0, 1)))(outputs, params))
    )


@pytest.mark.parametrize("name", ["full_covariance", "flow"])
@pytest.mark.parametrize("make", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
def test_dependent_posteriors_serve_both_architectures(name, make):
    if make == "mlp":
        vae = models.mlp_vae((4, 4), 3, (5,), posterior=name)
    else:
        vae = models.conv_vae((4, 4), 3, (2,), 5, posterior=name)
    params, x = vae.init(jax.random.key(0)), jnp.ones((2, 4, 4))
    q = vae.encode(params, x)
    assert (q.batch_shape, q.event_shape) == ((2,), (3,))
    kl = "analytic" if name == "full_covariance" else "sampled"
    elbo = objectives.make_elbo(vae, num_samples=2, kl=kl)
    (value, _), grads = jax.jit(jax.value_and_grad(elbo, has_aux=True))(params, jax.random.key(1), x)
    assert jnp.isfinite(value)
    assert all((jnp.abs(leaf) > 0).any() for leaf in jax.tree.leaves(grads["encoder"]["network"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_covariance", "flow"])
def test_log_likelihood_and_report_serve_dependent_posteriors(name):
    vae = models.mlp_vae((3,), 2, (4,), posterior=name)
    params, x = vae.init(jax.random.key(0)), jnp.eye(3)
    many = evaluation.log_likelihood(vae, params, jax.random.key(1), x, 2000)
    few = evaluation.log_likelihood_from_prior(vae, params, jax.random.key(2), x, 20_000)
    error = np.hypot(many.standard_error, few.standard_error)
    assert (np.abs(many.estimate - few.estimate) < 5 * error).all()
    assert (error < 0.1).all()


@pytest.mark.exhaustive
def test_a_report_of_a_flow_leaves_out_what_takes_too_long():
    vae = models.mlp_vae((3,), 2, (4,), posterior="flow")
    params, x = vae.init(jax.random.key(0)), jnp.eye(3)
    report = evaluation.report(vae, params, jax.random.key(1), x, 50)
    assert report.aggregate is None
    assert report.units.num_active.shape == ()
    assert jnp.isfinite(evaluation.mutual_information(vae, params, jax.random.key(2), x).estimate)


@pytest.mark.slow
def test_a_flow_has_no_kl_in_closed_form():
    vae = models.mlp_vae((3,), 2, (4,), posterior="flow")
    params, x = vae.init(jax.random.key(0)), jnp.eye(3)
    with pytest.raises(ValueError, match=r"closed form of KL.* for q = AutoregressiveFlow, .*use kl='sampled'"):
        objectives.make_elbo(vae)(params, jax.random.key(1), x)
    with pytest.raises(ValueError, match=r"none for q = AutoregressiveFlow; use kl='sampled'"):
        objectives.make_elbo(vae, kl="entropy")(params, jax.random.key(1), x)


@pytest.mark.parametrize("number", [0, 1.5, True])
def test_sizes_of_a_flow_are_counts(number, no_type_hook):
    with pytest.raises(ValueError, match="num_layers must be an integer of at least 1"):
        distributions.autoregressive_flow(number)
    with pytest.raises(ValueError, match="hidden_size must be an integer of at least 1"):
        distributions.autoregressive_flow(hidden_size=number)


def test_dependent_heads_want_one_axis():
    message = r"on one axis, as latents are; got an event of shape \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        distributions.full_covariance().outputs_for((2, 3))
    with pytest.raises(ValueError, match=message):
        distributions.autoregressive_flow().init(jax.random.key(0), (2, 3))


@pytest.mark.slow
def test_float64_reaches_a_flow(x64):
    vae = models.mlp_vae((3,), 2, (4,), posterior="flow")
    params = in_float64(vae.init(jax.random.key(0)))
    assert vae.encode(params, jnp.ones((2, 3))).rsample_with_log_prob(jax.random.key(1))[1].dtype == jnp.float64
