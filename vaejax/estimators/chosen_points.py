"""Estimators that evaluate the integrand at points of their own choosing, beside the samples or instead of them."""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from vaejax import distributions
from vaejax.estimators.monte_carlo import over_indices, over_samples_with_noise, with_gradient_of
from vaejax.estimators.reductions import bounds_with_replaced
from vaejax.estimators.signature import MAX_STATES, Estimate, Estimator, refuse_q


def measure_valued() -> Estimator:
    """Measure-valued gradient of a Gaussian q, coupled: differences of f at two samples, coordinate by coordinate.

        d E_q[f(z)] / d mean_i = E[f(mean_i + std_i w) - f(mean_i - std_i w)] / (std_i sqrt(2 pi)),  w ~ Rayleigh(1)
        d E_q[f(z)] / d std_i  = E[f(mean_i + std_i m) - f(mean_i + std_i u m)] / std_i

    with m from the double-sided Maxwell distribution and u uniform on (0, 1), so that u m is normal; the other
    coordinates of z stay as they were drawn. It needs no derivative of f in z, but 4 evaluations of f for each latent
    and sample, one latent after another.

    Returns:
        An estimator, unbiased, for every form of the KL.

    Raises:
        ValueError: when the estimator is called, if q is no Gaussian with independent coordinates; it names one that
            can serve q.

    >>> from vaejax import estimators
    >>> make, f = lambda mean: dist.Normal(mean, 1.0), lambda mean, z: z**2
    >>> square = estimators.expectation(measure_valued(), make, f, num_samples=1000)
    >>> grad, info = jax.grad(square, has_aux=True)(3.0, jax.random.key(0))  # of 1 + mean^2: 6
    >>> 5.7 < float(grad) < 6.3
    True

    Source: Mohamed, Rosca, Figurnov & Mnih 2020, "Monte Carlo gradient estimation in machine learning", section 6.
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        mean, std = _gaussian_parameters(q)
        detached = lax.stop_gradient(q)

        def sample_term(key, noise_key):
            w_key, m_key, sign_key, u_key = jax.random.split(noise_key, 4)
            z = lax.stop_gradient(distributions.sample(q, key))
            log_w, terms = integrand(z, q)
            w = jnp.sqrt(2 * jax.random.exponential(w_key, z.shape, z.dtype))  # jax.random.rayleigh can be infinite
            m = jax.random.maxwell(m_key, z.shape, z.dtype) * jax.random.rademacher(sign_key, z.shape, z.dtype)
            u = jax.random.uniform(u_key, z.shape, z.dtype)
            moved = lax.stop_gradient(jnp.stack([mean + std * offset for offset in (w, -w, m, u * m)]))
            flat, moved = z.reshape(*log_w.shape, -1), moved.reshape(4, *log_w.shape, -1)

            def with_coordinate_moved(i):
                return jax.vmap(
                    lambda moved: integrand(flat.at[..., i].set(moved[..., i]).reshape(z.shape), detached)[0]
                )(moved)

            log_w_moved = lax.map(with_coordinate_moved, jnp.arange(flat.shape[-1]))
            return log_w, terms, lax.stop_gradient(log_w_moved)

        log_w, terms, moved = over_samples_with_noise(sample_term, key, num_samples, chunk_size)
        bounds = jnp.moveaxis(bounds_with_replaced(reduce, log_w, moved).sum(axis=0), 0, -1)
        bound = reduce.bound(log_w)
        # The difference of a bound and one of -inf is no slope; such an example gets no gradient from its samples.
        nothing = jnp.isneginf(bounds).any(axis=(0, -1)) | jnp.isneginf(bound)
        bounds = jnp.where(nothing[None, ..., None], 0, bounds)
        up, down, spread, normal = (side.reshape(mean.shape) for side in bounds)
        mean_slope, std_slope = (up - down) / (math.sqrt(2 * math.pi) * std), (spread - normal) / std
        products = lax.stop_gradient(mean_slope) * mean + lax.stop_gradient(std_slope) * std
        surrogate = products.reshape(*log_w.shape[1:], -1).sum(axis=-1)
        return Estimate(with_gradient_of(bound, surrogate), terms)

    return Estimator(estimate)


def enumerate_support() -> Estimator:
    """The exact expectation under a discrete q with few states, and so its exact gradient: nothing is drawn.

        E_q[f(z)] = sum_z q(z) f(z)

    The key is not used, K must be 1, and the terms that the estimator returns are their means under q. `chunk_size` is
    the number of states that are evaluated at once.

    Returns:
        An estimator without variance, for every form of the KL.

    Raises:
        ValueError: when the estimator is called, if q is not discrete, its coordinates are not independent, it has more
            than 65,536 states, or K is not 1.

    >>> from vaejax import estimators
    >>> f = lambda logit, z: 4.0 * z.astype(float)
    >>> mean_of = estimators.expectation(enumerate_support(), distributions.BernoulliLogits, f)
    >>> grad, info = jax.grad(mean_of, has_aux=True)(0.0, jax.random.key(0))  # of 4 sigmoid(logit)
    >>> round(float(grad), 4)
    1.0
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del key, baseline
        if num_samples != 1:
            raise ValueError(
                "enumerate_support() sums over all states and draws nothing: it expects num_samples=1; got "
                f"{num_samples}. For a bound of several samples use vimco() or score_function('leave_one_out')"
            )
        values, num_states = _states(q)

        def state_term(index):
            digits = index // len(values) ** jnp.arange(math.prod(q.event_shape)) % len(values)
            z = jnp.broadcast_to(values[digits].reshape(q.event_shape), q.shape())
            return *integrand(z, q), distributions.log_prob(q, z)

        log_w, terms, log_q = over_indices(state_term, num_states, chunk_size)
        probabilities = jnp.exp(log_q)
        # An example with a state that is impossible, but that q gives a probability, has a bound of -inf.
        nothing = ((probabilities > 0) & jnp.isneginf(log_w)).any(axis=0)

        def mean(array: Array) -> Array:
            weights = probabilities.reshape(*probabilities.shape, *[1] * (array.ndim - probabilities.ndim))
            # A state of probability zero counts for nothing, also where its log-weight is infinite.
            return (weights * jnp.where(weights > 0, array, 0)).sum(axis=0, keepdims=True)

        possible = mean(jnp.where(nothing[None], 0, log_w))
        return Estimate(reduce.bound(jnp.where(nothing[None], -jnp.inf, possible)), jax.tree.map(mean, terms))

    return Estimator(estimate)


