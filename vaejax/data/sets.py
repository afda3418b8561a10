"""Data as arrays: embedded sets, any TFDS image set by name, and binarization that takes a key.

The embedded sets need neither network nor files. Every other name goes to TensorFlow Datasets (TFDS), which is imported
only then, needs TensorFlow once to prepare a set, and downloads nothing unless asked.
"""

import importlib.util
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, records
from vaejax.data import tfds
from vaejax.data.synthetic import linear_gaussian, spiral, two_gaussians

_SPLITS = {
    "train": ("train",),
    "validation": ("validation",),
    "test": ("test",),
    "train+validation": ("train", "validation"),
}

_SYNTHETIC_SIZES = {"train": 10_000, "validation": 2_000, "test": 2_000}


class Dataset(NamedTuple):
    """One split of a set.

    Attributes:
        images: `(n, *data_shape)` float32, pixels in [0, 1]; real numbers for the synthetic sets.
        labels: `(n,)` int32, or None where the set has none.
        name: the name it was loaded by.
        split: the split it was loaded by.
        description: which images these are and where they come from.

    >>> print(repr(load("spiral", "test"))[:60])
    Dataset(
      images: float32[2000,2], mean ...
    """

    images: np.ndarray
    labels: np.ndarray | None
    name: str
    split: str
    description: str

    __repr__ = records.short_repr


def names() -> tuple[str, ...]:
    """The names of the embedded sets, which `load` serves without network or files.

    >>> names()
    ('digits', 'linear_gaussian', 'spiral', 'two_gaussians')
    """
    return tuple(sorted(_EMBEDDED))


def load(
    name: str,
    split: str = "train",
    *,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    download: bool = False,
) -> Dataset:
    """Loads one split of a set into memory.

    `digits` is scikit-learn's 1,797 images of 8x8; the image at index i goes to validation where i mod 7 is 5, to test
    where it is 6, else to train. The synthetic sets draw 10,000 / 2,000 / 2,000 points by a fixed key for each split.

    Any other name is a TFDS image set, say `"mnist"` or `"emnist/balanced"`. A validation or test split that TFDS lacks
    is carved off the end of its train split, a sixth of it each (mnist: 50,000 / 10,000 / 10,000). Grey images lose
    their channel axis. The decoded bytes are cached beside the prepared set, one `.npz` for each split. Whether a pixel
    of 1 is white or nearly black is not known from the dtype: the largest number in all splits of the set decides,
    1 (zeros and ones), 255 or 65,535 being white. The description says what was done.

    >>> digits = load("digits", "test")
    >>> digits.images.shape, digits.labels.shape
    ((256, 8, 8), (256,))

    Args:
        name: one of `names()`, or the name of a TFDS image set.
        split: `"train"`, `"validation"`, `"test"` or `"train+validation"`.
        data_dir: where TFDS keeps prepared sets; None is TFDS's own default, `~/tensorflow_datasets`.
        manual_dir: a folder with the original files of this set, to prepare it from if it is not prepared yet. One
            folder for each set: `mnist` and `fashion_mnist` use the same file names.
        download: whether TFDS may fetch the original files when the set is not prepared yet.

    Returns:
        Images in [0, 1], float32, (n, height, width) or with a last axis for colours; labels (n,), or None; and where
        they come from. Synthetic sets have points (n, data_dim).

    Raises:
        ValueError: an unknown set or split, a TFDS set without images of one shape, or images that are not finite.
        FileNotFoundError: the set is not prepared, and `manual_dir` does not hold its files; the message names them.
        ModuleNotFoundError: the set is not prepared, and TensorFlow is not installed.
    """
    check_name(name)
    checks.check_choice("split", split, _SPLITS)
    if name in _EMBEDDED:
        read, description = _EMBEDDED[name]
        parts = [read(part) for part in _SPLITS[split]]
    else:
        parts, description = tfds.read(
            name, _SPLITS[split], data_dir=data_dir, manual_dir=manual_dir, download=download, others=names()
        )
    images = np.concatenate([images for images, _ in parts])
    if images.dtype != np.float32:
        images = images.astype(np.float32) / np.iinfo(images.dtype).max
    checks.check_finite(images, f"images of {name!r}")
    labels = [labels.astype(np.int32) for _, labels in parts if labels is not None]
    return Dataset(images, np.concatenate(labels) if labels else None, name, split, description)


