"""Log p(x) without a random number: in closed form for linear models, by quadrature for codes of one or two numbers."""

import functools
import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from vaejax import checks, distributions, models
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.models import VAE, linear_decoder

_LOG = logging.getLogger(__name__)


class Quadrature(NamedTuple):
    """Log p(x) of each example by an integral over all codes, in nats.

    Attributes:
        estimate: by all nodes. (*batch,)
        error: how far the estimate by every second node in each dimension is from it, which is far more than its own
            error where that is small. Where it is large the nodes are too few; it is infinite where nearly all of the
            integral lies on one node, between whose neighbours anything can be. (*batch,)
        num_nodes: in each dimension of the code.
    """

    estimate: Float[Array, " *batch"]
    error: Float[Array, " *batch"]
    num_nodes: int


class GridPosterior(NamedTuple):
    """Moments of the true posterior p(z|x) of each example, by quadrature.

    Attributes:
        mean: (*batch, latent_dim)
        covariance: (*batch, latent_dim, latent_dim)
    """

    mean: Float[Array, "*batch latent_dim"]
    covariance: Float[Array, "*batch latent_dim latent_dim"]


def linear_log_likelihood(vae: VAE, params: Params, x: ArrayLike) -> Float[Array, " *batch"]:
    """Exact log p(x) of a linear VAE with Gaussian likelihood, log N(x; b, W^T W + s^2 I), for each example in nats.

    Args:
        vae: a `models.linear_vae` with a standard deviation s that does not depend on z, as its default has.
        params: its parameters.
        x: data, (*batch, *data_shape).

    Raises:
        ValueError: if the decoder is not linear or the likelihood another, or x is refused by `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> linear_log_likelihood(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3))).shape
    (7,)

    Source: Tipping & Bishop 1999, "Probabilistic principal component analysis".
    """
    models.check_data(vae, params, x)
    weights, offset, std = linear_decoder(vae, params)
    x = jnp.asarray(x)
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    # In units of the noise: x is then a code of k numbers, mapped by `whitened`, plus noise of variance 1.
    residual = (x.reshape(-1, offset.size) - offset[None]) / std[None]
    whitened = weights / std[None]
    precision = jnp.eye(len(weights), dtype=x.dtype) + whitened @ whitened.T
    factor = jax.scipy.linalg.cho_factor(precision)
    mean = jax.scipy.linalg.cho_solve(factor, whitened @ residual.T).T  # of the posterior
    # Both squares are of what is left, and not a difference of large ones.
    distance = ((residual - mean @ whitened) ** 2).sum(axis=1) + (mean**2).sum(axis=1)
    log_determinant = 2 * jnp.log(jnp.diagonal(factor[0])).sum() + 2 * jnp.log(std).sum()
    return (-0.5 * (distance + log_determinant + offset.size * math.log(2 * math.pi))).reshape(batch_shape)


