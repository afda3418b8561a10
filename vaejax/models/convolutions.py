"""Convolutional encoder and decoder, as a CPU and as an accelerator compute them best."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vaejax.models.networks import Activation, Network, activation_function, from_nnx


class _Halving(nnx.Conv):
    """A convolution of 4x4 with stride 2, (n, height, width, depth) -> (n, ceil(height / 2), ceil(width / 2), outputs).

    On CPU it is one matrix product: XLA's own convolution there runs on one core in the body of a loop, thirty times
    slower.
    """

    def __init__(self, num_in: int, num_out: int, *, rngs: nnx.Rngs):
        super().__init__(num_in, num_out, (4, 4), strides=2, padding="SAME", rngs=rngs)

    def __call__(self, x: Float[Array, "n height width depth"]) -> Float[Array, "n h w outputs"]:
        return (
            halving_product(x, self.kernel[...]) + self.bias[...][None, None, None]
            if _on_cpu()
            else super().__call__(x)
        )


class _Doubling(nnx.ConvTranspose):
    """Its mirror image, (n, height, width, depth) -> (n, 2 height, 2 width, outputs)."""

    def __init__(self, num_in: int, num_out: int, *, rngs: nnx.Rngs):
        super().__init__(num_in, num_out, (4, 4), strides=(2, 2), padding="SAME", rngs=rngs)

    def __call__(self, x: Float[Array, "n height width depth"]) -> Float[Array, "n h w outputs"]:
        return (
            doubling_product(x, self.kernel[...]) + self.bias[...][None, None, None]
            if _on_cpu()
            else super().__call__(x)
        )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def halving_product(
    x: Float[Array, "n height width depth"], kernel: Float[Array, "4 4 depth outputs"]
) -> Float[Array, "n h w outputs"]:
    """The convolution of 4x4 with stride 2 and padding "SAME" as a product of patches and kernel."""
    size, height, width, depth = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    patches = _patches(x)
    matrix = _by_blocks(kernel).reshape(16 * depth, -1)
    return (patches.reshape(-1, 16 * depth) @ matrix).reshape(size, *patches.shape[1:3], -1)


def doubling_product(
    x: Float[Array, "n height width depth"], kernel: Float[Array, "4 4 depth outputs"]
) -> Float[Array, "n h w outputs"]:
    """The transposed convolution of 4x4 with stride 2 and padding "SAME" as a product: each pixel to a patch."""
    depth = x.shape[-1]
    matrix = jnp.moveaxis(_by_blocks(kernel[::-1, ::-1]), 4, 0).reshape(depth, -1)
    return _overlay((x.reshape(-1, depth) @ matrix).reshape(*x.shape[:-1], -1))


def _sliced(x: Float[Array, "n height width depth"]) -> Float[Array, "n h w patch"]:
    """The 4x4 pixels around every second one, of which those outside the image are 0, in `_by_blocks`'s order."""
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    slices = [x[:, row : row + height : 2, column : column + width : 2] for row, column in _pixels()]
    return jnp.concatenate(slices, axis=-1)


def _summed(patches: Float[Array, "n h w patch"]) -> Float[Array, "n height width depth"]:
    """Where patches overlap, their sum; what is outside the image is left out."""
    size, h, w, _ = patches.shape
    corners = zip(itertools.product((0, 1), (0, 1)), jnp.split(patches, 4, axis=-1), strict=True)
    blocks = sum(jnp.pad(block, ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0))) for (i, j), block in corners)
    blocks = blocks.reshape(size, h + 1, w + 1, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(size, 2 * h + 2, 2 * w + 2, -1)[:, 1:-1, 1:-1]


def _linear(apply: Callable[[Array], Array], mirror: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The linear map `apply`, with the transpose of `mirror` for its derivative: the same map, quicker backwards."""
    function = jax.custom_jvp(apply)

    @function.defjvp
    def derivative(primals, tangents):
        value = function(*primals)
        return value, *jax.linear_transpose(mirror, value)(*tangents)

    return function


# Each is the other's transpose, and quick in another form: patches as sixteen slices, images as a sum of four.
_patches, _overlay = _linear(_sliced, _summed), _linear(_summed, _sliced)


def _pixels() -> list[tuple[int, int]]:
    """Rows and columns of a patch's pixels: its four blocks of 2x2, one after another."""
    return [(2 * i + row, 2 * j + column) for i, j, row, column in itertools.product((0, 1), repeat=4)]


def _by_blocks(kernel: Float[Array, "4 4 depth outputs"]) -> Float[Array, "2 2 2 2 depth outputs"]:
    """The kernel with its pixels in the order of `_pixels`."""
    return kernel.reshape(2, 2, 2, 2, *kernel.shape[2:]).transpose(0, 2, 1, 3, 4, 5)


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


def conv_encoder(
    image_shape: tuple[int, int, int],
    channels: Sequence[int],
    hidden_size: int,
    output_size: int,
    activation: str | Activation = "relu",
) -> Network:
    """Convolutions of 4x4 with stride 2, one for each number of channels, then two dense layers.

    Takes (n, height, width) or (n, height, width, depth) as `image_shape` (height, width, depth) says, and returns
    (n, output_size).
    """
    function = activation_function(activation)
    return from_nnx(
        lambda rngs: _ConvEncoder(image_shape, tuple(channels), hidden_size, output_size, function, rngs=rngs)
    )


def conv_decoder(
    input_size: int,
    image_shape: tuple[int, int, int],
    channels: Sequence[int],
    hidden_size: int,
    num_outputs: int,
    activation: str | Activation = "relu",
) -> Network:
    """The mirror image of `conv_encoder`: (n, input_size) -> (n, num_outputs, height, width, depth).

    `channels` stand in the encoder's order: the last of them is the first that the decoder has.
    """
    function = activation_function(activation)
    return from_nnx(
        lambda rngs: _ConvDecoder(
            image_shape, tuple(channels), hidden_size, input_size, num_outputs, function, rngs=rngs
        )
    )


def _downsampled(image_shape: tuple[int, int, int], num_halvings: int) -> tuple[int, int]:
    height, width = (-(-size // 2**num_halvings) for size in image_shape[:2])
    return height, width
