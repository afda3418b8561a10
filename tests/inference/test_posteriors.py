import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from reference import in_float64, linear_gaussian_arrays, linear_log_likelihood, with_exact_posterior

from vaejax import evaluation, inference, models


@pytest.fixture
def linear_problem(x64):
    vae = models.linear_vae(4, 2)
    params = in_float64(vae.init(jax.random.key(0)))
    return vae, params, jax.random.normal(jax.random.key(1), (10, 4))


def posterior(params, x):
    """Mean and covariance of p(z|x) of a linear VAE."""
    *_, W, b, s = (np.asarray(array) for array in linear_gaussian_arrays(params))
    covariance = np.linalg.inv(np.eye(len(W)) + W @ W.T / s**2)
    return (np.asarray(x) - b) @ W.T @ covariance / s**2, covariance


def test_the_best_gaussian_of_independent_units(linear_problem):
    """Of a Gaussian posterior: its mean, and the inverse of the precision's diagonal; its gap is known."""
    vae, params, x = linear_problem
    fitted = inference.fit_posterior(vae, params, jax.random.key(2), x, num_steps=1500, num_samples=8)
    mean, covariance = posterior(params, x)
    precision = np.diag(np.linalg.inv(covariance))
    np.testing.assert_allclose(fitted.q.mean, mean, atol=0.02)
    np.testing.assert_allclose(fitted.q.variance, np.broadcast_to(1 / precision, mean.shape), rtol=0.03)
    gap = 0.5 * (np.log(precision).sum() + np.linalg.slogdet(covariance)[1])
    lacking = linear_log_likelihood(params, x) - np.asarray(fitted.elbo)
    assert abs(lacking.mean() - gap) < 4 * np.linalg.norm(fitted.standard_error) / len(x) + 1e-3
    assert fitted.standard_error.max() < 0.05


def test_any_start_leads_there(linear_problem):
    vae, params, x = linear_problem
    params = with_exact_posterior(params)
    far = dist.Normal(jnp.full(2, 4.0), jnp.full(2, 0.1)).to_event(1)
    fitted = inference.fit_posterior(vae, params, jax.random.key(2), x, num_steps=2000, start=far)
    # The posterior has independent units, and sticking the landing is without noise there.
    np.testing.assert_allclose(fitted.elbo, linear_log_likelihood(params, x), atol=1e-3)
    assert fitted.standard_error.max() < 1e-3


@pytest.mark.exhaustive
def test_examples_are_fitted_alike_in_any_batch(linear_problem):
    vae, params, x = linear_problem
    together = inference.fit_posterior(vae, params, jax.random.key(2), x, num_steps=20, batch_size=3)
    shaped = inference.fit_posterior(vae, params, jax.random.key(2), x.reshape(2, 5, 4), num_steps=20)
    np.testing.assert_allclose(shaped.q.mean.reshape(10, 2), together.q.mean, rtol=1e-8)
    assert shaped.q.batch_shape == (2, 5)
    assert shaped.elbo.shape == (2, 5)


@pytest.mark.exhaustive
def test_one_q_for_all_is_the_worst_of_three(linear_problem):
    """E[log p(x)] - ELBO of the best shared q, in closed form for a linear model: q is N(mean of means, ...)."""
    vae, params, x = linear_problem
    params = with_exact_posterior(params)
    shared = inference.fit_shared_posterior(vae, params, jax.random.key(2), x, num_steps=4000, eval_samples=1000)
    *_, W, b, s = (np.asarray(array) for array in linear_gaussian_arrays(params))
    precision = 1 + (W**2).sum(axis=1) / s**2
    mean = ((np.asarray(x) - b) @ W.T / s**2 / precision).mean(axis=0)
    np.testing.assert_allclose(shared.q.mean, mean, atol=0.05)
    np.testing.assert_allclose(shared.q.variance, 1 / precision, rtol=0.1)
    assert shared.q.batch_shape == ()
    exact = linear_log_likelihood(params, x)
    own = inference.fit_posterior(vae, params, jax.random.key(3), x, num_steps=200)
    assert (exact - np.asarray(shared.elbo)).mean() > 0.1
    assert abs((exact - np.asarray(own.elbo)).mean()) < 1e-3


