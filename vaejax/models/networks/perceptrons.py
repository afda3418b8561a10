"""Perceptrons, plain and residual, and one step of an LSTM, as pure `(init, apply)` pairs."""

import itertools
import math
from collections.abc import Callable, Sequence

from flax import nnx
from jaxtyping import Array, Float

from vaejax import checks
from vaejax.distributions import Params
from vaejax.models.networks.activations import Activation, activation_function, halves, joined
from vaejax.models.networks.adapters import Network, from_nnx


def mlp(
    input_size: int, hidden_sizes: Sequence[int], output_size: int, activation: str | Activation = "tanh"
) -> Network:
    """A multilayer perceptron on flattened inputs: (n, *shape) -> (n, output_size). No hidden sizes: a linear map.

    Several inputs, such as data and their context, are flattened and joined.

    Args:
        input_size: numbers in one input; of several, in all.
        hidden_sizes: units of each hidden layer, from the input to the output.
        output_size: numbers in one output.
        activation: a name of `ACTIVATIONS` or a function, after each hidden layer.

    Returns:
        The pair; its parameters are "layer_0", "layer_1", ..., each a "kernel" and a "bias"; of gated layers, with the
        gates in the second half of the outputs.

    Raises:
        ValueError: if a size is not a positive integer, or the activation is unknown.

    >>> import jax
    >>> network = mlp(3, (5,), 2)
    >>> network.apply(network.init(jax.random.key(0)), jax.numpy.ones((7, 3))).shape
    (7, 2)
    """
    hidden_sizes = checks.checked_sizes("layer sizes", hidden_sizes)
    sizes = checks.checked_shape("layer sizes", (input_size, *hidden_sizes, output_size))
    function = activation_function(activation)
    return from_nnx(lambda rngs: _MLP(sizes, function, rngs=rngs))


def residual_mlp(
    input_size: int,
    hidden_size: int,
    num_blocks: int,
    output_size: int,
    activation: str | Activation = "gelu",
) -> Network:
    """Residual blocks with LayerNorm on flattened inputs: (n, *shape) -> (n, output_size).

    Each block adds to its input h what two dense layers make of LayerNorm(h). The last layer sees LayerNorm(h) too.

    Args:
        input_size: numbers in one input; of several, in all.
        hidden_size: units of h, and of the layer within each block.
        num_blocks: blocks.
        output_size: numbers in one output.
        activation: a name of `ACTIVATIONS` or a function, between the two layers of a block.

    Returns:
        The pair.

    Raises:
        ValueError: if a size is not a positive integer, or the activation is unknown.

    >>> import jax
    >>> network = residual_mlp(3, 5, 2, 4)
    >>> network.apply(network.init(jax.random.key(0)), jax.numpy.ones((7, 3))).shape
    (7, 4)

    Source: He, Zhang, Ren & Sun 2016, "Identity mappings in deep residual networks"; Ba, Kiros & Hinton 2016, "Layer
    normalization".
    """
    checks.check_counts(input_size=input_size, hidden_size=hidden_size, num_blocks=num_blocks, output_size=output_size)
    function = activation_function(activation)
    return from_nnx(lambda rngs: _ResidualMLP(input_size, hidden_size, num_blocks, output_size, function, rngs=rngs))


def of_any_batch(apply: Callable[[Params, Array], Array]) -> Callable[[Params, Array], Array]:
    """A network of one batch axis as a function of vectors with any batch axes, (*batch, size).

    Args:
        apply: `(params, (n, size)) -> (n, outputs)`.

    Returns:
        `(params, (*batch, size)) -> (*batch, outputs)`.

    >>> import jax
    >>> of_any_batch(lambda params, inputs: inputs[:, :1])({}, jax.numpy.ones((4, 7, 3))).shape
    (4, 7, 1)
    """

    def flat(params: Params, inputs: Array) -> Array:
        outputs = apply(params, inputs.reshape(math.prod(inputs.shape[:-1]), inputs.shape[-1]))
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])

    return flat


