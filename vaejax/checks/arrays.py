"""Arrays: their shapes, dtypes and finite numbers; of traced ones, what is known of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Num

from vaejax.checks.words import describe, with_advice


def as_array(x: Any, what: str = "data") -> Any:
    """Numbers as an array, of arrays and of what NumPy makes one of (lists, data frames); nothing is rounded.

    Args:
        x: what was given.
        what: it holds, for the message.

    Returns:
        The array; that of a list of Python floats has JAX's default precision.

    Raises:
        ValueError: if it is a dict, a tuple, a string or anything else that is no array of numbers.

    >>> as_array([[0.0, 1.0]]).dtype
    dtype('float32')
    >>> as_array({"image": np.zeros(3)})
    Traceback (most recent call last):
    ...
    ValueError: expected data as an array of numbers; got a dict of image: ...
    """
    if isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biufV":
        return x  # V: the narrow floats of JAX
    try:
        values = np.asarray(None if isinstance(x, str | bytes | dict | tuple | set) else x)
    except (TypeError, ValueError):  # rows of unequal lengths
        values = np.asarray(None)
    if values.dtype.kind not in "biufV":
        raise ValueError(
            f"expected {what} as an array of numbers; got {describe(x)}: pass the array itself; what belongs to each "
            "example beside its numbers goes into models.Batch(x, context=..., mask=...)"
        )
    if not isinstance(x, list | bool | int | float):
        return values
    try:
        return jnp.asarray(x)
    except OverflowError:  # whole numbers that 32 bits do not hold stay as they are
        return values


def check_array(x: Any, what: str = "data") -> None:
    """Refuse what is no array of numbers: a dict, a tuple of arrays, a string, None; lists of numbers pass.

    Raises:
        ValueError: as `as_array`.

    >>> check_array([1.0, 2.0])
    """
    as_array(x, what)


def checked_data(
    x: ArrayLike, data_shape: tuple[int, ...], what: str = "data", *, integers: bool = False
) -> Num[Array, "..."]:
    """The data as a JAX array of the shape and kind that a model expects.

    Args:
        x: data, (*batch, *data_shape).
        data_shape: of one example.
        what: it is, for messages.
        integers: whether whole numbers are data too, as they are for counts and categories.

    Returns:
        The same numbers, (*batch, *data_shape).

    >>> checked_data(np.ones((7, 3), np.float32), (3,)).shape
    (7, 3)

    Raises:
        ValueError: if it is no array of numbers, the trailing axes are not `data_shape`, there is no example, the
            numbers are not floats, or they are float64 while JAX runs in 32 bits (which would round them without a
            word); and if they are concrete and not finite.
    """
    x = as_array(x, what)
    if not (integers and jnp.issubdtype(x.dtype, jnp.integer)):
        check_floating(x)
    x = jnp.asarray(x)
    advice = "this is the data_shape that the model was made with: reshape the data, or make the model with theirs"
    check_shape(what, x.shape, ("*batch", *data_shape), advice if what == "data" else "")
    check_not_empty(x)
    check_finite(x, what)  # else the distribution would complain, and of its own parameters
    return x


def check_shape(what: str, given: tuple[int, ...], expected: tuple[int | str, ...], advice: str = "") -> None:
    """Refuse an array of another shape.

    Args:
        what: is of that shape, in the plural or as one array, such as "latents".
        given: its shape.
        expected: the shape; names stand for axes of any length, and "*batch", in front, for any number of axes.
        advice: what to do; added to the message.

    Raises:
        ValueError: with both shapes.

    >>> check_shape("latents", (7, 3), ("*batch", 2))
    Traceback (most recent call last):
    ...
    ValueError: expected latents of shape (*batch, 2); got (7, 3)
    """
    named = [size for size in expected if not str(size).startswith("*")]
    trailing = given[len(given) - len(named) :] if len(given) >= len(named) else None
    fits = trailing is not None and (len(named) < len(expected) or len(given) == len(named))
    if not fits or any(size != actual for size, actual in zip(named, trailing, strict=True) if isinstance(size, int)):
        shape = f"({', '.join(map(str, expected))}{',' if len(expected) == 1 else ''})"
        raise ValueError(with_advice(f"expected {what} of shape {shape}; got {given}", advice))


def check_not_empty(x: Array) -> None:
    """Refuse data without an example.

    Raises:
        ValueError: with the shape.
    """
    if x.size == 0:
        raise ValueError(f"expected at least one example; got data of shape {x.shape}")


def check_floating(x: ArrayLike) -> None:
    """Refuse numbers that are not floats, or float64 while JAX runs in 32 bits (it would round them without a word).

    Raises:
        ValueError: naming the dtype and how to convert; or what was given, where it is no array of numbers.

    >>> check_floating(np.arange(3))
    Traceback (most recent call last):
    ...
    ValueError: expected data of a floating dtype; got int64. ...
    """
    check_array(x)
    dtype = dtype_of(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"expected data of a floating dtype; got {dtype}. Scale to [0, 1] and convert: x.astype('float32') / "
            "255 for 8-bit images, and binarize for a Bernoulli likelihood"
        )
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "expected float32 data, because JAX runs in 32 bits; got float64. Convert with x.astype('float32'), or "
            "enable double precision: jax.config.update('jax_enable_x64', True)"
        )


def check_finite(images: ArrayLike, what: str = "images") -> None:
    """Raises an error where an array holds NaN or infinity; under `jit`, where the values are unknown, it does nothing.

    Args:
        images: the array.
        what: it holds, in the plural, for the message.

    >>> check_finite(np.array([1.0, np.nan]), "pixels")
    Traceback (most recent call last):
    ...
    ValueError: expected finite pixels, got 1 NaN or infinite value of 2, the first nan at index (1,): ...

    Raises:
        ValueError: with the count of the offending values and the index of the first.
    """
    if not isinstance(images, Tracer):
        images = np.asarray(as_array(images, what))
        advice = "remove or repair these examples"
        refuse_values(images, ~np.isfinite(images), f"expected finite {what}", "NaN or infinite", advice)


def check_values(data: Any) -> None:
    """Refuse arrays of floats that are concrete and not finite, or that JAX would round.

    Args:
        data: a tree of arrays; of traced ones only the dtype is known. Integers, keys and plain numbers pass.

    Raises:
        ValueError: if an array of floats holds NaN or infinities, or is float64 while JAX runs in 32 bits.

    >>> check_values({"images": jnp.ones((2, 3)), "labels": jnp.arange(2)})
    """
    for leaf in jax.tree.leaves(data):
        if not isinstance(leaf, int | float):
            check_array(leaf)
        if isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
            check_floating(leaf)
            check_finite(leaf, "data")


def refuse_values(values: np.ndarray, bad: np.ndarray, expected: str, kind: str, advice: str) -> None:
    """Refuse an array in which some values are bad.

    Args:
        values: the array.
        bad: which of them are, of the same shape.
        expected: what was, as the beginning of the message.
        kind: of value that is bad, an adjective.
        advice: what to do.

    Raises:
        ValueError: with the count of the bad values and the first of them with its index.
    """
    count = int(bad.sum())
    if count:
        first = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        noun = "value" if count == 1 else "values"
        raise ValueError(
            f"{expected}, got {count} {kind} {noun} of {bad.size}, the first {values[first]} at index {first}: {advice}"
        )


def dtype_of(x: ArrayLike) -> Any:
    """The dtype of an array, or the one that `as_array` gives to numbers and lists."""
    return as_array(x).dtype


def wide_dtype(*dtypes: Any) -> Any:
    """The dtype that densities and distances are computed in: float64 where one of these is, else float32.

    >>> wide_dtype(jnp.bfloat16, jnp.float32).__name__
    'float32'
    """
    return jnp.float64 if any(dtype == jnp.float64 for dtype in dtypes) else jnp.float32
