"""Numbers and names that a function takes: counts, sizes, bounds and choices."""

import math
import numbers
import operator
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from vaejax.checks.words import describe, with_advice

# No array has more numbers along an axis, and no loop more steps.
LARGEST = 2**31 - 1


def check_count(name: str, number: Any, least: int = 1, advice: str = "", most: int = LARGEST) -> None:
    """Refuse a count that is not an integer of at least `least`, or larger than anything that could be counted.

    Args:
        name: of the argument.
        number: what was given.
        least: the smallest count that is allowed.
        advice: why, or what to do instead; added to the message.
        most: the largest count that is allowed.

    Raises:
        ValueError: naming the argument and what was given.

    >>> check_count("num_samples", 0)
    Traceback (most recent call last):
    ...
    ValueError: num_samples must be an integer of at least 1; got 0
    """
    if not _is_integer(number) or not least <= number <= most:
        end = f" and at most {most:,}" if _is_integer(number) and number > most else ""
        raise ValueError(
            with_advice(f"{name} must be an integer of at least {least}{end}; got {describe(number)}", advice)
        )


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
    sizes = checked_sizes(name, shape, advice)
    if not sizes:
        raise ValueError(with_advice(f"{name} must be made of positive integers; got {sizes}", advice))
    return sizes


def checked_sizes(name: str, sizes: Sequence[Any], advice: str = "") -> tuple[int, ...]:
    """`checked_shape` of sizes of which there may be none, such as those of hidden layers.

    Raises:
        ValueError: naming the argument and what was given.

    >>> checked_sizes("hidden_sizes", [])
    ()
    """
    listed = isinstance(sizes, Sequence) or (isinstance(sizes, np.ndarray) and sizes.ndim == 1)
    given = tuple(sizes) if listed and not isinstance(sizes, str) else (None,)
    if not all(_is_integer(size) and 1 <= size <= LARGEST for size in given):
        got = describe(sizes) if given == (None,) else given
        raise ValueError(with_advice(f"{name} must be made of positive integers; got {got}", advice))
    return tuple(int(size) for size in given)


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
        raise ValueError(with_advice(f"{name} must be divisible by the {num_parts} {parts}; got {number}", advice))


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
        raise ValueError(with_advice(f"{name} must be a number{bounds}; got {describe(number)}", advice))


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


def _is_integer(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)
