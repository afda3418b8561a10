"""Compiled programs that belong to a model, and are freed with it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from vaejax import checks
from vaejax.models.vae import VAE

_PROGRAMS = "vaejax_programs"
# What is checked before `jax.jit` complains of it in its own words.
_CHECKED = ("vae", "params", "key", "num_examples", "num_sequences")


def compiled(*static: int) -> Callable[[Callable], Callable]:
    """`jax.jit(..., static_argnums=static)` for functions of a model, whose programs are freed with the model.

    The cache of `jax.jit` holds static arguments, and with a model its programs and whatever it closes over, for as
    long as the process lives. Here a program is kept by the model's own `encode`: a sweep over many models then needs
    the memory of one.

    Args:
        static: places of the arguments that are static; a `VAE` is among them, or in a record among them.

    Returns:
        The decorator.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> @compiled(0)
    ... def means(vae, params, x):
    ...     return vae.encode(params, x).mean
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> means(vae, vae.init(jax.random.key(0)), jnp.ones((7, 3))).shape
    (7, 2)
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            named = {name: bound.arguments[name] for name in _CHECKED if name in bound.arguments}
            checks.check_given(**named)
            values = bound.args
            key = (function, *(values[place] for place in static))
            programs = _programs_of(key)
            if key not in programs:
                programs[key] = jax.jit(_with_static(function, dict(zip(static, key[1:], strict=True))))
            return programs[key](*(value for place, value in enumerate(values) if place not in static))

        return call

    return decorate


_SHARED: dict[Any, Callable] = {}  # of models whose functions can hold nothing


def _programs_of(values: tuple) -> dict[Any, Callable]:
    vae = next((found for value in values if (found := _vae_in(value)) is not None), None)
    try:
        return vars(vae.encode).setdefault(_PROGRAMS, {}) if vae is not None else _SHARED
    except TypeError:  # a bound method or a function compiled by the user has no attributes of its own
        return _SHARED


def _vae_in(value: Any) -> VAE | None:
    if isinstance(value, VAE) or not isinstance(value, tuple):
        return value if isinstance(value, VAE) else None
    return next((found for part in value if (found := _vae_in(part)) is not None), None)


def _with_static(function: Callable, static: dict[int, Any]) -> Callable:
    def of_arrays(*arrays: Any) -> Any:
        rest = iter(arrays)
        number = len(static) + len(arrays)
        return function(*(static[place] if place in static else next(rest) for place in range(number)))

    return of_arrays
