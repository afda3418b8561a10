"""Examples of a source one by one: trees of NumPy arrays that are alike and finite."""

from typing import Any

import jax
import numpy as np

from vaejax import checks


class Rows:
    """The rows of a tree of arrays, each a tree of the same form."""

    def __init__(self, arrays: Any, number: int):
        self._arrays, self._number = arrays, number

    def __len__(self) -> int:
        """Number of rows."""
        return self._number

    def __getitem__(self, index: int) -> Any:
        """One row."""
        return jax.tree.map(lambda array: array[index], self._arrays)


def examples_of(source: Any) -> Any:
    """A source as it is; of a dict or a NamedTuple of arrays, or a data frame, its rows.

    Raises:
        ValueError: if it is no source, or arrays differ in their number of rows.

    >>> examples_of({"label": np.arange(5), "x": np.ones((5, 2))})[3]
    {'label': np.int64(3), 'x': array([1., 1.])}
    """
    if hasattr(source, "iloc") and hasattr(source, "__array__"):  # a data frame: its own index names columns
        return np.asarray(source)
    if isinstance(source, dict) or hasattr(source, "_fields"):
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(source)}
        if len(lengths) != 1 or () in lengths:
            raise ValueError(
                f"expected arrays with the same number of examples on the first axis; got {sorted(lengths)}"
            )
        return Rows(source, lengths.pop()[0])
    if not all(hasattr(source, name) for name in ("__len__", "__getitem__")) or isinstance(source, str | bytes):
        given = checks.describe(source)
        raise ValueError(f"source must have a length and examples by number, as an array has; got {given}")
    return source


def as_numpy(example: Any) -> Any:
    """An example with NumPy arrays at its leaves; plain floats and wide integers are narrowed to what JAX takes.

    Raises:
        ValueError: if a leaf is no number, or an integer that 32 bits do not hold.
    """
    return jax.tree.map(_as_numpy, example)


def _as_numpy(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, np.ndarray | np.generic):
        checks.check_array(leaf, "an example")
    array = np.asarray(leaf, np.float32) if isinstance(leaf, float) else np.asarray(leaf)
    if array.dtype.kind in "OSUMmc":
        checks.check_array(array, "an example")
    narrow = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype.kind not in "iu" or narrow == array.dtype:
        return array
    if not (array == array.astype(narrow)).all():
        raise ValueError(f"expected integers that {narrow} holds, because JAX runs in 32 bits; got {array.max()}")
    return array.astype(narrow)


def check_example(example: Any, like: Any, which: str) -> None:
    """Refuse an example that is not like another one, or holds what is not finite.

    Args:
        example: a tree of NumPy arrays.
        like: the example that it is compared with, such as the first.
        which: it is, for the message.

    Raises:
        ValueError: if their trees, shapes or dtypes differ, or a number is NaN or infinite.

    >>> check_example(np.array([1.0, np.nan]), np.ones(2), "example 7")
    Traceback (most recent call last):
    ...
    ValueError: expected finite numbers in example 7, got 1 NaN or infinite value of 2, ...
    """
    leaves, structure = jax.tree.flatten(example)
    others, expected = jax.tree.flatten(like)
    kinds = [[(leaf.dtype, leaf.shape) for leaf in tree] for tree in (leaves, others)]
    if structure != expected or kinds[0] != kinds[1]:
        given, wanted = (_in_words(tree) for tree in (example, like))
        raise ValueError(f"expected all examples alike, the first is {wanted}; got {given} of {which}")
    for leaf in leaves:
        if leaf.dtype.kind not in "iub":
            checks.check_finite(leaf, f"numbers in {which}")


def _in_words(example: Any) -> str:
    parts = jax.tree_util.tree_leaves_with_path(example)
    return ", ".join(f"{jax.tree_util.keystr(path)} {checks.describe(leaf)}".strip() for path, leaf in parts)
