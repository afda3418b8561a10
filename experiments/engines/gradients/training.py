"""The same model trained by several gradients, from the same initializations with the same keys."""

import concurrent.futures
import math
import os
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from engines.gradients.config import Config
from engines.harness import loading
from engines.harness.progress import Progress
from vaejax import data, estimators, models, objectives, training
from vaejax.laboratory.summaries import defined

NUM_REPORTS = 40

VALIDATION_SAMPLES = 3


class Gradient(NamedTuple):
    """An estimator, and the objective of K samples that it serves."""

    estimator: estimators.Estimator
    objective: objectives.Objective


class Population(NamedTuple):
    """The runs of one gradient, one for each seed: their states before the first step, and their steps in chunks."""

    state: training.TrainState
    chunks: Iterator[training.Chunk]


def train(
    config: Config,
    run_keys: loading.RunKeys,
    vae: models.VAE,
    gradients: Mapping[Hashable, Gradient],
    images: np.ndarray,
    validation: np.ndarray,
    reference: Hashable,
) -> tuple[dict[Hashable, dict[str, Any]], list[tuple[int, Any]]]:
    """Train by each gradient, as many runs as there are seeds.

    The populations take turns, some steps each, so that a machine that slows down slows all of them.

    Returns:
        The curves of each gradient: steps; ELBO of training batches, mean over the steps since the last report, and of
        validation images, both (reports, seeds) in nats per example; and seconds for one step of one run. And three
        pairs of a step and parameters: the first run by the reference gradient at its start, in the middle, at the end.
    """
    of_run = (run_keys.params, run_keys.baseline, run_keys.training)
    model_keys, baseline_keys, keys = (jax.random.split(key, config.num_seeds) for key in of_run)
    init_keys = jnp.stack([model_keys, baseline_keys], axis=1)
    chunk_steps = math.ceil(config.num_steps / NUM_REPORTS)
    num_chunks = math.ceil(config.num_steps / chunk_steps)
    images = jnp.asarray(images)
    optimizer = estimators.baselines.with_optimizer(optax.adam(config.learning_rate))
    prepare = data.binarization(config.binarization)

    def population(gradient: Gradient) -> Population:
        step = training.make_train_step(gradient.objective, optimizer, prepare)

        def init(keys):
            return estimators.with_baseline(vae.init(keys[0]), gradient.estimator, keys[1], images[:1])

        def fit(state, keys, images, stop):
            sizes = {"num_steps": chunk_steps, "batch_size": config.batch_size}
            return training.fit_population(lambda _: step, state, keys, images, stop=stop, **sizes)

        same_keys = jax.random.clone(init_keys)  # so that all gradients start from the same models
        state = jax.jit(lambda keys: training.init_population(init, optimizer, keys))(same_keys)
        program = jax.jit(fit).lower(state, keys, images, config.num_steps).compile()
        chunks = training.run_chunks(lambda state, stop: program(state, keys, images, stop), state, config.num_steps)
        return Population(state, chunks)

    def validation_elbo(params):
        # Always the same key, so that differences smaller than the noise of the samples can be seen.
        key = loading.evaluation_key("validation")
        # Its value is that of every estimator, and this one serves every q.
        elbo = objectives.make_elbo(vae, estimators.score_function(), num_samples=VALIDATION_SAMPLES)
        return elbo(params, key, validation)[1].elbo

    validate = jax.jit(jax.vmap(validation_elbo))
    with Progress("compiling", len(gradients), unit="training programs") as bar:
        populations = dict(zip(gradients, in_threads_with(bar)(population, gradients.values()), strict=True))
    curves = {name: {"steps": [], "training_elbo": [], "validation_elbo": []} for name in gradients}
    seconds = {name: [] for name in gradients}
    moments = {}
    with Progress(f"training, {config.num_seeds} seeds", num_chunks * len(populations), unit="chunks") as bar:
        for report in range(num_chunks + 1):
            for name, (state, chunks) in populations.items():
                curve = curves[name]
                if report > 0:
                    chunk = next(chunks)
                    state = chunk.state
                    seconds[name].append(chunk.seconds)
                    curve["training_elbo"].append(numbers(jnp.mean(chunk.history.elbo, axis=1)))
                    bar.update()
                step = int(state.step)
                model = {part: value for part, value in state.params.items() if part != "baseline"}
                curve["steps"].append(step)
                curve["validation_elbo"].append(numbers(validate(model)))
                if name == reference and report in (0, num_chunks // 2, num_chunks):
                    moments[step] = jax.tree.map(lambda leaf: leaf[0], model)
    for name, curve in curves.items():
        # The median, so that one busy moment of the machine does not count.
        curve["seconds_per_step"] = statistics.median(seconds[name]) / chunk_steps / config.num_seeds
    return curves, list(moments.items())


def numbers(values: Array) -> list[float | None]:
    """An array as numbers for JSON."""
    return [defined(value) for value in values.tolist()]


def train_baseline(
    gradient: Gradient, images: Array, prepare: Callable[..., Array] | None, num_steps: int, batch_size: int
) -> Callable[[Any, Key[Array, ""]], Any]:
    """A compiled `(model, key) -> baseline`: what a baseline learns in some steps beside a model that does not change.

    That is more than a baseline knows at this point of a training run, where the model changes all the time.
    """
    optimizer = estimators.baselines.with_optimizer(optax.identity())

    def trained(model, key):
        init_key, key = jax.random.split(key)

        def objective(params, key, x, *, step=None):
            return gradient.objective({**model, **params}, key, x, step=step)

        state = training.init_state(estimators.with_baseline({}, gradient.estimator, init_key, images[:1]), optimizer)
        step = training.make_train_step(objective, optimizer, prepare)
        state, _ = training.fit(step, state, key, images, num_steps=num_steps, batch_size=batch_size)
        return state.params["baseline"]

    return jax.jit(trained)


def in_threads(function: Callable[..., Any], *items: Any) -> Iterator[Any]:
    """`map` in as many threads as there are cores, up to 8. Most of the work is compilation, outside of Python."""
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, *items)


def in_threads_with(bar: Progress) -> Callable[..., Iterator[Any]]:
    """`in_threads`, which moves a progress bar by one for each result."""

    def counted(function: Callable[..., Any], *items: Any) -> Iterator[Any]:
        for result in in_threads(function, *items):
            bar.update()
            yield result

    return counted
