"""Samples and log-densities, which refuse bad data instead of returning a number."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Key

from vaejax import checks
from vaejax.distributions.edges import LOGARITHMIC, stable
from vaejax.distributions.likelihoods.bits import BernoulliLogits
from vaejax.distributions.simplex import Weights, is_relaxed
from vaejax.distributions.wrappers import family_of, mask_of, without_wrappers


def sample(distribution: dist.Distribution, key: Key[Array, ""]) -> Array:
    """One sample of a distribution.

    Args:
        distribution: any of numpyro's.
        key: consumed.

    Returns:
        (*batch, *event).

    >>> sample(dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1), jax.random.key(0)).shape
    (7, 2)
    """
    # numpyro 0.22 makes numbers of the booleans of a Bernoulli.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        checks.check_key(key)
        return jnp.asarray(stable(distribution).sample(key))


def rsample(distribution: dist.Distribution, key: Key[Array, ""]) -> Array:
    """One sample of a distribution, with its gradient in the parameters.

    Args:
        distribution: one of numpyro's that can be reparameterized, `has_rsample`.
        key: consumed.

    Returns:
        (*batch, *event).

    >>> rsample(dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1), jax.random.key(0)).shape
    (7, 2)
    """
    with jax.numpy_rank_promotion("allow"):
        checks.check_key(key)
        return jnp.asarray(stable(distribution).rsample(key))


def like_samples(q: dist.Distribution, z: Array, x: Array) -> Array:
    """The data with as many axes in front, each of length 1, as the latents have before the batch axes of q.

    Args:
        q: the posterior, of batch shape (*batch,).
        z: samples of it, (*samples, *batch, *event).
        x: data, (*batch, *data).

    Returns:
        x as (1, ..., 1, *batch, *data), which broadcasts against the samples.

    >>> q = dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1)
    >>> like_samples(q, jnp.zeros((5, 7, 2)), jnp.zeros((7, 3))).shape
    (1, 7, 3)
    """
    return x.reshape(*[1] * (z.ndim - len(q.shape())), *x.shape)


def log_prob(distribution: dist.Distribution, value: ArrayLike | Weights) -> Array:
    """Log density of `value` in nats, summed over event axes.

    Args:
        distribution: of batch shape (*batch,).
        value: (*samples, *batch, *event), or what broadcasts to it; relaxed, where the distribution is (`relaxed`).

    Returns:
        (*samples, *batch).

    Raises:
        ValueError: if the distribution is a point mass.

    >>> log_prob(dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1), jnp.zeros((7, 2))).shape
    (7,)
    """
    check_has_density(distribution)
    if is_relaxed(distribution):
        with jax.numpy_rank_promotion("allow"):  # a prior of batch shape ()
            return jnp.asarray(distribution.log_prob(value))
    distribution, value = _flat(stable(distribution), value)
    value = _filled(distribution, value)
    if isinstance(family_of(distribution), dist.CategoricalLogits | dist.CategoricalProbs):
        value = value.astype(jnp.int32)  # pixels come as floats, and numpyro indexes with them
    log_density = _density(distribution, value)
    if isinstance(without_wrappers(distribution), FINITE):
        return log_density
    # No bound can be made of an infinite density: it would be infinite itself, or, of q, the weight of an impossible z.
    return log_density * jnp.where(jnp.isposinf(log_density), jnp.nan, 1).astype(log_density.dtype)


# Whose density is finite everywhere, or that refuse values by themselves.
FINITE = dist.Normal | dist.MultivariateNormal | dist.CategoricalLogits | BernoulliLogits


def _density(distribution: dist.Distribution, value: Array) -> Array:
    """The log density, maybe infinite; -inf, without gradient, outside the support, and NaN at NaN."""
    support, base = distribution.support, without_wrappers(distribution)
    # numpyro 0.22 broadcasts a prior of batch shape () over the batch, and its Bernoulli mixes bool with float.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        if isinstance(base, BernoulliLogits) and isinstance(distribution, dist.Independent):
            if distribution.base_dist is base and distribution.reinterpreted_batch_ndims == 1:
                return base.log_prob_of_vector(value)
        if support is None or isinstance(base, FINITE | LOGARITHMIC):
            return jnp.asarray(distribution.log_prob(value))
        inside = jnp.asarray(support(value))
        axes = tuple(range(inside.ndim, value.ndim))
        try:
            possible = support.feasible_like(value)
        except NotImplementedError:  # of a user's own constraint
            possible = value
        # The density outside the support may be NaN, and its gradient would be too.
        safe = jnp.where(jnp.expand_dims(inside, axes), value, possible)
        log_density = jnp.where(inside, distribution.log_prob(safe), -jnp.inf)
        return jnp.where((value != value).any(axes), jnp.nan, log_density)


def _flat(distribution: dist.Distribution, value: ArrayLike) -> tuple[dist.Distribution, Array]:
    """The same with all pixels on one axis: over short last axes, of 28 x 28, XLA loops for thrice as long on CPU."""
    value, num_axes = jnp.asarray(checks.as_array(value, "values")), len(distribution.event_shape)
    mask, family = mask_of(distribution), family_of(distribution)
    if num_axes < 2 or not isinstance(family, BernoulliLogits) or value.shape[-num_axes:] != distribution.event_shape:
        return distribution, value

    def flat(array: Array) -> Array:
        return jnp.broadcast_to(array, distribution.shape()).reshape(*distribution.batch_shape, -1)

    bits = BernoulliLogits(flat(family.logits))
    bits = bits if mask is None else bits.mask(flat(mask))
    return bits.to_event(1), value.reshape(*value.shape[:-num_axes], -1)


def _filled(distribution: dist.Distribution, value: Array) -> Array:
    """The same where it was observed; a number of the support where it was not, which may be outside."""
    mask = mask_of(distribution)
    if mask is None:
        return value
    with jax.numpy_rank_promotion("allow"):  # samples and data
        return jnp.where(mask, value, jnp.asarray(family_of(distribution).support.feasible_like(value), value.dtype))


def _aligned(p: dist.Distribution, x: Array) -> Array:
    """The data with an axis of length 1 for each that p has in front, of several samples of z."""
    return x.reshape(*[1] * (len(p.shape()) - x.ndim), *x.shape)


def data_log_prob(p: dist.Distribution, x: Array) -> Array:
    """Log-likelihood log p(x | z) of data in nats, never a number for data that p cannot have produced.

    Where x is a concrete array, data outside the support, or of infinite density, raise. Under `jit` the values are
    unknown, and the log-likelihood of such an example is NaN.

    Args:
        p: the likelihood, of batch shape (*batch,).
        x: data, (*batch, *event), or what broadcasts to it; leading axes of p, of several samples, may be missing.

    Returns:
        (*batch,).

    Raises:
        ValueError: if x is concrete and lies outside the support or where the density is infinite, or holds NaN or
            infinities.

    >>> p = BernoulliLogits(jnp.zeros(2)).to_event(1)
    >>> jax.jit(data_log_prob)(p, jnp.array([[0.0, 1.0], [0.0, 0.5]])).round(2).tolist()
    [-1.38..., nan]
    """
    check_support(p, x)
    x = jnp.asarray(x)
    x = _aligned(p, x)
    if isinstance(without_wrappers(p), BernoulliLogits):  # which refuses by itself
        return log_prob(p, x)
    return jnp.where(in_support(p, x), log_prob(p, x), jnp.nan)


def check_support(p: dist.Distribution, x: Array) -> None:
    """Refuse concrete data outside the support of p; say nothing of traced data.

    Args:
        p: the likelihood.
        x: data, (*batch, *event).

    Raises:
        ValueError: with the number of bad values, the first of them, and what to do; also where the density is
            infinite, as at the ends of [0, 1] that of a beta with concentrations below 1.

    >>> check_support(BernoulliLogits(jnp.zeros(2)).to_event(1), jnp.array([[0.0, 1.0]]))
    """
    if isinstance(x, Tracer):
        return
    checks.check_finite(x, "data")
    supported = in_support(p, x)
    if not isinstance(supported, Tracer) and not supported.all():
        raise ValueError(_unsupported(p, x))
    if isinstance(without_wrappers(p), FINITE):
        return
    infinite = jnp.isposinf(_density(stable(p), _aligned(p, jnp.asarray(x))))
    infinite = infinite.any(axis=tuple(range(len(p.shape()) - jnp.ndim(x))))  # over the samples of z
    if not isinstance(infinite, Tracer) and infinite.any():
        raise ValueError(
            f"expected data at which the likelihood {name_of(p)} has a finite density; it is infinite for "
            f"{int(infinite.sum())} of {infinite.size} examples, the first at index "
            f"{tuple(int(i) for i in jnp.argwhere(infinite)[0])}: move the data off the edge of its support, as by "
            "x * (1 - 2 * margin) + margin, or choose another likelihood"
        )


def check_has_density(distribution: dist.Distribution) -> None:
    """Refuse a point mass, as the posterior of an autoencoder is.

    Raises:
        ValueError: saying what to do instead.

    >>> check_has_density(dist.Normal(0.0, 1.0))
    """
    base = without_wrappers(distribution)
    if isinstance(base, dist.Delta):
        objective = getattr(base, "trained_by", "autoencoders.make_reconstruction")
        raise ValueError(
            "expected a distribution with a density; got a point mass, as the posterior 'point' of an autoencoder is: "
            f"it has no ELBO and gives no log p(x). Train it by {objective}, or choose the posterior 'gaussian'"
        )


def in_support(p: dist.Distribution, x: Array) -> Bool[Array, "..."]:
    """Whether p can have produced the data.

    Args:
        p: the likelihood, of batch shape (*batch,).
        x: data, (*batch, *event), or what broadcasts to it.

    Returns:
        (*batch,); or (), and true, for a user's own family that declares no support.

    >>> in_support(BernoulliLogits(jnp.zeros(2)).to_event(1), jnp.array([[0.0, 1.0], [0.0, 0.5]])).tolist()
    [True, False]
    """
    checks.check_distribution(p)
    x = jnp.asarray(checks.as_array(x))
    if p.support is None:
        return jnp.asarray(True)
    with jax.numpy_rank_promotion("allow"):  # samples and data
        return jnp.asarray(p.support(_filled(p, _aligned(p, jnp.asarray(x)))))


def _unsupported(p: dist.Distribution, x: Array) -> str:
    name = name_of(p)
    explain = getattr(family_of(p), "unsupported", None)
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
    """The one latent that stands for q: its mean, the most probable categories, or what q's own method `center` gives.

    Args:
        q: the posterior, of batch shape (*batch,).

    Returns:
        (*batch, *event), of a floating dtype.

    >>> center(dist.CategoricalLogits(jnp.array([[0.0, 2.0, 1.0]]))).tolist()
    [1.0]
    """
    base = without_wrappers(q)
    if isinstance(base, dist.CategoricalLogits):
        logits = jnp.asarray(base.logits)
        return logits.argmax(axis=-1).astype(logits.dtype)
    return jnp.asarray(base.center() if hasattr(base, "center") else q.mean)


def name_of(distribution: dist.Distribution) -> str:
    """The family's name, for a message.

    >>> name_of(dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    'Normal'
    """
    return type(family_of(distribution)).__name__
