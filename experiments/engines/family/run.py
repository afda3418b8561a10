"""What `pca_to_vae.py` runs: its parts, and the data that they work on."""

import gzip
import pathlib
import zipfile

import numpy as np

from engines.family import bottleneck, deep, denoising, difference, game, generator, linear, linear_vae, pca, pictures
from engines.family.config import Config
from engines.family.setting import Setting
from engines.harness import loading, parts

# `setting -> rows.Result` of each part.
PARTS = {
    "pca": pca.run,
    "linear": linear.linear,
    "linear_vae": linear_vae.run,
    "deep": deep.run,
    "denoising": denoising.digits,
    "score": denoising.score,
    "bottleneck": bottleneck.run,
    "difference": difference.run,
    "generator": generator.run,
    "game": game.run,
}


def run(config: Config) -> None:
    """Run the parts that are not done yet, then write the table of all that are."""
    parts.run(config, f"family-{config.dataset}", PARTS, lambda config, _: setting_of(config), pictures.draw)


def setting_of(config: Config) -> Setting:
    """The data, and what else the parts need to know.

    Raises:
        ValueError: if the images are not grey or have no labels, or a file holds no images.
        OSError: if a file cannot be read.
    """
    train, test = loading.load(config, "train+validation"), loading.load(config, "test")
    shape = train.images.shape[1:]
    if len(shape) != 2 or train.labels is None:
        raise ValueError(
            f"expected grey images with labels, such as digits, mnist or fashion_mnist; got {config.dataset} with "
            f"examples of shape {shape} and {'no' if train.labels is None else 'some'} labels"
        )
    code_size = 30 if shape[0] * shape[1] >= 200 else 10
    first, faces = first_images(config, shape), read_faces(config.faces)
    return Setting(train, test, code_size, config.effort, config.seed, first, faces)


def first_images(config: Config, shape: tuple[int, ...]) -> np.ndarray | None:
    """The first 1,000 of the original training file: TFDS keeps another order, and published numbers have this one."""
    path = pathlib.Path(config.manual_dir or ".") / "train-images-idx3-ubyte.gz"
    if config.manual_dir is None or not path.exists():
        return None
    content = gzip.decompress(path.read_bytes())
    count, *sides = np.frombuffer(content, ">u4", 3, 4)
    if tuple(sides) != shape:  # of another dataset
        return None
    images = np.frombuffer(content, np.uint8, offset=16).reshape(count, *sides)
    return images[:1000].astype(np.float32) / 255


def read_faces(path: str | None) -> np.ndarray | None:
    """Images of faces, from 0 to 1.

    Raises:
        ValueError: if the file is no npz file with images in it.
        OSError: if it cannot be read.
    """
    if path is None:
        return None
    expected = "--faces: expected an npz file with an array `images` (n, height, width)"
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{expected}; {path} is none") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile) or "images" not in arrays:
        raise ValueError(f"{expected}; {path} has no array of that name")
    images = arrays["images"]
    if images.ndim != 3 or len(images) < 16:
        raise ValueError(f"{expected}, n of at least 16, for 15 components; got {images.shape} in {path}")
    images = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"{expected}, of whole numbers from 0 to 255 (uint8) or others from 0 to 1; got values from "
            f"{images.min():.4g} to {images.max():.4g} in {path}"
        )
    if np.linalg.matrix_rank((images - images.mean(axis=0)).reshape(len(images), -1)) < 15:
        raise ValueError(f"{expected} that vary in at least 15 directions; those in {path} do not")
    return images


# Module and function of each part: `(arrays, rows) -> {name of the picture: figure}`.
DRAWN = {
    "pca": ("linear_plots", "pca"),
    "linear": ("linear_plots", "linear"),
    "linear_vae": ("linear_plots", "linear_vae"),
    "deep": ("deep_plots", "draw"),
    "denoising": ("score_plots", "denoising"),
    "score": ("score_plots", "score"),
    "bottleneck": ("bottleneck_plots", "draw"),
    "difference": ("difference_plots", "draw"),
    "generator": ("bottleneck_plots", "generator"),
    "game": ("bottleneck_plots", "game"),
}