@pytest.mark.exhaustive
def test_the_gap_is_the_sum_of_its_parts(linear_problem):
    vae, params, x = linear_problem
    gap = inference.inference_gap(vae, params, jax.random.key(2), x, num_steps=800, num_samples=2000)
    np.testing.assert_allclose(gap.gap.estimate, gap.approximation.estimate + gap.amortization.estimate, rtol=1e-9)
    np.testing.assert_allclose(gap.per_example[0], gap.per_example[1:].sum(axis=0), rtol=1e-9)
    exact = linear_log_likelihood(params, x)
    error = gap.log_likelihood.error_over_samples
    assert error < 0.01
    assert abs(gap.log_likelihood.estimate - exact.mean()) < 4 * error
    _, covariance = posterior(params, x)
    family = 0.5 * (np.log(np.diag(np.linalg.inv(covariance))).sum() + np.linalg.slogdet(covariance)[1])
    assert abs(gap.approximation.estimate - family) < 4 * gap.approximation.error_over_samples + 1e-3
    assert gap.amortization.estimate > 0


@pytest.mark.exhaustive
def test_markov_chains_find_the_posterior():
    vae = models.linear_vae(4, 2)
    params = vae.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 4))
    drawn = inference.sample_posterior(vae, params, jax.random.key(2), x, num_warmup=300, num_samples=1000)
    mean, covariance = posterior(params, x)
    assert drawn.z.shape == (2, 4, 1000, 2)
    assert drawn.r_hat.max() < 1.02
    one = inference.sample_posterior(vae, params, jax.random.key(2), x, num_chains=1, num_warmup=50, num_samples=20)
    assert (one.z.shape, one.r_hat.shape) == ((2, 1, 20, 2), (2, 2))
    assert np.abs(drawn.mean - mean).max() < 0.1
    np.testing.assert_allclose(drawn.std, np.broadcast_to(np.sqrt(np.diag(covariance)), (2, 2)), rtol=0.1)


@pytest.mark.exhaustive
def test_chains_that_start_in_two_modes_say_so(caplog):
    """Data z^2 and little noise: from one side the chains agree on half of the posterior, from both they do not."""

    def decode(params, z):
        return dist.Normal(jnp.asarray(z) ** 2, 0.05).to_event(1)

    def encode(params, x):
        return dist.Normal(jnp.ones_like(jnp.asarray(x)), 0.1).to_event(1)

    plain = models.mlp_vae((1,), 1, (3,))
    vae = plain._replace(encode=encode, decode=decode)
    params, x = plain.init(jax.random.key(0)), jnp.ones((1, 1))
    options = {"num_warmup": 200, "num_samples": 300}
    one_side = inference.sample_posterior(vae, params, jax.random.key(1), x, **options)
    assert one_side.r_hat.max() < 1.05
    np.testing.assert_allclose(one_side.mean, 1.0, atol=0.05)
    assert not caplog.records
    far_apart = dist.Normal(jnp.zeros(1), 3.0).to_event(1)
    both = inference.sample_posterior(vae, params, jax.random.key(2), x, start=far_apart, **options)
    assert both.r_hat.max() > 2
    assert "the chains of 1 of 1 examples have not met" in caplog.text
    np.testing.assert_allclose(jnp.abs(both.z).mean(), 1.0, atol=0.05)
    with pytest.raises(ValueError, match=r"event shape \(1,\); got \(\) and \(\)"):
        inference.sample_posterior(vae, params, jax.random.key(2), x, start=dist.Normal(0.0, 1.0), **options)


def grid(extent=6.0, number=121):
    axis = jnp.linspace(-extent, extent, number)
    return jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


@pytest.mark.exhaustive
def test_the_two_divergences_of_a_gaussian_are_zero(x64):
    points = grid()
    precision = jnp.array([[2.0, 0.8], [0.8, 1.0]])
    centred = points - jnp.array([[0.5, -0.3]])
    log_density = -0.5 * ((centred @ precision) * centred).sum(axis=1)
    for direction in ("reverse", "forward"):
        fitted = inference.fit_gaussian_on_grid(log_density, points, direction)
        np.testing.assert_allclose(fitted.mean, [0.5, -0.3], atol=1e-4)
        np.testing.assert_allclose(fitted.covariance, np.linalg.inv(precision), rtol=1e-3)
        assert abs(fitted.reverse_kl) < 1e-6
        assert abs(fitted.forward_kl) < 1e-6


