"""The pictures of `pca_to_vae.py`, a file for each group of parts."""

import pathlib

from engines.family.pictures import bottleneck, deep, difference, linear, score
from engines.harness import part_pictures

# `(arrays, rows) -> {name of the picture: figure}` of each part.
DRAWN = {
    "pca": linear.pca,
    "linear": linear.linear,
    "linear_vae": linear.linear_vae,
    "deep": deep.draw,
    "denoising": score.denoising,
    "score": score.score,
    "bottleneck": bottleneck.draw,
    "difference": difference.draw,
    "generator": bottleneck.generator,
    "game": bottleneck.game,
}


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw every picture of the parts that are done. Returns their paths."""
    return part_pictures.draw(folder, DRAWN)
