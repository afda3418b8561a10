"""The data that the options of a command line name, and the keys of a run on them.

In JAX `split(key, n)[i]` is `fold_in(key, i)`, so one key must not be split here and folded there, or be drawn from as
well. Every key of a run is therefore one of these, and each serves one purpose.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from vaejax import data, models
from vaejax.data import streams

EVALUATION_KEY = 20_131_220  # of every run: the test binarization and the samples of log p(x) are the same for all

# What that key is folded for, by place.
EVALUATIONS = (
    *("held-out images", "other held-out images", "validation", "report", "pictures"),
    *("best std", "best std of test", "any parameters"),
    *(f"what is missing in {split}" for split in ("train", "validation", "test")),
    "calibration",
)

DRAWN = ("linear_gaussian", "spiral", "two_gaussians")  # by keys made of key(0), and the model of one of key(1)


class RunKeys(NamedTuple):
    """The keys of one run: of its parameters, of a baseline's, of order and noise, and of pseudo-inputs."""

    params: Key[Array, ""]
    baseline: Key[Array, ""]
    training: Key[Array, ""]
    inputs: Key[Array, ""]

    @property
    def of_init(self) -> tuple[Key[Array, ""], ...]:
        """Those that everything starts from."""
        return self.params, self.inputs, self.baseline


def run_keys(dataset: str, seed: ArrayLike) -> RunKeys:
    """The keys of the run with this seed; of a set that JAX draws they are others than the set's own."""
    root = jax.random.key(-1 - seed if dataset in DRAWN else seed)
    params, training, baseline, inputs = jax.random.split(root, 4)
    return RunKeys(params, baseline, training, inputs)


def evaluation_key(purpose: str) -> Key[Array, ""]:
    """The key of one of `EVALUATIONS`, the same in every run."""
    return jax.random.fold_in(jax.random.key(EVALUATION_KEY), EVALUATIONS.index(purpose))


def load(dataset: str, split: str, where: dict[str, Any]) -> data.Dataset:
    """One split of a dataset, in memory.

    Args:
        dataset: its name.
        split: of it, such as "test".
        where: `command_line.DataOptions.where`.

    Raises:
        FileNotFoundError: if it is not prepared, with the options that help.
        ValueError: if it is unknown.
    """
    return _found(data.load, dataset, split, where)


def open_source(dataset: str, split: str, where: dict[str, Any]) -> streams.Source:
    """`load`, but what it returns stays on disk and is read example by example."""
    return _found(streams.open_source, dataset, split, where)


def sizes_in_words(dataset: str, splits: dict[str, Any]) -> str:
    """How many examples each split has."""
    return f"{dataset}: {', '.join(f'{len(images):,} {split}' for split, images in splits.items())} examples"


def with_pseudo_inputs(
    vae: models.VAE, params: Any, key: Key[Array, ""], images: Any, number: int, binarize: Callable[..., Any] | None
) -> Any:
    """The parameters with pseudo-inputs that are among the first training images, binarized as in training.

    Args:
        vae: a model with `models.vamp_prior`.
        params: its parameters.
        key: consumed.
        images: of training, (n, *data_shape).
        number: of pseudo-inputs.
        binarize: `(key, images) -> images`, or None.

    Raises:
        ValueError: if there are fewer images than pseudo-inputs.
    """
    prepare_key, choice_key = jax.random.split(key)
    x = jnp.asarray(images[: max(2000, number)])
    return models.with_pseudo_inputs(vae, params, choice_key, x if binarize is None else binarize(prepare_key, x))


def _found(open_set: Callable, dataset: str, split: str, where: dict[str, Any]) -> Any:
    try:
        return open_set(dataset, split, **where)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Here these are the options --manual-dir and --download") from error