@pytest.mark.exhaustive
def test_one_direction_seeks_a_mode_and_the_other_covers_the_mass(x64):
    points = grid()
    modes = [(-2.0, 0.0), (2.0, 0.0)]
    log_density = jax.nn.logsumexp(
        jnp.stack([-2 * ((points - jnp.array([mode])) ** 2).sum(axis=1) for mode in modes]), axis=0
    )
    seeking = inference.fit_gaussian_on_grid(log_density, points, "reverse", start=jnp.array([1.0, 0.0]))
    covering = inference.fit_gaussian_on_grid(log_density, points, "forward")
    np.testing.assert_allclose(seeking.mean, [2.0, 0.0], atol=0.02)
    np.testing.assert_allclose(seeking.covariance, 0.25 * np.eye(2), atol=0.02)
    np.testing.assert_allclose(covering.mean, 0, atol=1e-6)
    np.testing.assert_allclose(covering.covariance, np.diag([4.25, 0.25]), rtol=1e-4, atol=1e-9)
    # Each is the smaller of the two in its own direction; half the mass missed costs log 2.
    np.testing.assert_allclose(seeking.reverse_kl, np.log(2), atol=0.01)
    assert seeking.reverse_kl < covering.reverse_kl
    assert covering.forward_kl < seeking.forward_kl


def test_bad_input_is_refused(linear_problem, no_type_hook):
    vae, params, x = linear_problem
    fit = inference.fit_posterior
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1; got 0"):
        fit(vae, params, jax.random.key(2), x, num_steps=0)
    with pytest.raises(ValueError, match="learning_rate must be a number above 0; got -1"):
        fit(vae, params, jax.random.key(2), x, learning_rate=-1)
    with pytest.raises(ValueError, match="learning_rate must be a number above 0; got 0"):
        inference.fit_shared_posterior(vae, params, jax.random.key(2), x, learning_rate=0)
    with pytest.raises(ValueError, match=r"one batch axis.*got data of shape \(4,\).*x\[None\]"):
        inference.sample_posterior(vae, params, jax.random.key(2), x[0])
    with pytest.raises(ValueError, match=r"num_samples must be an integer of at least 4; got 3"):
        inference.sample_posterior(vae, params, jax.random.key(2), x, num_samples=3)
    with pytest.raises(ValueError, match=r"expected a normal start.*got Laplace"):
        fit(vae, params, jax.random.key(2), x, start=dist.Laplace(jnp.zeros(2), jnp.ones(2)).to_event(1))
    with pytest.raises(ValueError, match=r"start of batch shape \(10,\) or \(\).*got \(3,\) and \(2,\)"):
        fit(vae, params, jax.random.key(2), x, start=vae.encode(params, x[:3]))
    with pytest.raises(ValueError, match="direction must be 'reverse' or 'forward'; got 'sideways'"):
        inference.fit_gaussian_on_grid(jnp.zeros(3), jnp.zeros((3, 2)), "sideways")
    with pytest.raises(ValueError, match=r"expected densities of shape \(4,\); got \(3,\)"):
        inference.fit_gaussian_on_grid(jnp.zeros(3), jnp.zeros((4, 2)), "forward")


def test_discrete_latents_are_refused():
    coins = models.mlp_vae((4,), 2, (3,), posterior="bernoulli")
    params, x = coins.init(jax.random.key(0)), jnp.ones((2, 4))
    for infer in (inference.fit_posterior, inference.fit_shared_posterior, inference.sample_posterior):
        with pytest.raises(ValueError, match=r"expected continuous latents.*Bernoulli"):
            infer(coins, params, jax.random.key(2), x)


@pytest.mark.exhaustive
def test_the_fit_beats_the_encoder_and_not_the_likelihood():
    vae = models.mlp_vae((2, 2), 2, (5,))
    params = jax.tree.map(lambda leaf: 2 * leaf, vae.init(jax.random.key(0)))
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (8, 2, 2)).astype(jnp.float32)
    fitted = inference.fit_posterior(vae, params, jax.random.key(2), x, num_steps=300)
    encoder = evaluation.elbo(vae, params, jax.random.key(3), x, num_samples=1000)
    exact = evaluation.quadrature_log_likelihood(vae, params, x, 101)
    assert (fitted.elbo > encoder.estimate - 4 * encoder.standard_error).all()
    assert (fitted.elbo < exact.estimate + 4 * fitted.standard_error).all()


NAMES = """
    EMInfo FittedPosterior GridGaussian GroupInfo GroupStates InferenceGap LaggingInfo LaggingStates
    PosteriorSample em fit_gaussian_on_grid fit_posterior fit_shared_posterior inference_gap init_groups
    init_lagging make_aggressive_train_step make_em_step make_variational_em_step sample_posterior
    with_best_decoder with_exact_posterior
"""


def test_the_public_names_of_the_first_release_are_there():
    assert set(NAMES.split()) <= set(inference.__all__)
    assert all(hasattr(inference, name) for name in inference.__all__)
