"""What a function may refuse, in one wording: what was expected, what was given, and what to do.

Checks stand where a user enters: where a function is built, or at its first lines. Below that door there is only maths.
"""

import math
import numbers
import operator
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float


def check_count(name: str, number: Any, least: int = 1, advice: str = "") -> None:
    """Refuse a count that is not an integer of at least `least`.

    Args:
        name: of the argument.
        number: what was given.
        least: the smallest count that is allowed.
        advice: why, or what to do instead; added to the message.

    Raises:
        ValueError: naming the argument and what was given.

    >>> check_count("num_samples", 0)
    Traceback (most recent call last):
    ...
    ValueError: num_samples must be an integer of at least 1; got 0
    """
    if not _is_integer(number) or number < least:
        raise ValueError(_with_advice(f"{name} must be an integer of at least {least}; got {number!r}", advice))


def check_counts(**numbers: Any) -> None:
    """Refuse the first of several named counts that is not an integer of at least 1.

    Raises:
        ValueError: as `check_count`.

    >>> check_counts(num_samples=3, batch_size=2.5)
    Traceback (most recent call last):
    ...
    ValueError: batch_size must be an integer of at least 1; got 2.5
    """
    for name, number in numbers.items():
        check_count(name, number)


def checked_shape(name: str, shape: Sequence[Any], advice: str = "") -> tuple[int, ...]:
    """The sizes as a tuple of Python integers; refuse none at all, and those that are not positive integers.

    Args:
        name: of the argument.
        shape: what was given: the shape of an array, or the sizes of layers.
        advice: what to do; added to the message.

    Raises:
        ValueError: naming the argument and what was given.

    >>> checked_shape("data_shape", (28, 0))
    Traceback (most recent call last):
    ...
    ValueError: data_shape must be made of positive integers; got (28, 0)
    """
    shape = tuple(shape)
    if not shape or not all(_is_integer(size) and size >= 1 for size in shape):
        raise ValueError(_with_advice(f"{name} must be made of positive integers; got {shape}", advice))
    return tuple(int(size) for size in shape)


def check_divides(name: str, number: int, num_parts: int, parts: str, advice: str = "") -> None:
    """Refuse a number that does not divide into equal parts.

    Args:
        name: of the number.
        number: what was given.
        num_parts: how many parts there are.
        parts: what they are, such as "devices of the mesh".
        advice: what to do; added to the message.

    Raises:
        ValueError: naming the number and the parts.

    >>> check_divides("batch_size", 10, 4, "processes")
    Traceback (most recent call last):
    ...
    ValueError: batch_size must be divisible by the 4 processes; got 10
    """
    if number % num_parts:
        raise ValueError(_with_advice(f"{name} must be divisible by the {num_parts} {parts}; got {number}", advice))


def check_number(
    name: str,
    number: Any,
    *,
    above: float | int | None = None,
    least: float | int | None = None,
    below: float | int | None = None,
    most: float | int | None = None,
    advice: str = "",
) -> None:
    """Refuse what is not one finite number within its bounds. Of a traced number only the shape is known.

    Args:
        name: of the argument.
        number: what was given.
        above: the number must be greater.
        least: the number must be at least this.
        below: the number must be smaller.
        most: the number must be at most this.
        advice: why, or what to do instead; added to the message.

    Raises:
        ValueError: naming the argument, its bounds and what was given.

    >>> check_number("decay", 1.0, least=0, below=1)
    Traceback (most recent call last):
    ...
    ValueError: decay must be a number of at least 0 and below 1; got 1.0
    """
    rows = (("above", above, operator.gt), ("of at least", least, operator.ge))
    rows = (*rows, ("below", below, operator.lt), ("at most", most, operator.le))
    rows = [(word, bound, holds) for word, bound, holds in rows if bound is not None]
    kinds = numbers.Real | np.ndarray | np.generic | jax.Array
    inside = isinstance(number, kinds) and not isinstance(number, bool) and np.shape(number) == ()
    if inside and not isinstance(number, Tracer):
        number = np.asarray(number).item()
        inside = math.isfinite(number) and all(holds(number, bound) for _, bound, holds in rows)
    if not inside:
        bounds = " and".join(f" {word} {bound:g}" for word, bound, _ in rows)
        raise ValueError(_with_advice(f"{name} must be a number{bounds}; got {number!r}", advice))


