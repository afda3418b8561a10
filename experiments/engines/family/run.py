"""What `pca_to_vae.py` runs: its parts, and the data that they work on."""

import gzip
import math
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
    "linear": linear.run,
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
    """The data of the options, checked.

    Raises:
        ValueError: if the images are not grey or have no labels, or the file of faces cannot be used.
        OSError: if a file cannot be read.
    """
    train, test = (loading.load(config.dataset, split, config.where) for split in ("train+validation", "test"))
    shape = train.images.shape[1:]
    if len(shape) != 2 or train.labels is None:
        raise ValueError(
            f"expected grey images with labels, such as digits, mnist or fashion_mnist; got {config.dataset} with "
            f"examples of shape {shape} and {'no' if train.labels is None else 'some'} labels"
        )
    return Setting(
        train.description,
        shape,
        config.effort,
        train,
        test,
        latent_dim=30 if math.prod(shape) >= 200 else 10,
        seed=config.seed,
        first_images=first_images(config.manual_dir, shape),
        faces=read_faces(config.faces),
    )


def first_images(folder: str | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """The first 1,000 images of the original training file, whose order published numbers refer to and TFDS changes.

    None if there is no such file in the folder, or its images are of another shape.
    """
    path = pathlib.Path(folder or ".") / "train-images-idx3-ubyte.gz"
    if folder is None or not path.exists():
        return None
    content = gzip.decompress(path.read_bytes())
    count, *sides = np.frombuffer(content, ">u4", 3, 4)
    if tuple(sides) != shape:  # the file of another dataset
        return None
    images = np.frombuffer(content, np.uint8, offset=16).reshape(count, *sides)
    return images[:1000].astype(np.float32) / 255


def read_faces(path: str | None) -> np.ndarray | None:
    """Images of faces in [0, 1], (n, height, width); None without a path.

    Raises:
        ValueError: if the file is not an npz file with images, or these cannot be used.
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
