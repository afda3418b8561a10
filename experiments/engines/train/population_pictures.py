"""Pictures of several runs from what they saved: each curve is a mean over seeds, with a band of its standard error."""

import json
import math
import pathlib

import matplotlib.pyplot as plt
import numpy as np

from engines.harness import rows, run_folder
from engines.harness.pictures import STYLE, save
from engines.train import pictures

PANELS = (
    *((name, 1, words) for name, words in pictures.VALIDATED.items()),
    ("reconstruction", -1, "Distortion: -E log p(x|z), training"),
    ("kl", 1, "Rate: KL(q(z|x) || p(z)), training"),
    ("validation_bound", -1, "Error, validation images"),
    ("error", 1, "Error, training batches"),
)


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw the learning curves of all runs. Returns the paths."""
    with plt.rc_context(STYLE):
        return save({"learning_curve": learning_curve(folder)}, folder)


def learning_curve(folder: pathlib.Path) -> plt.Figure:
    """For each weight and rate the mean over its seeds against steps, with one standard error on either side."""
    reports = run_folder.read_metrics(folder)
    result = json.loads((folder / "result.json").read_text())
    kinds = [(group["beta"], group["learning_rate"]) for group in result["groups"]]
    mine = np.array([kinds.index((run["beta"], run["learning_rate"])) for run in result["runs"]])
    steps = [row["step"] for row in reports]
    panels = [panel for panel in PANELS if panel[0] in reports[0]]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.7 * len(panels), 3.2), layout="constrained", squeeze=False)
    for axis, (name, sign, title) in zip(axes[0], panels, strict=True):
        values = sign * np.array([row[name] for row in reports], np.float64)  # (reports, runs)
        values[~np.isfinite(values)] = math.nan  # of a run that diverged
        for kind, (beta, rate) in enumerate(kinds):
            of_kind = values[:, mine == kind]
            mean, error = rows.mean_and_error(of_kind)
            axis.plot(steps, mean, color=f"C{kind % 10}", label=label(beta, rate, kinds))
            if of_kind.shape[1] > 1:
                axis.fill_between(steps, mean - error, mean + error, color=f"C{kind % 10}", alpha=0.25, linewidth=0)
        axis.set(xlabel="step", ylabel="nats per example", title=title)
        # The first reports, of untrained models, would flatten all the rest.
        shown = values[len(reports) // 20 :]
        shown = shown[np.isfinite(shown)]
        margin = 0.05 * np.ptp(shown) + 1e-3
        axis.set_ylim(shown.min() - margin, shown.max() + margin)
    if len(kinds) > 1:
        axes[0, 0].legend(fontsize=8)
    seeds = len(mine) // len(kinds)
    figure.suptitle(f"{pictures.title(folder)}; means of {seeds} seeds, bands of one standard error")
    return figure


def label(beta: float, rate: float, kinds: list[tuple[float, float]]) -> str:
    """What distinguishes a kind of run from the others."""
    parts = []
    if len({kind[0] for kind in kinds}) > 1:
        parts.append(f"beta {beta:g}")
    if len({kind[1] for kind in kinds}) > 1:
        parts.append(f"learning rate {rate:g}")
    return ", ".join(parts)
