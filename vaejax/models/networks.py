"""The networks of the models, as pure `(init, apply)` pairs: perceptrons, an LSTM step, convolutions.

The public functions of `adapters` and the products of `convolutions` are here too, under their own names.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vaejax import checks
from vaejax.distributions import Params
from vaejax.models import convolutions
from vaejax.models.adapters import Network, as_network, from_linen, from_nnx, in_dtype
from vaejax.models.convolutions import doubling_product, halving_product

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Network",
    "activation_function",
    "as_network",
    "conv_decoder",
    "conv_encoder",
    "doubling_product",
    "from_linen",
    "from_nnx",
    "halving_product",
    "in_dtype",
    "linear_kernel",
    "lstm",
    "mlp",
]

Activation = Callable[[Array], Array]

ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
}


def activation_function(activation: str | Activation) -> Activation:
    """The activation of that name, or the function itself.

    Args:
        activation: a name of `ACTIVATIONS`, or a function of one array that keeps its shape.

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


def mlp(
    input_size: int, hidden_sizes: Sequence[int], output_size: int, activation: str | Activation = "tanh"
) -> Network:
    """A multilayer perceptron on flattened inputs: (n, *shape) -> (n, output_size). No hidden sizes: a linear map.

    Args:
        input_size: numbers in one input.
        hidden_sizes: units of each hidden layer, from the input to the output.
        output_size: numbers in one output.
        activation: a name of `ACTIVATIONS` or a function, after each hidden layer.

    Returns:
        The pair; its parameters are "layer_0", "layer_1", ..., each a "kernel" and a "bias".

    Raises:
        ValueError: if a size is not a positive integer, or the activation is unknown.

    >>> network = mlp(3, (5,), 2)
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((7, 3))).shape
    (7, 2)
    """
    sizes = checks.checked_shape("layer sizes", (input_size, *hidden_sizes, output_size))
    function = activation_function(activation)
    return from_nnx(lambda rngs: _MLP(sizes, function, rngs=rngs))


