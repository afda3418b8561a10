"""Networks of any kind as pure `(init, apply)` pairs with plain-dict parameters.

NNX modules stand behind this boundary: the graph definition stays in a closure, the parameters leave as dicts of
arrays, and `jax.jit`, `jax.grad` and `jax.vmap` see nothing else. A Linen or NNX module of the user's own, or any pure
pair, enters through `as_network`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import core, errors, linen, nnx
from jax.core import Tracer
from jaxtyping import Array, Key

from vaejax import checks
from vaejax.distributions import Params


class Network(NamedTuple):
    """A network without state other than its parameters.

    Attributes:
        init: `key -> params`, a plain dict of arrays.
        apply: `(params, inputs) -> outputs`, with one leading batch axis on both; of a model with a context
            `(params, inputs, context) -> outputs`.

    >>> line = Network(lambda key: {"w": jnp.ones((3, 1))}, lambda params, x: x @ params["w"])  # one of your own
    >>> line.apply(line.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5, 1)
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
    if not is_module:
        checks.check_function("build", build, "nnx.Rngs -> nnx.Module", 1)
    module = build if is_module else nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    checks.check_kind("what build returns", module, nnx.Module, "an NNX module")
    graphdef, _, other = nnx.split(module, nnx.Param, ...)
    stateful = [f"{'.'.join(map(str, path))} ({type(leaf).__name__})" for path, leaf in nnx.to_flat_state(other)]
    if stateful:
        _refuse_state(stateful)

    def init(key: Key[Array, ""]) -> Params:
        return nnx.to_pure_dict(nnx.state(build if is_module else build(nnx.Rngs(key)), nnx.Param))

    def apply(params: Params, *inputs: Any) -> Any:  # of an LSTM step, a tuple
        return nnx.merge(graphdef, params)(*inputs)

    return Network(init, apply)


def from_linen(module: linen.Module, *input_shapes: tuple[int, ...]) -> Network:
    """A flax Linen module as a pure pair.

    Args:
        module: the module; its `__call__` takes (n, *input_shape), for each shape that is given.
        input_shapes: shape of one input; then that of a context, if there is one.

    Returns:
        The pair; its parameters are the collection "params".

    Raises:
        ValueError: if the module has variables other than parameters, or draws random numbers when applied.

    >>> from_linen(linen.Dense(2), (3,)).init(jax.random.key(0))["kernel"].shape
    (3, 2)
    """
    checks.check_kind("module", module, linen.Module, "a Linen module, made but not initialised")
    inputs = [jnp.zeros((1, *shape)) for shape in input_shapes]

    def variables(key: Key[Array, ""]) -> Any:
        return module.init(key, *inputs)

    collections = jax.eval_shape(variables, jax.random.key(0))
    stateful = sorted(set(collections) - {"params"})
    if stateful:
        _refuse_state([f"{type(module).__name__}: variable collection '{name}'" for name in stateful])
    try:
        # Only `apply` shows a Dropout that draws: `init` lends its key to every stream of random numbers.
        jax.eval_shape(module.apply, collections, *inputs)
    except errors.InvalidRngError as error:
        _refuse_state([f"{type(module).__name__}: {error}"])
    return Network(
        init=lambda key: core.unfreeze(variables(key)).get("params", {}),
        apply=lambda params, *inputs: module.apply({"params": params}, *inputs),
    )


def as_network(network: Any, *input_shapes: tuple[int, ...]) -> Network:
    """The one door for networks: a `Network` or pure `(init, apply)` pair, an NNX or a Linen module.

    Args:
        network: a `Network`; a pair `(init, apply)` with `init(key) -> params` and `apply(params, inputs) -> outputs`;
            a function `nnx.Rngs -> nnx.Module`; an NNX module; or a Linen module.
        input_shapes: shape of one input, which a Linen module needs to be initialised; then that of a context, if the
            model has one.

    Returns:
        The pair.

    Raises:
        ValueError: if it is none of these, holds state other than parameters, or mixes the examples of a batch.

    >>> as_network((lambda key: {}, lambda params, inputs: 2 * inputs), (3,)).apply({}, jnp.ones((1, 3))).tolist()
    [[2.0, 2.0, 2.0]]
    """
    if isinstance(network, Network):
        return network
    if isinstance(network, linen.Module):
        pair = from_linen(network, *input_shapes)
    elif isinstance(network, tuple) and len(network) == 2 and all(callable(part) for part in network):
        pair = Network(*network)
    elif isinstance(network, nnx.Module) or callable(network):
        pair = from_nnx(network)  # pyright: ignore[reportArgumentType]
    else:
        raise ValueError(
            "a network must be a pair (init, apply) of pure functions, a function of nnx.Rngs that returns an NNX "
            f"module, an NNX module or a Linen module; got {checks.describe(network)}"
        )
    _check_sees_examples_alone(pair, input_shapes)
    return pair


