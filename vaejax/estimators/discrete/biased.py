"""Biased gradients of discrete latents, by the derivative of f: Gumbel-softmax, straight-through and ReinMax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vaejax import distributions
from vaejax.estimators.discrete.noise import Draws, Relaxation, check_temperature, draws_of, relaxation_of, softened
from vaejax.estimators.monte_carlo import over_points, with_gradient_of
from vaejax.estimators.reductions import Reduction
from vaejax.estimators.signature import Estimate, Estimator, Integrand


def gumbel_softmax(temperature: float | Array) -> Estimator:
    """Biased: the pathwise gradient of f at softened samples, in the place of the hard ones (Gumbel-softmax, concrete).

        grad of the bound of l_1, ..., l_K with l_k = f(soften(y_k / t))

    The value and the gradient of f's own parameters are those of the hard samples, the same as of every estimator; only
    what reaches q is softened. The lower the temperature, the smaller the bias and the larger the variance. One that
    follows a schedule is a traced number: make the objective where the step is known, as
    `lambda params, key, x, *, step: make_elbo(vae, gumbel_softmax(schedule(step)))(params, key, x, step=step)`.

    Args:
        temperature: t, positive.

    Returns:
        An estimator, *biased*, for a Bernoulli or categorical q with independent coordinates.

    Raises:
        ValueError: if the temperature is not positive; when the estimator is called, as `rebar`.

    >>> from vaejax import estimators
    >>> f = lambda logit, z: 4.0 * z.astype(float)
    >>> mean_of = estimators.expectation(gumbel_softmax(0.5), distributions.BernoulliLogits, f, num_samples=1000)
    >>> grad, info = jax.grad(mean_of, has_aux=True)(0.0, jax.random.key(0))  # of 4 sigmoid(logit): 1
    >>> 0.8 < float(grad) < 0.95
    True

    Source: Jang, Gu & Poole 2017, "Categorical reparameterization with Gumbel-softmax"; Maddison, Mnih & Teh 2017, "The
    concrete distribution".
    """
    check_temperature(temperature)

    def gradient(relaxation: Relaxation, q: Any, draws: Draws, integrand: Any, reduce: Any, chunk_size: Any) -> Array:
        def bound(y: Array) -> Array:
            return reduce.bound(softened(relaxation, q, y, temperature, integrand, chunk_size))

        value, pull_back = jax.vjp(bound, draws.y)
        return pull_back(jnp.ones_like(value))[0].sum(axis=0)

    return Estimator(_biased("gumbel_softmax()", gradient))


def straight_through() -> Estimator:
    """Biased: the derivative of f at the hard samples, as if the samples were the probabilities (straight-through).

        grad of the probabilities = E[grad f(z)]

    To first order f(1) - f(0) is the derivative at either end. It is without bias for a linear f, and has the least
    variance of all.

    Returns:
        An estimator, *biased*, for a Bernoulli or categorical q with independent coordinates.

    Raises:
        ValueError: when the estimator is called, as `rebar`.

    >>> from vaejax import estimators
    >>> f = lambda logit, z: 4.0 * z.astype(float)
    >>> mean_of = estimators.expectation(straight_through(), distributions.BernoulliLogits, f)
    >>> float(jax.grad(mean_of, has_aux=True)(0.0, jax.random.key(0))[0])  # of 4 sigmoid(logit)
    1.0

    Source: Bengio, Leonard & Courville 2013, "Estimating or propagating gradients through stochastic neurons".
    """
    return Estimator(_biased("straight_through()", _at_hard_samples(lambda relaxation: relaxation.straight)))


def reinmax() -> Estimator:
    """Biased: straight-through to second order (ReinMax), by the trapezoid of the derivatives at both values.

        grad of a logit = sum over other values j of p p_j (f - f_j),  f - f_j = (grad f + grad f_j)(e - e_j) / 2

    It is without bias for a quadratic f.

    Returns:
        An estimator, *biased*, for a Bernoulli or categorical q with independent coordinates.

    Raises:
        ValueError: when the estimator is called, as `rebar`.

    >>> from vaejax import estimators
    >>> f = lambda logit, z: 4.0 * z.astype(float) ** 2
    >>> mean_of = estimators.expectation(reinmax(), distributions.BernoulliLogits, f, num_samples=1000)
    >>> grad, info = jax.grad(mean_of, has_aux=True)(0.0, jax.random.key(0))  # of 4 sigmoid(logit): 1
    >>> 0.9 < float(grad) < 1.1
    True

    Source: Liu, Dong, Liu, Yu & Gao 2023, "Bridging discrete and backpropagation: straight-through and beyond".
    """
    return Estimator(_biased("reinmax()", _at_hard_samples(lambda relaxation: relaxation.trapezoid)))


def _biased(name: str, gradient: Callable[..., Array]) -> Callable[..., Estimate]:
    """The value of hard samples, with a gradient in the logits that `gradient` makes of them."""

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        relaxation = relaxation_of(name, q)
        draws = draws_of(relaxation, q, key, num_samples)
        log_w, terms = over_points(lambda z: integrand(z, q), draws.z, integrand, chunk_size)
        bound = reduce.bound(log_w)
        g = gradient(relaxation, q, draws, integrand, reduce, chunk_size)
        return Estimate(with_gradient_of(bound, relaxation.surrogate(g)), terms)

    return estimate


def _at_hard_samples(rule_of: Callable[[Relaxation], Callable[[Array, Array], Array]]) -> Callable[..., Array]:
    """The gradient in the logits that a rule makes of the derivative of the bound in the hard samples."""

    def gradient(
        relaxation: Relaxation, q: Any, draws: Draws, integrand: Integrand, reduce: Reduction, chunk_size: int | None
    ) -> Array:
        soft = distributions.relaxed(q)

        def bound(weights: Any) -> Array:
            return reduce.bound(over_points(lambda w: integrand(w, soft)[0], weights, integrand, chunk_size))

        value, pull_back = jax.vjp(bound, relaxation.hard(draws.z))
        (slope,) = jax.tree.leaves(pull_back(jnp.ones_like(value)))
        return rule_of(relaxation)(draws.z, slope).sum(axis=0)

    return gradient
