"""Score functions of Bernoulli latents, with control variates made of the derivative of f.

Between its hard samples f of bits is defined by what computes it: a network takes 0.3 as well, and a log-probability is
linear in the bit. A first-order expansion of f there predicts f at other bits. Its own part of the gradient is known
exactly, and what is left to the samples is what it fails to predict.

In the equations x is a sample of q, p its mean, c = x - p the score of the logits, and y another point.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, Key

from vaejax import checks, distributions
from vaejax.distributions import Params
from vaejax.estimators.baselines import Trained, less_variance
from vaejax.estimators.monte_carlo import over_draws, with_gradient_of
from vaejax.estimators.reductions import Reduction
from vaejax.estimators.signature import Estimate, Estimator, Integrand, refuse_q
from vaejax.models import networks


def muprop() -> Estimator:
    """Score function with the first-order expansion of f about the mean of q as its control variate (MuProp).

        h(x) = f(p) + grad f(p) . (x - p):  grad of the logits = E[(f(x) - h(x)) c] + p (1 - p) grad f(p)

    It evaluates f at the mean beside the K samples, and serves K = 1. For a bound that is no mean, as the
    importance-weighted one, the expansion is that of the bound in all its samples.

    Returns:
        An estimator, unbiased, for every form of the KL. An integrand of your own must take the mean in the place of
        bits, as for `rebar`.

    Raises:
        ValueError: when the estimator is called, if q is no Bernoulli with independent coordinates.

    >>> from vaejax import estimators
    >>> f = lambda logit, z: 4.0 * z.astype(float)
    >>> mean_of = estimators.expectation(muprop(), distributions.BernoulliLogits, f)
    >>> grad, info = jax.grad(mean_of, has_aux=True)(0.0, jax.random.key(0))  # of 4 sigmoid(logit): 1, without noise
    >>> float(grad)
    1.0

    Source: Gu, Levine, Sutskever & Mnih 2016, "MuProp: unbiased backpropagation for stochastic neural networks".
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        logits = bernoulli_logits("muprop()", q)
        p = jax.nn.sigmoid(lax.stop_gradient(logits))

        draw = lambda key: distributions.sample(q, key)  # noqa: E731
        log_w, terms, z = over_draws(draw, lambda z: (*integrand(z, q), z), integrand, key, num_samples, chunk_size)
        c = z.astype(p.dtype) - p[None]
        at_mean, pull_back = jax.vjp(lambda z: integrand(z, distributions.relaxed(q))[0], p)
        (slope,) = pull_back(jnp.ones_like(at_mean))
        bound = reduce.bound(log_w)
        expansion = at_mean[None] + _over_event(slope[None] * c, at_mean.ndim + 1)
        surprise = (log_w - expansion) / num_samples if reduce.linear else (bound - expansion.mean(axis=0))[None]
        reward = jnp.where(jnp.isneginf(bound)[None], 0, surprise)
        gradient = (_like(reward, c) * c).sum(axis=0) + p * (1 - p) * slope
        return Estimate(with_gradient_of(bound, of_logits(gradient, logits, q)), terms)

    return Estimator(estimate)


def double_control_variates() -> Estimator:
    """Leave-one-out score function, with expansions of f from the other samples, of f and of its baseline.

        b_k = (x_k - p) . mean over j != k of grad f(x_j),  h_k = f(x_k) - a b_k
        grad of the logits = E[1/K sum_k (h_k - mean over j != k of h_j) c_k] + a p (1 - p) mean_k grad f(x_k)

    No other point is evaluated than the K samples: the derivatives in x come with those in the parameters of f. The
    number a is trained along to lower the variance, in `params["baseline"]` (see `with_baseline`); it starts at 1,
    which is right for a linear f.

    Returns:
        An estimator, unbiased, for the ELBO in every form of the KL.

    Raises:
        ValueError: when the estimator is called, if q is no Bernoulli with independent coordinates, K = 1, or the bound
            is no mean over samples.

    >>> from vaejax import estimators
    >>> estimator, f = double_control_variates(), lambda params, z: 4.0 * z.astype(float)
    >>> make = lambda params: distributions.BernoulliLogits(params["logit"])
    >>> params = estimators.with_baseline({"logit": 0.0}, estimator, jax.random.key(0), jnp.zeros(1))
    >>> grads, info = jax.grad(estimators.expectation(estimator, make, f, 2), has_aux=True)(params, jax.random.key(1))
    >>> float(grads["logit"])  # of 4 sigmoid(logit): 1, without noise
    1.0

    Source: Titsias & Shi 2022, "Double control variates for gradient estimation in discrete latent variable models".
    """

    def gradient(trained: Params, f: Array, slope: Array, c: Array, p: Array) -> Array:
        scale, num = trained["scale"], len(f)
        others = (slope.sum(axis=0, keepdims=True) - slope) / (num - 1)
        h = f - scale * _over_event(c * others, f.ndim)
        reward = (h - h.mean(axis=0, keepdims=True)) / (num - 1)
        return (_like(reward, c) * c).sum(axis=0) + scale * p * (1 - p) * slope.mean(axis=0)

    def init(key: Key[Array, ""], x: Array) -> Params:
        del key
        return {"scale": jnp.ones((), x.dtype)}

    return _with_slopes("double_control_variates()", gradient, init)


