"""A small problem of discrete latents with bounds that are sums over all states, and the test against them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from reference import assert_unbiased

from vaejax import distributions, estimators

NUM_VALUES = {"bernoulli": 2, "categorical": 3}
MEAN, LOG_MEAN_EXP = estimators.mean_reduction(), estimators.log_mean_exp_reduction()


def parameters(kind, num_latents):
    """Logits of q and a number of f."""
    shape = (num_latents,) if kind == "bernoulli" else (num_latents, NUM_VALUES[kind])
    return {"logits": 1.2 * jax.random.normal(jax.random.key(1), shape), "theta": jnp.array(0.3)}


def make_q(params):
    """Bernoulli or categorical, by the logits' shape."""
    logits = params["logits"]
    q = distributions.BernoulliLogits(logits) if logits.ndim == 1 else dist.CategoricalLogits(logits)
    return q.to_event(1)


def log_joint(params, z):
    """Log p(x, z) of hard or relaxed latents (*samples, latents), a function of all of them together."""
    num_latents = params["logits"].shape[0]
    if params["logits"].ndim == 1:
        seen = z.astype(params["logits"].dtype)
    elif isinstance(z, distributions.Weights):
        seen = z.array.reshape(*z.shape[:-1], -1)
    else:
        one_hot = jax.nn.one_hot(z.astype(int), params["logits"].shape[1], dtype=params["logits"].dtype)
        seen = one_hot.reshape(*z.shape[:-1], -1)
    matrix = jax.random.normal(jax.random.key(3), (seen.shape[-1], 5), seen.dtype) * np.sqrt(4 / num_latents)
    return 2 * jnp.tanh(seen @ matrix + params["theta"]).sum(axis=-1)


@functools.cache
def exact_gradient(kind, num_latents, num_samples, is_weighted):
    """Of the ELBO, or of the importance-weighted bound of K samples, by the sum over all K-tuples of states."""
    states = jnp.asarray(list(itertools.product(range(NUM_VALUES[kind]), repeat=num_latents)))

    def bound(params):
        log_q = jax.vmap(lambda z: distributions.log_prob(make_q(params), z))(states)
        log_w = log_joint(params, states) - log_q
        if not is_weighted:
            return (jnp.exp(log_q) * log_w).sum()
        log_p, total = log_q, log_w
        for _ in range(num_samples - 1):
            log_p = (log_p[:, None] + log_q[None]).reshape(-1)
            total = jnp.logaddexp(total[:, None], log_w[None]).reshape(-1)
        return (jnp.exp(log_p) * (total - np.log(num_samples))).sum()

    return jax.jit(jax.grad(bound))(parameters(kind, num_latents))


def bound_of(estimator, num_samples, is_weighted, chunk_size=None):
    """`(params, key) -> bound`, of the parameters with what is trained along in "baseline"."""
    estimator = estimators.as_estimator(estimator)
    reduce = LOG_MEAN_EXP if is_weighted else MEAN

    def bound(params, key):
        @estimators.Broadcasting
        def integrand(z, q):
            log_w = log_joint(params, z) - distributions.own_log_prob(q, z)
            return log_w, log_w

        trained = estimators.baseline_values(estimator, params, jnp.zeros(()), ())
        return estimator(key, make_q(params), integrand, num_samples, reduce, trained, chunk_size).bound

    return bound


def with_trained(params, estimator, offset=0.3):
    """The parameters with what the estimator trains along, away from where it starts."""
    full = estimators.with_baseline(params, estimator, jax.random.key(5), jnp.zeros(1))
    dtype = params["logits"].dtype
    return {
        **full,
        **jax.tree.map(lambda leaf: leaf.astype(dtype) + offset, {k: full[k] for k in full if k not in params}),
    }


def check_unbiased(kind, estimator, num_samples, is_weighted, num_repeats, num_latents=None):
    """The z-test of each coordinate, with standard errors below 3% of the gradient's norm."""
    small = is_weighted and num_samples > 2
    num_latents = num_latents or (4 if small or kind == "categorical" else 8)
    params = parameters(kind, num_latents)
    exact = exact_gradient(kind, num_latents, num_samples, is_weighted)
    full, bound = (
        with_trained(params, estimators.as_estimator(estimator)),
        bound_of(estimator, num_samples, is_weighted),
    )

    def gradient(key):
        grads = jax.grad(bound)(full, key)
        return {name: grads[name] for name in params}

    assert_unbiased(gradient, exact, jax.random.key(2), num_repeats, largest_error=0.03)