def linear_kernel(params: Params) -> Float[Array, "inputs outputs"]:
    """The matrix of an `mlp` without hidden layers.

    Args:
        params: of that network.

    Returns:
        W of inputs W + b, (input_size, output_size).

    Raises:
        ValueError: if the parameters are of another network.

    >>> import jax
    >>> linear_kernel(mlp(3, (), 2).init(jax.random.key(0))).shape
    (3, 2)
    """
    if not isinstance(params, dict) or set(params) != {"layer_0"}:
        found = sorted(params) if isinstance(params, dict) else checks.describe(params)
        raise ValueError(f"expected a linear network, mlp(..., hidden_sizes=()); got one with {found}")
    return params["layer_0"]["kernel"]


def lstm(input_size: int, hidden_size: int) -> Network:
    """One step of a long short-term memory: ((c, h), inputs) -> ((c, h), h), for the caller's `lax.scan`.

    Args:
        input_size: numbers in one input, (n, input_size).
        hidden_size: numbers in each of c and h, (n, hidden_size).

    Returns:
        The pair; its parameters are the "cell".

    Raises:
        ValueError: if a size is not a positive integer.

    >>> import jax
    >>> cell = lstm(3, 5)
    >>> memory = (jax.numpy.zeros((7, 5)), jax.numpy.zeros((7, 5)))
    >>> cell.apply(cell.init(jax.random.key(0)), (memory, jax.numpy.ones((7, 3))))[1].shape
    (7, 5)

    Source: Hochreiter & Schmidhuber 1997, "Long short-term memory".
    """
    checks.check_counts(input_size=input_size, hidden_size=hidden_size)
    return from_nnx(lambda rngs: _LSTM(input_size, hidden_size, rngs=rngs))


class _MLP(nnx.Module):
    def __init__(self, sizes: Sequence[int], activation: Activation, *, rngs: nnx.Rngs):
        self.activation = activation
        self.num_layers = len(sizes) - 1
        for i, (num_in, num_out) in enumerate(itertools.pairwise(sizes)):
            num_out = num_out * halves(activation) if i < self.num_layers - 1 else num_out
            setattr(self, f"layer_{i}", nnx.Linear(num_in, num_out, rngs=rngs))

    def __call__(self, *inputs: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        x = joined(*inputs)
        for i in range(self.num_layers):
            x = getattr(self, f"layer_{i}")(x)
            x = self.activation(x) if i < self.num_layers - 1 else x
        return x


class _ResidualMLP(nnx.Module):
    def __init__(self, num_in, hidden_size, num_blocks, num_out, activation, *, rngs):
        self.activation, self.num_blocks = activation, num_blocks
        self.first = nnx.Linear(num_in, hidden_size, rngs=rngs)
        for i in range(num_blocks):
            setattr(self, f"norm_{i}", nnx.LayerNorm(hidden_size, rngs=rngs))
            setattr(self, f"wide_{i}", nnx.Linear(hidden_size, hidden_size * halves(activation), rngs=rngs))
            setattr(self, f"narrow_{i}", nnx.Linear(hidden_size, hidden_size, rngs=rngs))
        self.norm = nnx.LayerNorm(hidden_size, rngs=rngs)
        self.last = nnx.Linear(hidden_size, num_out, rngs=rngs)

    def __call__(self, *inputs: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        h = self.first(joined(*inputs))
        for i in range(self.num_blocks):
            wide = getattr(self, f"wide_{i}")(getattr(self, f"norm_{i}")(h))
            h = h + getattr(self, f"narrow_{i}")(self.activation(wide))
        return self.last(self.norm(h))


class _LSTM(nnx.Module):
    def __init__(self, input_size: int, hidden_size: int, *, rngs: nnx.Rngs):
        self.cell = nnx.OptimizedLSTMCell(input_size, hidden_size, rngs=rngs)

    def __call__(self, memory_and_input):
        return self.cell(*memory_and_input)