def independent_log_likelihood(train: ArrayLike, x: ArrayLike) -> Float[Array, " n"]:
    """Log p(x) of the best model of binary data without a code, each number a coin of its own; in nats per example.

    What a Bernoulli decoder falls back to that ignores its code: a VAE that is not above it has learned nothing.

    Args:
        train: binary, (m, *data_shape); its means are the coins, kept 1e-4 away from 0 and 1.
        x: likewise, (n, *data_shape).

    Raises:
        ValueError: if the data are not binary, or of different shapes.

    >>> independent_log_likelihood(jnp.array([[0.0], [1.0]]), jnp.ones((3, 1))).round(4)
    Array([-0.6931, -0.6931, -0.6931], dtype=float32)
    """
    train, x = (jnp.asarray(data, jnp.result_type(float)) for data in (train, x))
    if train.shape[1:] != x.shape[1:] or not len(train):
        raise ValueError(f"expected data of one shape, (n, *data_shape); got {train.shape} and {x.shape}")
    for data in (train, x):
        if not isinstance(data, Tracer) and not ((data == 0) | (data == 1)).all():
            raise ValueError("expected binary data; got other values than 0 and 1: data.binarize_dynamic draws them")
    coins = jnp.clip(train.mean(axis=0, keepdims=True), 1e-4, 1 - 1e-4)
    terms = x * jnp.log(coins) + (1 - x) * jnp.log1p(-coins)
    return terms.reshape(len(x), -1).sum(axis=1)


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
    x = _checked(vae, params, x, num_nodes, chunk_size, batch_size)
    (estimate, error), mass = _integrate(vae, num_nodes, chunk_size, batch_size, params, x, bound)
    if not isinstance(mass, Tracer) and not abs(mass - 1) < 1e-3:
        raise ValueError(
            f"expected nodes that hold the prior; over {num_nodes} of them in each dimension, from {-bound} to {bound}"
            f", it integrates to {mass:.4g}: use more nodes, or another bound"
        )
    if not isinstance(error, Tracer) and (coarse := jnp.isinf(error)).any():
        _LOG.warning(
            "log p(x) of %d of %d examples is not to be trusted: their posterior is narrower than the nodes are apart, "
            "so that nearly all of the integral lies on one node; take more than %d nodes in each dimension",
            int(coarse.sum()),
            coarse.size,
            num_nodes,
        )
    return Quadrature(estimate, error, num_nodes)


def quadrature_posterior(
    vae: VAE,
    params: Params,
    x: ArrayLike,
    num_nodes: int = 1001,
    *,
    bound: float = 8.0,
    chunk_size: int = 100,
    batch_size: int = 100,
) -> GridPosterior:
    """Mean and covariance of the true posterior p(z|x), of codes of one or two dimensions: what q(z|x) is held against.

    Takes and refuses what `quadrature_log_likelihood` does, which it calls first.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = quadrature_posterior(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3)), num_nodes=51)
    >>> result.mean.shape, result.covariance.shape
    ((7, 2), (7, 2, 2))
    """
    settings = {"bound": bound, "chunk_size": chunk_size, "batch_size": batch_size}
    log_likelihood = quadrature_log_likelihood(vae, params, x, num_nodes, **settings).estimate
    moments = _moments(
        vae, num_nodes, chunk_size, batch_size, params, jnp.asarray(x), jnp.asarray(bound), log_likelihood
    )
    return GridPosterior(*moments)


