"""KL divergences and entropies in closed form."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.kl import kl_divergence as numpyro_kl_divergence

from vaejax.distributions.densities import check_has_density, log_prob, name_of
from vaejax.distributions.structured.named_parts import Parts
from vaejax.distributions.wrappers import without_wrappers


def kl_divergence(q: dist.Distribution, p: dist.Distribution) -> Array:
    """KL(q || p) = E_q[log q - log p] in nats, summed over event axes.

    Args:
        q: of batch shape (*batch,).
        p: of the same batch shape, or one that broadcasts to it.

    Returns:
        (*batch,), at least 0.

    Raises:
        ValueError: if numpyro knows no closed form for the pair, their events differ in shape, or one of the two is a
            point mass.

    >>> kl_divergence(dist.Normal(2.0, 1.0), dist.Normal(0.0, 1.0)).tolist()
    2.0
    """
    check_has_density(q)
    check_has_density(p)
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"expected p with an event of shape {q.event_shape}; got {p.event_shape}, of q = {name_of(q)} and "
            f"p = {name_of(p)}: declare the same axes of both with to_event"
        )
    if isinstance(q, Parts):
        return _of_parts(q, p)
    if isinstance(without_wrappers(q), dist.Kumaraswamy):
        raise ValueError(
            "kl='analytic' needs a closed form of KL(q || p), and for q = Kumaraswamy numpyro has the first ten "
            "terms of a series, which may be wrong by a tenth of a nat; use kl='sampled'"
        )
    if _finite_kind(q) is not None and _finite_kind(q) is _finite_kind(p):
        prior = without_wrappers(p)
        return _mean_over_states(q, lambda base, states: log_prob(base, states) - log_prob(prior, states))
    if isinstance(without_wrappers(q), dist.MultivariateNormal) and isinstance(without_wrappers(p), dist.Normal):
        return _kl_to_independent(without_wrappers(q), without_wrappers(p))

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

    >>> entropy(dist.BernoulliLogits(jnp.zeros(3)).to_event(1)).round(4).tolist()
    2.0794...
    """
    check_has_density(q)
    if isinstance(q, Parts) and q.is_independent():
        first, *others = map(entropy, q.parts.values())
        return sum(others, start=first)
    if _finite_kind(q) is not None:
        return -_mean_over_states(q, lambda base, states: log_prob(base, states))
    what = f"kl='entropy' needs the entropy of q in closed form, and numpyro has none for q = {name_of(q)}; "
    return _if_known(q.entropy, what + "use kl='sampled'")


def _of_parts(q: Parts, p: dist.Distribution) -> Array:
    """The sum over the parts, where both have the same and none depends on another."""
    if not isinstance(p, Parts) or p.names != q.names or not (q.is_independent() and p.is_independent()):
        of_p = f"the parts {', '.join(p.names)}" if isinstance(p, Parts) else name_of(p)
        raise ValueError(
            "kl='analytic' needs the same independent parts of q and p, whose KL is the sum of those of the parts; got "
            f"the parts {', '.join(q.names)} and {of_p}"
            f"{'' if q.is_independent() else ', of which one depends on others'}; use kl='sampled'"
        )
    first, *others = (kl_divergence(q.parts[name], p.parts[name]) for name in q.names)
    return sum(others, start=first)


def _if_known(closed_form: Callable[[], Array], otherwise: str) -> Array:
    try:
        return closed_form()
    except NotImplementedError:
        raise ValueError(otherwise) from None


def _kl_to_independent(q: Any, p: Any) -> Array:
    """KL in nats of a Gaussian of full covariance to one of independent numbers, a pair that numpyro has not."""
    with jax.numpy_rank_promotion("allow"):
        log_ratio = jnp.log(jnp.diagonal(q.scale_tril, axis1=-2, axis2=-1) / p.scale)
        squares = (q.variance + (q.mean - p.loc) ** 2) / p.scale**2
        return (0.5 * (squares - 1) - log_ratio).sum(axis=-1)


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
