"""Learned priors against direct sums in float64, and against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import in_float64
from scipy import special, stats

from vaejax import distributions, evaluation, models, objectives

PRIORS = {
    "mixture": lambda: models.mixture_prior(4),
    "vamp": lambda: models.vamp_prior(5),
    "flow": lambda: models.flow_prior(num_layers=3, hidden_size=8),
}
X = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


def model_of(name, **options):
    vae = models.mlp_vae((3,), 2, (6,), prior=PRIORS[name](), **options)
    params = vae.init(jax.random.key(0))

    def moved(leaf):
        return leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)

    return vae, {**params, "prior": jax.tree.map(moved, params["prior"])}


@pytest.mark.exhaustive
def test_the_mixture_is_a_sum_of_gaussians(x64):
    vae, params = model_of("mixture")
    params = in_float64(params)
    own, z = params["prior"], np.random.default_rng(0).normal(size=(6, 2))
    std = np.exp(distributions.bounded_log_std(own["log_std"]))
    parts = stats.norm(own["mean"], std).logpdf(z[:, None]).sum(-1)
    exact = special.logsumexp(parts + np.log(special.softmax(own["logits"])), axis=1)
    np.testing.assert_allclose(distributions.log_prob(vae.prior(params), jnp.asarray(z)), exact, rtol=1e-12)


@pytest.mark.exhaustive
def test_the_vamp_prior_is_the_mean_of_posteriors(x64):
    vae, params = model_of("vamp")
    params = in_float64(params)
    q, z = vae.encode(params, params["prior"]["inputs"]), np.random.default_rng(0).normal(size=(6, 2))
    parts = stats.norm(np.asarray(q.mean), np.sqrt(np.asarray(q.variance))).logpdf(z[:, None]).sum(-1)
    exact = special.logsumexp(parts, axis=1) - np.log(5)
    np.testing.assert_allclose(distributions.log_prob(vae.prior(params), jnp.asarray(z)), exact, rtol=1e-12)


def test_the_density_of_the_flow_integrates_to_one_and_is_that_of_its_samples(x64):
    vae, params = model_of("flow")
    prior = vae.prior(in_float64(params))
    axis = np.linspace(-12, 12, 601)
    z = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1))
    density = np.exp(np.asarray(distributions.log_prob(prior, z)))
    area = (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(density.sum() * area, 1, rtol=1e-3)  # the networks have kinks
    drawn = np.asarray(prior.sample(jax.random.key(1), (20_000,)))
    for power in (1, 2):
        exact = (density[..., None] * np.asarray(z) ** power).sum(axis=(0, 1)) * area
        error = (drawn**power).std(axis=0) / np.sqrt(len(drawn))
        assert (np.abs((drawn**power).mean(axis=0) - exact) < 4 * error).all()


@pytest.mark.quick_for("vamp")
@pytest.mark.parametrize("name", sorted(PRIORS))
def test_a_learned_prior_is_trained_along(name):
    vae, params = model_of(name)
    elbo = objectives.make_elbo(vae, num_samples=3, kl="sampled")
    grads, info = jax.jit(jax.grad(elbo, has_aux=True))(params, jax.random.key(1), X)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads["prior"])) > 0
    assert np.isfinite(info.elbo)
    with pytest.raises(ValueError, match="kl='sampled'"):
        objectives.make_elbo(vae)(params, jax.random.key(1), X)


@pytest.mark.exhaustive
def test_the_gradient_of_the_mixture_is_that_of_the_sum():
    """By finite differences of the value at the same key, in float64 elsewhere: here the prior's own parameters."""
    vae, params = model_of("mixture")
    elbo = objectives.make_elbo(vae, num_samples=3, kl="sampled")
    slope = jax.grad(elbo, has_aux=True)(params, jax.random.key(1), X)[0]["prior"]["mean"][1, 0]

    def value(shift):
        moved = {**params["prior"], "mean": params["prior"]["mean"].at[1, 0].add(shift)}
        return float(elbo({**params, "prior": moved}, jax.random.key(1), X)[0])

    np.testing.assert_allclose((value(0.05) - value(-0.05)) / 0.1, slope, rtol=0.02)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(PRIORS))
def test_evaluations_serve_a_learned_prior(name):
    vae, params = model_of(name)
    x = (jax.random.uniform(jax.random.key(3), (40, 3)) > 0.5).astype(jnp.float32)
    report = evaluation.report(vae, params, jax.random.key(1), x, num_samples=50)
    assert np.isfinite(list(evaluation.numbers(report).values())).all()
    sampled = evaluation.log_likelihood(vae, params, jax.random.key(2), x[:3], num_samples=4000)
    annealed = evaluation.annealed_log_likelihood(vae, params, jax.random.key(3), x[:3], num_temperatures=200)
    error = np.hypot(sampled.standard_error, annealed.standard_error)
    assert (np.abs(sampled.estimate - annealed.estimate) < 4 * error + 0.02).all()


def test_pseudo_inputs_start_at_examples():
    vae, params = model_of("vamp")
    x = jax.random.uniform(jax.random.key(1), (20, 3))
    inputs = models.with_pseudo_inputs(vae, params, jax.random.key(2), x)["prior"]["inputs"]
    matches = (np.asarray(inputs)[:, None] == np.asarray(x)[None]).all(axis=-1)
    assert matches.sum(axis=1).tolist() == [1] * 5
    assert matches.any(axis=0).sum() == 5


def test_bad_priors_are_refused():
    vae, params = model_of("vamp")
    mixture = model_of("mixture")[1]
    for make, words in (
        (lambda: models.mlp_vae((3,), 2, (6,), prior=models.vamp_prior(5), context_shape=(4,)), "without a context"),
        (lambda: models.mlp_vae((3,), 2, (6,), posterior="bernoulli", prior=models.mixture_prior(3)), "continuous"),
        (lambda: models.mlp_vae((3,), 1, (6,), prior=models.flow_prior(2)), "latent_dim"),
        (lambda: models.mixture_prior(0), "num_components"),
        (lambda: models.with_pseudo_inputs(vae, params, jax.random.key(0), X), "number of examples"),
        (lambda: models.with_pseudo_inputs(vae, params, jax.random.key(0), jnp.ones((9, 4))), "shape"),
        (lambda: models.with_pseudo_inputs(vae, mixture, jax.random.key(0), X), "vamp_prior"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_a_prior_of_ones_own():
    wide = models.Prior(
        lambda key, latent_dim, data_shape: {"log_std": jnp.zeros(latent_dim)},
        lambda params, latent_dim, encode: (
            distributions.gaussian_shared_std((latent_dim,)).apply(params, jnp.zeros(latent_dim)).to_event(1)
        ),
    )
    vae = models.mlp_vae((3,), 2, (6,), prior=wide)
    params = vae.init(jax.random.key(0))
    value, _ = objectives.make_elbo(vae)(params, jax.random.key(1), X)  # its KL has a closed form
    plain = models.mlp_vae((3,), 2, (6,))
    assert np.isfinite(value)
    assert jax.tree.structure(plain.init(jax.random.key(0))["encoder"]) == jax.tree.structure(params["encoder"])
