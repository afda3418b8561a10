"""What the parts of `pca_to_vae.py` share: the data they get, the results they give, and how they train."""

import math
from typing import NamedTuple

import numpy as np

from vaejax import data


class Setting(NamedTuple):
    """What a part works on.

    Attributes:
        train: all training images.
        test: test images, which choose nothing.
        code_size: numbers in a code, 30 for MNIST.
        effort: factor of every number of training steps.
        seed: of parameters, order and noise.
        first_images: the first 1,000 training images in the order of the original files, where these can be read.
        faces: images of faces in [0, 1], (n, height, width), where a file of them was named.
    """

    train: data.Dataset
    test: data.Dataset
    code_size: int
    effort: float
    seed: int
    first_images: np.ndarray | None
    faces: np.ndarray | None = None

    @property
    def description(self) -> str:
        """A line about the data."""
        return self.train.description

    @property
    def small(self) -> bool:
        """Whether the images are so small (8x8) that models and times are too."""
        return math.prod(self.train.images.shape[1:]) < 200

    def steps(self, number: int) -> int:
        """The number of training steps, by the effort."""
        return max(2, round(number * self.effort))
