"""The expectation of any function under any distribution: its value, its gradient, and the gradient of each sample.

A VAE's objective builds the integrand from a model; here the integrand is an argument. Everything else is the same.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from vaejax import checks, records
from vaejax.estimators.detaching import with_detached
from vaejax.estimators.monte_carlo import over_samples
from vaejax.estimators.reductions import mean_reduction
from vaejax.estimators.signature import EstimateFunction, Estimator, as_estimator, baseline_values

MakeDistribution = Callable[[Any], dist.Distribution]

Function = Callable[[Any, Array], Array]


class ExpectationInfo(NamedTuple):
    """What `expectation` reports beside the value. No gradient flows through it.

    Attributes:
        value: the estimate. ()
        standard_error: of the value, over the K samples; NaN where K = 1. ()
        per_sample: f at each sample, less the control variate if there is one. (K,)
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    per_sample: Float[Array, " K"]

    __repr__ = records.short_repr


class ControlVariate(NamedTuple):
    """A function h of known expectation, close to the f whose expectation is estimated: E_q[f - h] + E_q[h].

    Attributes:
        function: h, `(params, z) -> ()`.
        expectation: `params -> ()`, the exact E_q[h].

    >>> variate = ControlVariate(lambda mean, z: z**2, lambda mean: mean**2 + 1)  # of q = N(mean, 1)
    """

    function: Function
    expectation: Callable[[Any], Array]


def expectation(
    estimator: Estimator | EstimateFunction,
    make_distribution: MakeDistribution,
    f: Function,
    num_samples: int = 1,
    *,
    control_variate: ControlVariate | None = None,
    chunk_size: int | None = None,
) -> Callable[[Any, Key[Array, ""]], tuple[Float[Array, ""], ExpectationInfo]]:
    """The expectation of f under q, to be differentiated by any estimator.

        E_q[f(params, z)],  q = make_distribution(params),  estimated by (1/K) sum_k f(params, z_k)

    Args:
        estimator: how the gradient is estimated.
        make_distribution: `params -> q`. All axes of q are taken for one event: f sees z of the whole shape.
        f: `(params, z) -> ()`; it may depend on the parameters directly too.
        num_samples: K.
        control_variate: h with a known mean, which makes the estimate E_q[f - h] + E_q[h]; such as `delta_method`.
        chunk_size: how many of the K samples are evaluated at once.

    Returns:
        `(params, key) -> (value, info)`, whose `jax.grad` with `has_aux=True` is the estimator. With a trained baseline
        the params are a dict with "baseline" in it, made by `with_baseline(params, estimator, key, jnp.zeros(1))`.

    Raises:
        ValueError: if num_samples is not a positive integer. The function, when called, if f is not a scalar or the
            estimator cannot serve q or K.

    >>> from vaejax import estimators
    >>> square = expectation(estimators.pathwise(), lambda mean: dist.Normal(mean, 1.0), lambda mean, z: z**2, 1000)
    >>> grad, info = jax.grad(square, has_aux=True)(jnp.array(3.0), jax.random.key(0))  # 2 mean
    >>> abs(float(grad) - 6) < 0.3
    True
    """
    estimator = as_estimator(estimator)
    checks.check_count("num_samples", num_samples)
    if chunk_size is not None:
        checks.check_count("chunk_size", chunk_size)
    checks.check_function("make_distribution", make_distribution, "params -> q", 1)
    checks.check_function("f", f, "(params, z) -> a scalar", 2)
    reduce = mean_reduction()

    def function(params: Any, key: Key[Array, ""]) -> tuple[Float[Array, ""], ExpectationInfo]:
        checks.check_key(key)
        q = _one_event(make_distribution(params))
        baseline = baseline_values(estimator, params, jnp.zeros(()), ())

        def integrand(z, q):
            value = _scalar(f(params, z))
            if control_variate is not None:
                value -= control_variate.function(params, z)
            return value, value

        def detach() -> dist.Distribution:
            return _one_event(make_distribution(lax.stop_gradient(params)))

        integrand = with_detached(integrand, detach)
        value, per_sample = estimator(key, q, integrand, num_samples, reduce, baseline, chunk_size)
        if control_variate is not None:
            value += control_variate.expectation(params)
        num = len(per_sample)
        error = per_sample.std(ddof=1) / math.sqrt(num) if num > 1 else jnp.full((), jnp.nan)
        return value, lax.stop_gradient(ExpectationInfo(value, error, per_sample))

    return function


