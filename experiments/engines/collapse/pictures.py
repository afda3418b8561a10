"""Pictures of `collapse.py`: training under each cure, weights of the KL, gaps and posteriors, EM beside gradients."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from engines.harness import part_pictures
from engines.harness.rows import mean_and_error

Arrays = Mapping[str, np.ndarray]

Rows = list[dict[str, Any]]

# As the tables of experiments/README.md call the cures.
NAMES = {
    "plain": "as usual",
    "lambda": "KL of weight 0.5",
    "cyclical": "cycles of warm-up",
    "aggressive": "encoder ahead",
}


def draw_trap(arrays: Arrays, rows: Rows) -> dict[str, plt.Figure]:
    """KL and ELBO during training, and log p(x) at the end, of every cure."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for i, cure in enumerate(arrays["cures"]):
        for axis, what in ((axes[0], "kl"), (axes[1], "elbo")):
            band(axis, arrays["steps"], arrays[f"{cure}: {what}"], f"C{i}", NAMES.get(cure, cure))
        values = arrays[f"{cure}: log p(x)"]
        axes[2].plot([i] * len(values), values, "o", color=f"C{i}", alpha=0.7)
    axes[0].set(xlabel="step", ylabel="KL(q(z|x) || p(z)), nats per example", title="Are the latents used?")
    axes[0].set_yscale("symlog", linthresh=1)
    lowest = float(arrays["baseline"])
    axes[1].axhline(lowest, color="grey", linestyle=":", label="independent pixels")
    axes[1].set(xlabel="step", ylabel="ELBO of training batches, nats", title="The bound", ylim=(1.15 * lowest, None))
    axes[1].legend(fontsize=8)
    axes[2].axhline(lowest, color="grey", linestyle=":")
    names = [NAMES.get(cure, cure) for cure in arrays["cures"]]
    axes[2].set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes[2].set(ylabel="test log p(x), nats, a dot for each seed", title="After training")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle("A relu network with its output bias at the pixel means; bands: least and greatest of the seeds")
    return {"trap": figure}