def check_choice(name: str, given: Any, known: Collection[Any], otherwise: str = "") -> None:
    """Refuse what is not one of the values that an argument knows.

    Args:
        name: of the argument.
        given: what was given.
        known: the values that it may have.
        otherwise: what else it may be, such as "a function"; added to the list.

    Raises:
        ValueError: naming the argument, all that is known and what was given.

    >>> check_choice("kl", "exact", ("analytic", "sampled"))
    Traceback (most recent call last):
    ...
    ValueError: kl must be 'analytic' or 'sampled'; got 'exact'
    """
    if not any(given is value or (isinstance(given, type(value)) and given == value) for value in known):
        *most, last = [*map(repr, known), *([otherwise] if otherwise else [])]
        options = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(f"{name} must be {options}; got {given!r}")


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
        raise ValueError(_with_advice(f"expected {what} of shape {shape}; got {given}", advice))


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
        images = np.asarray(images)
        advice = "remove or repair these examples"
        refuse_values(images, ~np.isfinite(images), f"expected finite {what}", "NaN or infinite", advice)


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


def checked_data(x: ArrayLike, data_shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The data as a JAX array of the shape and kind that a model expects.

    Args:
        x: data, (*batch, *data_shape).
        data_shape: of one example.

    Returns:
        The same numbers, (*batch, *data_shape).

    >>> checked_data(np.ones((7, 3), np.float32), (3,)).shape
    (7, 3)

    Raises:
        ValueError: if the trailing axes are not `data_shape`, there is no example, the numbers are not floats, or they
            are float64 while JAX runs in 32 bits (which would round them without a word); and if they are concrete and
            not finite.
    """
    check_floating(x)
    x = jnp.asarray(x)
    advice = "this is the data_shape that the model was made with: reshape the data, or make the model with theirs"
    check_shape("data", x.shape, ("*batch", *data_shape), advice)
    check_not_empty(x)
    check_finite(x, "data")  # else the distribution would complain, and of its own parameters
    return x


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
        ValueError: naming the dtype and how to convert.

    >>> check_floating(np.arange(3))
    Traceback (most recent call last):
    ...
    ValueError: expected data of a floating dtype; got int64. ...
    """
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


def check_values(data: Any) -> None:
    """Refuse arrays of floats that are concrete and not finite, or that JAX would round.

    Args:
        data: a tree of arrays; of traced ones only the dtype is known. Integers, keys and plain numbers pass.

    Raises:
        ValueError: if an array of floats holds NaN or infinities, or is float64 while JAX runs in 32 bits.

    >>> check_values({"images": jnp.ones((2, 3)), "labels": jnp.arange(2)})
    """
    for leaf in jax.tree.leaves(data):
        if isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
            check_floating(leaf)
            check_finite(leaf, "data")


def dtype_of(x: ArrayLike) -> Any:
    """The dtype of an array, or the one that NumPy gives to numbers and lists."""
    return x.dtype if isinstance(x, jax.Array | np.ndarray) else np.asarray(x).dtype


def wide_dtype(*dtypes: Any) -> Any:
    """The dtype that densities and distances are computed in: float64 where one of these is, else float32.

    >>> wide_dtype(jnp.bfloat16, jnp.float32).__name__
    'float32'
    """
    return jnp.float64 if any(dtype == jnp.float64 for dtype in dtypes) else jnp.float32


def _is_integer(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _with_advice(message: str, advice: str) -> str:
    return f"{message}: {advice}" if advice else message
