"""The pictures of `pca_to_vae.py`, a file for each group of parts."""

import pathlib

from engines.family.pictures import bottleneck, deep, difference, linear, score
from engines.harness import part_pictures

# `(arrays, rows) -> {name of the picture: figure}` of each part.
DRAWN = {
    "pca": linear.draw_pca,
    "linear": linear.draw_linear,
    "linear_vae": linear.draw_linear_vae,
    "deep": deep.draw,
    "denoising": score.draw_denoising,
    "score": score.draw_score,
    "bottleneck": bottleneck.draw_bottleneck,
    "difference": difference.draw,
    "generator": bottleneck.draw_generator,
    "game": bottleneck.draw_game,
}


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw every picture of the parts that are done. Returns their paths."""
    return part_pictures.draw(folder, DRAWN)
