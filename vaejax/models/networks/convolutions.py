"""Convolutions that halve an image and double it, as a CPU and as an accelerator compute them best.

On an accelerator they are XLA's convolutions. On a CPU XLA's convolution runs on one core in the body of a loop, thirty
times slower than one matrix product, so there they are products. Which of the two is in the program depends on the
platform that it is lowered for, not on the machine that traces it.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_IMAGES = ("NHWC", "HWIO", "NHWC")


def halve(
    x: Float[Array, "n height width depth"], kernel: Float[Array, "4 4 depth outputs"]
) -> Float[Array, "n h w outputs"]:
    """The convolution of 4x4 with stride 2 and padding "SAME": h = ceil(height / 2), w = ceil(width / 2).

    Args:
        x: images.
        kernel: weights, of a dtype that promotes with that of x.

    Returns:
        Sums over a patch of 4x4 pixels and their depth, of the promoted dtype.

    >>> halve(jnp.ones((1, 4, 4, 1)), jnp.ones((4, 4, 1, 1)))[0, :, :, 0].tolist()
    [[9.0, 9.0], [9.0, 9.0]]
    """
    return _on_each_platform(halving_product, _halving_convolution, x, kernel)


def double(
    x: Float[Array, "n height width depth"], kernel: Float[Array, "4 4 depth outputs"]
) -> Float[Array, "n h w outputs"]:
    """The transposed convolution of 4x4 with stride 2 and padding "SAME": h = 2 height, w = 2 width.

    Args:
        x: images.
        kernel: weights, of a dtype that promotes with that of x.

    Returns:
        Sums over the pixels whose patch of 4x4 covers the place, of the promoted dtype.

    >>> double(jnp.ones((1, 1, 1, 1)), jnp.ones((4, 4, 1, 1)))[0, :, :, 0].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    return _on_each_platform(doubling_product, _doubling_convolution, x, kernel)


def halving_product(
    x: Float[Array, "n height width depth"], kernel: Float[Array, "4 4 depth outputs"]
) -> Float[Array, "n h w outputs"]:
    """`halve` as a product of patches and kernel.

    >>> halving_product(jnp.ones((1, 4, 4, 1)), jnp.ones((4, 4, 1, 1)))[0, :, :, 0].tolist()
    [[9.0, 9.0], [9.0, 9.0]]
    """
    size, height, width, depth = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    patches = _patches(x)
    matrix = _by_blocks(kernel).reshape(16 * depth, -1)
    return (patches.reshape(-1, 16 * depth) @ matrix).reshape(size, *patches.shape[1:3], -1)


def doubling_product(
    x: Float[Array, "n height width depth"], kernel: Float[Array, "4 4 depth outputs"]
) -> Float[Array, "n h w outputs"]:
    """`double` as a product: each pixel to a patch, and the sum of the patches.

    >>> doubling_product(jnp.ones((1, 1, 1, 1)), jnp.ones((4, 4, 1, 1)))[0, :, :, 0].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    depth = x.shape[-1]
    matrix = jnp.moveaxis(_by_blocks(kernel[::-1, ::-1]), 4, 0).reshape(depth, -1)
    return _overlay((x.reshape(-1, depth) @ matrix).reshape(*x.shape[:-1], -1))


def _halving_convolution(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=_IMAGES)


def _doubling_convolution(x: Array, kernel: Array) -> Array:
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_IMAGES)


def _on_each_platform(product: Callable, convolution: Callable, x: Array, kernel: Array) -> Array:
    dtype = jnp.result_type(x, kernel)
    return lax.platform_dependent(x.astype(dtype), kernel.astype(dtype), cpu=product, default=convolution)


def _sliced(x: Float[Array, "n height width depth"]) -> Float[Array, "n h w patch"]:
    """The 4x4 pixels around every second one, 0 outside the image, in the order of `_by_blocks`."""
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
