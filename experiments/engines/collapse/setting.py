"""What the parts of `collapse.py` work on: binary images, and how much of them."""

import dataclasses
import pathlib

import jax
import numpy as np

from engines.collapse.config import Config
from engines.harness import loading, setting
from vaejax import data

BINARIZATION_KEY = 20_140_110


@dataclasses.dataclass(frozen=True)
class Setting(setting.Setting):
    """What a part works on.

    Attributes:
        train: binary training images, (n, height, width).
        validation: on which aggressive training measures the mutual information.
        test: test images; nothing is chosen by them.
        cures: the cures to compare.
        seeds: runs of each model.
        folder: of the run, where each finished training run leaves its numbers.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    cures: tuple[str, ...]
    seeds: int
    folder: pathlib.Path


def setting_of(config: Config, folder: pathlib.Path) -> Setting:
    """The data of the options. Grey images are binarized once with a fixed key, so all models see the same pixels.

    Args:
        config: options of the command.
        folder: of the run.

    Raises:
        ValueError: if the images are not grey.
        OSError: if a file cannot be read.
    """
    loaded = [loading.load(config.dataset, split, config.where) for split in ("train", "validation", "test")]
    shape = loaded[0].images.shape[1:]
    if len(shape) != 2:
        raise ValueError(
            f"expected grey images, such as digits, binarized_mnist or mnist; got {config.dataset} with examples of "
            f"shape {shape}"
        )
    return Setting(
        loaded[0].description,
        shape,
        config.effort,
        *(binary(split.images, i) for i, split in enumerate(loaded)),
        cures=config.cures,
        seeds=config.seeds,
        folder=folder,
    )


def binary(images: np.ndarray, number: int) -> np.ndarray:
    """The images binarized with the key of this number; binary images stay as they are."""
    if np.isin(images, (0, 1)).all():
        return images
    key = jax.random.fold_in(jax.random.key(BINARIZATION_KEY), number)
    return np.asarray(data.binarize_dynamic(key, images))
