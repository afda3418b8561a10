"""How good a model is: log p(x) with error bars or by quadrature, the ELBO and its parts, active units.

Each example draws from a key of its own, folded with its index, and each sample from a key split from that. So the
numbers do not depend on how examples and samples are cut into chunks, only memory does.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from vaejax import distributions, models, monte_carlo, objectives
from vaejax.distributions import Params
from vaejax.models import VAE


class LogLikelihood(NamedTuple):
    """An estimate of log p(x) for each example, in nats.

    Attributes:
        estimate: log of the mean importance weight; in expectation a lower bound on log p(x). (*batch,)
        standard_error: of the estimate, over the samples, by the delta method; NaN for K = 1. (*batch,)
        ess: effective sample size, from 1 to K. Where it is small neither of the two can be trusted. (*batch,)
        num_samples: K. A bound of K samples must be reported with it.
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    ess: Float[Array, " *batch"]
    num_samples: int


class Elbo(NamedTuple):
    """The evidence lower bound of each example and its parts, in nats; estimate = reconstruction - kl.

    Attributes:
        estimate: mean over K samples of log p(x, z) - log q(z|x). (*batch,)
        standard_error: of the estimate, over the samples; NaN for K = 1. (*batch,)
        reconstruction: mean of log p(x|z). (*batch,)
        kl: mean of log q(z|x) - log p(z). (*batch,)
        num_samples: K.
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    reconstruction: Float[Array, " *batch"]
    kl: Float[Array, " *batch"]
    num_samples: int


class Quadrature(NamedTuple):
    """Log p(x) of each example by an integral over all codes, in nats.

    Attributes:
        estimate: by all nodes. (*batch,)
        error: how far the estimate by every second node in each dimension is from it, which is far more than its own
            error where that is small. Where it is large the nodes are too few. (*batch,)
        num_nodes: in each dimension of the code.
    """

    estimate: Float[Array, " *batch"]
    error: Float[Array, " *batch"]
    num_nodes: int


class ActiveUnits(NamedTuple):
    """Which latent units carry anything about the data.

    Attributes:
        variance: variance over the data of the posterior mean of each unit. (latent_dim,)
        active: where the variance is above the threshold. (latent_dim,)
        num_active: how many are. ()
    """

    variance: Float[Array, " latent_dim"]
    active: Bool[Array, " latent_dim"]
    num_active: Int[Array, ""]


def log_likelihood(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_samples: int = 5000,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> LogLikelihood:
    """Importance-sampled log p(x) = log E_q[p(x, z) / q(z|x)] of each example.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape).
        num_samples: K, samples of z for each example.
        chunk_size: samples evaluated at once.
        batch_size: examples evaluated at once; memory grows with chunk_size * batch_size and with nothing else.

    Returns:
        Estimate, standard error and effective sample size of each example. Compiled once for each shape.

    Raises:
        ValueError: if a number is not a positive integer, or x is refused by `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = log_likelihood(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)), num_samples=100)
    >>> result.estimate.shape, result.num_samples
    ((7,), 100)

    Source: Burda, Grosse & Salakhutdinov 2015, section 5; the standard error is the delta method's.
    """
    estimate, error, ess = _summarized(vae, params, key, x, num_samples, chunk_size, batch_size, _summarize_likelihood)
    return LogLikelihood(estimate, error, ess, num_samples)


def quadrature_log_likelihood(
    vae: VAE,
    params: Params,
    x: ArrayLike,
    num_nodes: int = 1001,
    *,
    bound: float = 8.0,
    chunk_size: int = 100,
    batch_size: int = 100,
) -> Quadrature:
    """Log p(x) = log of the integral of p(x|z) p(z) over the code, of one or two dimensions, without a random number.

    By the trapezoidal rule, whose error falls faster than any power of the distance between nodes once that is below
    the width in z of p(x|z) (Trefethen & Weideman 2014). It needs no q(z|x), and holds where that is so far from the
    posterior that importance sampling fails.

    Args:
        vae: the model, with one or two numbers in a code.
        params: its parameters.
        x: data, (*batch, *data_shape).
        num_nodes: in each dimension, an odd number, evenly spread from -bound to bound.
        bound: such that the prior's probability of a code beyond it is nothing.
        chunk_size: nodes decoded at once; each is decoded once.
        batch_size: examples whose density at the nodes is computed at once; memory grows with
            chunk_size * batch_size * size of an example.

    Raises:
        ValueError: if the code has more dimensions or is discrete, the model is an autoencoder, a number is out of
            range, x is refused by `models.check_data`, or the nodes do not hold the prior, which must integrate to 1
            over them.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = quadrature_log_likelihood(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3)), num_nodes=51)
    >>> result.estimate.shape, bool(result.error.max() < 1e-3)
    ((7,), True)
    """
    for name, number in (("num_nodes", num_nodes), ("chunk_size", chunk_size), ("batch_size", batch_size)):
        monte_carlo.check_count(name, number)
    prior = vae.prior(params)
    if prior.event_shape not in ((1,), (2,)) or prior.is_discrete:
        kind = "discrete" if prior.is_discrete else "continuous"
        raise ValueError(
            f"expected a continuous code of one or two dimensions; came a {kind} one of shape {prior.event_shape}: use "
            "log_likelihood, which draws samples"
        )
    if num_nodes < 3 or num_nodes % 2 == 0:
        raise ValueError(f"num_nodes must be odd and at least 3, so that every second node is a grid; got {num_nodes}")
    models.check_data(vae, params, x)
    distributions.check_has_density(
        jax.eval_shape(vae.encode, params, x)
    )  # an autoencoder's prior is no model of codes
    (estimate, error), mass = _integrate(vae, num_nodes, chunk_size, batch_size, params, jnp.asarray(x), bound)
    if not isinstance(mass, Tracer) and not abs(mass - 1) < 1e-3:
        raise ValueError(
            f"expected nodes that hold the prior; over {num_nodes} of them in each dimension, from {-bound} to {bound}"
            f", it integrates to {mass:.4g}: use more nodes, or another bound"
        )
    return Quadrature(estimate, error, num_nodes)


def elbo(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_samples: int = 100,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> Elbo:
    """Evidence lower bound of each example, and its split into reconstruction and KL.

    Takes the same samples as `log_likelihood` with the same key, and the same arguments.

    Raises:
        ValueError: as `log_likelihood`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = elbo(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> bool(jnp.allclose(result.estimate, result.reconstruction - result.kl, atol=1e-4))
    True
    """
    estimate, error, reconstruction, kl = _summarized(
        vae, params, key, x, num_samples, chunk_size, batch_size, _summarize_elbo
    )
    return Elbo(estimate, error, reconstruction, kl, num_samples)


def active_units(
    vae: VAE, params: Params, x: ArrayLike, threshold: float = 0.01, *, batch_size: int = 1000
) -> ActiveUnits:
    """Units of the code whose posterior mean varies over the data: Var_x(E_q[z_j]) > threshold.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), n >= 2.
        threshold: on the variance.
        batch_size: examples encoded at once.

    Raises:
        ValueError: if there are fewer than two examples, or x is refused by `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> active_units(vae, vae.init(jax.random.key(0)), jnp.eye(3)).variance.shape
    (2,)

    Source: Burda, Grosse & Salakhutdinov 2015, section 5.
    """
    models.check_data(vae, params, x)
    x = jnp.asarray(x)
    if x.shape[0] < 2:
        raise ValueError(f"expected at least two examples, for a variance over the data; came {x.shape[0]}")
    variance = posterior_means(vae, params, x, batch_size).var(axis=0)
    active = variance > threshold
    return ActiveUnits(variance, active, active.sum())


@functools.partial(jax.jit, static_argnums=(0, 3))
def posterior_means(vae: VAE, params: Params, x: Array, batch_size: int = 1000) -> Float[Array, "n latent_dim"]:
    """E_q[z] of each example of x (n, *data_shape), `batch_size` of them at once; of categories, the most probable."""
    return _map_in_batches(lambda example: distributions.center(vae.encode(params, example)), x, batch_size)


def _summarized(vae, params, key, x, num_samples, chunk_size, batch_size, summarize) -> tuple[Array, ...]:
    for name, number in (("num_samples", num_samples), ("chunk_size", chunk_size), ("batch_size", batch_size)):
        monte_carlo.check_count(name, number)
    models.check_data(vae, params, x)
    return _importance_sample(vae, num_samples, chunk_size, batch_size, summarize, params, key, jnp.asarray(x))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _importance_sample(vae, num_samples, chunk_size, batch_size, summarize, params, key, x):
    """`summarize(reconstruction, kl)` of the K samples of each example, both (K,)."""
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    x = x.reshape(-1, *x.shape[len(batch_shape) :])
    prior = vae.prior(params)

    def one_example(index_and_x):
        index, x = index_and_x
        q = vae.encode(params, x)

        def sample_term(key):
            z = distributions.sample(q, key)
            reconstruction = distributions.data_log_prob(vae.decode(params, z), x)
            return reconstruction, distributions.log_prob(q, z) - distributions.log_prob(prior, z)

        example_key = jax.random.fold_in(key, index)
        return summarize(*monte_carlo.over_samples(sample_term, example_key, num_samples, chunk_size))

    result = _map_in_batches(one_example, (jnp.arange(x.shape[0]), x), batch_size)
    return jax.tree.map(lambda leaf: leaf.reshape(batch_shape), result)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _integrate(vae, num_nodes, chunk_size, batch_size, params, x, bound):
    """Estimate and error of each example, and the integral of the prior."""
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    x = x.reshape(-1, *x.shape[len(batch_shape) :])
    prior = vae.prior(params)
    (latent_dim,) = prior.event_shape
    nodes = jnp.linspace(-bound, bound, num_nodes, dtype=jnp.asarray(prior.mean).dtype)
    num_codes = num_nodes**latent_dim
    chunk_size = min(chunk_size, num_codes)

    def add_chunk(logs, start):
        number = start + jnp.arange(chunk_size)
        places = jnp.stack(jnp.unravel_index(jnp.minimum(number, num_codes - 1), (num_nodes,) * latent_dim), axis=1)
        p = vae.decode(params, nodes[places])
        log_prior = jnp.where(number < num_codes, distributions.log_prob(prior, nodes[places]), -jnp.inf)
        every_second = (places % 2 == 0).all(axis=1)

        def one_example(x):
            terms = distributions.data_log_prob(p, x) + log_prior
            return jax.nn.logsumexp(terms), jax.nn.logsumexp(jnp.where(every_second, terms, -jnp.inf))

        more = (*_map_in_batches(one_example, x, batch_size), jax.nn.logsumexp(log_prior))
        return jax.tree.map(jnp.logaddexp, logs, more), None

    nothing = jnp.full(len(x), -jnp.inf, nodes.dtype)
    starts = jnp.arange(0, num_codes, chunk_size)
    (fine, coarse, mass), _ = lax.scan(add_chunk, (nothing, nothing, nothing[0]), starts)
    log_volume = latent_dim * jnp.log(2 * bound / (num_nodes - 1))  # a difference of nodes would be rounded
    estimate = fine + log_volume
    error = jnp.abs(coarse + log_volume + latent_dim * math.log(2) - estimate)
    return (estimate.reshape(batch_shape), error.reshape(batch_shape)), jnp.exp(mass + log_volume)


def _map_in_batches(function: Callable[[Any], Any], examples: Any, batch_size: int) -> Any:
    """`function` of each example, at most `batch_size` of them at once.

    `lax.map` would compile a second program for the last, smaller batch: here the batches are of one size, filled up
    with the first examples over again.
    """
    num_examples = len(jax.tree.leaves(examples)[0])
    num_batches = -(-num_examples // batch_size)
    batch_size = -(-num_examples // num_batches)
    rows = (jnp.arange(num_batches * batch_size) % num_examples).reshape(num_batches, batch_size)
    result = lax.map(jax.vmap(function), jax.tree.map(lambda array: array[rows], examples))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_examples], result)


def _summarize_likelihood(reconstruction: Float[Array, " K"], kl: Float[Array, " K"]):
    log_w = reconstruction - kl
    num_samples = log_w.shape[0]
    ess = objectives.effective_sample_size(log_w)
    estimate = jax.nn.logsumexp(log_w) - math.log(num_samples)
    # Delta method: sd(w) / (sqrt(K) mean(w)), with the unbiased variance.
    unbiased = num_samples / (num_samples - 1) if num_samples > 1 else math.nan
    return estimate, jnp.sqrt(unbiased * jnp.maximum(1 / ess - 1 / num_samples, 0)), ess


def _summarize_elbo(reconstruction: Float[Array, " K"], kl: Float[Array, " K"]):
    log_w = reconstruction - kl
    num_samples = log_w.shape[0]
    error = log_w.std(ddof=1) / math.sqrt(num_samples) if num_samples > 1 else jnp.full_like(log_w[0], math.nan)
    return log_w.mean(), error, reconstruction.mean(), kl.mean()
