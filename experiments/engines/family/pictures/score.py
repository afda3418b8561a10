"""Draw the parts `denoising` and `score` of `pca_to_vae.py`."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from engines.harness.pictures import show, tile


def draw_denoising(arrays: Any, rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """Noisy test images and their reconstructions; the field over the spiral."""
    return {"denoising": cleaned(arrays, rows), "spiral_field": spiral_field(arrays)}


def cleaned(arrays: Any, rows: list[dict[str, Any]]) -> plt.Figure:
    """A column for each noise: clean images, noisy ones, and below them every model's reconstructions."""
    clean, noises = arrays["clean"], [str(noise) for noise in arrays["noises"]]
    count, height = len(clean), len(arrays["cleaned_0"]) + 1
    figure, axes = plt.subplots(
        height, len(noises), figsize=(1.3 * count * len(noises) / 2 + 2, 0.65 * height + 0.6), layout="constrained"
    )
    for column, noise in enumerate(noises):
        models = [row for row in rows if row["quantity"].endswith(noise)]
        labels = [f"{row['model']}\n{row['value']:.2f} ± {row['standard_error']:.2g}" for row in models]
        images = [clean, *arrays[f"cleaned_{column}"]]
        for axis, label, of_model in zip(axes[:, column], ["clean test image", *labels], images, strict=True):
            show(axis, tile(of_model, count))
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
        axes[0, column].set_title(noise)
    figure.suptitle("Mean squared error to the clean test images; pixels outside [0, 1] are drawn as 0 or 1")
    return figure


def spiral_field(arrays: Any) -> plt.Figure:
    """Reconstruction minus input over the test points, learned and exact."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), sharex=True, sharey=True, layout="constrained")
    names = {"learned": "denoising autoencoder", "best": "the best answer for the training points"}
    grid, longest = arrays["grid"], np.linalg.norm(arrays["best"], axis=1).max()
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        field = arrays[name]
        axis.scatter(*arrays["spiral"].T, s=2, color="tab:orange", label="test points")
        length = np.linalg.norm(field, axis=1)
        arrows = axis.quiver(
            *grid.T, *field.T, length, angles="xy", scale_units="xy", scale=1, width=0.003, clim=(0, longest)
        )
        axis.set(title=title, xlabel="x1", aspect="equal")
    axes[0].set_ylabel("x2")
    axes[0].legend(loc="lower left")
    figure.colorbar(arrows, ax=axes, label="length of the arrow, in units of x", shrink=0.8)
    figure.suptitle("Reconstruction minus input, each arrow from the input to its reconstruction")
    return figure


def draw_score(arrays: Any, rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """The learned score beside the exact one at two sigmas, and their differences at all sigmas."""
    drawn = sorted((float(name.split("_")[1]) for name in arrays if name.startswith("learned_")), reverse=True)
    figure, axes = plt.subplot_mosaic([[0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 4, 4]], figsize=(12, 9.6), layout="constrained")
    for index, sigma in enumerate(drawn):
        fields(axes[index], arrays, sigma)
    parts_of_r(axes[2], arrays)
    relative_errors(axes[3], arrays)
    cosines(axes[4], arrays)
    for index in (2, 3, 4):
        axes[index].set(xscale="log", xlabel="sigma, in units of x")
        axes[index].legend(loc={2: "upper left", 3: "upper right", 4: "lower right"}[index], fontsize=7)
    figure.suptitle("Score of a smoothed mixture of three Gaussians: learned, (r(x) - x) / sigma², and exact")
    return {"score": figure}


def fields(axis: plt.Axes, arrays: Any, sigma: float) -> None:
    """Exact and learned arrows where the density is not negligible."""
    density, fine = arrays[f"density_{sigma}"], arrays["fine_grid"]
    side = round(len(fine) ** 0.5)
    axis.contourf(*fine.T.reshape(2, side, side), density.reshape(side, side), levels=12, cmap="Blues")
    grid = arrays["grid"]
    nearest = np.argmin(((grid[:, None] - fine[None]) ** 2).sum(axis=2), axis=1)
    seen = density[nearest] > 0.01 * density.max()
    longest = np.linalg.norm(arrays[f"exact_{sigma}"][seen], axis=1).max()
    spacing = grid[1, 0] - grid[0, 0]
    style = {"angles": "xy", "scale_units": "xy", "scale": longest / (2 * spacing)}
    axis.quiver(*grid[seen].T, *arrays[f"exact_{sigma}"][seen].T, color="black", width=0.008, label="exact", **style)
    axis.quiver(
        *grid[seen].T, *arrays[f"learned_{sigma}"][seen].T, color="tab:orange", width=0.004, label="learned", **style
    )
    axis.set(title=f"sigma = {sigma}; the longest black arrow stands for {longest:.1f}")
    axis.set(xlabel="x1", ylabel="x2", aspect="equal")
    axis.set(xlim=(-3, 3), ylim=(-3, 3))
    axis.legend(loc="upper right")


def parts_of_r(axis: plt.Axes, arrays: Any) -> None:
    """The two parts of r(x) - x: the score times sigma^2, and the error of the network."""
    sigmas, size, typical = arrays["sigmas"], arrays["size"], float(arrays["typical_error"])
    axis.plot(sigmas, sigmas**2 * size, color="black", label="sigma² times the score")
    error = arrays["relative"].T * sigmas**2 * size
    axis.errorbar(sigmas, error[0], 2 * error[1], marker="o", linestyle="", capsize=3, label="error of r")
    axis.axhline(typical, color="tab:red", linestyle="--", label=f"median error of r, {typical:.2g}")
    axis.set(yscale="log", ylabel="root mean square, in units of x", title="In r(x) - x")


def relative_errors(axis: plt.Axes, arrays: Any) -> None:
    """Relative errors of the score, and the line of a constant error of r."""
    sigmas, (relative, error) = arrays["sigmas"], arrays["relative"].T
    axis.errorbar(sigmas, relative, 2 * error, marker="o", linestyle="", capsize=3, label="measured")
    line = float(arrays["typical_error"]) / sigmas**2 / arrays["size"]
    axis.plot(sigmas, line, color="tab:red", linestyle="--", label="the median error of r / sigma² / score")
    for height, name in ((1, "as large as the score"), (0.1, "10%")):
        axis.axhline(height, color="grey", linewidth=1, linestyle=":")
        axis.text(sigmas[-1], height * 1.05, name, ha="right", va="bottom", color="grey", fontsize=8)
    axis.set(yscale="log", ylabel="relative error of the score", title="Where the error / sigma² takes over")


def cosines(axis: plt.Axes, arrays: Any) -> None:
    """Mean cosines over points of the smoothed density."""
    cosine, error = arrays["cosine"].T
    axis.errorbar(arrays["sigmas"], cosine, 2 * error, marker="o", capsize=3, label="measured; bars: 2 standard errors")
    axis.axhline(0.95, color="grey", linewidth=1, linestyle=":")
    axis.text(arrays["sigmas"][0], 0.955, "0.95", ha="left", va="bottom", color="grey", fontsize=8)
    axis.set(ylabel="mean cosine of learned and exact score", title="Direction")
