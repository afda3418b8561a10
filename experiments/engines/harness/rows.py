"""Rows of a table of measurements: what was measured of which model, and what is known of it."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special


class Result(NamedTuple):
    """What a part leaves behind.

    Attributes:
        rows: lines of the table, each made by `row`.
        arrays: what its pictures show, saved as an npz file.
    """

    rows: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


def row(
    model: str,
    quantity: str,
    value: float,
    unit: str,
    *,
    standard_error: float | None = None,
    known: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """A line of the table: what was measured of which model, and what is known of it from elsewhere.

    Args:
        model: what was measured, in a few words.
        quantity: of it.
        value: a number; one that is not finite is kept as None.
        unit: of the value.
        standard_error: of the value.
        known: the exact or published number.
        note: what a reader must know beside.
    """
    numbers = {"value": value, "standard_error": standard_error, "known": known}
    kept = {name: None if v is None or not math.isfinite(v) else float(v) for name, v in numbers.items()}
    return {"model": model, "quantity": quantity, **kept, "unit": unit, "note": note}


def mean_row(model: str, quantity: str, values: Any, unit: str, **others: Any) -> dict[str, Any]:
    """`row` of the mean of values, one for each example, with its standard error over them."""
    mean, error = mean_and_error(values)
    return row(model, quantity, mean, unit, standard_error=error, **others)


def mean_and_error(values: Any) -> tuple[Any, Any]:
    """The mean of numbers over the last axis, and its standard error, which is NaN for a single number.

    As `vaejax.evaluation.mean_and_error`, in double precision and without JAX, which drawing and PyTorch do without.
    """
    values = np.asarray(values, np.float64)
    number = values.shape[-1]
    mean = values.mean(axis=-1)
    return mean, values.std(axis=-1, ddof=1) / math.sqrt(number) if number > 1 else np.full_like(mean, math.nan)


def interval(values: Any) -> dict[str, float]:
    """The mean, and a 95% interval of it by Student's t, which is NaN for a single number."""
    mean, error = mean_and_error(values)
    room = special.stdtrit(len(values) - 1, 0.975) * error
    return {"value": float(mean), "low": float(mean - room), "high": float(mean + room)}


def interval_of_ratios(ratios: Any) -> dict[str, float]:
    """`interval` on the scale of logarithms: the geometric mean, and numbers that a ratio and its inverse agree on."""
    return {name: math.exp(value) for name, value in interval(np.log(ratios)).items()}
