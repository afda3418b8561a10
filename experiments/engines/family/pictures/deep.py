"""Draw the part `deep` of `pca_to_vae.py`: the same test images reconstructed by every model."""

from typing import Any

import matplotlib.pyplot as plt

from engines.harness.pictures import show, tile


def draw(arrays: Any, rows: list[dict[str, Any]]) -> dict[str, plt.Figure]:
    """One page: test images, and below each its reconstruction by every model."""
    labels = ["test image"]
    for row in rows:
        if row["quantity"] == "squared error per test image":
            labels.append(f"{row['model']}\n{row['value']:.2f} ± {row['standard_error']:.2f}")
    images = [arrays["originals"], *arrays["reconstructions"]]
    count = len(images[0])
    figure, axes = plt.subplots(
        len(images), 1, figsize=(0.75 * count + 2, 0.8 * len(images) + 0.4), layout="constrained"
    )
    for axis, label, of_model in zip(axes, labels, images, strict=True):
        show(axis, tile(of_model, count))
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(
        f"Test images and their reconstructions from {arrays['code_size']} latents;\n"
        "below each model's name its mean squared error per test image"
    )
    return {"page": figure}