def per_sample_gradients(
    estimator: Estimator | EstimateFunction,
    make_distribution: MakeDistribution,
    f: Function,
    num_samples: int,
    *,
    select: Callable[[Any], Any] = lambda gradient: gradient,
    chunk_size: int | None = None,
) -> Callable[[Any, Key[Array, ""]], Any]:
    """The gradient of E_q[f] that each of K samples gives by itself: K estimates of one sample each.

    Args:
        estimator: one that serves K = 1.
        make_distribution: as in `expectation`.
        f: as in `expectation`.
        num_samples: K.
        select: a function of each gradient, such as `lambda gradient: gradient["mean"]`. Only what it returns is kept
            for all samples. For moments alone see `laboratory.gradient_moments`.
        chunk_size: how many samples are evaluated at once.

    Returns:
        `(params, key) -> tree`, a tree like the params, or like what `select` returns, with leaves (K, *shape).

    Raises:
        ValueError: as `expectation`; when called, if num_samples or chunk_size is not a positive integer.

    >>> from vaejax import estimators
    >>> f = lambda mean, z: z.sum()
    >>> gradients = per_sample_gradients(estimators.pathwise(), lambda mean: dist.Normal(mean, 1.0), f, 4)
    >>> gradients(jnp.ones(3), jax.random.key(0)).shape
    (4, 3)
    """
    checks.check_count("num_samples", num_samples)
    if chunk_size is not None:
        checks.check_count("chunk_size", chunk_size)
    gradient = jax.grad(expectation(estimator, make_distribution, f, 1), has_aux=True)

    def function(params: Any, key: Key[Array, ""]) -> Any:
        return over_samples(lambda key: select(gradient(params, key)[0]), key, num_samples, chunk_size)

    return function


def delta_method(make_distribution: MakeDistribution, f: Function) -> ControlVariate:
    """The second-order expansion of f around the mean of q, whose expectation needs only q's first two moments.

        h(z) = f(m) + (z - m) . grad f(m) + 1/2 (z - m) . H(m) (z - m)

    It pays for its Hessian where f is smooth and has few dimensions. For a quadratic f nothing is left to estimate.

    Args:
        make_distribution: as in `expectation`; q must know its mean and variance, and its covariance matrix where its
            coordinates are not independent.
        f: as in `expectation`, twice differentiable in z.

    Returns:
        The control variate, for `expectation`.

    Raises:
        ValueError: when it is used, if f is not a scalar.

    >>> from vaejax import estimators
    >>> make, f = lambda mean: dist.Normal(mean, 1.0), lambda mean, z: z**2
    >>> estimate = expectation(estimators.score_function(), make, f, 3, control_variate=delta_method(make, f))
    >>> float(estimate(3.0, jax.random.key(0))[0])  # 1 + mean^2
    10.0

    Source: Paisley, Blei & Jordan 2012, "Variational Bayesian inference with stochastic search", section 3.
    """
    checks.check_function("make_distribution", make_distribution, "params -> q", 1)
    checks.check_function("f", f, "(params, z) -> a scalar", 2)

    def expansion(params: Any, z: Array) -> tuple[Array, Array, Array]:
        """F, its slope and its curvature at the mean of q, which is taken for a constant."""
        center = lax.stop_gradient(ravel_pytree(make_distribution(params).mean)[0])
        of_flat = lambda flat: _scalar(f(params, flat.reshape(z.shape)))  # noqa: E731
        return of_flat(center), jax.grad(of_flat)(center), jax.hessian(of_flat)(center)

    def function(params: Any, z: Array) -> Array:
        value, slope, curvature = expansion(params, z)
        away = (z - lax.stop_gradient(make_distribution(params).mean)).reshape(-1)
        return value + slope @ away + 0.5 * away @ curvature @ away

    def expected(params: Any) -> Array:
        q = make_distribution(params)
        value, slope, curvature = expansion(params, q.mean)
        away = (q.mean - lax.stop_gradient(q.mean)).reshape(-1)  # zero, with the gradient of the mean
        covariance = getattr(q, "covariance_matrix", None)
        if covariance is None:
            covariance = jnp.diag(jnp.ravel(q.variance))
        return value + slope @ away + 0.5 * away @ curvature @ away + 0.5 * (curvature * covariance).sum()

    return ControlVariate(function, expected)


def _one_event(q: dist.Distribution) -> dist.Distribution:
    return q.to_event(len(q.batch_shape)) if q.batch_shape else q


def _scalar(value: Array) -> Array:
    checks.check_shape("a scalar from f(params, z),", jnp.shape(value), ())
    return jnp.asarray(value)