def check_name(name: str) -> None:
    """Refuse a name of a set that is no string.

    Raises:
        ValueError: with what was given.
    """
    if not isinstance(name, str):
        raise ValueError(f"expected the name of a set, such as 'digits' or 'mnist'; got {checks.describe(name)}")


def binarize_dynamic(key: Key[Array, ""], images: ArrayLike) -> Float[Array, "..."]:
    """Draws each pixel as a Bernoulli variable whose probability is the pixel's value.

    A fresh key for every batch gives the dynamic (stochastic) binarization of most papers on MNIST. Two pixels share
    the 32 bits of one random word, so that the probability is the pixel's value to within 2^-17.

    >>> binarize_dynamic(jax.random.key(0), jnp.array([0.0, 0.5, 1.0])).tolist()
    [0.0, 0.0, 1.0]

    Args:
        key: consumed once.
        images: of any shape, floating-point, in [0, 1].

    Returns:
        Zeros and ones, of the shape and dtype of `images`.

    Raises:
        ValueError: the images are not floating-point, or not in [0, 1]; or the key is none. Under `jit`, where values
            are not known, such pixels become NaN instead, and so does the objective.

    Source: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016.
    """
    checks.check_key(key)
    return _draw_pixels(key, _unit_images(images))


@jax.jit  # outside of one, ten operations would be ten programs to compile
def _draw_pixels(key: Key[Array, ""], images: Float[Array, "..."]) -> Float[Array, "..."]:
    shape = images.shape or (1,)
    # Words along the last axis, so that a batch that is spread over devices draws each part where it is.
    pairs = -(-shape[-1] // 2)
    words = jax.random.bits(key, (*shape[:-1], pairs), jnp.uint32)
    draws = lax.bitcast_convert_type(words, jnp.uint16).reshape(*shape[:-1], 2 * pairs)[..., : shape[-1]]
    ones = jnp.round(images.astype(jnp.float32) * 2**16).astype(jnp.int32)  # of 2^16 draws, how many give a one
    return _or_nan(images, draws.astype(jnp.int32).reshape(images.shape) < ones)


def _or_nan(images: Float[Array, "..."], made: Array) -> Float[Array, "..."]:
    """What was made of them, with NaN where a pixel is NaN or outside [0, 1]: `jit` hides the values from the check."""
    return jnp.where((images >= 0) & (images <= 1), made.astype(images.dtype), jnp.array(jnp.nan, images.dtype))


def binarize_threshold(key: Key[Array, ""] | None, images: ArrayLike) -> Float[Array, "..."]:
    """Sets pixels above 0.5 to one, the others to zero.

    >>> binarize_threshold(jax.random.key(0), jnp.array([0.2, 0.5, 0.7])).tolist()
    [0.0, 0.0, 1.0]

    Args:
        key: not used; the signature is that of `binarize_dynamic`, so that either serves as a binarization.
        images: of any shape, floating-point, in [0, 1].

    Returns:
        Zeros and ones, of the shape and dtype of `images`.

    Raises:
        ValueError: as `binarize_dynamic`; under `jit` the same pixels become NaN.
    """
    images = _unit_images(images)
    return _or_nan(images, images > 0.5)


def to_levels(key: Key[Array, ""] | None, images: ArrayLike) -> Float[Array, "..."]:
    """Grey values in [0, 1] as whole numbers from 0 to 255, for likelihoods of 8-bit pixels and of counts.

    >>> to_levels(None, jnp.array([0.0, 0.5, 1.0])).tolist()
    [0.0, 128.0, 255.0]

    Args:
        key: not used, as in `binarize_threshold`.
        images: of any shape, floating-point, in [0, 1].

    Returns:
        The nearest whole numbers to 255 times the images, of their shape and dtype.

    Raises:
        ValueError: as `binarize_dynamic`; under `jit` the same pixels become NaN.
    """
    images = _unit_images(images)
    return _or_nan(images, jnp.round(255 * _in_single(images)))


def dequantize(key: Key[Array, ""], images: ArrayLike) -> Float[Array, "..."]:
    """Grey values in [0, 1] of 256 levels with uniform noise of one level: (level + u) / 256, inside (0, 1).

    For densities of grey values. The expected log density of such numbers, less log 256 for each pixel, is a lower
    bound on the log probability of the levels.

    >>> bool((jnp.floor(256 * dequantize(jax.random.key(0), jnp.array([0.0, 1.0]))) == jnp.array([0.0, 255.0])).all())
    True

    Args:
        key: consumed once.
        images: of any shape, floating-point, in [0, 1].

    Returns:
        Numbers inside (0, 1), of the shape of `images` and of their dtype, in float32 where that is half precision.

    Raises:
        ValueError: as `binarize_dynamic`; under `jit` the same pixels become NaN.

    Source: Theis, van den Oord & Bethge 2016, "A note on the evaluation of generative models", section 3.1.
    """
    checks.check_key(key)
    levels = _in_single(to_levels(None, images))
    # Nearer to a whole number than 2^-15, the sum of 255 and u could round to it in float32.
    noise = jax.random.uniform(key, levels.shape, levels.dtype, 2.0**-15, 1 - 2.0**-15)
    return (levels + noise) / 256


BINARIZATIONS = {
    "dynamic": binarize_dynamic,
    "threshold": binarize_threshold,
    "none": None,
    "levels": to_levels,
    "dequantized": dequantize,
}
"""What may be done to grey images, by name; the last two do not make them black and white."""


def binarization(name: str) -> Callable | None:
    """The function `(key, images) -> images` of that name, or None for `"none"`.

    Args:
        name: one of `BINARIZATIONS`.

    Returns:
        The function, which maps images in [0, 1] to 0 and 1, or to what `to_levels` and `dequantize` say.

    >>> binarization("dynamic") is binarize_dynamic
    True

    Raises:
        ValueError: the name is none of `BINARIZATIONS`.
    """
    checks.check_choice("binarization", name, BINARIZATIONS)
    return BINARIZATIONS[name]


def _in_single(images: Array) -> Array:
    return images.astype(jnp.float32) if jnp.finfo(images.dtype).bits < 32 else images


def _unit_images(images: ArrayLike) -> Array:
    checks.check_array(images, "images")
    images = jnp.asarray(images)
    checks.check_floating(images)
    if not isinstance(images, Tracer):
        values = np.asarray(images)
        bad = ~((values >= 0) & (values <= 1))  # written so that NaN is bad too
        advice = "scale grey values first, for instance by 1 / 255; real numbers want a Gaussian likelihood instead"
        checks.refuse_values(values, bad, "expected images in [0, 1] to binarize", "NaN or outside", advice)
    return images


def _read_digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    # The file that sklearn.datasets.load_digits reads: importing that package takes longer than training on it.
    table = np.loadtxt(_scikit_learn() / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.float32)
    images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    # 7 has no factor in common with the 10 of the file's runs of classes, so every split has every class.
    fold = np.arange(len(labels)) % 7
    chosen = {"train": fold < 5, "validation": fold == 5, "test": fold == 6}[part]
    return images[chosen] / 16, labels[chosen]


def _scikit_learn() -> pathlib.Path:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        advice = "python -m pip install scikit-learn"
        raise ModuleNotFoundError(f"the digits are a file of scikit-learn, which is not installed: {advice}")
    return pathlib.Path(spec.submodule_search_locations[0])


def _read_synthetic(sampler: Callable) -> Callable:
    def read(part: str) -> tuple[np.ndarray, np.ndarray | None]:
        key = jax.random.fold_in(jax.random.key(0), list(_SYNTHETIC_SIZES).index(part))
        points, labels = sampler(key, _SYNTHETIC_SIZES[part])
        return np.asarray(points), None if labels is None else np.asarray(labels)

    return read


_EMBEDDED = {
    "digits": (_read_digits, "scikit-learn's 1,797 handwritten digits (UCI), 8x8, values / 16, split by index mod 7"),
    "two_gaussians": (_read_synthetic(two_gaussians), "two Gaussians of std 0.5 at (-2, 0) and (2, 0), drawn by JAX"),
    "spiral": (_read_synthetic(spiral), "a spiral of 1.5 turns in the unit disc, noise of std 0.02, drawn by JAX"),
    "linear_gaussian": (
        _read_synthetic(linear_gaussian),
        "x = weights z + bias + 0.5 noise in 8 dimensions from 2, by data.linear_gaussian_parameters(), drawn by JAX",
    ),
}
