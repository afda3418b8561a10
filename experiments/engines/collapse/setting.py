"""What the parts of `collapse.py` work on: binary images, and how much of them."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from engines.collapse.config import Config
from engines.harness import loading
from vaejax import data

_BINARIZATION_KEY = 20_140_110


class Setting(NamedTuple):
    """What a part works on.

    Attributes:
        train: binary training images, (n, height, width).
        validation: likewise, of which aggressive training looks at the mutual information.
        test: likewise, which choose nothing.
        description: a line about them.
        cures: that are compared.
        seeds: runs of each model.
        effort: factor of every number of training steps.
        folder: of the run, where each training run that is done leaves its numbers.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    description: str
    cures: tuple[str, ...]
    seeds: int
    effort: float
    folder: pathlib.Path

    @property
    def small(self) -> bool:
        """Whether the images are so small (8x8) that models and times are too."""
        return math.prod(self.train.shape[1:]) < 200

    def steps(self, number: int) -> int:
        """The number of training steps, by the effort."""
        return max(2, round(number * self.effort))


def setting_of(config: Config, folder: pathlib.Path) -> Setting:
    """The data; grey images are binarized once, with a fixed key, so that all models are trained on the same ones.

    Args:
        config: options of the command.
        folder: of the run.

    Raises:
        ValueError: if the images are not grey.
        OSError: if a file cannot be read.
    """
    loaded = {split: loading.load(config, split) for split in ("train", "validation", "test")}
    shape = loaded["train"].images.shape[1:]
    if len(shape) != 2:
        raise ValueError(
            f"expected grey images, such as digits, binarized_mnist or mnist; got {config.dataset} with examples of "
            f"shape {shape}"
        )
    splits = {split: _binary(part.images, i) for i, (split, part) in enumerate(loaded.items())}
    return Setting(
        **splits,
        description=loaded["train"].description,
        cures=config.cures,
        seeds=config.seeds,
        effort=config.effort,
        folder=folder,
    )


def _binary(images: np.ndarray, number: int) -> np.ndarray:
    if np.isin(images, (0, 1)).all():
        return images
    key = jax.random.fold_in(jax.random.key(_BINARIZATION_KEY), number)
    binarize: Callable[..., Any] = data.binarize_dynamic
    return np.asarray(binarize(key, images))
