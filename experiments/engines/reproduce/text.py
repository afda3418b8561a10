"""Rows of recurrent VAEs of text."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from engines.collapse import cures, text
from engines.harness import loading
from engines.reproduce.config import Config
from engines.reproduce.jobs import Job, likelihood
from engines.reproduce.published import Row
from vaejax import evaluation, sequences, training


def of_text(config: Config, row: Row, seed: int) -> Job:
    """Log p(x) of held-out sequences, and their rate: zero after a collapse."""
    train, validation, test = np.split(read_text(config), [8000, 9000])
    vae = sequences.lstm_vae(int(train.max()) + 1, train.shape[1], row.latent_dims[0])
    keys = loading.run_keys(row.dataset, seed)
    params = vae.init(keys.params)
    test = test[: config.test_examples]

    def start(num_steps: int) -> tuple[training.TrainStep, training.TrainState]:
        return cures.started(row.objective, vae, text.recipe_of(num_steps), params, validation)[:2]

    def evaluate(state: training.TrainState) -> dict[str, Any]:
        rate = evaluation.rate_distortion(vae, state.params, loading.evaluation_key("any parameters"), test, 1).rate
        return likelihood(vae, state.params, test, config.eval_samples) | {"note": f"rate {float(rate):.2f} nats"}

    size = cures.started(row.objective, vae, text.recipe_of(100), params, validation)[2]
    words = f"{row.name}: {cures.in_words(row.objective, text.recipe_of(4000))}; of 4,000 steps at the most"
    return Job(start, jnp.asarray(train), size, keys.training, evaluate, words, most_steps=4000)


def read_text(config: Config) -> np.ndarray:
    """The 10,000 sequences of tokens that stand in --manual-dir.

    Raises:
        FileNotFoundError: if they do not.
    """
    name = "lagging_inference_synthetic.txt"
    path = pathlib.Path(config.manual_dir or ".") / name
    if not path.exists():
        raise FileNotFoundError(
            f"expected {name}, of He et al. 2019, in the folder that --manual-dir names; got {path}"
        )
    return np.loadtxt(path, dtype=np.int32)
