"""What the parts of `pca_to_vae.py` share: their data, and two measurements that several of them make."""

import dataclasses
from typing import Any

import numpy as np

from engines.harness import setting
from engines.harness.rows import row
from vaejax import data, two_sample


@dataclasses.dataclass(frozen=True)
class Setting(setting.Setting):
    """What a part works on.

    Attributes:
        train: all training images.
        test: test images; nothing is chosen by them.
        latent_dim: the number of latents where a part does not set its own: 30 for MNIST, 10 for digits.
        seed: of parameters, order and noise.
        first_images: the first 1,000 training images in the order of the original file, if that file was given.
        faces: images of faces in [0, 1], (n, height, width), if a file of them was given.
    """

    train: data.Dataset
    test: data.Dataset
    latent_dim: int
    seed: int
    first_images: np.ndarray | None = None
    faces: np.ndarray | None = None


def squared_errors(reconstructions: Any, images: np.ndarray) -> np.ndarray:
    """The squared error of each image, in double precision: (n,)."""
    errors = (np.asarray(reconstructions, np.float64) - images) ** 2
    return errors.reshape(len(images), -1).sum(axis=1)


def distance_row(model: str, quantity: str, distance: two_sample.Distance, unit: str, note: str = "") -> dict[str, Any]:
    """A row of the table: a distance between samples and data, with its standard error."""
    estimate, error = (float(number) for number in distance)
    return row(model, quantity, estimate, unit, standard_error=error, note=note)
