"""Draw the pictures of `pca_to_vae.py` from what it saved alone: `python experiments/family_plots.py runs/NAME`."""

import importlib
import json
import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np
import plots

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


def draw(folder: pathlib.Path, drawn: dict[str, tuple[str, str]] = DRAWN) -> list[pathlib.Path]:
    """Draw every picture of the parts that are done. Returns their paths.

    Args:
        folder: of a run.
        drawn: module and function of each part's pictures.
    """
    paths = []
    with plt.rc_context(plots.STYLE):
        for name, (module, function) in drawn.items():
            if (folder / f"{name}.json").exists():
                rows = json.loads((folder / f"{name}.json").read_text())["rows"]
                with np.load(folder / f"{name}.npz") as arrays:
                    figures = getattr(importlib.import_module(module), function)(arrays, rows)
                paths += plots.save(figures, folder)
    return paths


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (pathlib.Path(sys.argv[1]) / "results.json").exists():
        sys.exit("usage: python experiments/family_plots.py runs/NAME, the folder of a run of which a part is done")
    for path in draw(pathlib.Path(sys.argv[1])):
        print(path)
