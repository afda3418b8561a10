"""Log-densities, KL divergences and entropies that refuse bad data instead of returning a number."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Key
from numpyro.distributions.kl import kl_divergence as numpyro_kl_divergence

from vaejax import checks


@jax.custom_jvp
def _log_prob_of_bits(logits: Array, bits: Array) -> Array:
    x = _logit_against(logits, bits)
    return -(jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))))


@functools.partial(_log_prob_of_bits.defjvp, symbolic_zeros=True)
def _log_prob_of_bits_jvp(primals, tangents):
    (logits, bits), (dlogits, dbits) = primals, tangents
    value = _log_prob_of_bits(logits, bits)
    slope = jnp.where(bits == 1, 1, -1).astype(logits.dtype) * jax.nn.sigmoid(_logit_against(logits, bits))
    terms = [
        factor * tangent
        for factor, tangent in ((slope, dlogits), (logits, dbits))
        if not isinstance(tangent, jax.custom_derivatives.SymbolicZero)  # zero times an infinite logit is no number
    ]
    return value, sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(value)


def _logit_against(logits: Array, bits: Array) -> Array:
    """Of the other value; NaN, and so is the gradient, where a bit is neither."""
    return jnp.where(bits == 1, -logits, jnp.where(bits == 0, logits, jnp.nan))


class BernoulliLogits(dist.BernoulliLogits):
    """numpyro's, with a log-probability and a gradient in half the time.

    At 784 pixels of a thousand codes that is a third of a training step. numpyro's guards infinite logits by two
    selections, through which the gradient passes too; written like this an infinite logit needs no guard. That other
    values are refused here, pixel by pixel, saves a pass over the data.
    """

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        """Of zeros and ones, of any dtype; of any other value it is NaN, and so is its gradient."""
        del intermediates  # of numpyro's transformed distributions
        logits = jnp.asarray(self.logits)
        return _log_prob_of_bits(*jnp.broadcast_arrays(logits, jnp.asarray(value).astype(logits.dtype)))


def sample(distribution: dist.Distribution, key: Key[Array, ""]) -> Array:
    """One sample, (*batch, *event)."""
    with jax.numpy_dtype_promotion("standard"):  # numpyro 0.22 makes numbers of the booleans of a Bernoulli
        return jnp.asarray(distribution.sample(key))


def like_samples(q: dist.Distribution, z: Array, x: Array) -> Array:
    """The data with as many axes in front, each of length 1, as the codes z have before the batch axes of q."""
    return x.reshape(*[1] * (z.ndim - len(q.shape())), *x.shape)


def log_prob(distribution: dist.Distribution, value: ArrayLike) -> Array:
    """Log density of `value` in nats, summed over event axes: (*batch,).

    Raises:
        ValueError: if the distribution is a point mass.
    """
    check_has_density(distribution)
    distribution, value = _flat(distribution, value)
    # numpyro 0.22 broadcasts a prior of batch shape () over the batch, and its Bernoulli mixes bool with float.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(distribution.log_prob(value))


def _flat(distribution: dist.Distribution, value: ArrayLike) -> tuple[dist.Distribution, Array]:
    """The same with all pixels on one axis: over short last axes, of 28 x 28, XLA loops for thrice as long on CPU."""
    value, num_axes = jnp.asarray(value), len(distribution.event_shape)
    base = without_wrappers(distribution)
    if num_axes < 2 or not isinstance(base, BernoulliLogits) or value.shape[-num_axes:] != distribution.event_shape:
        return distribution, value
    logits = jnp.broadcast_to(base.logits, distribution.shape()).reshape(*distribution.batch_shape, -1)
    return BernoulliLogits(logits).to_event(1), value.reshape(*value.shape[:-num_axes], -1)


def kl_divergence(q: dist.Distribution, p: dist.Distribution) -> Array:
    """KL(q || p) in nats, summed over event axes: (*batch,).

    Raises:
        ValueError: if numpyro knows no closed form for the pair, or one of it is a point mass.
    """
    check_has_density(q)
    check_has_density(p)
    if _finite_kind(q) is not None and _finite_kind(q) is _finite_kind(p):
        prior = without_wrappers(p)
        return _mean_over_states(q, lambda base, states: log_prob(base, states) - log_prob(prior, states))
    try:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return numpyro_kl_divergence(q, p)
    except NotImplementedError:
        raise ValueError(
            f"kl='analytic' needs a closed form of KL(q || p), and numpyro has none for q = {name_of(q)}, "
            f"p = {name_of(p)}; use kl='sampled', or kl='entropy' where q has an entropy"
        ) from None


def kl_per_unit(q: dist.Distribution, p: dist.Distribution) -> Array:
    """KL(q || p) in nats of each number of the event, where those are independent: (*batch, *event).

    Raises:
        ValueError: as `kl_divergence`; and if q or p is not of independent numbers.
    """
    for distribution in (q, p):
        if len(without_wrappers(distribution).batch_shape) != len(distribution.shape()):
            raise ValueError(
                f"expected distributions whose numbers are independent, for a KL of each; got {name_of(distribution)}"
            )
    return kl_divergence(without_wrappers(q), without_wrappers(p))


def entropy(q: dist.Distribution) -> Array:
    """Entropy of q in nats, summed over event axes: (*batch,).

    Raises:
        ValueError: if numpyro knows no closed form, or q is a point mass.
    """
    check_has_density(q)
    if _finite_kind(q) is not None:
        return -_mean_over_states(q, lambda base, states: log_prob(base, states))
    try:
        return q.entropy()
    except NotImplementedError:
        raise ValueError(
            f"kl='entropy' needs the entropy of q in closed form, and numpyro has none for q = {name_of(q)}; "
            "use kl='sampled'"
        ) from None


def data_log_prob(p: dist.Distribution, x: Array) -> Array:
    """Log-likelihood log p(x | z) of data in nats: (*batch,), never a number for data that p cannot have produced.

    Where x is a concrete array, data outside the support raise. Under `jit` values cannot be looked at, and the
    log-likelihood of such an example is NaN.

    Raises:
        ValueError: if x is concrete and lies outside the support, or holds NaN or infinities.
    """
    check_support(p, x)
    if isinstance(without_wrappers(p), BernoulliLogits):  # which refuses by itself
        return log_prob(p, x)
    return jnp.where(in_support(p, x), log_prob(p, x), jnp.nan)


def check_support(p: dist.Distribution, x: Array) -> None:
    """Refuse concrete data outside the support of p; say nothing of traced data.

    Raises:
        ValueError: with the number of bad values, the first of them, and what to do.
    """
    if isinstance(x, Tracer):
        return
    checks.check_finite(x, "data")
    supported = in_support(p, x)
    if not isinstance(supported, Tracer) and not supported.all():
        raise ValueError(_unsupported(p, x))


def check_has_density(distribution: dist.Distribution) -> None:
    """Refuse a point mass, as the posterior of an autoencoder is.

    Raises:
        ValueError: saying what to do instead.
    """
    if isinstance(without_wrappers(distribution), dist.Delta):
        raise ValueError(
            "expected a distribution with a density; got a point mass, as the posterior 'point' of an autoencoder is: "
            "it has no ELBO and gives no log p(x). Train it by autoencoders.make_reconstruction, or choose the "
            "posterior 'gaussian'"
        )


def _finite_kind(q: dist.Distribution) -> type | None:
    kinds = (dist.BernoulliLogits, dist.CategoricalLogits)
    return next((kind for kind in kinds if isinstance(without_wrappers(q), kind)), None)


def _mean_over_states(q: dist.Distribution, function: Callable[[dist.Distribution, Array], Array]) -> Array:
    """E_q[function] for each coordinate of a finite q, summed over event axes.

    Of KL and entropy, numpyro 0.22 lacks the one in terms of logits, and has NaN for the other at logits of 1e4.
    """
    base = without_wrappers(q)
    states = base.enumerate_support(expand=False).reshape(-1, *[1] * len(base.batch_shape))
    means = jnp.exp(log_prob(base, states)) * function(base, states)
    return means.sum(axis=(0, *range(len(q.batch_shape) + 1, means.ndim)))


def in_support(p: dist.Distribution, x: Array) -> Bool[Array, "..."]:
    """Whether p can have produced the data x: (*batch,), or () and true of a user's own family that does not say."""
    if p.support is None:
        return jnp.asarray(True)
    return jnp.asarray(p.support(x))


