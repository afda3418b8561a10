"""Weights of the KL: numbers and schedules of the step."""

import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from vaejax import checks

Weight = float | Array | Callable[[Array], ArrayLike]


def check_weight(name: str, weight: Weight) -> None:
    """Refuse a weight that is negative, or that is a schedule and negative at one of the steps 0, 1, 10, ..., 10^7.

    Raises:
        ValueError: with the step and the weight there.
    """
    if not callable(weight):
        is_number = isinstance(weight, numbers.Real | np.ndarray | np.generic | jax.Array) and not jnp.ndim(weight)
        if not is_number or not (isinstance(weight, Tracer) or weight >= 0):
            raise ValueError(f"{name} must be a number of at least 0 or a function of the step; got {weight!r}")
        return
    for step in (0, *(10**power for power in range(8))):
        value = jnp.asarray(weight(jnp.asarray(step)))
        if value.shape:
            raise ValueError(
                f"expected a schedule of single numbers; {name} at step {step:,} is of shape {value.shape}"
            )
        if not isinstance(value, Tracer) and not value >= 0:
            raise ValueError(
                f"expected a schedule of weights of at least 0; {name} is {float(value):.4g} at step {step:,}: bound "
                "it from below, for instance by lambda step: jnp.maximum(schedule(step), 0)"
            )


def weight_at(name: str, weight: Weight, step: ArrayLike | None) -> ArrayLike:
    """The weight at a step; NaN, and so is the objective, where a schedule or a traced number is negative.

    Raises:
        ValueError: if it is a schedule and no step is given.
    """
    if not callable(weight):
        return jnp.where(weight >= 0, weight, jnp.nan) if isinstance(weight, Tracer) else weight
    if step is None:
        raise ValueError(
            f"{name} is a schedule of the step, and the objective was called without one: expected "
            "objective(params, key, x, step=...), which make_train_step passes by itself"
        )
    value = jnp.asarray(weight(jnp.asarray(step)))
    return jnp.where(value >= 0, value, jnp.nan)


Schedule = Callable[[Array], ArrayLike]


def linear_warmup(num_steps: int, start: float | Array = 0.0, end: float | Array = 1.0) -> Schedule:
    """From `start` at step 0 to `end` at step `num_steps`, and `end` from there on.

    Raises:
        ValueError: if num_steps is not a positive integer, or a weight is negative.

    >>> [float(linear_warmup(10)(jnp.asarray(step))) for step in (0, 5, 10, 99)]
    [0.0, 0.5, 1.0, 1.0]

    Source: Bowman et al. 2016, "Generating sentences from a continuous space"; Sonderby et al. 2016.
    """
    checks.check_count("num_steps", num_steps)
    _check(start=start, end=end)
    return optax.linear_schedule(start, end, num_steps)


def cyclical(
    period: int, start: float | Array = 0.0, end: float | Array = 1.0, rising: float | Array = 0.5
) -> Schedule:
    """Linear warm-up over and over: in each period from `start` to `end` over the part `rising`, then `end`.

    Args:
        period: steps of one cycle.
        start: weight at the beginning of a cycle.
        end: weight it rises to.
        rising: part of a cycle in which it rises, in (0, 1].

    Raises:
        ValueError: if period is not a positive integer, a weight is negative, or `rising` is out of range.

    >>> [float(cyclical(10)(jnp.asarray(step))) for step in (0, 2, 5, 9, 10, 12)]
    [0.0, 0.4000000059604645, 1.0, 1.0, 0.0, 0.4000000059604645]

    Source: Fu et al. 2019, "Cyclical annealing schedule: a simple approach to mitigating KL vanishing".
    """
    checks.check_count("period", period)
    _check(start=start, end=end)
    if not isinstance(rising, Tracer) and not 0 < rising <= 1:
        raise ValueError(f"rising must be above 0 and at most 1, a part of the period; got {rising!r}")

    def schedule(step: Array) -> Array:
        place = (jnp.asarray(step) % period).astype(jnp.float32) / period
        return start + (end - start) * jnp.minimum(place / rising, 1.0)

    return schedule


def _check(**weights: float | Array) -> None:
    for name, weight in weights.items():
        if not isinstance(weight, Tracer) and not weight >= 0:
            raise ValueError(f"{name} must be at least 0, for it is a weight of the KL; got {weight!r}")