def in_dtype(network: Network, dtype: Any) -> Network:
    """The network with its arithmetic in another dtype, such as `jnp.bfloat16`; its parameters keep theirs.

    Args:
        network: with parameters of, say, float32, to which gradients and optimizer continue adding in float32.
        dtype: of the products, and of what the network returns. Densities are computed in float32 all the same.

    Returns:
        The pair: the same `init`, and an `apply` that casts parameters and inputs first.

    Raises:
        ValueError: if it is another dtype than bfloat16, float32 or float64.

    >>> half = in_dtype(from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs)), jnp.bfloat16)
    >>> params = half.init(jax.random.key(0))
    >>> params["kernel"].dtype, half.apply(params, jnp.ones((7, 3))).dtype
    (dtype('float32'), dtype(bfloat16))
    """
    checks.check_kind("network", network, Network, "a networks.Network, as networks.as_network gives")
    wide_enough = (jnp.bfloat16, jnp.float32, jnp.float64)
    if isinstance(dtype, str) or not any(dtype == wide for wide in wide_enough):
        raise ValueError(
            "expected a floating dtype with the range of float32, such as jnp.bfloat16 (float16 overflows at 65,504 "
            f"and loses small gradients); got {dtype!r}"
        )

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)

    return Network(network.init, lambda params, *inputs: network.apply(cast(params), *cast(inputs)))


def check_alone(name: str, alone: Any, among: Any) -> None:
    """Refuse a network that mixes the examples of a batch: one that gives an example another output among others.

    Args:
        name: of the network, for the message.
        alone: what it gives for one example, a tree of arrays (1, ...).
        among: what it gives for several, arrays (n, ...), of which that one is the first. Traced ones pass.

    Raises:
        ValueError: if the two differ by more than rounding explains, that of bfloat16 too.

    >>> check_alone("encode", [jnp.ones((1, 2))], [jnp.ones((3, 2))])
    """
    for one, several in zip(jax.tree.leaves(alone), jax.tree.leaves(among), strict=True):
        if isinstance(one, Tracer) or isinstance(several, Tracer) or jnp.ndim(one) == 0 or len(one) != 1:
            continue
        one, first = np.asarray(one[0], np.float64), np.asarray(several[0], np.float64)
        if (np.abs(one - first) > 0.03 * (1 + np.abs(one).max())).any():
            raise ValueError(
                f"expected a network that sees each example by itself; got one, {name}, that gives the same example "
                f"{one.ravel()[0]:.4g} alone and {first.ravel()[0]:.4g} in a batch of {len(several)}: a bound would "
                "depend on its neighbours. Leave out batch statistics; LayerNorm and GroupNorm see one example"
            )


def _check_sees_examples_alone(network: Network, input_shapes: tuple[tuple[int, ...], ...]) -> None:
    keys = jax.random.split(jax.random.key(0), 1 + len(input_shapes))

    @jax.jit
    def outputs() -> tuple[Any, Any]:
        params = network.init(keys[0])
        inputs = [jax.random.normal(key, (3, *shape)) for key, shape in zip(keys[1:], input_shapes, strict=True)]
        return network.apply(params, *(array[:1] for array in inputs)), network.apply(params, *inputs)

    with jax.ensure_compile_time_eval():  # a model may be built inside a traced function
        try:
            alone, among = outputs()
        except Exception:  # what is wrong with the network shows when the model calls it, with the model's words
            return
    check_alone(f"of inputs {input_shapes[0]}", alone, among)


def _refuse_state(found: list[str]) -> NoReturn:
    raise ValueError(
        "a network must have no state other than its parameters, because encoder and decoder are pure functions of "
        f"them; got {'; '.join(found)}. Leave out BatchNorm and Dropout, or replace them, for example by LayerNorm"
    )