def _checked(vae: VAE, params: Params, x: ArrayLike, num_nodes: int, chunk_size: int, batch_size: int) -> Array:
    for name, number in (("num_nodes", num_nodes), ("chunk_size", chunk_size), ("batch_size", batch_size)):
        checks.check_count(name, number)
    prior = vae.prior(params)
    if prior.event_shape not in ((1,), (2,)) or prior.is_discrete:
        kind = "discrete" if prior.is_discrete else "continuous"
        raise ValueError(
            f"expected a continuous code of one or two dimensions; got a {kind} one of shape {prior.event_shape}: use "
            "log_likelihood, which draws samples"
        )
    if num_nodes < 3 or num_nodes % 2 == 0:
        raise ValueError(f"num_nodes must be odd and at least 3, so that every second node is a grid; got {num_nodes}")
    models.check_data(vae, params, x)
    distributions.check_has_density(jax.eval_shape(vae.encode, params, x))  # an autoencoder's prior models no code
    return jnp.asarray(x)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _integrate(vae, num_nodes, chunk_size, batch_size, params, x, bound):
    """Estimate and error of each example, and the integral of the prior."""
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    x = x.reshape(-1, *x.shape[len(batch_shape) :])
    starts, codes_of, log_volume = _grid(vae, num_nodes, chunk_size, params, bound)
    latent_dim = vae.prior(params).event_shape[0]

    def add_chunk(logs, start):
        codes, log_prior, every_second = codes_of(start)
        p = vae.decode(params, codes)

        def one_example(x):
            terms = distributions.data_log_prob(p, x) + log_prior
            coarse = jax.nn.logsumexp(jnp.where(every_second, terms, -jnp.inf))
            return jax.nn.logsumexp(terms), coarse, terms.max()

        *sums, highest = monte_carlo.over_examples(one_example, x, batch_size)
        more = (*sums, jax.nn.logsumexp(log_prior))
        return (jax.tree.map(jnp.logaddexp, logs[0], more), jnp.maximum(logs[1], highest)), None

    nothing = jnp.full(len(x), -jnp.inf, log_volume.dtype)
    ((fine, coarse, mass), highest), _ = lax.scan(add_chunk, ((nothing, nothing, nothing[0]), nothing), starts)
    estimate = fine + log_volume
    error = jnp.abs(coarse + log_volume + latent_dim * math.log(2) - estimate)
    # A normal peak of std s at nodes h apart has h / (s sqrt(2 pi)) of its integral on one node, in each dimension. At
    # 0.6 the rule's error is 3e-4 of it, and beyond that a peak may hide between nodes.
    error = jnp.where(jnp.exp((highest - fine) / latent_dim) > 0.6, jnp.inf, error)
    return (estimate.reshape(batch_shape), error.reshape(batch_shape)), jnp.exp(mass + log_volume)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _moments(vae, num_nodes, chunk_size, batch_size, params, x, bound, log_likelihood):
    """Mean and covariance of the posterior of each example."""
    batch_shape = jax.eval_shape(vae.encode, params, x).batch_shape
    x, log_likelihood = x.reshape(-1, *x.shape[len(batch_shape) :]), log_likelihood.reshape(-1)
    starts, codes_of, log_volume = _grid(vae, num_nodes, chunk_size, params, bound)

    def add_chunk(sums, start):
        codes, log_prior, _ = codes_of(start)
        p = vae.decode(params, codes)

        def one_example(x_and_log_likelihood):
            x, log_likelihood = x_and_log_likelihood
            weights = jnp.exp(distributions.data_log_prob(p, x) + log_prior + log_volume - log_likelihood)
            return weights @ codes, (weights[:, None] * codes).T @ codes

        more = monte_carlo.over_examples(one_example, (x, log_likelihood), batch_size)
        return jax.tree.map(jnp.add, sums, more), None

    latent_dim = vae.prior(params).event_shape[0]
    zeros = jnp.zeros((len(x), latent_dim), log_volume.dtype)
    nothing = (zeros, jnp.zeros((len(x), latent_dim, latent_dim), log_volume.dtype))
    (mean, second), _ = lax.scan(add_chunk, nothing, starts)
    covariance = second - mean[:, :, None] * mean[:, None, :]
    return mean.reshape(*batch_shape, latent_dim), covariance.reshape(*batch_shape, latent_dim, latent_dim)


def _grid(vae: VAE, num_nodes: int, chunk_size: int, params: Params, bound):
    """First numbers of the chunks of nodes; a chunk's codes, log p(z) and which are every second; log volume of a node.

    Beyond the last node a chunk is filled up with nodes of probability zero.
    """
    prior = vae.prior(params)
    (latent_dim,) = prior.event_shape
    nodes = jnp.linspace(-bound, bound, num_nodes, dtype=jnp.asarray(prior.mean).dtype)
    num_codes = num_nodes**latent_dim
    chunk_size = min(chunk_size, num_codes)

    def codes_of(start):
        number = start + jnp.arange(chunk_size)
        places = jnp.stack(jnp.unravel_index(jnp.minimum(number, num_codes - 1), (num_nodes,) * latent_dim), axis=1)
        log_prior = jnp.where(number < num_codes, distributions.log_prob(prior, nodes[places]), -jnp.inf)
        return nodes[places], log_prior, (places % 2 == 0).all(axis=1)

    log_volume = latent_dim * jnp.log(2 * bound / (num_nodes - 1))  # a difference of nodes would be rounded
    return jnp.arange(0, num_codes, chunk_size), codes_of, log_volume
