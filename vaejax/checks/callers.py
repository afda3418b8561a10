"""What is handed in beside numbers: keys, optimizers, functions, models and their parameters."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vaejax.checks.options import check_count
from vaejax.checks.words import describe


def check_key(key: Any, name: str = "key") -> None:
    """Refuse what is not one typed key: an integer, a key of the old style, several keys stacked.

    Args:
        key: what was given; a traced key is known by its dtype.
        name: of the argument.

    Raises:
        ValueError: naming the argument, what was given and how to make a key of it.

    >>> check_key(0)
    Traceback (most recent call last):
    ...
    ValueError: key must be one typed key of JAX; got 0: jax.random.key(0) makes one
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if typed and key.shape == ():
        return
    got, advice = describe(key), "jax.random.key(0) makes one"
    if typed:
        got, advice = f"keys of shape {key.shape}", "take one of them, or vmap over them"
    elif isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32:
        got, advice = f"{got}, as the old style has it", "jax.random.wrap_key_data(key) makes one of it"
    raise ValueError(f"{name} must be one typed key of JAX; got {got}: {advice}")


def check_optimizer(optimizer: Any, name: str = "optimizer") -> None:
    """Refuse what is not an optax transformation: a number, the function that makes one, a name.

    Raises:
        ValueError: with what was given and what to do.

    >>> check_optimizer(1e-3)
    Traceback (most recent call last):
    ...
    ValueError: optimizer must be an optax transformation, such as optax.adam(1e-3); got 0.001
    """
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise ValueError(f"{name} must be an optax transformation, such as optax.adam(1e-3); got {describe(optimizer)}")


def check_function(name: str, function: Any, signature: str, num_arguments: int = 0, *keywords: str) -> None:
    """Refuse what cannot be called, or not in this way, such as the function that makes one.

    Args:
        name: of the argument.
        function: what was given.
        signature: of what is expected, such as "(key, batch) -> batch".
        num_arguments: how many arguments it must take by place; 0: nothing is said of them.
        keywords: arguments that it must take by name beside those.

    Raises:
        ValueError: naming the argument, the signature and what was given.

    >>> check_function("objective", None, "(params, key, x) -> (value, info)")
    Traceback (most recent call last):
    ...
    ValueError: objective must be a function (params, key, x) -> (value, info); got None
    """
    if not callable(function):
        raise ValueError(f"{name} must be a function {signature}; got {describe(function)}")
    own = _signature_of(function) if num_arguments or keywords else None
    try:
        if own is not None:
            own.bind(*[None] * num_arguments, **dict.fromkeys(keywords))
    except TypeError:
        raise ValueError(
            f"{name} must be a function {signature}; got {describe(function)}, which takes "
            f"({', '.join(own.parameters)}): if it makes such a function, call it"
        ) from None