def draw_text(arrays: Arrays, rows: Rows) -> dict[str, plt.Figure]:
    """KL during training, encoder steps, and the spread of the means of model and inference."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    _, information = arrays["known"]
    for i, cure in enumerate(arrays["cures"]):
        band(axes[0], arrays["steps"], arrays[f"{cure}: kl"], f"C{i}", NAMES.get(cure, cure))
        ahead = arrays[f"{cure}: encoder_steps"]  # (seeds, steps)
        if ahead.max() > 1:
            axes[1].plot(arrays["steps"], ahead.T, color=f"C{i}", linewidth=1, alpha=0.7)
        mean, error = over_seeds(np.moveaxis(arrays[f"{cure}: watched"], 0, 1))  # of (moments, seeds, 2)
        if cure in ("plain", "aggressive"):  # the ways of the others cross these and one another
            axes[2].plot(*mean.T, color=f"C{i}", marker=".", linewidth=1.2)
        axes[2].errorbar(*mean[-1], *error[-1][::-1], color=f"C{i}", elinewidth=1)
        axes[2].plot(*mean[-1], color=f"C{i}", marker="*", markersize=15, markeredgecolor="white")
    axes[0].axhline(information, color="grey", linestyle=":", label="information in the generator")
    axes[0].set(xlabel="step", ylabel="KL(q(z|x) || p(z)), nats per sequence", title="Are the latents used?")
    axes[1].xaxis.set_major_formatter("{x:,.0f}")
    axes[1].set(
        xlabel="step", ylabel="encoder steps for each of the decoder", title="Encoder ahead, a line for each seed"
    )
    limits = (0, 1.05 * max(axes[2].get_xlim()[1], axes[2].get_ylim()[1]))
    axes[2].plot(limits, limits, color="grey", linewidth=0.8, label="where they agree")
    axes[2].set(
        xlabel="spread of the means of p(z|x): model",
        ylabel="spread of the means of q(z|x): inference",
        title="The way of two, and where each ends (star)",
        xlim=limits,
        ylim=limits,
    )
    axes[2].legend(fontsize=8, loc="upper left")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    figure.suptitle(
        "An LSTM that can do without its latents; bands: least and greatest of the seeds, bars: standard errors"
    )
    return {"text": figure}


def draw_weights(arrays: Arrays, rows: Rows) -> dict[str, plt.Figure]:
    """Log p(x) and ELBO against the weight of the KL, and distortion against rate."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    numbers = arrays["numbers"]  # (weights, seeds, 4)
    mean, error = over_seeds(numbers)
    for j, name in enumerate(("log p(x)", "ELBO")):
        axes[0].errorbar(arrays["weights"], mean[:, j], error[:, j], marker="o", markersize=4, capsize=2, label=name)
    axes[0].axvline(1, color="grey", linestyle=":", label="weight 1, the ELBO")
    axes[0].set(xscale="log", xlabel="weight of the KL in training", ylabel="nats per test example")
    axes[0].legend(fontsize=8)
    axes[1].errorbar(mean[:, 2], mean[:, 3], error[:, 3], error[:, 2], marker="o", markersize=4, capsize=2)
    for weight, at in zip(arrays["weights"], mean, strict=True):
        axes[1].annotate(f"{weight:g}", (at[2], at[3]), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes[1].set(xlabel="rate, nats", ylabel="distortion, nats", title="Rate and distortion at each weight")
    figure.suptitle("What the weight of the KL does; bars are standard errors over seeds")
    return {"weights": figure}


def draw_gaps(arrays: Arrays, rows: Rows) -> dict[str, plt.Figure]:
    """The two gaps of each image, and one Gaussian fitted to two modes by both divergences."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    _, approximation, amortization = arrays["per_example"]
    names = ("approximation: the family of q", "amortization: one network for all x")
    edges = np.histogram_bin_edges(np.concatenate([approximation, amortization]), 50)
    for values, name in zip((approximation, amortization), names, strict=True):
        axes[0].hist(values, bins=edges, alpha=0.6, label=f"{name}, mean {values.mean():.2f}")
    axes[0].set(xlabel="nats", ylabel="test images", title="The two parts of log p(x) - ELBO")
    axes[0].legend(fontsize=8)
    axis = arrays["grid_axis"]
    axes[1].contourf(axis, axis, arrays["grid_density"].T, levels=12, cmap="Blues")
    fits = zip(arrays["grid_names"], arrays["grid_means"], arrays["grid_covariances"], strict=True)
    for i, (name, mean, covariance) in enumerate(fits):
        variances, directions = np.linalg.eigh(covariance)
        angle = np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))
        for radius in (1, 2):
            size = 2 * radius * np.sqrt(variances[::-1])
            label = f"least {name}" if radius == 1 else None
            axes[1].add_patch(Ellipse(mean, *size, angle=angle, fill=False, edgecolor=f"C{i + 1}", lw=1.5, label=label))
    axes[1].set(xlabel="z1", ylabel="z2", title="A posterior of two modes; 1 and 2 stds of each Gaussian")
    axes[1].legend(fontsize=8)
    return {"gaps": figure}


def draw_em(arrays: Arrays, rows: Rows) -> dict[str, plt.Figure]:
    """Log p(x) by EM and by gradients, and each of its falls."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    known = float(arrays["known"])
    axes[0].plot(known - arrays["em"], label="log p(x) = ELBO after the E-step")
    axes[0].plot(known - arrays["em_elbo_before"], "--", label="ELBO before it")
    axes[0].set(yscale="log", xlabel="round", ylabel="maximum - value, nats", title="Exact EM")
    axes[0].legend(fontsize=8)
    axes[1].plot(known - arrays["gradients"], label="log p(x)")
    axes[1].plot(known - arrays["elbo"], alpha=0.4, label="ELBO of the batch")
    axes[1].set(yscale="log", xlabel="step", ylabel="maximum - value, nats", title="Gradients of a sampled ELBO")
    axes[1].legend(fontsize=8)
    falls = arrays["falls"]
    where = np.flatnonzero(falls < 0)
    axes[2].vlines(where + 1, 0, -falls[where], linewidth=0.6)
    axes[2].set(yscale="log", xlabel="step", ylabel="fall of log p(x) in one step, nats")
    axes[2].set_title(f"log p(x) falls in {len(where):,} of {len(falls):,} steps; under EM in none")
    return {"em": figure}


def band(axis: plt.Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """The mean over runs, and a band from the least to the greatest of them."""
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.plot(steps, values.mean(axis=0), color=colour, label=label)
    axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over axis 1, the seeds; the error is 0 for a single seed."""
    mean, error = mean_and_error(np.moveaxis(values, 1, -1))
    return mean, np.nan_to_num(error)


# `(arrays, rows) -> {name of the picture: figure}` of each part.
DRAWN = {"trap": draw_trap, "text": draw_text, "weights": draw_weights, "gaps": draw_gaps, "em": draw_em}


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw every picture of the parts that are done. Returns their paths."""
    return part_pictures.draw(folder, DRAWN)
