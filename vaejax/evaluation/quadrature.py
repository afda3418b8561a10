"""Log p(x) without a random number: in closed form for linear models, by quadrature for latents of one or two."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from vaejax import checks, distributions, models, records
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.evaluation.examples import check_continuous, checked_examples, latent_dtype, like_posterior, number_of
from vaejax.models import VAE, Batch, linear_decoder
from vaejax.models.programs import compiled

_LOG = logging.getLogger(__name__)


class Quadrature(NamedTuple):
    """Log p(x) of each example by an integral over all latents, in nats.

    Attributes:
        estimate: by all nodes. (*batch,)
        error: distance of the estimate by every second node in each dimension. Where it is small, the estimate's own
            error is far smaller; where it is large, the nodes are too few. It is infinite where nearly all of the
            integral lies on one node, because the posterior may then hide between nodes. (*batch,)
        num_nodes: in each dimension of the latent.

    >>> result = Quadrature(jnp.array([-90.0, -95.0]), error=jnp.array([1e-5, jnp.inf]), num_nodes=51)
    >>> (result.error < 1e-3).tolist()  # the posterior of the second may hide between nodes: take more of them
    [True, False]
    """

    estimate: Float[Array, " *batch"]
    error: Float[Array, " *batch"]
    num_nodes: int

    __repr__ = records.short_repr


class GridPosterior(NamedTuple):
    """Moments of the true posterior p(z|x) of each example, by quadrature.

    Attributes:
        mean: of the latent. (*batch, latent_dim)
        covariance: of the latent. (*batch, latent_dim, latent_dim)

    >>> posterior = GridPosterior(jnp.zeros(2), jnp.array([[4.0, 1.0], [1.0, 1.0]]))
    >>> std = jnp.sqrt(jnp.diagonal(posterior.covariance))
    >>> float(posterior.covariance[0, 1] / std.prod())  # the correlation, which a q of independent units cannot have
    0.5
    """

    mean: Float[Array, "*batch latent_dim"]
    covariance: Float[Array, "*batch latent_dim latent_dim"]

    __repr__ = records.short_repr


def linear_log_likelihood(vae: VAE, params: Params, x: Batch | ArrayLike) -> Float[Array, " *batch"]:
    """Exact log p(x) of a linear VAE with Gaussian likelihood, log N(x; b, W^T W + s^2 I), for each example in nats.

    Of a `models.Batch` with a mask it is the marginal log p of the numbers that were observed.

    Args:
        vae: a `models.linear_vae` with a standard deviation s that does not depend on z, as its default has.
        params: its parameters.
        x: data, (*batch, *data_shape), or a `models.Batch` without context.

    Returns:
        Log p(x) of each example in nats, (*batch,).

    Raises:
        ValueError: if the decoder is not linear, the likelihood is another, or `models.check_data` refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> linear_log_likelihood(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3))).shape
    (7,)

    Source: Tipping & Bishop 1999, "Probabilistic principal component analysis".
    """
    x = checked_examples(vae, params, x)
    weights, offset, std = linear_decoder(vae, params)
    batch_shape = like_posterior(vae, params, x).batch_shape
    if isinstance(x, Batch):
        return _marginal(weights, offset, std, *_flat_masked(vae, x, offset.size)).reshape(batch_shape)
    # In units of the noise: x is then a latent of k numbers, mapped by `whitened`, plus noise of variance 1.
    residual = (x.reshape(-1, offset.size) - offset[None]) / std[None]
    whitened = weights / std[None]
    precision = jnp.eye(len(weights), dtype=x.dtype) + whitened @ whitened.T
    factor = jax.scipy.linalg.cho_factor(precision)
    mean = jax.scipy.linalg.cho_solve(factor, whitened @ residual.T).T  # of the posterior
    # A sum of two squares of what is left, because a difference of large squares would be rounded.
    distance = ((residual - mean @ whitened) ** 2).sum(axis=1) + (mean**2).sum(axis=1)
    log_determinant = 2 * jnp.log(jnp.diagonal(factor[0])).sum() + 2 * jnp.log(std).sum()
    return (-0.5 * (distance + log_determinant + offset.size * math.log(2 * math.pi))).reshape(batch_shape)


def _flat_masked(vae: VAE, x: Batch, size: int) -> tuple[Array, Array]:
    if x.context is not None:
        raise ValueError("expected a batch without a context; got one with: use quadrature_log_likelihood, or sample")
    _, numbers = models.given(vae, x)
    mask = jnp.ones(numbers.shape, bool) if x.mask is None else x.mask
    return numbers.reshape(-1, size), mask.reshape(-1, size)


@functools.partial(jnp.vectorize, excluded=(0, 1, 2), signature="(d),(d)->()")
def _marginal(weights: Array, offset: Array, std: Array, x: Array, mask: Array) -> Array:
    """Log N(x; b, W^T W + s^2 I) of the numbers of one example where the mask is true."""
    residual = jnp.where(mask, (x - offset) / std, 0)
    whitened = jnp.where(mask[None], weights / std[None], 0)
    factor = jax.scipy.linalg.cho_factor(jnp.eye(len(weights), dtype=x.dtype) + whitened @ whitened.T)
    mean = jax.scipy.linalg.cho_solve(factor, whitened @ residual)
    distance = ((residual - mean @ whitened) ** 2).sum() + (mean**2).sum()
    log_determinant = 2 * jnp.log(jnp.diagonal(factor[0])).sum() + 2 * jnp.where(mask, jnp.log(std), 0).sum()
    return -0.5 * (distance + log_determinant + mask.sum().astype(x.dtype) * math.log(2 * math.pi))


def quadrature_log_likelihood(
    vae: VAE,
    params: Params,
    x: Batch | ArrayLike,
    num_nodes: int = 1001,
    *,
    bound: float = 8.0,
    chunk_size: int = 100,
    batch_size: int = 100,
) -> Quadrature:
    """Log p(x) = log of the integral of p(x|z) p(z) over a latent z of one or two dimensions, without a random number.

    The integral is a trapezoidal sum. Its error falls faster than any power of the distance between nodes once that
    distance is below the width in z of p(x|z) (Trefethen & Weideman 2014). It needs no q(z|x), and so holds also where
    q(z|x) is so far from the posterior that importance sampling fails.

    Args:
        vae: the model, with a continuous latent of one or two dimensions.
        params: its parameters.
        x: data, (*batch, *data_shape), or a `models.Batch`, of which each example decodes all nodes for itself.
        num_nodes: in each dimension, an odd number, evenly spread from -bound to bound.
        bound: large enough that the prior's probability of a latent beyond it is negligible.
        chunk_size: nodes decoded at once; each is decoded once.
        batch_size: examples whose density at the nodes is computed at once; memory grows with
            chunk_size * batch_size * size of an example.

    Returns:
        Log p(x) of each example in nats and how exact it is, (*batch,).

    Raises:
        ValueError: if the latent has more dimensions or is discrete, the model is an autoencoder, a number is out of
            range, `models.check_data` refuses x, or the prior does not integrate to 1 over the nodes.

    >>> from vaejax import models
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
    x: Batch | ArrayLike,
    num_nodes: int = 1001,
    *,
    bound: float = 8.0,
    chunk_size: int = 100,
    batch_size: int = 100,
) -> GridPosterior:
    """Mean and covariance of the true posterior p(z|x) of a latent of one or two dimensions, to compare q(z|x) with.

    Args:
        vae: as in `quadrature_log_likelihood`, which is called first; and so are all others.
        params: its parameters.
        x: data, (*batch, *data_shape), or a `models.Batch`.
        num_nodes: in each dimension.
        bound: of the nodes.
        chunk_size: nodes at once.
        batch_size: examples at once.

    Returns:
        The moments of each example's posterior.

    Raises:
        ValueError: as `quadrature_log_likelihood`.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = quadrature_posterior(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3)), num_nodes=51)
    >>> result.mean.shape, result.covariance.shape
    ((7, 2), (7, 2, 2))
    """
    settings = {"bound": bound, "chunk_size": chunk_size, "batch_size": batch_size}
    log_likelihood = quadrature_log_likelihood(vae, params, x, num_nodes, **settings).estimate
    x = checked_examples(vae, params, x)
    moments = _moments(vae, num_nodes, chunk_size, batch_size, params, x, jnp.asarray(bound), log_likelihood)
    return GridPosterior(*moments)


