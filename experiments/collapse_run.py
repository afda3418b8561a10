"""What `collapse.py` runs: its parts, and the data that they work on."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import collapse
import family_plots
import jax
import loading
import numpy as np
import part_runs

from vaejax import data

# Module and function of each part, and of its pictures; a module is imported when its part is run or drawn.
PARTS = {
    "trap": ("collapse_trap", "run"),
    "text": ("collapse_text", "run"),
    "weights": ("collapse_weights", "run"),
    "gaps": ("collapse_gaps", "run"),
    "em": ("collapse_em", "run"),
}
DRAWN = {name: ("collapse_plots", name) for name in PARTS}

_BINARIZATION_KEY = 20_140_110


class Setting(NamedTuple):
    """What a part works on.

    Attributes:
        train: binary training images, (n, height, width).
        validation: likewise, of which aggressive training looks at the mutual information.
        test: likewise, of which nothing is chosen by.
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


def run(config: collapse.Config) -> None:
    """Run the parts that are not done yet, then write the table of all that are."""

    def draw(folder) -> list[Any]:
        return family_plots.draw(folder, DRAWN)

    part_runs.run(config, f"collapse-{config.dataset}", PARTS, setting_of, draw)


def setting_of(config: collapse.Config, folder: pathlib.Path) -> Setting:
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
            f"expected grey images, such as digits, binarized_mnist or mnist; came {config.dataset} with examples of "
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