def rodeo(hidden_size: int = 100) -> Estimator:
    """Leave-one-out score function, with control variates that discrete Stein operators make of a small network.

        h_k(y) = mean over j != k of H(f(x_j), grad f(x_j) . (y - p)),  (A h)(x) = sum_i q(not x_i) (h(flip_i x) - h(x))
        grad of the logits = E[1/K sum_k (f(x_k) - mean over j != k of (f(x_j) + (A h_j)(x_j))) c_k + (A h'_k c)(x_k)]

    A is the generator of a Gibbs sampler of q, and so E_q[A h] = 0 for every function h, and no other point is
    evaluated than the K samples. The network H has two outputs, for h and h', and is trained along to lower the
    variance, in `params["baseline"]` (see `with_baseline`). It starts as the expansion of f alone: H = (t, t / 2) of
    its second argument t, which leaves no noise of a linear f with fair coins.

    Args:
        hidden_size: units of the network's hidden layer.

    Returns:
        An estimator, unbiased, for the ELBO in every form of the KL.

    Raises:
        ValueError: if hidden_size is not a positive integer; when the estimator is called, if q is no Bernoulli with
            independent coordinates, K = 1, or the bound is no mean over samples.

    >>> from vaejax import estimators
    >>> estimator, f = rodeo(), lambda params, z: 4.0 * z.astype(float)
    >>> make = lambda params: distributions.BernoulliLogits(params["logit"])
    >>> params = estimators.with_baseline({"logit": 0.0}, estimator, jax.random.key(0), jnp.zeros(1))
    >>> grads, info = jax.grad(estimators.expectation(estimator, make, f, 2), has_aux=True)(params, jax.random.key(1))
    >>> float(grads["logit"])  # of 4 sigmoid(logit): 1, without noise
    1.0

    Source: Shi, Zhou, Hwang, Titsias & Mackey 2022, "Gradient estimation with discrete Stein operators".
    """
    checks.check_count("hidden_size", hidden_size)
    network = networks.mlp(2, (hidden_size,), 2, "tanh")

    def surrogate_of(trained: Params, f: Array, t: Array) -> Array:
        """H, (..., 2): the expansion by two numbers, and a network of f and t by two others that start at zero."""
        inputs = jnp.stack(jnp.broadcast_arrays(f, t), axis=-1)
        outputs = network.apply(trained["network"], inputs.reshape(-1, 2)).reshape(inputs.shape)
        return trained["scale"] * t[..., None] + trained["share"] * outputs

    def gradient(trained: Params, f: Array, slope: Array, c: Array, p: Array) -> Array:
        num = len(f)
        flat_c, flat_slope = (array.reshape(*f.shape, -1) for array in (c, slope))
        weights = (1 - jnp.eye(num, dtype=f.dtype)) / (num - 1)
        # Not as a sum of products: of arrays with seven axes, as under two vmaps, that crashes jaxlib 0.10 on CPUs.
        mean_of_others = functools.partial(jnp.einsum, "kj,kj...->k...", weights, precision="highest")
        t = (flat_slope[None] * flat_c[:, None]).sum(axis=-1)  # (k, j, *batch): the expansion of sample j at sample k
        flips = t[..., None] + flat_slope[None] * _flip(flat_c)[:, None]  # and with one bit of it flipped
        with jax.numpy_rank_promotion("allow"):
            here = mean_of_others(surrogate_of(trained, f[None], t))[..., None, :]
            there = mean_of_others(surrogate_of(trained, f[None, ..., None], flips))
            changes = (jnp.abs(flat_c)[..., None] * (there - here)).sum(axis=-2)  # (A h)(x_k), (k, *batch, 2)
            stein = flat_c * changes[..., 1:] - flat_c * there[..., 1]  # (A h' c)(x_k); q(not x) (1 - 2x) is -c
            h = f + changes[..., 0]
            reward = f - (h.sum(axis=0, keepdims=True) - h) / (num - 1)
            return (reward[..., None] * flat_c + stein).mean(axis=0).reshape(p.shape)

    def init(key: Key[Array, ""], x: Array) -> Params:
        start = {"scale": jnp.array([1.0, 0.5], x.dtype), "share": jnp.zeros(2, x.dtype)}
        return {**start, "network": network.init(key)}

    return _with_slopes("rodeo()", gradient, init)


