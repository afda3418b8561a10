"""Networks of strided convolutions for images, and their mirror image."""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vaejax import checks
from vaejax.models.networks import convolutions
from vaejax.models.networks.activations import Activation, activation_function, halves, joined
from vaejax.models.networks.adapters import Network, from_nnx


def conv_encoder(
    image_shape: tuple[int, int, int],
    channels: Sequence[int],
    hidden_size: int,
    output_size: int,
    activation: str | Activation = "relu",
    context_size: int = 0,
) -> Network:
    """Convolutions of 4x4 with stride 2, one for each number of channels, then two dense layers.

    Args:
        image_shape: (height, width, depth) of one image; the inputs may lack a depth of 1.
        channels: of each convolution, which halves height and width and rounds up.
        hidden_size: units of the first dense layer.
        output_size: numbers in one output.
        activation: a name of `ACTIVATIONS` or a function, after every layer but the last.
        context_size: numbers of a context, the second input, which the first dense layer sees too.

    Returns:
        The pair, (n, height, width, depth) -> (n, output_size).

    Raises:
        ValueError: if a size is not a positive integer, there is no convolution, or the activation is unknown.

    >>> import jax
    >>> network = conv_encoder((8, 8, 1), (4,), 5, 2)
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((7, 8, 8))).shape
    (7, 2)
    """
    image_shape, channels = _checked_images(image_shape), _checked_channels(channels)
    checks.check_counts(hidden_size=hidden_size, output_size=output_size)
    function = activation_function(activation)
    checks.check_count("context_size", context_size, least=0)
    return from_nnx(
        lambda rngs: _ConvEncoder(image_shape, channels, hidden_size, output_size, function, context_size, rngs=rngs)
    )


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
        input_size: numbers in one input, with those of a context if that is the second.
        image_shape: (height, width, depth) of one image.
        channels: as the encoder has them; the last one is the first of the decoder.
        hidden_size: units of the first dense layer.
        num_outputs: images for each input, for instance one of means and one of log standard deviations.
        activation: a name of `ACTIVATIONS` or a function, after every layer but the last.

    Returns:
        The pair, (n, input_size) -> (n, num_outputs, height, width, depth).

    Raises:
        ValueError: as `conv_encoder`.

    >>> import jax
    >>> network = conv_decoder(2, (8, 8, 1), (4,), 5, num_outputs=2)
    >>> network.apply(network.init(jax.random.key(0)), jnp.ones((7, 2))).shape
    (7, 2, 8, 8, 1)
    """
    image_shape, channels = _checked_images(image_shape), _checked_channels(channels)
    checks.check_counts(input_size=input_size, hidden_size=hidden_size, num_outputs=num_outputs)
    function = activation_function(activation)
    return from_nnx(
        lambda rngs: _ConvDecoder(image_shape, channels, hidden_size, input_size, num_outputs, function, rngs=rngs)
    )


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
    def __init__(self, image_shape, channels, hidden_size, output_size, activation, context_size, *, rngs):
        self.image_shape = image_shape
        self.activation = activation
        self.num_convolutions = len(channels)
        for i, (num_in, num_out) in enumerate(itertools.pairwise((image_shape[-1], *channels))):
            setattr(self, f"conv_{i}", _Halving(num_in, num_out * halves(activation), rngs=rngs))
        height, width = _downsampled(image_shape, len(channels))
        hidden_units = hidden_size * halves(activation)
        self.hidden = nnx.Linear(height * width * channels[-1] + context_size, hidden_units, rngs=rngs)
        self.output = nnx.Linear(hidden_size, output_size, rngs=rngs)

    def __call__(self, x, *context):
        x = x.reshape(x.shape[0], *self.image_shape)
        for i in range(self.num_convolutions):
            x = self.activation(getattr(self, f"conv_{i}")(x))
        return self.output(self.activation(self.hidden(joined(x, *context))))


class _ConvDecoder(nnx.Module):
    def __init__(self, image_shape, channels, hidden_size, input_size, num_outputs, activation, *, rngs):
        self.image_shape = image_shape
        self.num_outputs = num_outputs
        self.activation = activation
        self.num_convolutions = len(channels)
        self.small_shape = (*_downsampled(image_shape, len(channels)), channels[-1])
        widen = halves(activation)
        self.hidden = nnx.Linear(input_size, hidden_size * widen, rngs=rngs)
        self.expand = nnx.Linear(hidden_size, math.prod(self.small_shape) * widen, rngs=rngs)
        upward = (*reversed(channels), num_outputs * image_shape[-1])
        for i, (num_in, num_out) in enumerate(itertools.pairwise(upward)):
            num_out = num_out * widen if i < self.num_convolutions - 1 else num_out
            setattr(self, f"conv_{i}", _Doubling(num_in, num_out, rngs=rngs))

    def __call__(self, z, *context):
        x = self.expand(self.activation(self.hidden(joined(z, *context))))
        x = x.reshape(z.shape[0], *self.small_shape[:-1], -1)  # a gate beside each channel, where there are gates
        x = self.activation(x)
        for i in range(self.num_convolutions):
            x = getattr(self, f"conv_{i}")(x)
            x = self.activation(x) if i < self.num_convolutions - 1 else x
        height, width, depth = self.image_shape
        x = x[:, :height, :width]  # odd sizes were rounded up on the way down
        return jnp.moveaxis(x.reshape(z.shape[0], height, width, self.num_outputs, depth), 3, 1)


def _checked_channels(channels: Sequence[int]) -> tuple[int, ...]:
    return checks.checked_shape("channels", channels, "a model without convolutions is an mlp_vae")


def _checked_images(image_shape: Sequence[int]) -> tuple[int, ...]:
    sizes = checks.checked_shape("image_shape", image_shape)
    checks.check_choice("the number of axes in image_shape", len(sizes), (3,))
    return sizes


def _downsampled(image_shape: tuple[int, int, int], num_halvings: int) -> tuple[int, int]:
    height, width = (-(-size // 2**num_halvings) for size in image_shape[:2])
    return height, width
