"""Discrete latents as hard values of continuous noise, which a softened sample keeps.

A bit is the sign of a logistic number with its logit for a mean, and a category the largest of Gumbel numbers with its
log-probabilities for means; both are called y. A function of y has a path to the parameters of q, and so has one of y
given the hard value: another path, through the same number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, Key

from vaejax import checks, distributions
from vaejax.distributions import Weights
from vaejax.estimators.monte_carlo import over_points, over_samples_with_noise
from vaejax.estimators.signature import Integrand, refuse_q


class Relaxation(NamedTuple):
    """A discrete q as the hard values of continuous noise y.

    Attributes:
        logits: (*batch, *event), or with an axis of categories at the end: log-probabilities.
        noise: `(key, z) -> (y, kept)`: y given the hard z, and the part of its path to the logits, from 0 to 1, that
            is left if z is held.
        score: `z -> ` the derivative of log q(z) in `logits`.
        soften: `(y, temperature) -> ` a softened sample.
        hard: `z -> ` a sample of that form.
        onto: of a gradient in `logits`, that in the logits of a softmax.
        straight: `(z, slope) -> ` the gradient of straight-through, of the derivative of f in a sample of that form.
        trapezoid: likewise, of ReinMax.
        num_batch: how many batch axes q has.
    """

    logits: Array
    noise: Callable[[Key[Array, ""], Array], tuple[Array, Array]]
    score: Callable[[Array], Array]
    soften: Callable[[Array, Any], Any]
    hard: Callable[[Array], Any]
    onto: Callable[[Array], Array]
    straight: Callable[[Array, Array], Array]
    trapezoid: Callable[[Array, Array], Array]
    num_batch: int

    def surrogate(self, gradient: Array) -> Float[Array, " *batch"]:
        """What has that gradient in the logits (*batch, ...); its value is of no use."""
        logits = jnp.where(jnp.isinf(self.logits), 0, self.logits)  # of an impossible category
        products = lax.stop_gradient(self.onto(gradient)) * logits
        return products.reshape(*products.shape[: self.num_batch], -1).sum(axis=-1)


class Draws(NamedTuple):
    """K samples: the hard z, the noise y, and how much of its path is left where z is held; each (K, *batch, ...)."""

    z: Array
    y: Array
    kept: Array


def relaxation_of(name: str, q: dist.Distribution) -> Relaxation:
    """The noise behind a Bernoulli or categorical q with independent coordinates; others are refused."""
    base = distributions.without_wrappers(q)
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        return _logistic(jnp.broadcast_to(jnp.asarray(base.logits), q.shape()), len(q.batch_shape))
    if isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
        logits = jnp.asarray(base.logits)
        return _gumbel(jnp.broadcast_to(logits, (*q.shape(), logits.shape[-1])), len(q.batch_shape))
    instead = "score_function(baseline='leave_one_out')" + (", or pathwise()" if q.has_rsample else "")
    refuse_q(name, "Bernoulli and categorical distributions with independent coordinates", q, instead)


def _logistic(logits: Array, num_batch: int) -> Relaxation:
    held = lax.stop_gradient(logits)
    p, dtype = jax.nn.sigmoid(held), logits.dtype

    def noise(key: Key[Array, ""], z: Array) -> tuple[Array, Array]:
        # |y| = softplus(logit v + softplus(+-logit)) with a uniform v: y is positive where the bit is one.
        side = 2 * z.astype(dtype) - 1
        inner = jax.random.logistic(key, z.shape, dtype) + jax.nn.softplus(side * held)
        return side * jax.nn.softplus(inner), jax.nn.sigmoid(inner) * jax.nn.sigmoid(side * held)

    score = lambda z: z.astype(dtype) - p[None]  # noqa: E731
    return Relaxation(
        logits,
        noise,
        score=score,
        soften=lambda y, temperature: jax.nn.sigmoid(y / jnp.asarray(temperature, dtype)),
        hard=lambda z: z.astype(dtype),
        onto=lambda gradient: gradient,
        straight=lambda z, slope: (p * (1 - p))[None] * slope,
        trapezoid=lambda z, slope: 0.5 * jnp.abs(score(z)) * slope,
        num_batch=num_batch,
    )


def _gumbel(logits: Array, num_batch: int) -> Relaxation:
    held = jax.nn.log_softmax(lax.stop_gradient(logits), axis=-1)
    p, dtype = jnp.exp(held), logits.dtype

    def one_hot(z: Array) -> Array:
        return jax.nn.one_hot(z, logits.shape[-1], dtype=dtype)

    def noise(key: Key[Array, ""], z: Array) -> tuple[Array, Array]:
        # -y is the logarithm of a wait: the chosen category's is the shortest, and the others wait for longer.
        log_waits = jnp.log(jax.random.exponential(key, held.shape, dtype))
        own, chosen = one_hot(z), (one_hot(z) * log_waits).sum(axis=-1, keepdims=True)
        longer = log_waits - held
        y = -jnp.where(own == 1, chosen, jnp.logaddexp(longer, chosen))
        return y, jnp.where(own == 1, 0, jax.nn.sigmoid(longer - chosen))

    def onto(gradient: Array) -> Array:
        return gradient - p * gradient.sum(axis=-1, keepdims=True)

    def against(slope: Array, weights: Array) -> Array:
        return (slope * weights).sum(axis=-1, keepdims=True)

    def trapezoid(z: Array, slope: Array) -> Array:
        own, probabilities = one_hot(z), jnp.broadcast_to(p[None], slope.shape)
        at_own = against(slope, own)
        gradient = own * (at_own - against(slope, probabilities)) + probabilities * (slope - at_own)
        return 0.5 * gradient  # in the logits already, where its sum over categories is zero

    return Relaxation(
        jax.nn.log_softmax(logits, axis=-1),
        noise,
        score=one_hot,
        soften=lambda y, temperature: Weights(jax.nn.softmax(y / jnp.asarray(temperature, dtype), axis=-1)),
        hard=lambda z: Weights(one_hot(z)),
        onto=onto,
        straight=lambda z, slope: p[None] * (slope - against(slope, jnp.broadcast_to(p[None], slope.shape))),
        trapezoid=trapezoid,
        num_batch=num_batch,
    )


def draws_of(relaxation: Relaxation, q: dist.Distribution, key: Array, num_samples: int) -> Draws:
    """K samples, of which the hard ones are those of every other estimator with this key; without gradient."""

    def draw(key: Key[Array, ""], noise_key: Key[Array, ""]) -> Draws:
        z = distributions.sample(q, key)
        return Draws(z, *relaxation.noise(noise_key, z))

    return lax.stop_gradient(over_samples_with_noise(draw, key, num_samples))


def softened(
    relaxation: Relaxation, q: Any, y: Array, temperature: Any, integrand: Integrand, chunk_size: int | None
) -> Array:
    """The log-weights of softened samples, (K, *batch)."""
    soft = distributions.relaxed(q)
    return over_points(lambda y: integrand(relaxation.soften(y, temperature), soft)[0], y, integrand, chunk_size)


def check_temperature(temperature: Any) -> None:
    """Refuse a temperature that is no positive number; of a traced one only the shape is known."""
    checks.check_number("temperature", temperature, above=0, advice="the lower it is, the nearer to hard samples")
