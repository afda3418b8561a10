"""Weights of the KL as pure functions of the step; every optax schedule is one too."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from vaejax import monte_carlo

Schedule = Callable[[Array], ArrayLike]


def linear_warmup(num_steps: int, start: float | Array = 0.0, end: float | Array = 1.0) -> Schedule:
    """From `start` at step 0 to `end` at step `num_steps`, and `end` from there on.

    Raises:
        ValueError: if num_steps is not a positive integer, or a weight is negative.

    >>> [float(linear_warmup(10)(jnp.asarray(step))) for step in (0, 5, 10, 99)]
    [0.0, 0.5, 1.0, 1.0]

    Source: Bowman et al. 2016, "Generating sentences from a continuous space"; Sonderby et al. 2016.
    """
    monte_carlo.check_count("num_steps", num_steps)
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
    monte_carlo.check_count("period", period)
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
