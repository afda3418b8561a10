"""Networks as pure `(init, apply)` pairs with plain-dict parameters: the only room that knows flax.

NNX modules stand behind the boundary: the graph definition stays in a closure, the parameters leave as dicts of
arrays, and `jax.jit`, `jax.grad` and `jax.vmap` see nothing else. A Linen or NNX module of the user's own, or any pure
pair, comes in through `as_network`.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import core, errors, linen, nnx
from jaxtyping import Array, Float, Key

from vaejax.distributions import Params

Activation = Callable[[Array], Array]

ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
}


class Network(NamedTuple):
    """A network without state other than its parameters.

    Attributes:
        init: `key -> params`, a plain dict of arrays.
        apply: `(params, inputs) -> outputs`, with one leading batch axis on both.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


def activation_function(activation: str | Activation) -> Activation:
    """The activation of that name, or the function itself.

    Raises:
        ValueError: if the name is unknown.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)} or a function; got {activation!r}")
    return ACTIVATIONS[activation]


class _MLP(nnx.Module):
    def __init__(self, sizes: Sequence[int], activation: Activation, *, rngs: nnx.Rngs):
        self.activation = activation
        self.num_layers = len(sizes) - 1
        for i, (num_in, num_out) in enumerate(itertools.pairwise(sizes)):
            setattr(self, f"layer_{i}", nnx.Linear(num_in, num_out, rngs=rngs))

    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        x = x.reshape(x.shape[0], -1)
        for i in range(self.num_layers):
            x = getattr(self, f"layer_{i}")(x)
            x = self.activation(x) if i < self.num_layers - 1 else x
        return x


def mlp(
    input_size: int, hidden_sizes: Sequence[int], output_size: int, activation: str | Activation = "tanh"
) -> Network:
    """A multilayer perceptron on flattened inputs: (n, *shape) -> (n, output_size). No hidden sizes: a linear map.

    Args:
        input_size: numbers in one input.
        hidden_sizes: units of each hidden layer, from the input to the output.
        output_size: numbers in one output.
        activation: a name of `ACTIVATIONS` or a function, after each hidden layer.

    Raises:
        ValueError: if a size is not a positive integer, or the activation is unknown.

    >>> network = mlp(3, (5,), 2)
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((7, 3))).shape
    (7, 2)
    """
    sizes = (input_size, *hidden_sizes, output_size)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"layer sizes must be positive integers; got {sizes}")
    function = activation_function(activation)
    return from_nnx(lambda rngs: _MLP(sizes, function, rngs=rngs))


def in_dtype(network: Network, dtype: Any) -> Network:
    """The network with its arithmetic in another dtype, such as `jnp.bfloat16`; its parameters keep theirs.

    Args:
        network: with parameters of, say, float32, to which gradients and optimizer continue adding in float32.
        dtype: of the products, and of what the network returns. Densities are computed in float32 all the same.

    Raises:
        ValueError: if it is not a floating dtype.

    >>> half = in_dtype(mlp(3, (5,), 2), jnp.bfloat16)
    >>> params = half.init(jax.random.key(0))
    >>> params["layer_0"]["kernel"].dtype, half.apply(params, jnp.ones((7, 3))).dtype
    (dtype('float32'), dtype(bfloat16))
    """
    if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"expected a floating dtype, such as jnp.bfloat16; got {dtype!r}")

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)

    return Network(network.init, lambda params, inputs: network.apply(cast(params), cast(inputs)))


def linear_kernel(params: Params) -> Float[Array, "inputs outputs"]:
    """The matrix of an `mlp` without hidden layers.

    Raises:
        ValueError: if the parameters are of another network.

    >>> linear_kernel(mlp(3, (), 2).init(jax.random.key(0))).shape
    (3, 2)
    """
    if set(params) != {"layer_0"}:
        raise ValueError(f"expected a linear network, mlp(..., hidden_sizes=()); got one with {sorted(params)}")
    return params["layer_0"]["kernel"]


class _LSTM(nnx.Module):
    def __init__(self, input_size: int, hidden_size: int, *, rngs: nnx.Rngs):
        self.cell = nnx.OptimizedLSTMCell(input_size, hidden_size, rngs=rngs)

    def __call__(self, memory_and_input):
        return self.cell(*memory_and_input)


def lstm(input_size: int, hidden_size: int) -> Network:
    """One step of a long short-term memory: ((c, h), inputs) -> ((c, h), h), for the caller's `lax.scan`.

    Args:
        input_size: numbers in one input, (n, input_size).
        hidden_size: numbers in each of c and h, (n, hidden_size).

    Raises:
        ValueError: if a size is not a positive integer.

    >>> cell = lstm(3, 5)
    >>> memory = (jnp.zeros((7, 5)), jnp.zeros((7, 5)))
    >>> cell.apply(cell.init(jax.random.key(0)), (memory, jnp.ones((7, 3))))[1].shape
    (7, 5)

    Source: Hochreiter & Schmidhuber 1997, "Long short-term memory".
    """
    if not all(isinstance(size, int) and size > 0 for size in (input_size, hidden_size)):
        raise ValueError(f"layer sizes must be positive integers; got {(input_size, hidden_size)}")
    return from_nnx(lambda rngs: _LSTM(input_size, hidden_size, rngs=rngs))


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module) -> Network:
    """A flax NNX module as a pure pair.

    Args:
        build: a function that takes `nnx.Rngs` and returns the module, called anew for each key; or a module, whose
            parameters `init` then returns as they are, whatever the key.

    Raises:
        ValueError: if the module holds state other than parameters.
    """
    is_module = isinstance(build, nnx.Module)
    # A function is called abstractly here: only the structure is wanted, no parameter is drawn.
    module = build if is_module else nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef, _, other = nnx.split(module, nnx.Param, ...)
    stateful = [
        f"{'.'.join(str(part) for part in path)} ({type(leaf).__name__})" for path, leaf in nnx.to_flat_state(other)
    ]
    if stateful:
        raise _stateful_error(stateful)

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

    Raises:
        ValueError: if the module has variables other than parameters, or draws random numbers when applied.
    """

    def variables(key: Key[Array, ""]) -> Any:
        return module.init(key, jnp.zeros((1, *input_shape)))

    collections = jax.eval_shape(variables, jax.random.key(0))
    stateful = sorted(set(collections) - {"params"})
    if stateful:
        raise _stateful_error([f"{type(module).__name__}: variable collection '{name}'" for name in stateful])
    try:
        # A Dropout that draws is heard of only here: `init` lends its key to every stream of random numbers.
        jax.eval_shape(module.apply, collections, jnp.zeros((1, *input_shape)))
    except errors.InvalidRngError as error:
        raise _stateful_error([f"{type(module).__name__}: {error}"]) from error
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

    Raises:
        ValueError: if it is none of these, or holds state other than parameters.
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


def _stateful_error(found: list[str]) -> ValueError:
    return ValueError(
        "a network must have no state other than its parameters, because encoder and decoder are pure functions of "
        f"them; got {'; '.join(found)}. Leave out BatchNorm and Dropout, or replace them, for example by LayerNorm"
    )
