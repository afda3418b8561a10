"""What all pictures share: their style, how they are saved, images side by side, points in the plane."""

from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")
import pathlib

import matplotlib.pyplot as plt
import numpy as np

STYLE = {"figure.dpi": 120, "savefig.bbox": "tight", "font.size": 9}  # of every picture, while it is drawn and saved

COLOURS = plt.get_cmap("tab10")


def save(figures: Mapping[str, plt.Figure], folder: pathlib.Path) -> list[pathlib.Path]:
    """Save each figure as NAME.png and close it. Returns their paths."""
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
        plt.close(figure)
    return paths


def two_dimensions(latents: list[np.ndarray]) -> tuple[list[np.ndarray], tuple[str, str]]:
    """Latents as they are where they have two dimensions; else along the two principal axes of the last of them.

    A single dimension is spread at random along the other axis, so that the points do not hide each other.
    """
    if latents[-1].shape[1] == 1:
        spread = np.random.default_rng(0).uniform(-0.5, 0.5, latents[-1].shape) * np.abs(latents[-1]).max()
        return [np.concatenate([part, spread], axis=1) for part in latents], ("posterior mean of z", "spread at random")
    if latents[-1].shape[1] == 2:
        return latents, ("posterior mean of z1", "posterior mean of z2")
    centre = latents[-1].mean(axis=0)
    axes = np.linalg.svd(latents[-1] - centre, full_matrices=False)[2][:2]
    return [(part - centre) @ axes.T for part in latents], (
        "1st principal axis of latents",
        "2nd principal axis of latents",
    )


def scatter(axes: plt.Axes, points: np.ndarray, labels: np.ndarray) -> None:
    """Points in the plane, coloured by label where there are labels."""
    colours = COLOURS(labels % 10) if len(labels) else "tab:blue"
    axes.scatter(points[:, 0], points[:, 1], c=colours, s=5, alpha=0.7, linewidths=0)


def plane(points: np.ndarray) -> np.ndarray:
    """The first two coordinates of points (n, d), and zeros where they have one."""
    return np.pad(points, ((0, 0), (0, 1)))[:, :2]


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (n, height, width[, depth]) in a grid with thin grey lines between them; what fills no row is left out."""
    images = np.clip(images[: max(1, len(images) // columns) * columns], 0, 1)
    magnification = max(1, 64 // images.shape[1])  # so that a line is thin beside an image of 8 x 8
    images = images.repeat(magnification, axis=1).repeat(magnification, axis=2)
    pad = [(0, 0), (2, 2), (2, 2)] + [(0, 0)] * (images.ndim - 3)
    images = np.pad(images, pad, constant_values=0.5)
    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    return np.concatenate(rows)


def show(axes: plt.Axes, image: np.ndarray) -> None:
    """An image without ticks, black for 0 and white for 1."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
