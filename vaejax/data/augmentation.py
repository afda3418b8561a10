"""Random changes of images that do not change what they show, so that few training images stand for more.

Each is a function `(key, images) -> images`, for the `prepare` of `training.make_train_step`. Image i of a batch draws
from `fold_in(key, i)`, so that its change does not depend on the number of the others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy import ndimage
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks

Transform = Callable[..., Array]
"""A random map of images, `(key, images) -> images`, both (n, height, width, *depth)."""


def affine(images: ArrayLike, matrices: ArrayLike, shifts: ArrayLike) -> Float[Array, "n height width *depth"]:
    """Images under affine maps about their centre, by bilinear interpolation, with 0 outside of them.

    With p the place of a pixel (row, column) and c that of the centre, both in pixels,

        out_i(p) = in_i(c + matrix_i (p - c) + shift_i)

    so that a shift of (1, 0) moves what is seen up by one pixel.

    Args:
        images: (n, height, width) or (n, height, width, depth).
        matrices: (n, 2, 2), without unit.
        shifts: (n, 2), in pixels.

    Returns:
        Images of the shape and dtype of those given; interpolated in single precision at least. No pixel leaves [0, 1]
        that did not before, and an image that holds a NaN is NaN as a whole, so that none is moved out of sight.

    Raises:
        ValueError: if the images have other axes or are not floats, or there is not one matrix and one shift for each.

    >>> images = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
    >>> affine(images, jnp.eye(2)[None], jnp.array([[1.0, 0.0]])).tolist()
    [[[3.0, 4.0], [0.0, 0.0]]]
    """
    images = _checked(images)
    wide = images.astype(checks.wide_dtype(images.dtype))
    checks.check_array(matrices, "matrices")
    checks.check_array(shifts, "shifts")
    matrices, shifts = (jnp.asarray(array, wide.dtype) for array in (matrices, shifts))
    checks.check_shape("matrices", matrices.shape, (len(images), 2, 2), "give one for each image")
    checks.check_shape("shifts", shifts.shape, (len(images), 2), "give one for each image")
    centre = [(size - 1) / 2 for size in images.shape[1:3]]
    axes = [jnp.arange(size, dtype=wide.dtype) - middle for size, middle in zip(images.shape[1:3], centre, strict=True)]
    places = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))

    def interpolate(image: Array, matrix: Array, shift: Array) -> Array:
        rows, columns = jnp.tensordot(matrix, places, axes=1)
        coordinates = [rows + shift[0] + centre[0], columns + shift[1] + centre[1]]
        seen = ndimage.map_coordinates(image, coordinates, order=1)
        # Its weights sum to 1 only to rounding, and 1 + 1e-7 is no probability. Bounds of an image with NaN are NaN.
        return jnp.clip(seen, jnp.minimum(image.min(), 0), jnp.maximum(image.max(), 1))

    of_channels = jax.vmap(interpolate, in_axes=(-1, None, None), out_axes=-1) if images.ndim == 4 else interpolate
    return jax.vmap(of_channels)(wide, matrices, shifts).astype(images.dtype)


def random_affine(matrix_std: float = 0.05, shift_std: float = 0.25) -> Transform:
    """A small random affine map of each image: `affine` with I + matrix_std * noise and shift_std * noise.

    The noise is standard normal, four numbers and two: rotation, scale and shear together, and a translation.

    Args:
        matrix_std: of each entry of the matrix; 0.05 moves the edge of an image of 28x28 by about 1 pixel.
        shift_std: of the translation along each axis, in pixels.

    Returns:
        `(key, images) -> images`, of images (n, height, width) or (n, height, width, depth).

    Raises:
        ValueError: if a std is below 0; when it is called, as `affine`.

    >>> random_affine()(jax.random.key(0), jnp.ones((5, 28, 28))).shape
    (5, 28, 28)
    """
    checks.check_number("matrix_std of random_affine", matrix_std, least=0)
    checks.check_number("shift_std of random_affine", shift_std, least=0)

    def transform(key: Key[Array, ""], images: ArrayLike) -> Array:
        checks.check_key(key)
        images = _checked(images)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(len(images)))
        noise = jax.vmap(lambda key: jax.random.normal(key, (2, 3)))(keys)
        return affine(images, jnp.eye(2)[None] + matrix_std * noise[:, :, :2], shift_std * noise[:, :, 2])

    return transform


def partly(transform: Transform, fraction: float = 0.5) -> Transform:
    """A transform of the first images of each batch alone; the others stay as they are.

    In the batches of `training.fit`, whose order is random, the first images are any images.

    Args:
        transform: `(key, images) -> images`.
        fraction: of the images, rounded to whole ones; from 0 to 1.

    Returns:
        `(key, images) -> images`.

    Raises:
        ValueError: if the fraction is out of range.

    >>> halve = partly(lambda key, images: images / 2, fraction=0.5)
    >>> halve(jax.random.key(0), jnp.ones(4)).tolist()
    [0.5, 0.5, 1.0, 1.0]
    """
    checks.check_function("transform", transform, "(key, images) -> images")
    checks.check_number("the fraction of partly", fraction, least=0, most=1)

    def transform_first(key: Key[Array, ""], images: ArrayLike) -> Array:
        checks.check_array(images, "images")
        images = jnp.asarray(images)
        if images.ndim == 0:
            raise ValueError(f"expected images on the first axis; got {checks.describe(images)}")
        count = round(fraction * len(images))
        return jnp.concatenate([transform(key, images[:count]), images[count:]]) if count else images

    return transform_first


def _checked(images: ArrayLike) -> Array:
    checks.check_floating(images)
    images = jnp.asarray(images)
    if images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            f"expected images of shape (n, height, width) or (n, height, width, depth); got {images.shape}. Reshape "
            "flat ones"
        )
    return images
