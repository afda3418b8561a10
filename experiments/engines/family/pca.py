"""PCA and its probabilistic model: `pca` of `pca_to_vae.py`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engines.family.setting import Setting
from engines.harness.rows import Result, mean_row, row
from vaejax import autoencoders

# MNIST, all 60,000 images, pixels in [0, 1]: squared error per test image, and the mean test log-likelihood of 30.
KNOWN_ERRORS = {2: 43.645, 20: 18.454, 30: 13.866}

KNOWN_LOG_LIKELIHOOD = 394.6156

ERROR = "squared error per test image"

SQUARES = "squared pixel values"

NUM_FACES = 15


def run(setting: Setting) -> Result:
    """PCA and probabilistic PCA of the images, in double precision, and eigenfaces."""
    rows = []
    is_mnist = setting.train.name == "mnist"
    with jax.enable_x64(True):
        test = jnp.asarray(setting.test.images, jnp.float64)
        model = autoencoders.pca(setting.train.images, setting.code_size)
        widest = autoencoders.pca(setting.train.images, 30 if setting.small else 300)
        for k in sorted({2, 20, setting.code_size}):
            known = KNOWN_ERRORS.get(k) if is_mnist else None
            rows.append(mean_row(f"PCA, k = {k}", ERROR, errors_of_pca(first(widest, k), test), SQUARES, known=known))
        rows.append(
            mean_row(
                f"probabilistic PCA, k = {setting.code_size}",
                "log p(x) of test images",
                model.log_likelihood(test),
                "nats",
                known=KNOWN_LOG_LIKELIHOOD if is_mnist and setting.code_size == 30 else None,
            )
        )
        total = float(np.var(setting.train.images, axis=0, dtype=np.float64).sum())
        # In parts, since double precision of all images at once takes much memory.
        parts = np.array_split(setting.train.images, math.ceil(len(setting.train.images) / 10_000))
        left = sum(float(errors_of_pca(model, jnp.asarray(part, jnp.float64)).sum()) for part in parts)
        left /= len(setting.train.images)
        projected = float(model.explained_variance.sum())
        held = np.cumsum(np.asarray(widest.explained_variance)) / total
    rows.append(
        row(
            f"PCA, k = {setting.code_size}",
            "|total variance - reconstruction error - projected variance| / total variance",
            abs(total - left - projected) / total,
            "1",
            known=0,
            note=f"of the training images, in double precision: {total:.6f} = {left:.6f} + {projected:.6f}",
        )
    )
    arrays = {"mean": model.mean, "components": widest.components[:15], "held": held, "code_size": setting.code_size}
    face_rows, faces = eigenfaces(setting.faces)
    return Result(rows + face_rows, {name: np.asarray(array) for name, array in (arrays | faces).items()})


def first(model: autoencoders.PCA, k: int) -> autoencoders.PCA:
    """A PCA with the first k components alone, for what does not ask for the noise variance."""
    return model._replace(components=model.components[:k], explained_variance=model.explained_variance[:k])


def errors_of_pca(model: autoencoders.PCA, x: jax.Array) -> jax.Array:
    """Squared error of each image."""
    return ((x - model.decode(model.encode(x))) ** 2).sum(axis=tuple(range(1, x.ndim)))


def eigenfaces(faces: np.ndarray | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Principal components of a face set, where one was given."""
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