def _checked(vae: VAE, params: Params, x: Batch | ArrayLike, num_nodes: int, chunk_size: int, batch_size: int) -> Any:
    checks.check_count("num_nodes", num_nodes, 3)
    if num_nodes % 2 == 0:
        raise ValueError(f"num_nodes must be odd, so that every second node is a grid; got {num_nodes}")
    x = checked_examples(vae, params, x, chunk_size=chunk_size, batch_size=batch_size)
    check_continuous(models.given(vae, x)[0], params, "use log_likelihood, which draws samples")
    q = like_posterior(vae, params, x)
    distributions.check_has_density(q)  # an autoencoder's prior is no model of z
    event_shape = q.event_shape
    if event_shape not in ((1,), (2,)):
        raise ValueError(
            f"expected latents of one or two dimensions; got shape {event_shape}: use log_likelihood, which samples"
        )
    if jax.eval_shape(models.given(vae, x)[0].prior, params).batch_shape:
        raise ValueError("expected one prior for all examples; got one for each context: use log_likelihood")
    return x


@compiled(0, 1, 2, 3)
def _integrate(vae, num_nodes, chunk_size, batch_size, params, x, bound):
    """Estimate and error of each example, and the integral of the prior."""
    batch_shape, latent_dim = (like := like_posterior(vae, params, x)).batch_shape, like.event_shape[0]
    starts, latents_of, log_volume = _grid(vae, num_nodes, chunk_size, params, x, bound)
    x = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch_shape) :]), x)

    def add_chunk(logs, start):
        latents, log_prior, every_second = latents_of(start)
        log_likelihood = _decoded(vae, params, x, latents)

        def one_example(x):
            terms = log_likelihood(x) + log_prior
            coarse = jax.nn.logsumexp(jnp.where(every_second, terms, -jnp.inf))
            return jax.nn.logsumexp(terms), coarse, terms.max()

        *sums, highest = monte_carlo.over_examples(one_example, x, batch_size)
        more = (*sums, jax.nn.logsumexp(log_prior))
        return (jax.tree.map(jnp.logaddexp, logs[0], more), jnp.maximum(logs[1], highest)), None

    nothing = jnp.full(number_of(x), -jnp.inf, log_volume.dtype)
    ((fine, coarse, mass), highest), _ = lax.scan(add_chunk, ((nothing, nothing, nothing[0]), nothing), starts)
    estimate = fine + log_volume
    error = jnp.abs(coarse + log_volume + latent_dim * math.log(2) - estimate)
    # A normal peak of std s at nodes h apart has h / (s sqrt(2 pi)) of its integral on one node, in each dimension. At
    # 0.6 the rule's error is 3e-4 of it, and beyond that a peak may hide between nodes.
    error = jnp.where(jnp.exp((highest - fine) / latent_dim) > 0.6, jnp.inf, error)
    return (estimate.reshape(batch_shape), error.reshape(batch_shape)), jnp.exp(mass + log_volume)


