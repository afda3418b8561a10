"""The examples of a split as the model takes them: an array, or a batch with a context and a mask."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engines.harness import loading
from vaejax import data, models

Examples = Any  # an array (n, *data_shape), or a models.Batch of arrays


def num_labels(images: dict[str, data.Dataset], condition_on: str) -> int | None:
    """How many labels a model conditions on; None where it conditions on nothing.

    Raises:
        ValueError: if the set has no labels.
    """
    if condition_on == "nothing":
        return None
    labels = [part.labels for part in images.values() if part.labels is not None]
    if not labels:
        raise ValueError(f"--condition-on label needs a set with labels; got {next(iter(images.values())).name}")
    return 1 + int(np.concatenate(labels).max())


def of_split(part: data.Dataset, split: str, number: int | None, missing: float, x: Any = None) -> Examples:
    """The examples of a split.

    Args:
        part: the split.
        split: its name; the numbers that are missing are the same in every run.
        number: of labels, one-hot in the context; None: no context.
        missing: share of the numbers of each example that are missing.
        x: the images, if they are others than those of the split, binarized ones, say.
    """
    x = part.images if x is None else x
    if number is None and not missing:
        return x
    context = None if number is None else np.eye(number, dtype=np.float32)[part.labels]
    if not missing:
        return models.Batch(x, context)
    key = loading.evaluation_key(f"what is missing in {split}")
    return models.Batch(x, context, np.asarray(jax.random.uniform(key, x.shape) >= missing))


def take(examples: Examples, rows: Any) -> Examples:
    """Some of the examples: a slice, or their numbers."""
    return jax.tree.map(lambda leaf: leaf[rows], examples)


def labels_of_columns(count: int, number: int) -> jax.Array:
    """A context (count, number) that goes through the labels again and again, so that each column of ten shows one."""
    return jax.nn.one_hot(jnp.arange(count) % min(number, 10), number)
