"""Models with layers, against a chain of Gaussians whose marginals are known."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from reference import assert_unbiased, in_float64
from scipy import stats

from vaejax import distributions, estimators, evaluation, inference, models, objectives
from vaejax.distributions import bounded_log_std, gaussian_shared_std

SIZES, X = (2, 1), jnp.array([[0.3, -1.0, 0.8], [1.2, 0.4, -0.5]])


def linear_layers(prior=None):
    """Two linear layers with standard deviations that do not depend on the input: all marginals are Gaussian."""
    base = models.mlp_vae((3,), 2, (), "gaussian_shared_std", posterior=gaussian_shared_std((2,)))
    return models.with_layers(base, SIZES, ((),), posterior=gaussian_shared_std(), prior=prior)


def affine(part):
    layer, raw = part["network"]["layer_0"], part["head"]["log_std"]
    return layer["kernel"], layer["bias"], jnp.exp(bounded_log_std(raw)) * jnp.ones(layer["bias"].shape)


def arrays_of(part):
    return [np.asarray(array, np.float64) for array in affine(part)]


def joint(first_mean, first_cov, kernel, bias, std):
    """Mean and covariance of (a, b) where b given a has the mean a @ kernel + bias."""
    mean = jnp.concatenate([first_mean, first_mean @ kernel + bias])
    cross = first_cov @ kernel
    below = kernel.T @ cross + jnp.diag(std**2)
    return mean, jnp.block([[first_cov, cross], [cross.T, below]])


def model_gaussian(params):
    """Mean and covariance of (z_2, z_1, x) under p."""
    mean, cov = joint(jnp.zeros(1), jnp.eye(1), *affine(params["prior"]["layer_0"]))
    kernel, bias, std = affine(params["decoder"])
    kernel = jnp.concatenate([jnp.zeros((1, 3)), kernel])  # x sees z_1 alone
    return joint(mean, cov, kernel, bias, std)


def exact_elbo(params, x):
    """E_q[log p(x, z)] + H(q), of Gaussians in closed form, mean over the batch."""
    mean, cov = model_gaussian(params)
    precision, log_det = jnp.linalg.inv(cov), jnp.linalg.slogdet(cov)[1]
    kernel, bias, std = affine(params["encoder"]["layer_0"])

    def of_one(x):
        q_mean, q_cov = joint(x @ kernel + bias, jnp.diag(std**2), *affine(params["encoder"]["layer_1"]))
        order = jnp.array([2, 0, 1])  # p is drawn from the top
        q_mean, q_cov = q_mean[order], q_cov[order][:, order]
        entropy = 0.5 * (3 * (1 + jnp.log(2 * jnp.pi)) + jnp.linalg.slogdet(q_cov)[1])
        off = jnp.concatenate([q_mean, x]) - mean
        spread = (precision[:3, :3] * q_cov).sum()
        return entropy - 0.5 * (off @ precision @ off + spread + log_det + 6 * jnp.log(2 * jnp.pi))

    return jax.vmap(of_one)(x).mean()


def log_likelihood(params, x):
    mean, cov = (np.asarray(array, np.float64) for array in model_gaussian(params))
    return stats.multivariate_normal(mean[3:], cov[3:, 3:]).logpdf(np.asarray(x, np.float64))


@pytest.fixture(scope="module")
def model():
    vae = linear_layers()
    return vae, vae.init(jax.random.key(3))


def test_z_holds_the_layers_the_lowest_first(x64):
    vae = linear_layers()
    params = in_float64(vae.init(jax.random.key(3)))
    q, prior = vae.encode(params, np.asarray(X, np.float64)), vae.prior(params)
    z = jax.random.normal(jax.random.key(1), (4, 2, 3))
    (V1, c1, s1), (V2, c2, s2) = (arrays_of(params["encoder"][name]) for name in ("layer_0", "layer_1"))
    W, b, s = arrays_of(params["prior"]["layer_0"])
    lower, upper = np.asarray(z[..., :2]), np.asarray(z[..., 2:])
    log_q = stats.norm(np.asarray(X, np.float64) @ V1 + c1, s1).logpdf(lower).sum(-1)
    log_q += stats.norm(lower @ V2 + c2, s2).logpdf(upper).sum(-1)
    log_p = stats.norm().logpdf(upper).sum(-1) + stats.norm(upper @ W + b, s).logpdf(lower).sum(-1)
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-12)
    np.testing.assert_allclose(prior.log_prob(z), log_p, rtol=1e-12)
    np.testing.assert_allclose(distributions.log_prob_per_unit(prior, z).sum(axis=-1), log_p, rtol=1e-12)
    drawn, told = q.rsample_with_log_prob(jax.random.key(0))
    np.testing.assert_array_equal(drawn, q.rsample(jax.random.key(0)))
    np.testing.assert_allclose(told, q.log_prob(drawn), rtol=1e-12)


def test_samples_are_those_of_the_chain(model):
    _, params = model
    mean, cov = model_gaussian(params)
    z = model[0].prior(params).sample(jax.random.key(0), (20_000,))[:, jnp.array([2, 0, 1])]
    error = np.sqrt(np.diag(cov)[:3] / len(z))
    assert (np.abs(z.mean(axis=0) - mean[:3]) < 5 * error).all()
    np.testing.assert_allclose(np.cov(z.T), cov[:3, :3], atol=0.05 * np.diag(cov)[:3].max())


def test_importance_sampling_gives_the_exact_log_likelihood(model):
    vae, params = model
    result = evaluation.log_likelihood(vae, params, jax.random.key(1), X, num_samples=20_000)
    error = np.asarray(result.standard_error)
    assert (error < 0.1).all()
    assert (np.abs(result.estimate - log_likelihood(params, X)) < 4 * error).all()


@pytest.mark.exhaustive
def test_annealing_agrees_from_both_sides(model):
    vae, params = model
    annealed = evaluation.annealed_log_likelihood(vae, params, jax.random.key(2), X, num_temperatures=300)
    off = np.abs(annealed.estimate - log_likelihood(params, X))
    assert (off < np.maximum(3 * np.asarray(annealed.standard_error), 0.02)).all()
    both = evaluation.bidirectional_bounds(vae, params, jax.random.key(3), 20, num_temperatures=300)
    exact = log_likelihood(params, both.x)
    assert (np.asarray(both.lower) - exact).mean() < 0.02
    assert (np.asarray(both.upper) - exact).mean() > -0.02


ESTIMATORS = {
    "pathwise": (estimators.pathwise(), 1, 20_000),
    "sticking the landing": (estimators.sticking_the_landing(), 1, 20_000),
    "leave one out": (estimators.score_function("leave_one_out"), 4, 40_000),
}


@pytest.mark.parametrize(
    "name", ["pathwise", *(pytest.param(name, marks=pytest.mark.slow) for name in list(ESTIMATORS)[1:])]
)
def test_gradients_are_unbiased(model, name):
    vae, params = model
    estimator, num_samples, num_repeats = ESTIMATORS[name]
    elbo = objectives.make_elbo(vae, estimator, num_samples, kl="sampled")
    exact = jax.grad(exact_elbo)(params, X)

    def gradient(key):
        return jax.grad(elbo, has_aux=True)(params, key, X)[0]

    assert_unbiased(gradient, exact, jax.random.key(5), num_repeats)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_doubly_reparameterized_gradient_of_a_bound_is_the_pathwise_one(model, beta):
    """On average: z_1 moves the density of z_2 given z_1, and the estimator must not take that for a score."""
    vae, params = model
    kinds = (estimators.pathwise(), estimators.doubly_reparameterized())
    pathwise, double = (objectives.make_iwae(vae, kind, 3, beta=beta) for kind in kinds)

    def difference(key):
        same = jax.random.clone(key)  # the same noise for both leaves a smaller difference
        gradients = [jax.grad(bound, has_aux=True)(params, k, X)[0] for bound, k in ((double, key), (pathwise, same))]
        return ravel_pytree(jax.tree.map(jnp.subtract, *gradients))[0]

    keys = jax.random.split(jax.random.key(6), 40_000)
    draws = np.asarray(jax.jit(lambda keys: jax.lax.map(difference, keys, batch_size=1000))(keys), np.float64)
    norm = np.linalg.norm(ravel_pytree(jax.grad(exact_elbo)(params, X))[0])
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(keys))
    assert 0 < np.linalg.norm(error) < 0.02 * norm
    assert (np.abs(draws.mean(axis=0)) < 5 * np.maximum(error, 1e-6 * norm)).all()


@pytest.mark.exhaustive
def test_the_rate_of_each_unit_adds_up(model):
    vae, params = model
    x = jax.random.normal(jax.random.key(8), (200, 3))
    result = evaluation.rate_distortion(vae, params, jax.random.key(1), x, num_samples=50)
    assert result.rate_per_unit.shape == (3,)
    np.testing.assert_allclose(result.rate_per_unit.sum(), result.rate, rtol=1e-5)
    elbo, error = -(result.rate + result.distortion), np.hypot(result.rate_error, result.distortion_error)
    assert abs(elbo - exact_elbo(params, x)) < 5 * error


def test_active_units_of_layers_are_without_the_bias_of_sampling(model):
    vae, params = model
    x = jax.random.normal(jax.random.key(8), (300, 3))
    units = evaluation.active_units(vae, params, x, key=jax.random.key(2), num_samples=50)
    kernel, bias, _ = arrays_of(params["encoder"]["layer_0"])
    upper, upper_bias, _ = arrays_of(params["encoder"]["layer_1"])
    mean = np.asarray(x) @ kernel + bias
    exact = np.concatenate([mean.var(axis=0), (mean @ upper + upper_bias).var(axis=0)])
    np.testing.assert_allclose(units.variance, exact, rtol=0.2)
    with pytest.raises(ValueError, match="no mean in closed form"):
        evaluation.active_units(vae, params, x)


@pytest.mark.exhaustive
def test_a_report_serves_layers(model):
    vae, params = model
    report = evaluation.report(vae, params, jax.random.key(1), jax.random.normal(jax.random.key(8), (20, 3)), 50)
    assert report.units.variance.shape == (3,)
    assert np.isfinite(list(evaluation.numbers(report).values())).all()


@pytest.mark.exhaustive
def test_chains_serve_layers(model):
    vae, params = model
    found = inference.sample_posterior(vae, params, jax.random.key(1), X[:1], num_chains=4, num_samples=1000)
    mean, cov = (np.asarray(array) for array in model_gaussian(params))
    gain = cov[:3, 3:] @ np.linalg.inv(cov[3:, 3:])
    exact = (mean[:3] + gain @ (np.asarray(X[0]) - mean[3:]))[[1, 2, 0]]
    np.testing.assert_allclose(found.mean[0], exact, atol=0.15)


@pytest.mark.exhaustive
@pytest.mark.parametrize("posterior", ["gaussian", "bernoulli"])
def test_perceptrons_in_layers(posterior):
    vae = models.hierarchical_vae((4, 4), (5, 3), ((8,), (7, 6)), posterior=posterior)
    params = vae.init(jax.random.key(0))
    kernels = [params["prior"]["layer_0"]["network"][f"layer_{i}"]["kernel"].shape[0] for i in range(3)]
    assert kernels == [3, 6, 7]
    x = (jax.random.uniform(jax.random.key(1), (2, 3, 4, 4)) > 0.5).astype(jnp.float32)
    assert vae.encode(params, x).batch_shape == (2, 3)
    estimator = estimators.pathwise() if posterior == "gaussian" else estimators.vimco()
    objective = objectives.make_iwae(vae, estimator, num_samples=3)
    grads, info = jax.jit(jax.grad(objective, has_aux=True))(params, jax.random.key(2), x)
    assert info.per_example.shape == (2, 3)
    norms = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), grads)
    assert min(jax.tree.leaves({part: norms[part] for part in ("encoder", "decoder", "prior")})) > 0


@pytest.mark.exhaustive
def test_convolutions_below_layers_and_a_learned_prior_on_top():
    below = models.conv_vae((8, 8), 4, channels=(4,), hidden_size=16)
    vae = models.with_layers(below, (4, 2), ((8,),), prior=models.vamp_prior(3))
    params = vae.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (9, 8, 8))
    params = models.with_pseudo_inputs(vae, params, jax.random.key(2), x)
    inputs, centers = (
        params["prior"]["top"]["inputs"],
        below.encode({**params, "encoder": params["encoder"]["layer_0"]}, x).mean,
    )
    assert (np.isclose(inputs[:, None], centers[None], atol=1e-6).all(axis=-1).sum(axis=1) == 1).all()
    top = dist.MixtureSameFamily(
        dist.CategoricalLogits(jnp.zeros(3)),
        vae.encode(params, jnp.ones((3, 8, 8))).conditionals[0](
            params["encoder"]["layer_1"], params["prior"]["top"]["inputs"]
        ),
    )
    z = jax.random.normal(jax.random.key(3), (5, 6))
    lower = vae.prior(params).layers(z)[1].log_prob(z[:, :4])
    with jax.numpy_rank_promotion("allow"):
        exact = top.log_prob(z[:, 4:]) + lower
    np.testing.assert_allclose(distributions.log_prob(vae.prior(params), z), exact, rtol=1e-5)


def test_bad_layers_are_refused():
    base, codes = models.linear_vae(data_dim=3, latent_dim=2), lambda kind: models.mlp_vae((3,), 2, (), posterior=kind)
    for make, words in (
        (lambda: models.hierarchical_vae((3,), (2,), ((4,),)), "two or more layers; got"),
        (lambda: models.hierarchical_vae((3,), (2, 1), ((4,),)), "hidden sizes of each layer"),
        (lambda: models.with_layers(base, (3, 1), ((),)), r"shape \(3,\); got \(2,\)"),
        (lambda: models.with_layers(base, (2, 1), ((),), posterior="categorical"), "got categories"),
        (
            lambda: models.with_layers(base, (2, 1), ((),), posterior="bernoulli"),
            "like Normal, and layers",
        ),
        (
            lambda: models.with_layers(codes("bernoulli"), (2, 1), ((),)),
            "like BernoulliLogits, and",
        ),
        (lambda: models.with_layers(codes("categorical"), (2, 1), ((),), posterior="bernoulli"), "like Categorical"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    vae = linear_layers()
    params = vae.init(jax.random.key(0))
    with pytest.raises(ValueError, match="the layers one after another, the lowest first"):
        vae.decode(params, jnp.zeros((7, 2)))
    with pytest.raises(ValueError, match="kl='sampled'"):
        objectives.make_elbo(vae)(params, jax.random.key(0), X)
