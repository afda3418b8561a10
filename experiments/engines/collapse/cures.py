"""What the parts `trap` and `text` of `collapse.py` share: the cures, training under one, what is measured."""

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

REPORTS = 100  # points of each path

NUM_SAMPLES = 1000  # K of log p(x)

PATIENCE = 5  # looks at the mutual information, of twenty, without a rise: then the encoder no longer runs ahead


class Outcome(NamedTuple):
    """One run.

    Attributes:
        params: at the end.
        kl: over the run, at `steps`. (reports,)
        elbo: likewise.
        encoder_steps: likewise, for each step of the decoder.
        steps: (reports,)
        snapshots: `{step: params}` that were asked for.
        seconds: of training, compilation apart.
    """

    params: Any
    kl: np.ndarray
    elbo: np.ndarray
    encoder_steps: np.ndarray
    steps: np.ndarray
    snapshots: dict[int, Any]
    seconds: float


class Recipe(NamedTuple):
    """How a model is trained, the same for every cure.

    Attributes:
        num_steps: of the decoder.
        batch_size: examples in a gradient.
        optimizer: of encoder and decoder, each its own.
        warmup_steps: of the cure warm-up; a cycle of the cyclical one takes a quarter of the run.
        free_bits: nats of each unit, of that cure.
        max_encoder_steps: for each step of the decoder, of the aggressive one.
    """

    num_steps: int
    batch_size: int
    optimizer: optax.GradientTransformation
    warmup_steps: int
    free_bits: float
    max_encoder_steps: int


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
    x: Any,
    validation: Any,
    **options,
) -> Outcome:
    """One run under a cure, from `params`; `options` go to `family.train_steps`."""
    objective = objective_of(cure, vae, recipe)
    size = recipe.batch_size
    if cure == "aggressive":
        number = recipe.max_encoder_steps
        size *= 1 + number
        step = inference.make_aggressive_train_step(
            vae,
            objective,
            recipe.optimizer,
            recipe.optimizer,
            validation,
            batch_size=recipe.batch_size,
            max_encoder_steps=number,
            window=max(1, number // 4),
            check_every=max(1, recipe.num_steps // 20),
            patience=PATIENCE,
        )
        state = inference.init_lagging(params, recipe.optimizer, recipe.optimizer)
    else:
        step = training.make_train_step(objective, recipe.optimizer)
        state = training.init_state(params, recipe.optimizer)
    trained = fitting.train_steps(what, step, state, key, x, num_steps=recipe.num_steps, batch_size=size, **options)
    history = trained.history
    ends = np.unique(np.linspace(0, recipe.num_steps, min(REPORTS, recipe.num_steps) + 1).astype(int))

    def binned(values: np.ndarray) -> np.ndarray:
        return np.array([values[a:b].mean() for a, b in itertools.pairwise(ends)])

    encoder_steps = getattr(history, "encoder_steps", np.ones(recipe.num_steps))
    return Outcome(
        trained.params,
        binned(history.kl),
        binned(history.elbo),
        binned(encoder_steps),
        ends[1:],
        trained.snapshots,
        trained.seconds,
    )


def sampled(vae: models.VAE, params: Any, key: jax.Array, x: Any) -> np.ndarray:
    """Log p(x) by importance sampling."""
    return np.asarray(evaluation.log_likelihood(vae, params, key, x, NUM_SAMPLES).estimate)


def measured(
    vae: models.VAE, params: Any, seed: int, test: Any, log_likelihood: Callable[..., np.ndarray] = sampled
) -> dict[str, float]:
    """Numbers of `evaluation` on test data, and how long they took; `log_likelihood` takes what `sampled` takes."""
    start = time.perf_counter()
    likelihood_key, elbo_key, code_key = jax.random.split(jax.random.key(seed + 1000), 3)
    likelihoods, elbos = [], []
    for first in range(0, len(test), 1000):
        part = test[first : first + 1000]
        likelihoods.append(log_likelihood(vae, params, jax.random.fold_in(likelihood_key, first), part))
        part_key = jax.random.fold_in(elbo_key, first)
        elbos.append(np.asarray(evaluation.elbo(vae, params, part_key, part, 10).estimate))
    rate = evaluation.rate_distortion(vae, params, jax.random.fold_in(code_key, 0), test, 1)
    information = evaluation.mutual_information(vae, params, jax.random.fold_in(code_key, 1), test)
    return {
        "log p(x)": float(np.concatenate(likelihoods).mean()),
        "ELBO": float(np.concatenate(elbos).mean()),
        "KL": float(rate.rate),
        "mutual information": float(information.estimate),
        "active units": float(evaluation.active_units(vae, params, test).num_active),
        "evaluation seconds": time.perf_counter() - start,
    }


class Splits(NamedTuple):
    """What a model is trained, watched and measured on.

    Attributes:
        train: examples.
        validation: of which aggressive training looks at the mutual information.
        test: which choose nothing.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def compare(
    part: str,
    setting: Setting,
    vae: models.VAE,
    recipe: Recipe,
    splits: Splits,
    init: Callable[[jax.Array], Any],
    *,
    log_likelihood: Callable[..., np.ndarray] = sampled,
    known: dict[str, float] | None = None,
    watch: Callable[[Any], Any] | None = None,
    watched_at: Sequence[float] = (),
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Train and measure under every cure of the setting, from as many starts as it has seeds.

    Each run leaves its numbers in `runs` in the folder as soon as it is done, and is not run again.

    Args:
        part: of `collapse.py`.
        setting: cures, seeds and folder.
        vae: the model.
        recipe: how it is trained.
        splits: data.
        init: `key -> params`, a start.
        log_likelihood: takes what `sampled` takes.
        known: exact numbers by quantity, for the table.
        watch: `params -> numbers`, of the parameters on the way.
        watched_at: fractions of the run.

    Returns:
        Rows of the table; and arrays, each of all seeds, by cure and name.
    """
    rows, arrays = [], {"cures": np.array(setting.cures)}
    for cure in setting.cures:
        runs = []
        for seed in range(setting.seeds):
            path = setting.folder / "runs" / f"{part}-{cure.replace(' ', '-')}-{seed}.npz"
            if not path.exists():
                init_key, key = jax.random.split(jax.random.key(seed))
                what, start = f"{part}, {cure}, seed {seed}", init(init_key)
                validation = jnp.asarray(splits.validation[:500])
                outcome = train(what, cure, vae, recipe, start, key, splits.train, validation, snapshots_at=watched_at)
                found = measured(vae, outcome.params, seed, splits.test, log_likelihood)
                found["seconds of training"] = outcome.seconds
                left = {"kl": outcome.kl, "elbo": outcome.elbo, "encoder_steps": outcome.encoder_steps}
                if watch is not None:
                    left["watched"] = np.array([watch(params) for _, params in sorted(outcome.snapshots.items())])
                quantities = {f"found: {name}": np.array(value) for name, value in found.items()}
                run_folder.write_arrays(path, steps=outcome.steps, **left, **quantities)
            with np.load(path) as saved:
                runs.append(dict(saved))
        numbers = [
            {name.removeprefix("found: "): float(value) for name, value in run.items() if name.startswith("found: ")}
            for run in runs
        ]
        rows += rows_of(cure, numbers, in_words(cure, recipe), known)
        arrays["steps"] = runs[0]["steps"]
        for name in runs[0]:
            if name != "steps":
                arrays[f"{cure}: {name.removeprefix('found: ')}"] = np.stack([run[name] for run in runs])
    return rows, arrays


UNITS = {"active units": "units", "seconds of training": "s"}


def rows_of(name: str, runs: list[dict[str, float]], note: str, known: dict[str, float] | None = None) -> list[Any]:
    """A line of the table for each quantity: its mean over the runs, with the standard error over them."""
    rows = []
    for quantity in runs[0]:
        if quantity == "evaluation seconds":
            continue
        values = [run[quantity] for run in runs]
        unit = UNITS.get(quantity, "nats")
        by_seed = "by seed " + ", ".join(f"{value:.4g}" for value in values)
        exact = (known or {}).get(quantity)
        rows.append(mean_row(name, quantity, values, unit, known=exact, note=f"{note}; {by_seed}"))
    return rows
