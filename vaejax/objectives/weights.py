"""Weights of the KL: numbers and schedules of the step."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from vaejax import checks

Weight = float | Array | Callable[[Array], ArrayLike]
"""The weight of the KL: a number, or a function of the training step."""


def check_weight(name: str, weight: Weight) -> None:
    """Refuse a weight that is negative, or that is a schedule and negative at one of the steps 0, 1, 10, ..., 10^7.

    Args:
        name: of the argument.
        weight: a number, or a function of the step.

    Raises:
        ValueError: with the weight, and the step if it is a schedule.

    >>> check_weight("beta", -0.5)
    Traceback (most recent call last):
    ...
    ValueError: beta must be a number of at least 0; got -0.5: a function of the step is allowed too
    """
    if not callable(weight):
        checks.check_number(name, weight, least=0, advice="a function of the step is allowed too")
        return
    advice = "bound the schedule from below, for instance by lambda step: jnp.maximum(schedule(step), 0)"
    for step in (0, *(10**power for power in range(8))):
        value = jnp.asarray(weight(jnp.asarray(step)))
        checks.check_number(f"{name} at step {step:,}", value, least=0, advice=advice)


def weight_at(name: str, weight: Weight, step: ArrayLike | None) -> ArrayLike:
    """The weight at a step; NaN, and so is the objective, where a schedule or a traced number is negative.

    Args:
        name: of the argument.
        weight: a number, or a function of the step.
        step: of the training, or None.

    Raises:
        ValueError: if the weight is a schedule and no step is given.

    >>> float(weight_at("beta", linear_warmup(10), 5))
    0.5
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


def weighted(weight: ArrayLike, penalty: Array) -> Array:
    """The penalty times its weight; of weight 0 nothing, also where the penalty is infinite.

    >>> weighted(jnp.array(0.0), jnp.array([2.0, jnp.inf])).tolist()
    [0.0, 0.0]
    """
    if not isinstance(weight, Tracer) and weight != 0:
        return weight * penalty
    return jnp.where(weight == 0, 0, weight * penalty)


Schedule = Callable[[Array], ArrayLike]


def linear_warmup(num_steps: int, start: float | Array = 0.0, end: float | Array = 1.0) -> Schedule:
    """A weight that rises in a straight line from `start` at step 0 to `end` at step `num_steps`, and then stays.

    Args:
        num_steps: steps until the weight is `end`.
        start: weight at step 0.
        end: weight from step `num_steps` on.

    Returns:
        `step -> weight`, for the `beta` of an objective.

    Raises:
        ValueError: if num_steps is not a positive integer, or a weight is negative.

    >>> [float(linear_warmup(10)(jnp.asarray(step))) for step in (0, 5, 10, 99)]
    [0.0, 0.5, 1.0, 1.0]

    Source: Bowman et al. 2016, "Generating sentences from a continuous space"; Sonderby et al. 2016.
    """
    checks.check_count("num_steps", num_steps)
    for name, weight in (("start", start), ("end", end)):
        checks.check_number(name, weight, least=0, advice="it is a weight of the KL")
    return optax.linear_schedule(start, end, num_steps)


def cyclical(
    period: int, start: float | Array = 0.0, end: float | Array = 1.0, rising: float | Array = 0.5
) -> Schedule:
    """A weight that rises in each period in a straight line from `start` to `end`, and stays there until the next.

    Args:
        period: steps of one cycle.
        start: weight at the beginning of a cycle.
        end: weight it rises to.
        rising: part of a cycle in which it rises, in (0, 1].

    Returns:
        `step -> weight`, for the `beta` of an objective.

    Raises:
        ValueError: if period is not a positive integer, a weight is negative, or `rising` is out of range.

    >>> [float(cyclical(10)(jnp.asarray(step))) for step in (0, 2, 5, 9, 10, 12)]
    [0.0, 0.4000000059604645, 1.0, 1.0, 0.0, 0.4000000059604645]

    Source: Fu et al. 2019, "Cyclical annealing schedule: a simple approach to mitigating KL vanishing".
    """
    checks.check_count("period", period)
    for name, weight in (("start", start), ("end", end)):
        checks.check_number(name, weight, least=0, advice="it is a weight of the KL")
    checks.check_number("rising", rising, above=0, most=1, advice="it is a part of the period")

    def schedule(step: Array) -> Array:
        place = (jnp.asarray(step) % period).astype(jnp.float32) / period
        return start + (end - start) * jnp.minimum(place / rising, 1.0)

    return schedule
