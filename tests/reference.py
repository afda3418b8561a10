"""Oracles: exact answers in float64, the z-test that holds random gradients against them, and the models they need."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import stats

from vaejax import distributions, estimators, models, networks


def linear_gaussian_arrays(params):
    """V (data, latent), c, posterior std, W (latent, data), b and decoder std of a linear VAE's parameters."""
    encoder, decoder = params["encoder"], params["decoder"]
    return (
        encoder["network"]["layer_0"]["kernel"],
        encoder["network"]["layer_0"]["bias"],
        jnp.exp(distributions.bounded_log_std(encoder["head"]["log_std"])),
        decoder["network"]["layer_0"]["kernel"],
        decoder["network"]["layer_0"]["bias"],
        jnp.exp(distributions.bounded_log_std(decoder["head"]["log_std"])),
    )


def linear_elbo(params, x, beta=1.0):
    """The linear VAE's ELBO in closed form, mean over the batch of x (n, data), nats per example."""
    V, c, std, W, b, s = linear_gaussian_arrays(params)
    mean = x @ V + c[None]
    squared_error = ((x - mean @ W - b[None]) ** 2).sum(axis=1) + (std**2 * (W**2).sum(axis=1)).sum()
    reconstruction = -0.5 * squared_error / s**2 - x.shape[1] * (0.5 * np.log(2 * np.pi) + jnp.log(s))
    kl = 0.5 * (mean**2).sum(axis=1) + (0.5 * std**2 - 0.5 - jnp.log(std)).sum()
    return (reconstruction - beta * kl).mean()


def linear_log_likelihood(params, x):
    """Log p(x) of the linear VAE for each example of x (n, data), by scipy."""
    *_, W, b, s = (np.asarray(array, np.float64) for array in linear_gaussian_arrays(params))
    covariance = W.T @ W + s**2 * np.eye(len(b))
    return stats.multivariate_normal(b, covariance).logpdf(np.asarray(x, np.float64))


def with_exact_posterior(params):
    """Parameters whose q(z|x) is the exact posterior; W gets orthogonal rows, for then its covariance is diagonal."""
    *_, W, b, s = linear_gaussian_arrays(params)
    W = jnp.linalg.qr(W.T)[0].T * jnp.arange(1.0, W.shape[0] + 1)[:, None]
    precision = 1 + (W**2).sum(axis=1) / s**2
    V = W.T / s**2 / precision[None]
    raw = distributions.LOG_STD_BOUND * jnp.arctanh(-0.5 * jnp.log(precision) / distributions.LOG_STD_BOUND)
    return {
        "encoder": {"network": {"layer_0": {"kernel": V, "bias": -(b @ V)}}, "head": {"log_std": raw}},
        "decoder": {"network": {"layer_0": {"kernel": W, "bias": b}}, "head": params["decoder"]["head"]},
        "prior": {},
    }


def bound_of_two_samples(params, x, num_nodes=80, beta=1.0):
    """The importance-weighted bound of K = 2 samples of a linear VAE with one latent, by Gauss-Hermite quadrature.

    `beta` weights the KL. The nodes move with q, so that the derivative of the quadrature is the quadrature of the
    derivative.
    """
    V, c, std, W, b, s = linear_gaussian_arrays(params)
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    weights = weights / weights.sum()
    mean = (x @ V + c[None])[:, 0]
    z = mean[:, None] + std[0] * nodes[None]  # (n, nodes)
    squared_error = ((x[:, None] - z[:, :, None] * W[0][None, None] - b[None, None]) ** 2).sum(axis=2)
    log_likelihood = -0.5 * squared_error / s**2 - x.shape[1] * (0.5 * np.log(2 * np.pi) + jnp.log(s))
    log_prior_over_q = -0.5 * z**2 + 0.5 * nodes[None] ** 2 + jnp.log(std[0])
    log_w = log_likelihood + beta * log_prior_over_q
    bound = jnp.logaddexp(log_w[:, :, None], log_w[:, None, :]) - np.log(2)
    return ((weights[:, None] * weights[None])[None] * bound).sum(axis=(1, 2)).mean()


def exact_model_gradient(value, params):
    """What `model_gradient` estimates, from the value in closed form, a function of the parameters."""
    grads = jax.grad(value)(params)
    return {part: grads[part] for part in ("encoder", "decoder")}


def model_gradient(objective, params, x):
    """`key -> gradient` of the model's parameters, without those of a trained baseline."""

    def gradient(key):
        grads, _ = jax.grad(objective, has_aux=True)(params, key, x)
        return {part: grads[part] for part in ("encoder", "decoder")}

    return gradient


def with_wrong_baseline(params, estimator, x):
    """The parameters with those of the trained baseline, if there is one, which expects the wrong reward."""
    params = estimators.with_baseline(params, estimator, jax.random.key(7), x)
    if "baseline" in params:
        params["baseline"]["mean"] = jnp.array(-3.0)
        params["baseline"] = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params["baseline"])
    return params


def constant_outputs_vae(likelihood, encoder_row, decoder_row, dtype):
    """A VAE whose networks return the same given numbers for every example."""

    def network(row):
        return networks.Network(
            init=lambda key: {"row": jnp.asarray(row, dtype)},
            apply=lambda params, x: jnp.broadcast_to(params["row"], (x.shape[0], len(row))),
        )

    return models.make_vae(
        network(encoder_row), network(decoder_row), data_shape=(3,), latent_dim=2, likelihood=likelihood
    )


def in_float64(tree):
    """The same tree in double precision."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def assert_unbiased(grad, exact, key, num_repeats, *, largest_error=0.05):
    """Coordinate by coordinate, the mean of `grad(key_i)` lies within 5 standard errors of `exact`.

    The standard errors themselves must be small: their norm below `largest_error` of the exact gradient's, so that
    noise cannot pass for agreement.
    """
    keys = jax.random.split(key, num_repeats)
    draws = jax.jit(lambda keys: jax.lax.map(lambda k: ravel_pytree(grad(k))[0], keys, batch_size=1000))(keys)
    exact = ravel_pytree(exact)[0]
    error = draws.std(axis=0, ddof=1) / np.sqrt(num_repeats)
    assert np.linalg.norm(error) < largest_error * np.linalg.norm(exact), "the test has too little power"
    # A coordinate without noise must agree to rounding.
    distance = np.abs(draws.mean(axis=0) - exact) / np.maximum(error, 1e-12 * np.linalg.norm(exact))
    assert distance.max() < 5, f"biased: coordinate {distance.argmax()} is {distance.max():.1f} standard errors off"
