"""An estimator for each part of a distribution of named parts."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Key

from vaejax import checks
from vaejax.distributions import Parts
from vaejax.estimators.detaching import detached, with_detached
from vaejax.estimators.monte_carlo import over_samples
from vaejax.estimators.reductions import mean_reduction
from vaejax.estimators.signature import Estimate, EstimateFunction, Estimator, as_estimator, refuse_q


def by_part(parts: Mapping[str, Estimator | EstimateFunction]) -> Estimator:
    """An estimator for each part of a q that is `distributions.Parts`, such as enumeration of classes.

        E_q[f(y, z)] = E_q(y)[E_q(z|y)[f(y, z)]]

    The expectation over the first part is estimated by its own estimator, of a function that is itself the estimate of
    the expectation over the next, and so on. Each part draws as few samples as its estimator allows, 2 of a pair and 1
    of most: those of a later part for each of the earlier ones, with the same noise, so that differences between them
    are of the earlier part. All of it is repeated until there are K samples: K must be a multiple of the product.
    Enumeration counts as one sample.

    Args:
        parts: an estimator for each name of q's parts.

    Returns:
        An estimator, unbiased if each is, for means over samples such as the ELBO. What its estimators train along
        stands by the names of their parts in `params["baseline"]`.

    Raises:
        ValueError: if there is none; when the estimator is called, if q is no `Parts`, a part is without an estimator
            or an estimator without a part, K is no multiple, the bound is no mean, or one of them refuses its part.
        TypeError: if one is no estimator.

    >>> from vaejax import estimators
    >>> q_of = lambda params: Parts(
    ...     y=dist.BernoulliLogits(params["logit"]), z=dist.Normal(params["mean"], 1.0).to_event(1)
    ... )
    >>> estimator = by_part({"y": estimators.enumerate_support(), "z": estimators.pathwise()})
    >>> mean_of = estimators.expectation(estimator, q_of, lambda params, z: 4.0 * z[0] + 3.0 * z[1])
    >>> params = {"logit": jnp.array(0.0), "mean": jnp.array([2.0])}
    >>> grads, info = jax.grad(mean_of, has_aux=True)(params, jax.random.key(0))
    >>> float(grads["logit"]), float(grads["mean"][0])  # of 4 sigmoid(logit) + 3 mean
    (1.0, 3.0)
    """
    checks.check_kind("parts", parts, Mapping, "a dict of estimators by the names of q's parts")
    if not parts:
        raise ValueError("by_part() expects an estimator for each part by name; got none")
    own = {name: as_estimator(part) for name, part in parts.items()}
    group = math.prod(part.fewest_samples for part in own.values())
    trained = {name: part.baseline for name, part in own.items() if part.baseline is not None}

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        _check_parts(own, q)
        if not reduce.linear:
            raise ValueError(
                "by_part() serves means over samples, as the ELBO is; got a bound that is none, as the "
                "importance-weighted one. Use score_function(baseline='leave_one_out') for all parts together"
            )
        advice = "a pair of one part has its own samples of the next"
        checks.check_divides("num_samples", num_samples, group, "samples that the parts' estimators need", advice)

        def nested(key: Key[Array, ""], drawn: dict[str, Array], used: dict[str, Any]) -> Estimate:
            """The estimate of the expectation over the parts that are not drawn yet."""
            name, last = q.names[len(drawn)], len(drawn) + 1 == len(q.names)
            own_key, later_key = (key, None) if last else jax.random.split(key)

            def inner(z: Array, given: Any) -> tuple[Array, Any]:
                values, distributions_of = {**drawn, name: z}, {**used, name: given}
                if last:
                    return integrand(q.joined(values), Parts(**distributions_of))
                bound, terms = nested(jax.random.clone(later_key), values, distributions_of)
                return bound, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), terms)

            def without_gradient() -> dist.Distribution:
                return detached(q, integrand).part(name, drawn)

            return own[name](
                own_key,
                q.part(name, drawn),
                with_detached(inner, without_gradient),
                own[name].fewest_samples,
                mean_reduction(),
                None if baseline is None else baseline.get(name),
                chunk_size,
            )

        repeats_at_once = None if chunk_size is None else max(1, chunk_size // group)
        repeats = num_samples // group
        bounds, terms = over_samples(lambda key: tuple(nested(key, {}, {})), key, repeats, repeats_at_once)
        return Estimate(reduce.bound(bounds), jax.tree.map(lambda leaf: _flattened(leaf, len(q.names)), terms))

    detaches = any(part.detaches_q for part in own.values())
    return Estimator(estimate, trained or None, detaches_q=detaches, fewest_samples=group)


def _flattened(leaf: Array, num_parts: int) -> Array:
    """Of (repeats, first part's, *batch, ..., next parts') samples, all on the first axis."""
    later = range(leaf.ndim - num_parts + 1, leaf.ndim)
    leaf = jnp.moveaxis(leaf, tuple(later), tuple(range(2, num_parts + 1)))
    return leaf.reshape(-1, *leaf.shape[num_parts + 1 :])


def _check_parts(own: Mapping[str, Estimator], q: dist.Distribution) -> None:
    if not isinstance(q, Parts):
        instead = "the estimator of one part itself, " + ("pathwise()" if q.has_rsample else "score_function()")
        refuse_q("by_part()", "a q of named parts, distributions.Parts(y=..., z=...)", q, instead)
    missing, surplus = (sorted(set(a) - set(b)) for a, b in ((q.names, own), (own, q.names)))
    if missing or surplus:
        advice = [f"add one for {name}" for name in missing] + [f"q has no part {name}" for name in surplus]
        raise ValueError(
            f"by_part() expects one estimator for each part of q, {', '.join(q.names)}; got {', '.join(own)}: "
            f"{', and '.join(advice)}"
        )