def bernoulli_logits(name: str, q: dist.Distribution, instead: str = "disarm()") -> Array:
    """The logits of a Bernoulli q with independent coordinates, (*batch, *event); others are refused."""
    base = distributions.without_wrappers(q)
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        return jnp.broadcast_to(jnp.asarray(base.logits), q.shape())
    if not isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
        instead = "score_function(baseline='leave_one_out')" + (", or pathwise()" if q.has_rsample else "")
    return refuse_q(name, "Bernoulli distributions with independent coordinates", q, instead)


def of_logits(gradient: Array, logits: Array, q: dist.Distribution) -> Float[Array, " *batch"]:
    """A surrogate of each example's bound, with that gradient in the logits of q."""
    return _over_event(lax.stop_gradient(gradient) * logits, len(q.batch_shape))


def _with_slopes(
    name: str,
    gradient: Callable[[Params, Array, Array, Array, Array], Array],
    init: Callable[[Key[Array, ""], Array], Params],
) -> Estimator:
    """The estimator of a mean of f that makes its gradient of `(trained, f, grad f, c, p)` at K samples of bits."""

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        logits = bernoulli_logits(name, q)
        _check_mean_of_two(name, num_samples, reduce)
        trained = init(jax.random.key(0), lax.stop_gradient(logits)) if baseline is None else baseline
        p = jax.nn.sigmoid(lax.stop_gradient(logits))
        draw = lambda key: distributions.sample(q, key).astype(p.dtype)  # noqa: E731
        log_w, terms, slope, c = _slopes(draw, p, q, integrand, key, num_samples, chunk_size)
        bound = reduce.bound(log_w)
        nothing = jnp.isneginf(bound)[None]
        f, slope = (jnp.where(_like(nothing, array), 0, array) for array in (log_w, slope))
        f, slope = lax.stop_gradient((f, slope))
        g, tuning = less_variance(lambda trained: gradient(trained, f, slope, c, p), trained, bound)
        return Estimate(with_gradient_of(bound, of_logits(g, logits, q) + tuning), terms)

    return Estimator(estimate, Trained(init), fewest_samples=2)


def _slopes(
    draw: Callable[[Array], Array],
    p: Array,
    q: dist.Distribution,
    integrand: Integrand,
    key: Array,
    num_samples: int,
    chunk_size: int | None,
) -> tuple[Array, Any, Array, Array]:
    """The log-weights, the terms, the derivatives of the log-weights in the samples, and c, of K samples."""

    def sample_term(z: Array) -> tuple[Array, Any, Array, Array]:
        # The examples of a batch do not see each other, so that one pull-back gives the derivative of each.
        log_w, pull_back, terms = jax.vjp(lambda z: integrand(z, q), z, has_aux=True)
        (slope,) = pull_back(jnp.ones_like(log_w))
        return log_w, terms, slope, z

    log_w, terms, slope, z = over_draws(draw, sample_term, integrand, key, num_samples, chunk_size)
    return log_w, terms, slope, z - p[None]


def _check_mean_of_two(name: str, num_samples: int, reduce: Reduction) -> None:
    advice = f"{name} expands f from the other samples; raise num_samples, or use muprop() or score_function()"
    checks.check_count("num_samples", num_samples, 2, advice)
    if not reduce.linear:
        raise ValueError(
            f"{name} serves means over samples, as the ELBO is; got a bound that is none, as the importance-weighted "
            "one. Use disarm(), muprop() or vimco()"
        )


def _over_event(array: Array, num_axes: int) -> Array:
    """Summed over all axes but the first."""
    return array.reshape(*array.shape[:num_axes], -1).sum(axis=-1)


def _like(array: Array, other: Array) -> Array:
    """With as many axes as the other, by axes of length 1 at the end."""
    return array.reshape(*array.shape, *[1] * (other.ndim - array.ndim))


def _flip(c: Array) -> Array:
    """What flipping a bit adds to it: -1 to a one, whose score is positive, and 1 to a zero."""
    return jnp.where(c > 0, -1, 1).astype(c.dtype)
