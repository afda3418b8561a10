"""Draw the parts `bottleneck`, `generator` and `game` of `pca_to_vae.py`, mostly points in the plane."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from engines.harness.pictures import scatter, show, tile
from engines.harness.rows import mean_and_error

DISTANCE = "energy distance of samples to test data"


def draw_bottleneck(arrays: Mapping[str, np.ndarray], rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """Samples of each model from latents of each kind (first seed), and the curve of its decoder."""
    names, distances = arrays["names"], arrays["distances"]
    models = list(dict.fromkeys(names[:, 0]))[1:]
    kinds = ["reconstructions", *(kind for kind in dict.fromkeys(names[1:, 1]) if kind != "reconstructions")]
    extent = 1.15 * np.abs(arrays["data"]).max()
    figure, axes = plt.subplots(
        len(models), len(kinds) + 1, figsize=(2.9 * (len(kinds) + 1), 2.9 * len(models)), layout="constrained"
    )
    where = {tuple(name): i for i, name in enumerate(names)}
    for model, row in zip(models, axes, strict=True):
        panel = row[0]
        scatter(panel, arrays["data"], np.zeros(0))
        curve = arrays[f"curve_{model}"]
        panel.plot(curve[:, 1], curve[:, 2], color="black", linewidth=1.2)
        if model != "autoencoder":
            shown = curve[:: len(curve) // 15]
            panel.errorbar(
                *shown[:, 1:3].T, xerr=shown[:, 3], yerr=shown[:, 4], fmt="none", ecolor="tab:red", elinewidth=0.7
            )
        panel.set_title("data, mean of p(x|z) (black)" + ("" if model == "autoencoder" else "\nand its std (red)"))
        panel.set_ylabel(f"{model.replace(', ', chr(10))}\n\nx2")
        for kind, panel in zip(kinds, row[1:], strict=True):
            i = where.get((model, kind))
            if i is None:
                panel.axis("off")
                continue
            scatter(panel, arrays[f"samples_{i}"], np.zeros(0))
            mean, error = mean_and_error(distances[i])
            panel.set_title(f"{kind}\nenergy distance {mean:.2g} ± {error:.2g}")
        for panel in row:
            panel.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
    for panel in axes.flat:
        panel.set_xlabel("x1")
    floor = distances[0]
    figure.suptitle(
        "Two Gaussians through one latent, first seed. Energy distance to fresh points: mean over "
        f"{len(floor)} seeds ± standard error; between two sets of points it is {floor.mean():.1g}"
    )
    return {"bottleneck": figure}


def draw_generator(arrays: Mapping[str, np.ndarray], rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """ELBO and log p(x) against the std of the decoder, and samples for three of them."""
    stds, shown = arrays["stds"], arrays["shown"]
    figure, axes = plt.subplots(1, 1 + len(shown), figsize=(4 + 3.1 * len(shown), 3.7), layout="constrained")
    for curves, style, how in zip(arrays["curves"], ("-", "--"), ("trained with it", "trained with 0.5"), strict=True):
        for j, (name, colour) in enumerate((("ELBO", "tab:blue"), ("log p(x)", "tab:red"))):
            mean, error = curves[:, j].T
            axes[0].errorbar(stds, mean, error, color=colour, linestyle=style, capsize=2, label=f"{name}, {how}")
    axes[0].set(
        xscale="log", xlabel="std of p(x|z)", ylabel="nats per example, test points", title="They fall as -1/std²"
    )
    axes[0].set_yscale("symlog", linthresh=10)
    axes[0].set_ylim(top=3)
    axes[0].legend(fontsize=6.5, handlelength=4, loc="lower right")
    extent = 1.15 * np.abs(arrays["data"]).max()
    distances = [row for row in rows if row["quantity"].startswith("energy distance")]
    for i, panel in enumerate(axes[1:]):
        scatter(panel, arrays["samples"][i], np.zeros(0))
        panel.plot(*arrays["generators"][i].T, color="black", linewidth=1)
        distance = distances[i]
        panel.set_title(
            f"std {shown[i]:g}: samples and G(z)\n"
            f"energy distance {distance['value']:.3f} ± {distance['standard_error']:.3f}"
        )
        panel.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", xlabel="x1", ylabel="x2")
    figure.suptitle("A decoder that loses its noise loses its likelihood: two Gaussians, one latent")
    return {"generator": figure}


def draw_game(arrays: Mapping[str, np.ndarray], rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """The two losses of both games against steps, and samples beside the VAE's, for points and for digits."""
    figure, axes = plt.subplots(2, 6, figsize=(18, 6), layout="constrained")
    for row, name in zip(axes, ("two Gaussians", "digits"), strict=True):
        distances = [line for line in rows if line["quantity"] == DISTANCE and name in line["model"]]
        for panel, losses, kind in zip(row, arrays[f"{name}: losses"], ("minimax", "non-saturating"), strict=False):
            for loss, player in zip(losses, ("discriminator", "generator"), strict=True):
                panel.plot(arrays[f"{name}: steps"], loss, label=player)
            panel.axhline(np.log(4), color="0.6", linewidth=0.8, linestyle=":", label="log 4: D cannot tell")
            panel.set(xlabel="step", ylabel="loss, nats", title=f"{name}:\n{kind} game")
        row[0].set_ylim(top=1.35 * row[0].get_ylim()[1])  # room for the legend
        row[0].legend(fontsize=7, loc="upper right")
        shown = [("test data", arrays[f"{name}: data"], distances[0])]
        shown += [
            (kind, samples, line)
            for kind, samples, line in zip(
                ("GAN, minimax", "GAN, non-saturating", "VAE"), arrays[f"{name}: samples"], distances[1:], strict=True
            )
        ]
        for panel, (kind, samples, line) in zip(row[2:], shown, strict=True):
            what = "floor" if kind == "test data" else "energy distance"
            panel.set_title(f"{kind}\n{what} {line['value']:.3f} ± {line['standard_error']:.3f}")
            if samples.ndim > 2:
                show(panel, tile(samples[:49], 7))
            else:
                extent = 1.15 * np.abs(arrays[f"{name}: data"]).max()
                scatter(panel, samples, np.zeros(0))
                panel.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", xlabel="x1", ylabel="x2")
    figure.suptitle("The adversarial game: losses, and samples beside those of a VAE with the same decoder")
    return {"game": figure}
