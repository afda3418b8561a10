"""What the parts `trap` and `text` of `collapse.py` share: the cures, training under one, and the measurements."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.collapse.setting import Setting
from engines.harness import fitting, run_folder
from engines.harness.rows import mean_row
from vaejax import evaluation, inference, models, objectives, training

REPORTS = 100  # points of a training curve
NUM_SAMPLES = 1000  # K of log p(x)
PATIENCE = 5  # checks of the mutual information, of twenty, without a rise; then the encoder no longer runs ahead
UNITS = {"active units": "units", "seconds of training": "s"}  # of quantities that are not in nats


# `(vae, params, key, x) -> (estimate, error)` of log p(x) of each example.
LogLikelihood = Callable[..., tuple[np.ndarray, np.ndarray]]


class Recipe(NamedTuple):
    """How a model is trained, the same for every cure.

    Attributes:
        num_steps: of the decoder.
        batch_size: examples in a gradient.
        optimizer: of encoder and decoder, each with its own state.
        warmup_steps: of the cure warm-up; a cycle of the cyclical cure takes a quarter of the run.
        free_bits: nats of each unit, of that cure.
        max_encoder_steps: before each step of the decoder, of the aggressive cure.
    """

    num_steps: int
    batch_size: int
    optimizer: optax.GradientTransformation
    warmup_steps: int
    free_bits: float
    max_encoder_steps: int


class Splits(NamedTuple):
    """Examples to train on, to check the mutual information in aggressive training, and to measure at the end."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def objective_of(cure: str, vae: models.VAE, recipe: Recipe) -> objectives.Objective:
    """What is maximised under a cure."""
    if cure == "free bits":
        return objectives.make_free_bits(vae, recipe.free_bits)
    beta = {
        "lambda": 0.5,
        "warm-up": objectives.linear_warmup(recipe.warmup_steps),
        "cyclical": objectives.cyclical(max(1, recipe.num_steps // 4)),
    }
    return objectives.make_elbo(vae, beta=beta.get(cure, 1.0))


def in_words(cure: str, recipe: Recipe) -> str:
    """What the cure does, for the table."""
    return {
        "plain": "none",
        "lambda": "KL of weight 0.5 throughout",
        "warm-up": f"weight of the KL from 0 to 1 over {recipe.warmup_steps:,} steps",
        "cyclical": f"the same over the first half of each of four cycles of {recipe.num_steps // 4:,} steps",
        "free bits": f"{recipe.free_bits:g} nats free in each unit",
        "aggressive": f"at most {recipe.max_encoder_steps} encoder steps before each of the decoder",
    }[cure]


def train(
    what: str,
    cure: str,
    vae: models.VAE,
    recipe: Recipe,
    params: Any,
    key: jax.Array,
    splits: Splits,
    snapshots_at: Sequence[float],
) -> fitting.Trained:
    """One run under a cure, from `params`."""
    step, state, size = started(cure, vae, recipe, params, splits.validation)
    return fitting.train_steps(
        what,
        step,
        state,
        key,
        splits.train,
        num_steps=recipe.num_steps,
        batch_size=size,
        snapshots_at=snapshots_at,
    )


def started(
    cure: str, vae: models.VAE, recipe: Recipe, params: Any, validation: np.ndarray
) -> tuple[training.TrainStep, training.TrainState, int]:
    """The train step of a cure, its first state, and the examples that a step takes."""
    objective, optimizer, size = objective_of(cure, vae, recipe), recipe.optimizer, recipe.batch_size
    if cure != "aggressive":
        return training.make_train_step(objective, optimizer), training.init_state(params, optimizer), size
    number = recipe.max_encoder_steps
    step = inference.make_aggressive_train_step(
        vae,
        objective,
        optimizer,
        optimizer,
        jnp.asarray(validation[:500]),
        batch_size=size,
        max_encoder_steps=number,
        window=max(1, number // 4),
        check_every=max(1, recipe.num_steps // 20),
        patience=PATIENCE,
    )
    # Each step of the encoder and that of the decoder takes new examples.
    return step, inference.init_lagging(params, optimizer, optimizer), size * (1 + number)


def curves(history: Any, num_steps: int) -> dict[str, np.ndarray]:
    """KL, ELBO and encoder steps for each decoder step, as means over at most REPORTS stretches that end at `steps`."""
    ends = np.unique(np.linspace(0, num_steps, min(REPORTS, num_steps) + 1).astype(int))
    values = {
        "kl": history.kl,
        "elbo": history.elbo,
        "encoder_steps": getattr(history, "encoder_steps", np.ones(num_steps)),
    }
    means = {name: np.array([each[a:b].mean() for a, b in itertools.pairwise(ends)]) for name, each in values.items()}
    return {"steps": ends[1:], **means}


def sampled(vae: models.VAE, params: Any, key: jax.Array, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Log p(x) of each example by importance sampling, and its standard error."""
    result = evaluation.log_likelihood(vae, params, key, x, NUM_SAMPLES)
    return np.asarray(result.estimate), np.asarray(result.standard_error)


def measured(
    vae: models.VAE, params: Any, seed: int, test: Any, log_likelihood: LogLikelihood = sampled
) -> dict[str, float]:
    """Means over test data, and the seconds that they took; `log_likelihood` takes the arguments of `sampled`."""
    start = time.perf_counter()
    likelihood_key, elbo_key, latent_key = jax.random.split(jax.random.key(seed + 1000), 3)
    likelihoods, elbos = [], []
    for first in range(0, len(test), 1000):
        part = test[first : first + 1000]
        likelihoods.append(log_likelihood(vae, params, jax.random.fold_in(likelihood_key, first), part))
        part_key = jax.random.fold_in(elbo_key, first)
        elbos.append(np.asarray(evaluation.elbo(vae, params, part_key, part, 10).estimate))
    likelihood, error = (np.concatenate(parts) for parts in zip(*likelihoods, strict=True))
    rate = evaluation.rate_distortion(vae, params, jax.random.fold_in(latent_key, 0), test, 1)
    information = evaluation.mutual_information(vae, params, jax.random.fold_in(latent_key, 1), test)
    return {
        "log p(x)": float(likelihood.mean()),
        "largest error of one log p(x)": float(error.max()),
        "ELBO": float(np.concatenate(elbos).mean()),
        "KL": float(rate.rate),
        "mutual information": float(information.estimate),
        "active units": float(evaluation.active_units(vae, params, test).num_active),
        "evaluation seconds": time.perf_counter() - start,
    }


def compare(
    part: str,
    setting: Setting,
    vae: models.VAE,
    recipe: Recipe,
    splits: Splits,
    init: Callable[[jax.Array], Any],
    *,
    log_likelihood: LogLikelihood = sampled,
    known: dict[str, float] | None = None,
    watch: Callable[[Any], Any] | None = None,
    watched_at: Sequence[float] = (),
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Train and measure under every cure of the setting, from as many starts as it has seeds.

    A finished run leaves its numbers in the folder's `runs` and is not repeated.

    Args:
        part: its name.
        setting: cures, seeds and folder.
        vae: the model.
        recipe: how it is trained.
        splits: data.
        init: `key -> params`, a start.
        log_likelihood: takes the arguments of `sampled`.
        known: exact numbers by quantity, for the table.
        watch: `params -> numbers`, of the parameters at some steps of training.
        watched_at: these steps, as fractions of the run.

    Returns:
        Rows of the table; and arrays by cure and name, each with a first axis for the seeds.
    """
    rows, arrays = [], {"cures": np.array(setting.cures)}
    for cure in setting.cures:
        runs = []
        for seed in range(setting.seeds):
            path = setting.folder / "runs" / f"{part}-{cure.replace(' ', '-')}-{seed}.npz"
            if not path.exists():
                init_key, key = jax.random.split(jax.random.key(seed))
                what = f"{part}, {cure}, seed {seed}"
                trained = train(what, cure, vae, recipe, init(init_key), key, splits, watched_at)
                found = measured(vae, trained.params, seed, splits.test, log_likelihood)
                found["seconds of training"] = trained.seconds
                left = curves(trained.history, recipe.num_steps)
                if watch is not None:
                    left["watched"] = np.array([watch(params) for _, params in sorted(trained.snapshots.items())])
                run_folder.write_arrays(
                    path, **left, **{f"found: {name}": np.array(value) for name, value in found.items()}
                )
            with np.load(path) as saved:
                runs.append(dict(saved))
        arrays["steps"] = runs[0]["steps"]
        for name in runs[0]:
            if name != "steps":
                arrays[f"{cure}: {name.removeprefix('found: ')}"] = np.stack([run[name] for run in runs])
        numbers = [
            {name.removeprefix("found: "): float(value) for name, value in run.items() if name.startswith("found: ")}
            for run in runs
        ]
        rows += rows_of(cure, numbers, in_words(cure, recipe), known)
    return rows, arrays


def rows_of(name: str, runs: list[dict[str, float]], note: str, known: dict[str, float] | None = None) -> list[Any]:
    """A row of the table for each quantity: its mean over the runs, with the standard error over them."""
    rows = []
    for quantity in runs[0]:
        if quantity == "evaluation seconds":
            continue
        values = [run[quantity] for run in runs]
        by_seed = "by seed " + ", ".join(f"{value:.4g}" for value in values)
        unit, exact = UNITS.get(quantity, "nats"), (known or {}).get(quantity)
        rows.append(mean_row(name, quantity, values, unit, known=exact, note=f"{note}; {by_seed}"))
    return rows
