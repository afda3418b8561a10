"""Rows of a table of measurements: what was measured of which model, and what is known of it."""

import math
from typing import Any, NamedTuple

import numpy as np


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
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return row(model, quantity, values.mean(), unit, standard_error=error, **others)
