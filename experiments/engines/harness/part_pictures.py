"""Pictures of the parts of a command, drawn from what these saved and from nothing else."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from engines.harness import pictures

Draw = Callable[[Any, list[dict[str, Any]]], Mapping[str, plt.Figure]]


def draw(folder: pathlib.Path, drawn: Mapping[str, Draw]) -> list[pathlib.Path]:
    """Draw every picture of the parts that are done. Returns their paths.

    Args:
        folder: of a run.
        drawn: `(arrays, rows) -> {name of the picture: figure}` of each part.
    """
    paths = []
    with plt.rc_context(pictures.STYLE):
        for name, figures_of in drawn.items():
            if (folder / f"{name}.json").exists():
                rows = json.loads((folder / f"{name}.json").read_text())["rows"]
                with np.load(folder / f"{name}.npz") as arrays:
                    figures = figures_of(arrays, rows)
                paths += pictures.save(figures, folder)
    return paths
