"""What it takes to measure a row: a train step and its start, the data, and an evaluation that is made once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from engines.harness import loading
from engines.harness.progress import Progress
from engines.harness.rows import mean_and_error
from vaejax import evaluation, models, training
from vaejax.evaluation import sampling

# `num_steps -> (train step, state)` of a run of that length.
Start = Callable[[int], tuple[training.TrainStep, training.TrainState]]


class Job(NamedTuple):
    """A run of a row.

    Attributes:
        start: gives a run its train step and first state; None where nothing is trained.
        x: training data.
        batch_size: examples that a step takes.
        key: of order and noise.
        published_steps: of the published run, or None; a run is then as long as the minutes allow.
        most_steps: that are of use, or None.
        evaluate: `state -> {"value", "error", "num_examples", "num_samples"}`, and a "note" where there is more to say.
        words: how it is trained, for the table.
    """

    start: Start | None
    x: Any
    batch_size: int
    key: jax.Array
    evaluate: Callable[[Any], dict[str, Any]]
    words: str
    published_steps: int | None = None
    most_steps: int | None = None


def likelihood(vae: models.VAE, params: Any, test: Any, num_samples: int) -> dict[str, Any]:
    """Mean test log p(x) with its standard error over examples."""
    key, parts = loading.evaluation_key("report"), []
    with Progress("test log p(x)", len(test), unit="examples") as bar:
        for number, start in enumerate(range(0, len(test), 500)):
            part = test[start : start + 500]
            part_key = jax.random.fold_in(key, number)
            # Said once, in the table, and not of each part.
            (result,) = sampling.log_likelihoods(
                sampling.ENCODER, vae, params, part_key, part, (num_samples,), warn=False
            )
            parts.append(result)
            bar.update(len(part))
    mean, error = mean_and_error(np.concatenate([np.asarray(part.estimate) for part in parts]))
    doubtful = len(test) - sum(int(evaluation.is_trustworthy(part).sum()) for part in parts)
    # Of the ELBO, K = 1, there is one weight.
    note = f"a few weights decide {doubtful:,} of {len(test):,}" if doubtful and num_samples > 1 else ""
    found = {"value": float(mean), "error": float(error), "num_examples": len(test), "num_samples": num_samples}
    return found | {"note": note}
