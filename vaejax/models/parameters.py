"""The parameters of a model at its door: made from a key that is one, and compared with those before they are used."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key

from vaejax import checks
from vaejax.distributions import Params


def checking(
    draw: Callable[[Key[Array, ""]], Params],
) -> tuple[Callable[[Key[Array, ""]], Params], Callable[[Params, str], Params]]:
    """A model's `init`, and the function that takes one part of its parameters.

    Args:
        draw: `key -> params`, a dict of parts; jitted.

    Returns:
        `key -> params`, which refuses what is no key; and `(params, name) -> params[name]`, which refuses parameters of
        other names or shapes than those that are drawn. Traced ones are compared too; it costs a program nothing.

    >>> init, part_of = checking(lambda key: {"decoder": {"bias": jax.numpy.zeros(3)}})
    >>> part_of(init(jax.random.key(0)), "decoder")["bias"].shape
    (3,)
    >>> part_of({"decoder": {"bias": jax.numpy.zeros(4)}}, "decoder")
    Traceback (most recent call last):
    ...
    ValueError: params must be those of this model, as its init(key) gives; expected float32[3] as ...
    """

    def init(key: Key[Array, ""]) -> Params:
        checks.check_key(key)
        return draw(key)

    @functools.cache
    def shapes() -> Any:
        return jax.eval_shape(lambda: draw(jax.random.key(0)))

    def part_of(params: Params, name: str) -> Params:
        checks.check_params(params, name)
        checks.check_like(params[name], shapes()[name], f"params['{name}']")
        return params[name]

    return init, part_of
