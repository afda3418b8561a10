"""Estimators of discrete latents from samples that are coupled, so that they differ more often than independent ones.

Two samples of q, exchangeable and with correlation rho in each bit, give the gradient of E_q[f] in the bit's logit:

    E[(f(z) - f(z'))(z_i - z'_i)] / (2 (1 - rho_i)),

for the bits of the other coordinates have the same distribution in both. The more negative rho, the smaller the factor.

A categorical latent is written in bits that are independent: bit j says whether it is category j, given that it is none
before. Where a sample has been decided before bit j, its f does not depend on that bit, which is then replaced by its
mean given the other sample's.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from vaejax import checks, distributions
from vaejax.estimators.monte_carlo import over_points, over_samples, over_samples_with_noise, with_gradient_of
from vaejax.estimators.reductions import bounds_with_replaced
from vaejax.estimators.signature import Estimate, Estimator, Integrand, refuse_q


def disarm() -> Estimator:
    """Score function of pairs of antithetic bits, with the pair's noise averaged out as far as it can be (DisARM).

        z = [u < p], z' = [1 - u < p]:  grad of the logit = E[(f(z) - f(z')) (z - z') sigmoid(|logit|)] / 2

    It serves a Bernoulli or categorical q with independent coordinates, and takes no derivative of f in z. For a mean
    of K samples they are K / 2 pairs. For a bound that is no mean, as the importance-weighted one, the K samples are
    independent, the same as those of the score function, and each has a partner beside, so that f is evaluated 2K
    times. The pair then shows how much its own sample changes the bound of all:

        sum_k E[(bound(l) - bound(l with l'_k for l_k)) (z_k - z'_k) sigmoid(|logit|)] / 2,

    averaged with the same where samples and partners change places.

    Returns:
        An estimator, unbiased, for every form of the KL.

    Raises:
        ValueError: when the estimator is called, if q is another, or K is odd for a mean.

    >>> from vaejax import estimators
    >>> f = lambda logit, z: 4.0 * z.astype(float)
    >>> mean_of = estimators.expectation(disarm(), distributions.BernoulliLogits, f, num_samples=2)
    >>> grad, info = jax.grad(mean_of, has_aux=True)(0.0, jax.random.key(0))  # of 4 sigmoid(logit): 1, without noise
    >>> float(grad)
    1.0

    Source: Dong, Mnih & Tucker 2020, "DisARM: an antithetic gradient estimator for binary latent variables"; for
    categories, by the same authors, 2021, "Coupled gradient estimators for discrete latent variables".
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        bits = bits_of("disarm()", q)
        if reduce.linear:
            advice = "the samples of a mean come in pairs, and score_function('leave_one_out') serves an odd number"
            checks.check_divides("num_samples", num_samples, 2, "samples of a pair", advice)
        num_pairs = num_samples // 2 if reduce.linear else num_samples
        dtype = bits.logits.dtype
        u = over_samples(lambda key: jax.random.uniform(key, bits.logits.shape, dtype), key, num_pairs)
        p = jax.nn.sigmoid(lax.stop_gradient(bits.logits))[None]
        pairs = jnp.stack([u < p, 1 - u < p])  # (2, pairs, *batch, *event)
        log_w, terms, reached = _evaluated(bits, pairs, q, integrand, chunk_size)
        certain = jax.nn.sigmoid(jnp.abs(lax.stop_gradient(bits.logits)))  # 1 / (1 - rho)
        gradient = jax.vmap(functools.partial(coupled_gradient, bits, certain), in_axes=1)
        if reduce.linear:
            bound = reduce.bound(log_w.reshape(num_samples, *log_w.shape[2:]))
            signal = jnp.where(jnp.isneginf(bound)[None, None], 0, log_w)
            slope = gradient(signal, pairs, reached).mean(axis=0)
            terms = jax.tree.map(lambda leaf: leaf.reshape(num_samples, *leaf.shape[2:]), terms)
            return Estimate(with_gradient_of(bound, bits.surrogate(slope)), terms)
        (bound, other), (first, second) = map(reduce.bound, log_w), lax.stop_gradient(log_w)
        ones = jnp.ones_like(first)
        signal = jnp.stack(
            [
                bound[None] * ones + bounds_with_replaced(reduce, second, first),
                bounds_with_replaced(reduce, first, second) + other[None] * ones,
            ]
        )
        nothing = jnp.isneginf(bound) | jnp.isneginf(other)
        signal = 0.5 * jnp.where(nothing[None, None] | jnp.isneginf(signal), 0, signal)
        slope = gradient(lax.stop_gradient(signal), pairs, reached).sum(axis=0)
        both = jnp.where(nothing, 0, 0.5 * (other - bound))  # what the parameters of f get, from samples and partners
        terms = jax.tree.map(lambda leaf: leaf[0], terms)
        return Estimate(with_gradient_of(bound, both + bits.surrogate(slope)), terms)

    return Estimator(estimate, fewest_samples=2)


def arms(copula: Literal["dirichlet", "gaussian"] = "dirichlet") -> Estimator:
    """Score function of K coupled samples, with the mean of all as the baseline of each (ARMS).

        grad of the logit = E[sum_k (f(z_k) - mean f) (z_k - p)] / ((K - 1) (1 - rho))

    It serves a Bernoulli or categorical q with independent coordinates, and takes no derivative of f in z. Of two
    samples it is `disarm()`. For a bound that is no mean, as the importance-weighted one, the K samples are
    independent, the same as those of the score function; K coupled samples beside, so that f is evaluated 2K times, are
    put in the place of each:

        sum_k sum_j E[(bound(l with l'_j for l_k) - mean over j) (z'_j - p)] / ((K - 1) (1 - rho))

    Args:
        copula: of the K uniform numbers that make one bit in each sample. "dirichlet": of shares that sum to one, which
            makes a rare bit come in one sample at most; "gaussian": of normals that sum to zero.

    Returns:
        An estimator, unbiased, for every form of the KL.

    Raises:
        ValueError: if the copula is unknown. When the estimator is called, if q is another, or K = 1.

    >>> from vaejax import estimators
    >>> f = lambda logit, z: 4.0 * z.astype(float)
    >>> mean_of = estimators.expectation(arms(), distributions.BernoulliLogits, f, num_samples=300)
    >>> grad, info = jax.grad(mean_of, has_aux=True)(0.0, jax.random.key(0))  # of 4 sigmoid(logit): 1
    >>> 0.9 < float(grad) < 1.1
    True

    Source: Dimitriev & Zhou 2021, "ARMS: antithetic-REINFORCE-multi-sample gradient for binary variables".
    """
    checks.check_choice("copula", copula, COPULAS)

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        bits = bits_of("arms()", q)
        advice = "one sample has none to be coupled with; raise num_samples, or use score_function()"
        checks.check_count("num_samples", num_samples, 2, advice)
        logits = lax.stop_gradient(bits.logits)
        draw, make, excess = COPULAS[copula]
        gradient = functools.partial(coupled_gradient, bits, excess(logits, num_samples))
        if reduce.linear:
            drawn = make(over_samples(lambda key: draw(key, logits.shape, logits.dtype), key, num_samples), logits)
            log_w, terms, reached = _evaluated(bits, drawn[None], q, integrand, chunk_size)
            log_w, terms, reached = jax.tree.map(lambda leaf: leaf[0], (log_w, terms, reached))
            bound = reduce.bound(log_w)
            slope = gradient(jnp.where(jnp.isneginf(bound)[None], 0, log_w), drawn, reached)
            return Estimate(with_gradient_of(bound, bits.surrogate(slope)), terms)

        def both(key: Key[Array, ""], noise_key: Key[Array, ""]) -> tuple[Array, Array]:
            u = jax.random.uniform(key, logits.shape, logits.dtype)
            return u < jax.nn.sigmoid(logits), draw(noise_key, logits.shape, logits.dtype)

        independent, noise = over_samples_with_noise(both, key, num_samples)
        coupled = make(noise, logits)
        drawn = jnp.stack([independent, coupled])
        log_w, terms, reached = _evaluated(bits, drawn, q, integrand, chunk_size)
        bound, (samples, others) = reduce.bound(log_w[0]), lax.stop_gradient(log_w)
        signal = bounds_with_replaced(reduce, samples, jnp.broadcast_to(others[None], (num_samples, *others.shape)))
        signal = jnp.where(jnp.isneginf(bound)[None] | jnp.isneginf(signal.sum(axis=0)), 0, signal.sum(axis=0))
        slope = gradient(signal, coupled, reached[1])
        return Estimate(with_gradient_of(bound, bits.surrogate(slope)), jax.tree.map(lambda leaf: leaf[0], terms))

    return Estimator(estimate, fewest_samples=2)


class Bits(NamedTuple):
    """A discrete q as a function of independent bits.

    Attributes:
        logits: of the bits, (*batch, *bits).
        values: bits (*samples, *batch, *bits) -> samples of q, (*samples, *batch, *event).
        reached: likewise -> which bits the sample depends on, of the bits' shape and of a floating dtype.
        num_batch: how many batch axes q has.
    """

    logits: Array
    values: Callable[[Array], Array]
    reached: Callable[[Array], Array]
    num_batch: int

    def surrogate(self, slope: Array) -> Float[Array, " *batch"]:
        """What has the gradient `slope` (*batch, *bits) in the logits, summed over the bits; its value is of no use."""
        logits = jnp.where(jnp.isinf(self.logits), 0, self.logits)  # of an impossible category, whose slope is zero
        return (lax.stop_gradient(slope) * logits).reshape(*slope.shape[: self.num_batch], -1).sum(axis=-1)


def bits_of(name: str, q: dist.Distribution) -> Bits:
    """The bits of a Bernoulli or categorical q with independent coordinates; others are refused in the name given."""
    base, num_batch = distributions.without_wrappers(q), len(q.batch_shape)
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        logits = jnp.broadcast_to(jnp.asarray(base.logits), q.shape())
        all_of = lambda bits: jnp.ones(bits.shape, logits.dtype)  # noqa: E731
        return Bits(logits, lambda bits: bits.astype(jnp.result_type(int)), all_of, num_batch)
    if not isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
        instead = "score_function(baseline='leave_one_out')" + (", or pathwise()" if q.has_rsample else "")
        refuse_q(name, "Bernoulli and categorical distributions with independent coordinates", q, instead)
    logits = jnp.asarray(base.logits)
    logits = jnp.broadcast_to(logits, (*q.shape(), logits.shape[-1]))
    later = lax.cumlogsumexp(logits[..., 1:], axis=logits.ndim - 1, reverse=True)

    def values(bits: Bool[Array, "..."]) -> Array:
        return jnp.concatenate([bits, jnp.ones_like(bits[..., :1])], axis=-1).argmax(axis=-1)

    def reached(bits: Bool[Array, "..."]) -> Array:
        ones = bits.astype(logits.dtype)
        return (jnp.cumsum(ones, axis=-1) == ones).astype(logits.dtype)

    return Bits(logits[..., :-1] - later, values, reached, num_batch)


def coupled_gradient(bits: Bits, excess: Array, signal: Array, drawn: Array, reached: Array) -> Array:
    """The gradient of the mean of f in the logits of the bits, from n exchangeable samples: the mean over all pairs.

    Args:
        bits: of q.
        excess: 1 / (1 - rho), (*batch, *bits).
        signal: f of each sample, (n, *batch).
        drawn: the samples' bits, (n, *batch, *bits).
        reached: which of them a sample depends on, of that shape.

    Returns:
        (*batch, *bits).
    """
    num = len(signal)
    p = jax.nn.sigmoid(lax.stop_gradient(bits.logits))[None]
    signal = signal - signal.mean(axis=0, keepdims=True)
    signal = signal.reshape(*signal.shape, *[1] * (drawn.ndim - signal.ndim))
    own = reached * (drawn.astype(p.dtype) - p)
    num_reached, total = reached.sum(axis=0, keepdims=True), own.sum(axis=0, keepdims=True)
    # Summed over the partners: of one that reaches the bit too; of one that does not; and of the partner's bit alone.
    weights = (num_reached * own - reached * total) * excess[None] + (num - num_reached) * own - (1 - reached) * total
    return (signal * weights).sum(axis=0) / (num * (num - 1))


def _evaluated(
    bits: Bits, drawn: Array, q: dist.Distribution, integrand: Integrand, chunk_size: int | None
) -> tuple[Array, Any, Array]:
    """The log-weights and the terms of bits (groups, n, *batch, *bits), (groups, n, *batch); and the bits reached."""
    z = bits.values(drawn)
    flat = z.reshape(-1, *z.shape[2:])
    results = over_points(lambda z: integrand(z, q), flat, integrand, chunk_size)
    return *jax.tree.map(lambda leaf: leaf.reshape(*z.shape[:2], *leaf.shape[1:]), results), bits.reached(drawn)


def _dirichlet(waits: Array, logits: Array) -> Bool[Array, "..."]:
    """Bits of n samples: the rarer value where a share of a uniform draw from the simplex is large."""
    zero = jnp.zeros_like(waits[:1])
    # The others' total, from both ends: a difference would lose it beside a share of nearly one.
    before = jnp.concatenate([zero, jnp.cumsum(waits[:-1], axis=0)])
    after = jnp.concatenate([jnp.cumsum(waits[:0:-1], axis=0)[::-1], zero])
    log_rest = jnp.log(before + after) - jnp.log(waits.sum(axis=0, keepdims=True))
    rare = (len(waits) - 1) * log_rest < jax.nn.log_sigmoid(-jnp.abs(logits))[None]
    return rare != (logits > 0)[None]


def _dirichlet_excess(logits: Array, num: int) -> Array:
    rare = jax.nn.sigmoid(-jnp.abs(logits))
    both = jnp.maximum(2 * rare ** (1 / (num - 1)) - 1, 0) ** (num - 1)  # the probability that two are rare
    return _excess(rare, both)


def _gaussian(normals: Array, logits: Array) -> Bool[Array, "..."]:
    """Bits of n samples: the rarer value where one of n normals that sum to zero is small."""
    num = len(normals)
    normals = (normals - normals.mean(axis=0, keepdims=True)) * (num / (num - 1)) ** 0.5
    rare = normals < jax.scipy.special.ndtri(jax.nn.sigmoid(-jnp.abs(logits)))[None]
    return rare != (logits > 0)[None]


def _gaussian_excess(logits: Array, num: int) -> Array:
    """By the derivative of the two normals' joint probability in their correlation, integrated over it."""
    rare = jax.nn.sigmoid(-jnp.abs(logits))
    if num == 2:  # the two have opposite signs
        return _excess(rare, jnp.zeros_like(rare))
    h = jnp.maximum(jax.scipy.special.ndtri(rare), -30)  # infinite where rare is zero
    nodes, weights = np.polynomial.legendre.leggauss(20)
    angle = np.arcsin(-1 / (num - 1))
    sines = np.sin(0.5 * angle * (nodes + 1))
    slopes = [
        weight * jnp.exp(-(h**2) / (1 + sine)) for sine, weight in zip(sines.tolist(), weights.tolist(), strict=True)
    ]
    both = rare**2 + float(0.5 * angle) / (2 * np.pi) * sum(slopes[1:], start=slopes[0])
    return _excess(rare, jnp.maximum(both, 0))


def _excess(rare: Array, both: Array) -> Array:
    """1 / (1 - rho) of two bits, from the probability of the rarer value and that of both having it."""
    share = jnp.where(rare > 0, both / jnp.where(rare > 0, rare, 1), 0)
    return (1 - rare) / (1 - share)


# Of each copula the noise of one sample, the bits of all, and 1 / (1 - rho).
COPULAS: dict[str, tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]] = {
    "dirichlet": (jax.random.exponential, _dirichlet, _dirichlet_excess),
    "gaussian": (jax.random.normal, _gaussian, _gaussian_excess),
}
