"""Log p(x) of models that are no VAE of ours: of SciPy, of PyTorch through NumPy, of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vaejax import evaluation, models

RNG = np.random.default_rng(0)
W = RNG.normal(size=(2, 3))
X = RNG.normal(size=(20, 3)).astype(np.float32)
COVARIANCE = W.T @ W + np.eye(3)
EXACT = stats.multivariate_normal(np.zeros(3), COVARIANCE).logpdf(X)
GAIN = np.linalg.solve(COVARIANCE, W.T)  # the posterior's mean is x GAIN
SPREAD = 1.2 * np.linalg.cholesky(np.eye(2) - W @ GAIN)  # a little wider than the posterior's


def numpy_model(array=np.asarray):
    def sample(key, x):
        noise = np.random.default_rng(np.asarray(jax.random.key_data(key))).normal(size=(len(x), 2))
        return np.asarray(x) @ GAIN + noise @ SPREAD.T

    def log_joint(x, z):
        return array(stats.norm.logpdf(z).sum(1) + stats.norm.logpdf(x, z @ W).sum(1))

    def log_prob(x, z):
        scaled = np.linalg.solve(SPREAD, (z - np.asarray(x) @ GAIN).T).T
        return stats.norm.logpdf(scaled).sum(1) - np.log(np.linalg.det(SPREAD))

    return models.from_functions(log_joint, sample, log_prob)


def jax_model():
    def sample(key, x):
        return x @ GAIN.astype(np.float32) + jax.random.normal(key, (len(x), 2)) @ SPREAD.T.astype(np.float32)

    def log_joint(x, z):
        log_normal = jax.scipy.stats.norm.logpdf
        return log_normal(z).sum(1) + log_normal(x - z @ W.astype(np.float32)).sum(1)

    def log_prob(x, z):
        scaled = jnp.linalg.solve(SPREAD.astype(np.float32), (z - x @ GAIN.astype(np.float32)).T).T
        return jax.scipy.stats.norm.logpdf(scaled).sum(1) - np.float32(np.log(np.linalg.det(SPREAD)))

    return models.from_functions(log_joint, jax.jit(sample), jax.jit(log_prob))


def torch_model():
    torch = pytest.importorskip("torch", reason="needs PyTorch, which no extra of this project installs")
    return numpy_model(lambda log_joint: torch.as_tensor(log_joint).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("make", [numpy_model, jax_model, torch_model])
def test_agrees_with_the_closed_form(make):
    model, x = make(), X if make is not jax_model else jnp.asarray(X)
    result = evaluation.log_likelihood(model, None, jax.random.key(0), x, 2_000)
    z = (np.asarray(result.estimate) - EXACT) / np.asarray(result.standard_error)
    assert (np.abs(z) < 4.5).all()
    assert 0.5 < (z**2).mean() < 2
    assert (result.standard_error < 0.03).all()
    assert evaluation.is_trustworthy(result).all()


@pytest.mark.exhaustive
def test_a_sweep_rises_to_the_closed_form():
    sweep = evaluation.log_likelihood_sweep(numpy_model(), None, jax.random.key(1), X, (1, 10, 1000))
    means = [evaluation.average(result) for result in sweep]
    assert means[0].estimate < means[1].estimate < means[2].estimate
    assert abs(means[2].estimate - EXACT.mean()) < 5 * means[2].error_over_samples < 0.05
    # K = 1 is the ELBO of the linear-Gaussian model: below by the KL of q to the posterior.
    posterior = SPREAD @ SPREAD.T / 1.2**2
    kl = 0.5 * (np.trace(np.linalg.solve(posterior, SPREAD @ SPREAD.T)) - 2 - 2 * np.log(1.2**2))
    assert abs(means[0].estimate - (EXACT.mean() - kl)) < 5 * means[0].error_over_samples < 0.1


def test_what_a_function_returns_is_checked(no_type_hook):
    good = numpy_model()
    for broken, words in (
        (good._replace(log_joint=lambda x, z: stats.norm.logpdf(z)), "`log_joint` to give one number"),
        (good._replace(sample=lambda key, x: 0.0), "`sample` to give one z"),
        (good._replace(log_prob=lambda x, z: np.full(len(x), np.nan)), "log-densities from `log_prob`"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluation.log_likelihood(broken, None, jax.random.key(2), X, 30)
    with pytest.raises(ValueError, match="log_prob must be a function"):
        models.from_functions(good.log_joint, good.sample, None)
