"""What layers are made of beside products: activations, and several inputs as one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax import checks

Activation = Callable[[Array], Array]
"""A function of an array, of the same shape; a gated one halves the last axis."""

ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "gated": jax.nn.glu,
}
"""The activations that a network takes by name."""


def activation_function(activation: str | Activation) -> Activation:
    """The activation of that name, or the function itself.

    Args:
        activation: a name of `ACTIVATIONS`, or a function of one array that keeps its shape. "gated" is a layer of
            twice as many units, one half of which the sigmoids of the other half multiply (Tomczak & Welling 2018).

    Returns:
        The function.

    Raises:
        ValueError: if the name is unknown.

    >>> activation_function("relu")(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    if callable(activation):
        return activation
    checks.check_choice("activation", activation, ACTIVATIONS, otherwise="a function")
    return ACTIVATIONS[activation]


def halves(activation: Activation) -> int:
    """How many numbers the activation takes for each that it gives: a gated one halves the last axis.

    >>> halves(jax.nn.glu), halves(jnp.tanh)
    (2, 1)
    """
    return 2 if activation is jax.nn.glu else 1


def joined(*inputs: Float[Array, "n ..."]) -> Float[Array, "n size"]:
    """Inputs flattened and joined, such as data and their context.

    >>> joined(jnp.ones((7, 2, 2)), jnp.ones((7, 3))).shape
    (7, 7)
    """
    flat = [array.reshape(array.shape[0], -1) for array in inputs]
    return jnp.concatenate(flat, axis=1) if len(flat) > 1 else flat[0]
