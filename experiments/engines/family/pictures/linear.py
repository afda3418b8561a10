"""Draw the parts `pca`, `linear` and `linear_vae` of `pca_to_vae.py`."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from engines.harness.pictures import show, tile

COLUMNS = 8
LATENTS = 10  # of each model that are drawn
SMALLEST = 1e-10  # on a logarithmic axis


def draw_pca(arrays: Any, rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """Mean and first components of the images, the variance they hold, and the same components of the faces, if any."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=(2, 1), layout="constrained")
    components(left, arrays["mean"], arrays["components"])
    left.set_title(f"Eigendigits: mean and first {len(arrays['components'])} components")
    held = 100 * arrays["held"]
    right.plot(np.arange(1, len(held) + 1), held)
    for k in sorted({2, 20, int(arrays["code_size"])}):
        right.plot(k, held[k - 1], "o", color="tab:orange")
        right.annotate(f"k = {k}: {held[k - 1]:.1f}%", (k, held[k - 1]), (8, -10), textcoords="offset points")
    right.set(xlabel="components k", ylabel="% of the variance of the training images", title="Variance held")
    right.set_ylim(0, 102)
    figures = {"eigendigits": figure}
    if "eigenfaces" in arrays:
        count = next(row["value"] for row in rows if row["model"] == "eigenfaces" and row["quantity"] == "faces")
        figures["eigenfaces"], axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
        components(axis, arrays["mean_face"], arrays["eigenfaces"])
        axis.set_title(
            f"Eigenfaces: mean and first {len(arrays['eigenfaces'])} components of {count:,.0f} images\n"
            "(the set given by --faces stands in for the lecture's, which is not at hand)"
        )
    return figures


def components(axis: plt.Axes, mean: np.ndarray, vectors: np.ndarray) -> None:
    """The mean, then the components, each scaled to its largest entry and mid-grey for 0."""
    images = np.concatenate([mean[None], 0.5 + 0.5 * scaled(vectors)])
    show(axis, tile(images, COLUMNS))
    axis.set_xlabel("first the mean; in components mid-grey is 0, each is scaled to its largest entry")


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Each divided by its largest entry."""
    largest = np.abs(vectors).max(axis=tuple(range(1, vectors.ndim)), keepdims=True)
    return vectors / np.where(largest == 0, 1, largest)


def draw_linear(arrays: Any, rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """The decoders' axes beside the eigendigits, and both distances against training steps."""
    return {"linear_axes": axes_of_decoders(arrays), "linear_paths": paths(arrays)}


def axes_of_decoders(arrays: Any) -> plt.Figure:
    """A row for each model: what each latent adds to the image, below the principal components."""
    exact, *learned = arrays["axes"]
    names = [str(name) for name in arrays["names"]]
    count = min(LATENTS, len(exact))
    figure, drawn = plt.subplots(
        len(names) + 1, 1, figsize=(0.75 * count + 2.2, 0.8 * len(names) + 1.4), layout="constrained"
    )
    labels = ["PCA"]
    labels += [f"{name}\naxis alignment {arrays[f'path_{i}'][-1, 2]:.2g}" for i, name in enumerate(names)]
    for axis, label, vectors in zip(drawn, labels, [exact, *(towards(own, exact) for own in learned)], strict=True):
        tiled = tile(0.5 + 0.5 * scaled(vectors[:count]), count)
        axis.imshow(tiled, cmap="RdBu_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    shown = "The latents" if count == len(exact) else f"First {count} of {len(exact)} latents"
    figure.suptitle(
        f"{shown} in their own order: what each adds to the image\n"
        "(with the sign that points to the nearest component; blue below 0, red above)",
        fontsize=9,
    )
    return figure


def towards(axes: np.ndarray, components: np.ndarray) -> np.ndarray:
    """The axes (k, *data), each with the sign that points to its nearest component."""
    cosines = axes.reshape(len(axes), -1) @ components.reshape(len(components), -1).T
    nearest = np.abs(cosines).argmax(axis=1)
    signs = np.where(cosines[np.arange(len(axes)), nearest] < 0, -1, 1)
    return axes * signs.reshape(-1, *(1,) * (axes.ndim - 1))


def paths(arrays: Any) -> plt.Figure:
    """Subspace distance and axis alignment against steps."""
    figure, drawn = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for column, (axis, name, limit) in enumerate(
        zip(drawn, ("Subspace distance", "Axis alignment"), (1e-3, 0.05), strict=True), 1
    ):
        for i, label in enumerate(arrays["names"]):
            path = arrays[f"path_{i}"]
            axis.plot(path[:, 0], np.maximum(path[:, column], SMALLEST), label=str(label))
        axis.axhline(limit, color="grey", linestyle=":")
        axis.text(1.01, limit, f"{limit:g}", transform=axis.get_yaxis_transform(), va="center", color="grey")
        axis.set(xlabel="step", yscale="log", title=f"{name}, 0 where the components are found")
        axis.set_ylabel(f"{name.lower()} (no unit)")
    drawn[1].legend(fontsize=7, title="dotted: what is asked for", title_fontsize=7)
    figure.suptitle(
        "Linear autoencoders trained by gradient, on their way to the principal components\n"
        f"(values below {SMALLEST:g} are drawn at {SMALLEST:g})"
    )
    return figure


def draw_linear_vae(arrays: Any, rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """How far the ELBO is below its maximum, against steps."""
    maximum = float(arrays["maximum"])
    figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for name in ("closed-form gradient", "sampled gradient"):
        steps, elbo = arrays[name.replace(" ", "_")].T
        axis.plot(steps, maximum - elbo, label=f"{name}: {maximum - elbo[-1]:.3g} nats at the end")
    axis.axhline(0.15, color="grey", linestyle=":", label="0.15 nats, what is asked for with the closed-form gradient")
    axis.set(yscale="log", xlabel="step", ylabel="maximum - ELBO, nats per example")
    axis.set_title(
        f"Linear VAE: how far its ELBO is below the greatest one,\nlog p(x) of probabilistic PCA = {maximum:.3f} nats"
    )
    axis.legend()
    return {"linear_vae": figure}
