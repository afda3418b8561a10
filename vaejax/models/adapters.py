"""Networks of any kind as pure `(init, apply)` pairs with plain-dict parameters.

NNX modules stand behind this boundary: the graph definition stays in a closure, the parameters leave as dicts of
arrays, and `jax.jit`, `jax.grad` and `jax.vmap` see nothing else. A Linen or NNX module of the user's own, or any pure
pair, enters through `as_network`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from flax import core, errors, linen, nnx
from jaxtyping import Array, Key

from vaejax.distributions import Params


class Network(NamedTuple):
    """A network without state other than its parameters.

    Attributes:
        init: `key -> params`, a plain dict of arrays.
        apply: `(params, inputs) -> outputs`, with one leading batch axis on both.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module) -> Network:
    """A flax NNX module as a pure pair.

    Args:
        build: a function that takes `nnx.Rngs` and returns the module, called anew for each key; or a module, whose
            parameters `init` then returns as they are, whatever the key.

    Returns:
        The pair; its parameters are the module's `nnx.Param`, as nested dicts.

    Raises:
        ValueError: if the module holds state other than parameters.

    >>> network = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> network.init(jax.random.key(0))["kernel"].shape
    (3, 2)
    """
    is_module = isinstance(build, nnx.Module)
    # A function is called abstractly here: only the structure is wanted, no parameter is drawn.
    module = build if is_module else nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef, _, other = nnx.split(module, nnx.Param, ...)
    stateful = [f"{'.'.join(map(str, path))} ({type(leaf).__name__})" for path, leaf in nnx.to_flat_state(other)]
    if stateful:
        _refuse_state(stateful)

    def init(key: Key[Array, ""]) -> Params:
        return nnx.to_pure_dict(nnx.state(build if is_module else build(nnx.Rngs(key)), nnx.Param))

    def apply(params: Params, inputs: Any) -> Any:  # of an LSTM step, a tuple
        return nnx.merge(graphdef, params)(inputs)

    return Network(init, apply)


def from_linen(module: linen.Module, input_shape: tuple[int, ...]) -> Network:
    """A flax Linen module as a pure pair.

    Args:
        module: the module; its `__call__` takes (n, *input_shape).
        input_shape: shape of one input.

    Returns:
        The pair; its parameters are the collection "params".

    Raises:
        ValueError: if the module has variables other than parameters, or draws random numbers when applied.

    >>> from_linen(linen.Dense(2), (3,)).init(jax.random.key(0))["kernel"].shape
    (3, 2)
    """

    def variables(key: Key[Array, ""]) -> Any:
        return module.init(key, jnp.zeros((1, *input_shape)))

    collections = jax.eval_shape(variables, jax.random.key(0))
    stateful = sorted(set(collections) - {"params"})
    if stateful:
        _refuse_state([f"{type(module).__name__}: variable collection '{name}'" for name in stateful])
    try:
        # Only `apply` shows a Dropout that draws: `init` lends its key to every stream of random numbers.
        jax.eval_shape(module.apply, collections, jnp.zeros((1, *input_shape)))
    except errors.InvalidRngError as error:
        _refuse_state([f"{type(module).__name__}: {error}"])
    return Network(
        init=lambda key: core.unfreeze(variables(key)).get("params", {}),
        apply=lambda params, inputs: module.apply({"params": params}, inputs),
    )


def as_network(network: Any, input_shape: tuple[int, ...]) -> Network:
    """The one door for networks: a `Network` or pure `(init, apply)` pair, an NNX or a Linen module.

    Args:
        network: a `Network`; a pair `(init, apply)` with `init(key) -> params` and `apply(params, inputs) -> outputs`;
            a function `nnx.Rngs -> nnx.Module`; an NNX module; or a Linen module.
        input_shape: shape of one input, which a Linen module needs to be initialised.

    Returns:
        The pair.

    Raises:
        ValueError: if it is none of these, or holds state other than parameters.

    >>> as_network((lambda key: {}, lambda params, inputs: 2 * inputs), (3,)).apply({}, jnp.ones((1, 3))).tolist()
    [[2.0, 2.0, 2.0]]
    """
    if isinstance(network, Network):
        return network
    if isinstance(network, linen.Module):
        return from_linen(network, input_shape)
    if isinstance(network, tuple) and len(network) == 2 and all(callable(part) for part in network):
        return Network(*network)
    if isinstance(network, nnx.Module) or callable(network):
        return from_nnx(network)  # pyright: ignore[reportArgumentType]
    raise ValueError(
        "a network must be a pair (init, apply) of pure functions, a function of nnx.Rngs that returns an NNX module, "
        f"an NNX module or a Linen module; got {type(network).__name__}"
    )


def in_dtype(network: Network, dtype: Any) -> Network:
    """The network with its arithmetic in another dtype, such as `jnp.bfloat16`; its parameters keep theirs.

    Args:
        network: with parameters of, say, float32, to which gradients and optimizer continue adding in float32.
        dtype: of the products, and of what the network returns. Densities are computed in float32 all the same.

    Returns:
        The pair: the same `init`, and an `apply` that casts parameters and inputs first.

    Raises:
        ValueError: if it is not a floating dtype.

    >>> half = in_dtype(from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs)), jnp.bfloat16)
    >>> params = half.init(jax.random.key(0))
    >>> params["kernel"].dtype, half.apply(params, jnp.ones((7, 3))).dtype
    (dtype('float32'), dtype(bfloat16))
    """
    if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"expected a floating dtype, such as jnp.bfloat16; got {dtype!r}")

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)

    return Network(network.init, lambda params, inputs: network.apply(cast(params), cast(inputs)))


def _refuse_state(found: list[str]) -> NoReturn:
    raise ValueError(
        "a network must have no state other than its parameters, because encoder and decoder are pure functions of "
        f"them; got {'; '.join(found)}. Leave out BatchNorm and Dropout, or replace them, for example by LayerNorm"
    )