def linear_kernel(params: Params) -> Float[Array, "inputs outputs"]:
    """The matrix of an `mlp` without hidden layers.

    Args:
        params: of that network.

    Returns:
        W of inputs W + b, (input_size, output_size).

    Raises:
        ValueError: if the parameters are of another network.

    >>> linear_kernel(mlp(3, (), 2).init(jax.random.key(0))).shape
    (3, 2)
    """
    if set(params) != {"layer_0"}:
        raise ValueError(f"expected a linear network, mlp(..., hidden_sizes=()); got one with {sorted(params)}")
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

    >>> cell = lstm(3, 5)
    >>> memory = (jnp.zeros((7, 5)), jnp.zeros((7, 5)))
    >>> cell.apply(cell.init(jax.random.key(0)), (memory, jnp.ones((7, 3))))[1].shape
    (7, 5)

    Source: Hochreiter & Schmidhuber 1997, "Long short-term memory".
    """
    checks.check_counts(input_size=input_size, hidden_size=hidden_size)
    return from_nnx(lambda rngs: _LSTM(input_size, hidden_size, rngs=rngs))


def conv_encoder(
    image_shape: tuple[int, int, int],
    channels: Sequence[int],
    hidden_size: int,
    output_size: int,
    activation: str | Activation = "relu",
) -> Network:
    """Convolutions of 4x4 with stride 2, one for each number of channels, then two dense layers.

    Args:
        image_shape: (height, width, depth) of one image; the inputs may lack a depth of 1.
        channels: of each convolution, which halves height and width and rounds up.
        hidden_size: units of the first dense layer.
        output_size: numbers in one output.
        activation: a name of `ACTIVATIONS` or a function, after every layer but the last.

    Returns:
        The pair, (n, height, width, depth) -> (n, output_size).

    Raises:
        ValueError: if a size is not a positive integer, there is no convolution, or the activation is unknown.

    >>> network = conv_encoder((8, 8, 1), (4,), 5, 2)
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((7, 8, 8))).shape
    (7, 2)
    """
    channels = _checked_channels(channels)
    checks.check_counts(hidden_size=hidden_size, output_size=output_size)
    function = activation_function(activation)
    return from_nnx(lambda rngs: _ConvEncoder(image_shape, channels, hidden_size, output_size, function, rngs=rngs))


def conv_decoder(
    input_size: int,
    image_shape: tuple[int, int, int],
    channels: Sequence[int],
    hidden_size: int,
    num_outputs: int,
    activation: str | Activation = "relu",
) -> Network:
    """The mirror image of `conv_encoder`: two dense layers, then transposed convolutions of 4x4 with stride 2.

    Args:
        input_size: numbers in one input.
        image_shape: (height, width, depth) of one image.
        channels: as the encoder has them; the last one is the first of the decoder.
        hidden_size: units of the first dense layer.
        num_outputs: images for each input, for instance one of means and one of log standard deviations.
        activation: a name of `ACTIVATIONS` or a function, after every layer but the last.

    Returns:
        The pair, (n, input_size) -> (n, num_outputs, height, width, depth).

    Raises:
        ValueError: as `conv_encoder`.

    >>> network = conv_decoder(2, (8, 8, 1), (4,), 5, num_outputs=2)
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((7, 2))).shape
    (7, 2, 8, 8, 1)
    """
    channels = _checked_channels(channels)
    checks.check_counts(input_size=input_size, hidden_size=hidden_size, num_outputs=num_outputs)
    function = activation_function(activation)
    return from_nnx(
        lambda rngs: _ConvDecoder(image_shape, channels, hidden_size, input_size, num_outputs, function, rngs=rngs)
    )


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


class _LSTM(nnx.Module):
    def __init__(self, input_size: int, hidden_size: int, *, rngs: nnx.Rngs):
        self.cell = nnx.OptimizedLSTMCell(input_size, hidden_size, rngs=rngs)

    def __call__(self, memory_and_input):
        return self.cell(*memory_and_input)


class _Halving(nnx.Conv):
    """(n, height, width, depth) -> (n, ceil(height / 2), ceil(width / 2), outputs)."""

    def __init__(self, num_in: int, num_out: int, *, rngs: nnx.Rngs):
        super().__init__(num_in, num_out, (4, 4), strides=2, padding="SAME", rngs=rngs)

    def __call__(self, x: Float[Array, "n height width depth"]) -> Float[Array, "n h w outputs"]:
        return convolutions.halve(x, self.kernel[...]) + self.bias[...][None, None, None]


class _Doubling(nnx.ConvTranspose):
    """(n, height, width, depth) -> (n, 2 height, 2 width, outputs)."""

    def __init__(self, num_in: int, num_out: int, *, rngs: nnx.Rngs):
        super().__init__(num_in, num_out, (4, 4), strides=(2, 2), padding="SAME", rngs=rngs)

    def __call__(self, x: Float[Array, "n height width depth"]) -> Float[Array, "n h w outputs"]:
        return convolutions.double(x, self.kernel[...]) + self.bias[...][None, None, None]


class _ConvEncoder(nnx.Module):
    def __init__(self, image_shape, channels, hidden_size, output_size, activation, *, rngs):
        self.image_shape = image_shape
        self.activation = activation
        self.num_convolutions = len(channels)
        for i, (num_in, num_out) in enumerate(itertools.pairwise((image_shape[-1], *channels))):
            setattr(self, f"conv_{i}", _Halving(num_in, num_out, rngs=rngs))
        height, width = _downsampled(image_shape, len(channels))
        self.hidden = nnx.Linear(height * width * channels[-1], hidden_size, rngs=rngs)
        self.output = nnx.Linear(hidden_size, output_size, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(x.shape[0], *self.image_shape)
        for i in range(self.num_convolutions):
            x = self.activation(getattr(self, f"conv_{i}")(x))
        return self.output(self.activation(self.hidden(x.reshape(x.shape[0], -1))))


class _ConvDecoder(nnx.Module):
    def __init__(self, image_shape, channels, hidden_size, input_size, num_outputs, activation, *, rngs):
        self.image_shape = image_shape
        self.num_outputs = num_outputs
        self.activation = activation
        self.num_convolutions = len(channels)
        self.small_shape = (*_downsampled(image_shape, len(channels)), channels[-1])
        self.hidden = nnx.Linear(input_size, hidden_size, rngs=rngs)
        self.expand = nnx.Linear(hidden_size, math.prod(self.small_shape), rngs=rngs)
        upward = (*reversed(channels), num_outputs * image_shape[-1])
        for i, (num_in, num_out) in enumerate(itertools.pairwise(upward)):
            setattr(self, f"conv_{i}", _Doubling(num_in, num_out, rngs=rngs))

    def __call__(self, z):
        x = self.activation(self.expand(self.activation(self.hidden(z))))
        x = x.reshape(z.shape[0], *self.small_shape)
        for i in range(self.num_convolutions):
            x = getattr(self, f"conv_{i}")(x)
            x = self.activation(x) if i < self.num_convolutions - 1 else x
        height, width, depth = self.image_shape
        x = x[:, :height, :width]  # odd sizes were rounded up on the way down
        return jnp.moveaxis(x.reshape(z.shape[0], height, width, self.num_outputs, depth), 3, 1)


def _checked_channels(channels: Sequence[int]) -> tuple[int, ...]:
    return checks.checked_shape("channels", channels, "a model without convolutions is an mlp_vae")


def _downsampled(image_shape: tuple[int, int, int], num_halvings: int) -> tuple[int, int]:
    height, width = (-(-size // 2**num_halvings) for size in image_shape[:2])
    return height, width
