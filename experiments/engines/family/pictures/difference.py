"""Draw the part `difference` of `pca_to_vae.py`: three models, their latents and what they generate."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from engines.harness.pictures import COLOURS, scatter, show, tile

STYLES = (("#0072B2", "s"), ("#E69F00", "^"), ("#000000", "o"))  # of the models; Okabe & Ito's colours


def draw(arrays: Any, rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """Every picture of the part."""
    return {
        "generated": generated(arrays, rows),
        "training_strip": training_strip(arrays),
        "interpolations": interpolations(arrays, rows),
        "code_noise": latent_noise(arrays),
    }


def generated(arrays: Any, rows: list[dict[str, Any]]) -> plt.Figure:
    """Samples of each model from latents of the prior and of a fitted Gaussian, beside test images."""
    names = list(arrays["names"])
    kinds = ("latents from N(0, I)", "latents from a Gaussian\nfitted to the training latents")
    figure, axes = plt.subplots(2, 1 + len(names), figsize=(2.5 * (1 + len(names)), 5.6), layout="constrained")
    show(axes[0, 0], tile(arrays["real"], 6))
    axes[0, 0].set_title("test images")
    (floor,) = measured(rows, "training images, the floor", "energy distance", 3)
    axes[0, 0].set_xlabel(f"training images: {floor}")
    axes[1, 0].set_axis_off()
    for column, name in enumerate(names, 1):
        for row, label in enumerate(measured(rows, name, "energy distance", 3)):  # in the order of `kinds`
            show(axes[row, column], tile(arrays["generated"][column - 1, row], 6))
            axes[row, column].set_xlabel(label)
        axes[0, column].set_title(name)
    for row, kind in enumerate(kinds):
        axes[row, 1].set_ylabel(kind)
    figure.suptitle("Generated images (means of p(x|z)); below each, energy distance to test images, in pixel values")
    return figure


def training_strip(arrays: Any) -> plt.Figure:
    """Latents of test images, and below them images from the prior: two rows for each model, a column for each step.

    The frame is the same for all steps; latents beyond the 99.5% quantile may lie outside of it.
    """
    names, steps, labels = arrays["names"], arrays["strip_steps"], arrays["strip_labels"]
    figure, axes = plt.subplots(
        2 * len(names),
        len(steps),
        figsize=(1.9 * len(steps) + 1.2, 4.2 * len(names)),
        squeeze=False,
        layout="constrained",
    )
    angles = np.linspace(0, 2 * np.pi, 100)
    for model, name in enumerate(names):
        latents = arrays["strip_codes"][model]
        extent = max(2.5, 1.05 * np.quantile(np.abs(latents), 0.995))
        for column, step in enumerate(steps):
            top, bottom = axes[2 * model : 2 * model + 2, column]
            scatter(top, latents[column], labels)
            top.plot(2 * np.cos(angles), 2 * np.sin(angles), color="black", linewidth=0.8)
            top.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", xlabel="z1")
            if column:
                top.set_yticklabels([])
            if not model:
                top.set_title(f"step {step:,}")
            show(bottom, tile(arrays["strip_samples"][model, column], 3))
            estimate, error = arrays["strip_distances"][model, column]
            bottom.set_xlabel(f"{estimate:.2f} ± {error:.2f}")
        axes[2 * model, 0].set_ylabel(f"{name}\nz2")
        axes[2 * model + 1, 0].set_ylabel("from N(0, I)")
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=COLOURS(i % 10), label=str(i))
        for i in np.unique(labels)[:10]
    ]
    figure.legend(handles=handles, title="label", loc="outside right upper")
    figure.suptitle(
        "Latents of test images, with the circle |z| = 2 that holds 86% of N(0, I), and images decoded from N(0, I);\n"
        "below the images their energy distance to test images, in pixel values"
    )
    return figure


def interpolations(arrays: Any, rows: list[dict[str, Any]]) -> plt.Figure:
    """Straight lines between two test images, in pixels and in the latents of each model."""
    names = ["pixels themselves", *arrays["names"]]
    pictures = arrays["interpolations"]
    num_pairs = pictures.shape[1]
    figure, axes = plt.subplots(2, 2, figsize=(10, 1.1 * num_pairs + 1.6), layout="constrained")
    for axis, name, lines in zip(axes.flat, names, pictures, strict=True):
        show(axis, tile(lines.reshape(-1, *lines.shape[2:]), lines.shape[1]))
        (middles,), (ends,) = (measured(rows, name, f"training image, {where}", 2) for where in ("middles", "ends"))
        axis.set_title(name)
        axis.set_xlabel(f"middles {middles}, ends {ends}")
    figure.suptitle(
        "Straight lines between two test images, in pixels or between their latents;\n"
        "below each, mean distance to the nearest training image, in pixel values"
    )
    return figure


def latent_noise(arrays: Any) -> plt.Figure:
    """Reconstruction error against noise on the latents."""
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for name, errors, (colour, marker) in zip(arrays["names"], arrays["noise_errors"], STYLES, strict=True):
        mean, error = errors.T
        axes.plot(arrays["noise_levels"], mean, color=colour, marker=marker, markersize=4, label=name)
        axes.fill_between(arrays["noise_levels"], mean - 2 * error, mean + 2 * error, color=colour, alpha=0.2, lw=0)
    if arrays["posterior_std"] <= axes.get_xlim()[1]:
        axes.axvline(arrays["posterior_std"], color="black", linestyle=":", label="std of q(z|x), VAE")
    axes.set_xscale("symlog", linthresh=0.02)
    axes.set_xticks(arrays["noise_levels"], [f"{level:g}" for level in arrays["noise_levels"]])
    axes.minorticks_off()
    axes.set_xlim(-0.005, 1.2 * arrays["noise_levels"][-1])
    axes.set(xlabel="std of the noise, in stds of the latents", ylabel="squared error per test image")
    axes.set_title("Reconstruction from noisy latents; bands of two standard errors")
    axes.legend()
    return figure


def measured(rows: list[dict[str, Any]], model: str, quantity: str, digits: int) -> list[str]:
    """Value ± standard error of each row of the model whose quantity contains these words."""
    found = (row for row in rows if row["model"] == model and quantity in row["quantity"])
    return [f"{row['value']:.{digits}f} ± {row['standard_error']:.{digits}f}" for row in found]