def _unsupported(p: dist.Distribution, x: Array) -> str:
    name = name_of(p)
    explain = getattr(without_wrappers(p), "unsupported", None)
    if explain is not None:  # a family of ours that has words of its own
        return explain(x)
    if "Bernoulli" in name:
        grey = (x != 0) & (x != 1)
        first = tuple(int(i) for i in jnp.argwhere(grey)[0])
        return (
            f"a Bernoulli likelihood expects pixels that are exactly 0 or 1; got {int(grey.sum())} others, the first "
            f"at index {first} with value {float(x[first]):.4g}. Binarize: data.binarize_dynamic(key, x) or "
            "data.binarize_threshold(key, x), in training as make_train_step(..., prepare=data.binarize_dynamic); or "
            "choose a Gaussian likelihood"
        )
    return (
        f"expected data in the support of the likelihood {name}; got values from {float(x.min()):.4g} to "
        f"{float(x.max()):.4g}: rescale the data or choose another likelihood"
    )


def center(q: dist.Distribution) -> Array:
    """What stands for q where one code is wanted, (*batch, *event): its mean, or the most probable categories."""
    base = without_wrappers(q)
    if isinstance(base, dist.CategoricalLogits):
        logits = jnp.asarray(base.logits)
        return logits.argmax(axis=-1).astype(logits.dtype)
    return jnp.asarray(q.mean)


def without_wrappers(distribution: dist.Distribution) -> dist.Distribution:
    """The distribution without the wrappers that only declare axes."""
    while isinstance(distribution, dist.Independent | dist.ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution


def name_of(distribution: dist.Distribution) -> str:
    """The family's name for a message."""
    return type(without_wrappers(distribution)).__name__
