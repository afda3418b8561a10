"""What was given, in the words of a message, and what to do about it."""

from typing import Any

import jax
import numpy as np


def describe(value: Any) -> str:
    """What was given, for a message of one line: arrays by dtype and shape, containers by what they hold.

    >>> describe(np.ones((2, 3))), describe((1, 2)), describe({"a": 1}), describe("adam"), describe(describe)
    ('float64[2,3]', 'a tuple of 2', 'a dict of a', "'adam'", 'the function describe')
    """
    if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, list(value)[:5]))}" if value else "an empty dict"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return repr(value) if len(repr(value)) < 80 else f"{repr(value)[:76]} ..."
    if callable(value) and hasattr(value, "__name__"):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    return f"an object of type {type(value).__name__}"


def with_advice(message: str, advice: str) -> str:
    """The message, and behind a colon what to do, where there is something to do."""
    return f"{message}: {advice}" if advice else message