def _gaussian_parameters(q: dist.Distribution) -> tuple[Array, Array]:
    base = distributions.without_wrappers(q)
    if not isinstance(base, dist.Normal):
        instead = "pathwise(), or score_function(baseline='leave_one_out')"
        refuse_q("measure_valued()", "Gaussians with independent coordinates", q, instead)
    return jnp.broadcast_to(jnp.asarray(base.loc), q.shape()), jnp.broadcast_to(jnp.asarray(base.scale), q.shape())


def _states(q: dist.Distribution) -> tuple[Array, int]:
    """The values of one coordinate of q, and the number of states of all coordinates together."""
    base = distributions.without_wrappers(q)
    instead = "score_function(baseline='leave_one_out')" + (", or pathwise()" if q.has_rsample else "")
    if base.event_shape or not base.has_enumerate_support:
        refuse_q("enumerate_support()", "a discrete q with a finite support and independent coordinates", q, instead)
    values = base.enumerate_support(expand=False).reshape(-1)
    num_coordinates = math.prod(q.event_shape)
    if len(values) ** num_coordinates > MAX_STATES:
        served = f"a q with at most {MAX_STATES:,} states, and this one has {len(values)}^{num_coordinates}"
        refuse_q("enumerate_support()", served, q, instead)
    return values, len(values) ** num_coordinates