@compiled(0, 1, 2, 3)
def _moments(vae, num_nodes, chunk_size, batch_size, params, x, bound, log_likelihood):
    """Mean and covariance of the posterior of each example."""
    batch_shape, latent_dim = (like := like_posterior(vae, params, x)).batch_shape, like.event_shape[0]
    starts, latents_of, log_volume = _grid(vae, num_nodes, chunk_size, params, x, bound)
    x = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch_shape) :]), x)
    log_likelihood = log_likelihood.reshape(-1)

    def add_chunk(sums, start):
        latents, log_prior, _ = latents_of(start)
        log_p = _decoded(vae, params, x, latents)

        def one_example(x_and_log_likelihood):
            x, log_likelihood = x_and_log_likelihood
            weights = jnp.exp(log_p(x) + log_prior + log_volume - log_likelihood)
            return weights @ latents, (weights[:, None] * latents).T @ latents

        more = monte_carlo.over_examples(one_example, (x, log_likelihood), batch_size)
        return jax.tree.map(jnp.add, sums, more), None

    zeros = jnp.zeros((number_of(x), latent_dim), log_volume.dtype)
    nothing = (zeros, jnp.zeros((number_of(x), latent_dim, latent_dim), log_volume.dtype))
    (mean, second), _ = lax.scan(add_chunk, nothing, starts)
    covariance = second - mean[:, :, None] * mean[:, None, :]
    return mean.reshape(*batch_shape, latent_dim), covariance.reshape(*batch_shape, latent_dim, latent_dim)


def _decoded(vae: VAE, params: Params, x: Batch | ArrayLike, latents: Array) -> Callable[[Any], Array]:
    """`example -> log p(x|z)` at all latents, which are decoded once for all examples where p(x|z) is the same."""
    if not isinstance(x, Batch):
        p = vae.decode(params, latents)
        return lambda x: distributions.data_log_prob(p, x)

    def log_likelihood(example):
        model, x = models.given(vae, example)
        return jax.vmap(lambda z: distributions.data_log_prob(model.decode(params, z), x))(latents)

    return log_likelihood


def _grid(vae: VAE, num_nodes: int, chunk_size: int, params: Params, x, bound):
    """First node of each chunk; a chunk's latents, log p(z) and which are every second; log volume of a node.

    Beyond the last node a chunk is filled up with nodes of probability zero.
    """
    prior = models.given(vae, x)[0].prior(params)
    (latent_dim,) = prior.event_shape
    nodes = jnp.linspace(-bound, bound, num_nodes, dtype=latent_dtype(vae, params, x))
    total = num_nodes**latent_dim
    chunk_size = min(chunk_size, total)

    def latents_of(start):
        number = start + jnp.arange(chunk_size)
        places = jnp.stack(jnp.unravel_index(jnp.minimum(number, total - 1), (num_nodes,) * latent_dim), axis=1)
        log_prior = jnp.where(number < total, distributions.log_prob(prior, nodes[places]), -jnp.inf)
        return nodes[places], log_prior, (places % 2 == 0).all(axis=1)

    log_volume = latent_dim * jnp.log(2 * bound / (num_nodes - 1))  # a difference of nodes would be rounded
    return jnp.arange(0, total, chunk_size), latents_of, log_volume