def _signature_of(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some that are written in C have none
        return None


def check_model(vae: Any) -> None:
    """Refuse what is no model: a word, parameters, a network, the function that makes one.

    Raises:
        ValueError: with what was given, or in the words of a model that says why it has no such function.

    >>> check_model("mlp")
    Traceback (most recent call last):
    ...
    ValueError: vae must be a model with functions encode, decode and prior, such as models.mlp_vae(...); got 'mlp'
    """
    told = isinstance(getattr(type(vae), "encode", None), property)
    try:
        found = [getattr(vae, name) for name in ("encode", "decode", "prior")]
    except AttributeError as error:
        if told:  # a GAN says in its own words why it has none
            raise ValueError(str(error)) from None
        found = [None]
    if not all(map(callable, found)):
        raise ValueError(
            "vae must be a model with functions encode, decode and prior, such as models.mlp_vae(...); got "
            f"{describe(vae)}"
        )


def check_params(params: Any, *parts: str) -> None:
    """Refuse what are no parameters: none at all, a list, those of a part, a word in the place of an array.

    Args:
        params: what was given; of traced ones everything but the numbers is known.
        parts: names that must stand in them; by default "encoder" and "decoder".

    Raises:
        ValueError: with what was given and what makes parameters.

    >>> check_params(None)
    Traceback (most recent call last):
    ...
    ValueError: params must be a dict with 'encoder' and 'decoder', as the model's init(key) gives; got None
    """
    parts = parts or ("encoder", "decoder")
    if not isinstance(params, Mapping) or not set(parts) <= params.keys():
        expected = " and ".join(map(repr, parts))
        raise ValueError(
            f"params must be a dict with {expected}, as the model's init(key) gives; got {describe(params)}"
        )
    check_leaves(params)


def check_leaves(params: Any) -> None:
    """Refuse a tree of parameters in which something is no array of numbers.

    Raises:
        ValueError: naming it.

    >>> check_leaves({"decoder": {"bias": "zero"}})
    Traceback (most recent call last):
    ...
    ValueError: expected params['decoder']['bias'] as an array of numbers; got 'zero'
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"expected {name} as an array of numbers; got {describe(leaf)}")


def check_like(params: Any, wanted: Any, name: str = "params") -> None:
    """Refuse parameters of another model: of other names or shapes, or whole numbers for floats.

    Args:
        params: what was given.
        wanted: a tree of arrays, or of what `jax.eval_shape` gives.
        name: of the parameters, or their place in those of a model.

    Raises:
        ValueError: naming the first that differs, what is expected there and what was given.

    >>> check_like({"bias": jnp.zeros(2)}, {"bias": jnp.zeros(3)})
    Traceback (most recent call last):
    ...
    ValueError: params must be those of this model, as its init(key) gives; expected float32[3] as params['bias'], ...
    """
    leaves, wanted_leaves = jax.tree.leaves(params), jax.tree.leaves(wanted)
    if jax.tree.structure(params) == jax.tree.structure(wanted) and all(map(_is_like, leaves, wanted_leaves)):
        return
    given, expected = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (params, wanted))
    paths = [*expected, *(path for path in given if path not in expected)]
    bad = [path for path in paths if not (path in given and path in expected and _is_like(given[path], expected[path]))]
    path = bad[0] if bad else ()
    want, got = (describe(tree[path]) if path in tree else "nothing" for tree in (expected, given))
    if not bad:  # empty dicts that one has and the other has not
        want, got = (str(jax.tree.structure(tree)) for tree in (wanted, params))
    raise ValueError(
        f"params must be those of this model, as its init(key) gives; expected {want} as "
        f"{name}{jax.tree_util.keystr(path)}, got {got}"
    )


def _is_like(leaf: Any, wanted: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    floats = dtype is None or jnp.issubdtype(dtype, jnp.inexact) or not jnp.issubdtype(wanted.dtype, jnp.inexact)
    shape = () if isinstance(leaf, int | float) else getattr(leaf, "shape", None)
    return floats and shape == wanted.shape


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], example: str) -> None:
    """Refuse what is not of a class.

    Args:
        name: of the argument.
        value: what was given.
        kind: the class, or several.
        example: of what is expected, with its article.

    Raises:
        ValueError: naming the argument, what is expected and what was given.

    >>> check_kind("reduction", None, tuple, "an estimators.Reduction")
    Traceback (most recent call last):
    ...
    ValueError: reduction must be an estimators.Reduction; got None
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {example}; got {describe(value)}")


def check_distribution(distribution: Any) -> None:
    """Refuse what is no distribution of numpyro's kind: its class, an array, a function.

    Raises:
        ValueError: with what was given.

    >>> check_distribution(dist.Normal)
    Traceback (most recent call last):
    ...
    ValueError: a distribution must be one of numpyro's kind, such as dist.Normal(0.0, 1.0); got the class Normal
    """
    example = "one of numpyro's kind, such as dist.Normal(0.0, 1.0)"
    check_kind("a distribution", distribution, dist.Distribution, example)


def check_objective(objective: Any, name: str = "objective") -> None:
    """Refuse what is no objective, such as the function that makes one.

    Raises:
        ValueError: as `check_function`.

    >>> check_objective("elbo")
    Traceback (most recent call last):
    ...
    ValueError: objective must be a function (params, key, x, *, step=None) -> (value, info), ...; got 'elbo'
    """
    signature = "(params, key, x, *, step=None) -> (value, info), such as objectives.make_elbo(vae) is"
    check_function(name, objective, signature, 3, "step")


def check_keys(keys: Any, name: str = "keys", most_axes: int = 1) -> None:
    """Refuse what are not several typed keys on one axis, one for each run; or on more, several for each.

    Raises:
        ValueError: naming the argument, what was given and how to make keys of it.

    >>> check_keys(jax.random.key(0))
    Traceback (most recent call last):
    ...
    ValueError: keys must be typed, one for each run, as jax.random.split(key, runs) gives; got key<fry>[]
    """
    typed = isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not typed or not 1 <= keys.ndim <= most_axes or not keys.size:
        raise ValueError(
            f"{name} must be typed, one for each run, as jax.random.split(key, runs) gives; got {describe(keys)}"
        )


# What an argument of this name is, everywhere; any other counts something.
KINDS: dict[str, Callable[[Any], None]] = {
    "vae": check_model,
    "params": check_params,
    "key": check_key,
    "keys": check_keys,
    "objective": check_objective,
}


def check_given(**given: Any) -> None:
    """Refuse the first of several arguments that is not what its name says; names outside `KINDS` are those of counts.

    Args:
        given: arguments by name.

    Raises:
        ValueError: as `check_model`, `check_params`, `check_key`, ..., or `check_count`.

    >>> check_given(key=jax.random.key(0), num_samples=0)
    Traceback (most recent call last):
    ...
    ValueError: num_samples must be an integer of at least 1; got 0
    """
    for name, value in given.items():
        if name in KINDS:
            KINDS[name](value)
        else:
            check_count(name, value)
