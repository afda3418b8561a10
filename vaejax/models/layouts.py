"""How a network's output is cut into the arrays of a head; what fits no documented layout is refused, not reshaped."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vaejax.distributions import Head


def split(name: str, outputs: Any, head: Head, batch_size: int, event_shape: tuple[int, ...]) -> list[Array]:
    """The arrays that a head takes, each (batch_size, *event_shape), from what a network returned.

    Args:
        name: of the network, for the message.
        outputs: one array or a tuple of arrays, in a layout of `models.make_vae`.
        head: says how many arrays, and whether they stand on the last axis.
        batch_size: examples.
        event_shape: of the distribution that the head makes.

    Returns:
        `head.outputs_for(event_shape)` arrays.

    Raises:
        ValueError: if the shapes are those of no layout.

    >>> from vaejax import distributions
    >>> means, stds = split("decoder", jnp.ones((7, 6)), distributions.gaussian(), 7, (3,))
    >>> means.shape
    (7, 3)
    """
    arrays = _arrays(outputs)
    number = head.outputs_for(event_shape)
    if _are_apart(arrays, number, batch_size, event_shape):
        return [array.reshape(batch_size, *event_shape) for array in arrays]
    stacked, axis = _as_one(name, arrays, head, batch_size, event_shape)
    each = [stacked[:, i] if axis == 1 else stacked[..., i, :] for i in range(number)]
    return [array.reshape(batch_size, *event_shape) for array in each]


def stack(name: str, outputs: Any, head: Head, batch_size: int, event_shape: tuple[int, ...]) -> Array:
    """The arrays of `split` as one, on a new last axis, without a slice for each of them.

    Args:
        name: as in `split`, and so are the others.
        outputs: what a network returned.
        head: how many arrays, and where they stand.
        batch_size: examples.
        event_shape: of the distribution.

    Returns:
        (batch_size, *event_shape, number).

    Raises:
        ValueError: as `split`.

    >>> from vaejax import distributions
    >>> stack("decoder", jnp.ones((7, 6)), distributions.gaussian(), 7, (3,)).shape
    (7, 3, 2)
    """
    arrays = _arrays(outputs)
    number = head.outputs_for(event_shape)
    if _are_apart(arrays, number, batch_size, event_shape):
        return jnp.stack([array.reshape(batch_size, *event_shape) for array in arrays], axis=-1)
    stacked, axis = _as_one(name, arrays, head, batch_size, event_shape)
    return jnp.moveaxis(stacked, axis, -1).reshape(batch_size, *event_shape, number)


def _arrays(outputs: Any) -> list[Array]:
    return [jnp.asarray(array) for array in (outputs if isinstance(outputs, tuple | list) else [outputs])]


def _are_apart(arrays: list[Array], number: int, batch_size: int, event_shape: tuple[int, ...]) -> bool:
    return len(arrays) == number and all(_is_one(array.shape, batch_size, event_shape) for array in arrays)


def _as_one(
    name: str, arrays: list[Array], head: Head, batch_size: int, event_shape: tuple[int, ...]
) -> tuple[Array, int]:
    """The one array that holds them all, with an axis of its own for their number, and which axis that is."""
    number, size = head.outputs_for(event_shape), math.prod(event_shape)
    if len(arrays) == 1:
        (array,) = arrays
        *space, depth = event_shape if len(event_shape) > 2 else (*event_shape, 1)
        if head.channels == "last" and array.shape == (batch_size, *space, number * depth):
            return array.reshape(batch_size, *space, number, depth), -2
        whole = (batch_size, number, *event_shape)
        if array.shape in (whole, (*whole, 1), (batch_size, number * size)) and (
            head.channels == "first" or len(event_shape) == 1
        ):
            return array.reshape(whole), 1
    each = ", ".join(map(str, event_shape))
    last = f"(n, {', '.join(map(str, event_shape[:2]))}, {number * math.prod(event_shape[2:])})"
    layouts = last if head.channels == "last" and number > 1 else f"(n, {number}, {each}) or flat (n, {number * size})"
    raise ValueError(
        f"the {name} must return {number} array{'s' if number > 1 else ''} of shape {event_shape} for each example: a "
        f"tuple of {number} of (n, {each}), or one array {layouts}; got {[array.shape for array in arrays]} for n = "
        f"{batch_size}. Arrays that convolutions emit beside each other on the last axis want a head with "
        "channels='last', such as distributions.gaussian(channels='last')"
    )


def _is_one(shape: tuple[int, ...], batch_size: int, event_shape: tuple[int, ...]) -> bool:
    whole = (batch_size, *event_shape)
    return shape in (whole, (*whole, 1), (batch_size, math.prod(event_shape)))
