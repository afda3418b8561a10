"""How records of arrays print: names, shapes, dtypes and means, on a few lines."""

import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

_LONGEST = 6  # entries of a tree that are named one by one


def short_repr(record: Any) -> str:
    """One line for each field of a NamedTuple: an array by its dtype, shape and mean, a tree by what it holds.

    A record takes it as its `__repr__`: `__repr__ = records.short_repr` in the body of the class.

    >>> from typing import NamedTuple
    >>> class Result(NamedTuple):
    ...     estimate: jax.Array
    ...     num_samples: int
    ...     __repr__ = short_repr
    >>> Result(jax.numpy.array([1.0, 2.0]), 100)
    Result(
      estimate: float32[2], mean 1.5
      num_samples: 100
    )
    """
    lines = [f"  {name}: {_in_words(value)}" for name, value in record._asdict().items()]
    return "\n".join([f"{type(record).__name__}(", *lines, ")"])


def _in_words(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return _array_in_words(value)
    if type(value).__repr__ is short_repr:
        return short_repr(value).replace("\n", "\n  ")
    leaves, structure = jax.tree.flatten(value)
    if jax.tree_util.treedef_is_leaf(structure) or not leaves:
        text = repr(value)
        return text if len(text) <= 100 else f"{text[:97]}..."
    if isinstance(value, dict) and len(value) <= _LONGEST:
        return "{" + "; ".join(f"{name}: {_in_words_of_part(part)}" for name, part in value.items()) + "}"
    return _in_words_of_part(value)


def _in_words_of_part(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    if len(leaves) == 1:
        return _in_words(leaves[0])
    return f"{len(leaves)} arrays of {sum(map(np.size, leaves)):,} numbers"


def _array_in_words(array: Any) -> str:
    kind = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    known = not isinstance(array, Tracer) and array.size and getattr(array, "is_fully_addressable", True)
    if not known or not jax.numpy.issubdtype(array.dtype, np.number):
        return kind
    values = np.asarray(array, np.float64)
    if not array.shape:
        return f"{kind} {float(values):.6g}"
    finite = int(np.isfinite(values).sum())
    lost = "" if finite == values.size else f", {values.size - finite:,} not finite"
    mean = values[np.isfinite(values)].mean() if finite else math.nan
    return f"{kind}, mean {mean:.6g}{lost}"
