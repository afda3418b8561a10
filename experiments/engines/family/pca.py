"""PCA and its probabilistic model: the part `pca` of `pca_to_vae.py`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engines.family.setting import Setting
from engines.harness.rows import Result, mean_row, row
from vaejax import autoencoders

# MNIST, all 60,000 images, pixels in [0, 1]: squared error per test image, and mean test log-likelihood for k = 30.
KNOWN_ERRORS = {2: 43.645, 20: 18.454, 30: 13.866}
KNOWN_LOG_LIKELIHOOD = 394.6156
ERROR, SQUARES = "squared error per test image", "squared pixel values"
NUM_FACES = 15


def run(setting: Setting) -> Result:
    """PCA and probabilistic PCA of the images, in double precision, and eigenfaces."""
    rows, k = [], setting.latent_dim
    is_mnist = setting.train.name == "mnist"
    images = setting.train.images
    with jax.enable_x64(True):
        test = jnp.asarray(setting.test.images, jnp.float64)
        model = autoencoders.pca(images, k)
        widest = autoencoders.pca(images, 30 if setting.small else 300)
        for number in sorted({2, 20, k}):
            errors = errors_of_pca(first(widest, number), test)
            known = KNOWN_ERRORS.get(number) if is_mnist else None
            rows.append(mean_row(f"PCA, k = {number}", ERROR, errors, SQUARES, known=known))
        known = KNOWN_LOG_LIKELIHOOD if is_mnist and k == 30 else None
        likelihood, what = model.log_likelihood(test), "log p(x) of test images"
        rows.append(mean_row(f"probabilistic PCA, k = {k}", what, likelihood, "nats", known=known))
        total = float(np.var(images, axis=0, dtype=np.float64).sum())
        # In parts: all images at once take much memory in double precision.
        parts = np.array_split(images, math.ceil(len(images) / 10_000))
        left = sum(float(errors_of_pca(model, jnp.asarray(part, jnp.float64)).sum()) for part in parts) / len(images)
        projected = float(model.explained_variance.sum())
        held = np.cumsum(np.asarray(widest.explained_variance)) / total
    rows.append(
        row(
            f"PCA, k = {k}",
            "|total variance - reconstruction error - projected variance| / total variance",
            abs(total - left - projected) / total,
            "1",
            known=0,
            note=f"of the training images, in double precision: {total:.6f} = {left:.6f} + {projected:.6f}",
        )
    )
    arrays = {"mean": model.mean, "components": widest.components[:15], "held": held, "code_size": k}
    face_rows, faces = eigenfaces(setting.faces)
    return Result(rows + face_rows, {name: np.asarray(array) for name, array in (arrays | faces).items()})


def first(model: autoencoders.PCA, k: int) -> autoencoders.PCA:
    """The first k components alone, to encode and decode: their noise variance is not adapted."""
    return model._replace(components=model.components[:k], explained_variance=model.explained_variance[:k])


def errors_of_pca(model: autoencoders.PCA, x: jax.Array) -> jax.Array:
    """The squared error of each image, (n,)."""
    return ((x - model.decode(model.encode(x))) ** 2).sum(axis=tuple(range(1, x.ndim)))


def eigenfaces(faces: np.ndarray | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Principal components of the faces, if there are any."""
    if faces is None:
        note = "left out: --faces FILE takes an npz with `images` (n, height, width), such as the Frey faces"
        return [row("eigenfaces", "faces", 0, "images", note=note)], {}
    model = autoencoders.pca(faces, NUM_FACES)
    held = float(model.explained_variance.sum()) / float(np.var(faces, axis=0, dtype=np.float64).sum())
    note = "the set of --faces stands in for the lecture's, which is not at hand"
    return [
        row("eigenfaces", "faces", len(faces), "images", note=note),
        row("eigenfaces", f"variance held by {NUM_FACES} of them", 100 * held, "%"),
    ], {"mean_face": model.mean, "eigenfaces": model.components}
