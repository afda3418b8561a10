"""Log-densities, KL divergences and entropies that refuse bad data instead of returning a number."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Key
from numpyro.distributions.kl import kl_divergence as numpyro_kl_divergence

from vaejax import checks
from vaejax.distributions.families import BernoulliLogits


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
    with jax.numpy_dtype_promotion("standard"):  # numpyro 0.22 makes numbers of the booleans of a Bernoulli
        return jnp.asarray(distribution.sample(key))


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


def log_prob(distribution: dist.Distribution, value: ArrayLike) -> Array:
    """Log density of `value` in nats, summed over event axes.

    Args:
        distribution: of batch shape (*batch,).
        value: (*samples, *batch, *event), or what broadcasts to it.

    Returns:
        (*samples, *batch).

    Raises:
        ValueError: if the distribution is a point mass.

    >>> log_prob(dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1), jnp.zeros((7, 2))).shape
    (7,)
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
    """KL(q || p) = E_q[log q - log p] in nats, summed over event axes.

    Args:
        q: of batch shape (*batch,).
        p: of the same batch shape, or one that broadcasts to it.

    Returns:
        (*batch,), at least 0.

    Raises:
        ValueError: if numpyro knows no closed form for the pair, or one of the two is a point mass.

    >>> kl_divergence(dist.Normal(2.0, 1.0), dist.Normal(0.0, 1.0)).tolist()
    2.0
    """
    check_has_density(q)
    check_has_density(p)
    if _finite_kind(q) is not None and _finite_kind(q) is _finite_kind(p):
        prior = without_wrappers(p)
        return _mean_over_states(q, lambda base, states: log_prob(base, states) - log_prob(prior, states))

    def closed_form() -> Array:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return numpyro_kl_divergence(q, p)

    what = f"kl='analytic' needs a closed form of KL(q || p), and numpyro has none for q = {name_of(q)}, "
    advice = f"p = {name_of(p)}; use kl='sampled', or kl='entropy' where q has an entropy"
    return _if_known(closed_form, what + advice)


def kl_per_unit(q: dist.Distribution, p: dist.Distribution) -> Array:
    """KL(q || p) in nats of each number of the event, where those are independent.

    Args:
        q: of batch shape (*batch,).
        p: of the same batch shape, or one that broadcasts to it.

    Returns:
        (*batch, *event), each at least 0; their sum over the event is `kl_divergence`.

    Raises:
        ValueError: as `kl_divergence`; and if the numbers of q or p depend on each other.

    >>> q = dist.Normal(jnp.array([[2.0, 0.0]]), 1.0).to_event(1)
    >>> kl_per_unit(q, dist.Normal(jnp.zeros(2), 1.0).to_event(1)).tolist()
    [[2.0, 0.0]]
    """
    for distribution in (q, p):
        if len(without_wrappers(distribution).batch_shape) != len(distribution.shape()):
            raise ValueError(
                f"expected distributions whose numbers are independent, for a KL of each; got {name_of(distribution)}"
            )
    return kl_divergence(without_wrappers(q), without_wrappers(p))


def entropy(q: dist.Distribution) -> Array:
    """Entropy -E_q[log q] in nats, summed over event axes.

    Args:
        q: of batch shape (*batch,).

    Returns:
        (*batch,); of a continuous q of either sign.

    Raises:
        ValueError: if numpyro knows no closed form, or q is a point mass.

    >>> entropy(BernoulliLogits(jnp.zeros(3)).to_event(1)).round(4).tolist()
    2.0794...
    """
    check_has_density(q)
    if _finite_kind(q) is not None:
        return -_mean_over_states(q, lambda base, states: log_prob(base, states))
    what = f"kl='entropy' needs the entropy of q in closed form, and numpyro has none for q = {name_of(q)}; "
    return _if_known(q.entropy, what + "use kl='sampled'")


def data_log_prob(p: dist.Distribution, x: Array) -> Array:
    """Log-likelihood log p(x | z) of data in nats, never a number for data that p cannot have produced.

    Where x is a concrete array, data outside the support raise. Under `jit` the values are unknown, and the
    log-likelihood of such an example is NaN.

    Args:
        p: the likelihood, of batch shape (*batch,).
        x: data, (*batch, *event), or what broadcasts to it.

    Returns:
        (*batch,).

    Raises:
        ValueError: if x is concrete and lies outside the support, or holds NaN or infinities.

    >>> p = BernoulliLogits(jnp.zeros(2)).to_event(1)
    >>> jax.jit(data_log_prob)(p, jnp.array([[0.0, 1.0], [0.0, 0.5]])).round(2).tolist()
    [-1.38..., nan]
    """
    check_support(p, x)
    if isinstance(without_wrappers(p), BernoulliLogits):  # which refuses by itself
        return log_prob(p, x)
    return jnp.where(in_support(p, x), log_prob(p, x), jnp.nan)


def check_support(p: dist.Distribution, x: Array) -> None:
    """Refuse concrete data outside the support of p; say nothing of traced data.

    Args:
        p: the likelihood.
        x: data, (*batch, *event).

    Raises:
        ValueError: with the number of bad values, the first of them, and what to do.

    >>> check_support(BernoulliLogits(jnp.zeros(2)).to_event(1), jnp.array([[0.0, 1.0]]))
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

    >>> check_has_density(dist.Normal(0.0, 1.0))
    """
    if isinstance(without_wrappers(distribution), dist.Delta):
        raise ValueError(
            "expected a distribution with a density; got a point mass, as the posterior 'point' of an autoencoder is: "
            "it has no ELBO and gives no log p(x). Train it by autoencoders.make_reconstruction, or choose the "
            "posterior 'gaussian'"
        )


def _if_known(closed_form: Callable[[], Array], otherwise: str) -> Array:
    try:
        return closed_form()
    except NotImplementedError:
        raise ValueError(otherwise) from None


def _finite_kind(q: dist.Distribution) -> type | None:
    kinds = (dist.BernoulliLogits, dist.CategoricalLogits)
    return next((kind for kind in kinds if isinstance(without_wrappers(q), kind)), None)


def _mean_over_states(q: dist.Distribution, function: Callable[[dist.Distribution, Array], Array]) -> Array:
    """E_q[function] for each coordinate of a finite q, summed over event axes.

    numpyro 0.22 has no KL in terms of logits, and its entropy is NaN at logits of 1e4.
    """
    base = without_wrappers(q)
    states = base.enumerate_support(expand=False).reshape(-1, *[1] * len(base.batch_shape))
    means = jnp.exp(log_prob(base, states)) * function(base, states)
    return means.sum(axis=(0, *range(len(q.batch_shape) + 1, means.ndim)))


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
    """The one latent that stands for q: its mean, or the most probable categories.

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
    return jnp.asarray(q.mean)


def without_wrappers(distribution: dist.Distribution) -> dist.Distribution:
    """The distribution without the wrappers that only declare axes.

    >>> without_wrappers(dist.Normal(jnp.zeros(3), 1.0).to_event(1)).event_shape
    ()
    """
    while isinstance(distribution, dist.Independent | dist.ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution


def name_of(distribution: dist.Distribution) -> str:
    """The family's name, for a message.

    >>> name_of(dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    'Normal'
    """
    return type(without_wrappers(distribution)).__name__
