"""The same model trained by several gradients, from the same initializations with the same keys."""

import concurrent.futures
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key
from tqdm import tqdm

from engines.gradients.config import Config
from engines.harness import loading
from vaejax import baselines, data, estimators, models, objectives, training
from vaejax.laboratory.summaries import defined

NUM_REPORTS = 40

VALIDATION_SAMPLES = 3

# The runs of a population take their steps together, and share the number of the step: see `training.fit`.
POPULATION = training.TrainState(0, 0, None)


class Gradient(NamedTuple):
    """An estimator, and the objective of K samples that it serves."""

    estimator: estimators.Estimator
    objective: objectives.Objective


@dataclasses.dataclass
class Population:
    """The runs of one gradient, one for each seed, and what became of them so far."""

    state: training.TrainState
    fit: Callable[..., Any]
    steps: list[int] = dataclasses.field(default_factory=list)
    training_elbo: list[list[float | None]] = dataclasses.field(default_factory=list)
    validation_elbo: list[list[float | None]] = dataclasses.field(default_factory=list)
    chunk_seconds: list[float] = dataclasses.field(default_factory=list)


def train(
    config: Config,
    vae: models.VAE,
    gradients: Mapping[Hashable, Gradient],
    images: np.ndarray,
    validation: np.ndarray,
    reference: Hashable,
) -> tuple[dict[Hashable, dict[str, Any]], list[tuple[int, Any]]]:
    """Train by each gradient, as many runs as there are seeds.

    The populations take some steps each by turns, so that a machine that slows down slows all of them.

    Returns:
        The curves of each gradient: steps; ELBO of training batches, mean over the steps since the last report, and of
        validation images, both (reports, seeds) in nats per example; and seconds for one step of one run. And three
        pairs of a step and parameters: the first run by the reference gradient at its start, in the middle, at the end.
    """
    params_key, run_key = jax.random.split(jax.random.key(config.seed))
    params = jax.vmap(vae.init)(jax.random.split(params_key, config.num_seeds))
    keys = jax.random.split(run_key, config.num_seeds)
    chunk = math.ceil(config.num_steps / NUM_REPORTS)
    num_chunks = math.ceil(config.num_steps / chunk)
    images = jnp.asarray(images)

    def validation_elbo(params):
        # Always the same key, so that differences smaller than the noise of the samples can be seen.
        key = jax.random.key(loading.EVALUATION_KEY)
        return objectives.make_elbo(vae, num_samples=VALIDATION_SAMPLES)(params, key, validation)[1].elbo

    validate = jax.jit(jax.vmap(validation_elbo))

    prepared = in_threads(lambda gradient: start(config, gradient, params, keys, images, chunk), gradients.values())
    described = f"compiling {len(gradients)} training programs"
    populations = dict(zip(gradients, tqdm(prepared, described, len(gradients), leave=False), strict=True))
    moments = {}
    with tqdm(total=num_chunks * len(populations), desc=f"training, {config.num_seeds} seeds", unit="chunk") as bar:
        for i in range(num_chunks + 1):
            for name, population in populations.items():
                if i > 0:
                    advance(population, keys, images, config.num_steps)
                    bar.update()
                step = int(population.state.step)
                population.steps.append(step)
                model = {part: value for part, value in population.state.params.items() if part != "baseline"}
                population.validation_elbo.append([defined(elbo) for elbo in validate(model).tolist()])
                if name == reference and i in (0, num_chunks // 2, num_chunks):
                    moments[step] = jax.tree.map(lambda leaf: leaf[0], model)
    curves = {}
    for name, population in populations.items():
        curves[name] = {
            "steps": population.steps,
            "training_elbo": population.training_elbo,
            "validation_elbo": population.validation_elbo,
            # The median, so that one busy moment of the machine does not count.
            "seconds_per_step": statistics.median(population.chunk_seconds) / chunk / config.num_seeds,
        }
    return curves, list(moments.items())


def start(
    config: Config,
    gradient: Gradient,
    params: Any,
    keys: Key[Array, " runs"],
    images: Array,
    chunk: int,
) -> Population:
    """The runs of one gradient before their first step, and the compiled program that takes `chunk` of them."""
    optimizer = baselines.with_optimizer(optax.adam(config.learning_rate))
    step = training.make_train_step(gradient.objective, optimizer, data.binarization(config.binarization))

    def init(params, key):
        return training.init_state(estimators.with_baseline(params, gradient.estimator, key, images[:1]), optimizer)

    def fit(state, key, images, stop):
        sizes = {"num_steps": chunk, "batch_size": config.batch_size}
        return training.fit(step, state, key, images, stop=stop, **sizes)

    baseline_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    state = jax.jit(jax.vmap(init, out_axes=POPULATION))(params, baseline_keys)
    fit = jax.jit(jax.vmap(fit, (POPULATION, 0, None, None), (POPULATION, 0)))
    return Population(state, fit.lower(state, keys, images, config.num_steps).compile())


def advance(population: Population, keys: Key[Array, " runs"], images: Array, stop: int) -> None:
    """Take the next steps of a population, and time them."""
    before = int(population.state.step)
    begin = time.perf_counter()
    population.state, history = jax.block_until_ready(population.fit(population.state, keys, images, stop))
    population.chunk_seconds.append(time.perf_counter() - begin)
    count = int(population.state.step) - before
    means = history.elbo[:, :count].mean(axis=1)
    population.training_elbo.append([defined(elbo) for elbo in means.tolist()])


def train_baseline(config: Config, gradient: Gradient, images: Array) -> Callable[[Any, Key[Array, ""]], Any]:
    """A compiled `(model, key) -> baseline`: what a baseline learns in some steps beside a model that stands still.

    That is more than it knows in a training run at this point, where it runs after a model that moves.
    """
    optimizer = baselines.with_optimizer(optax.identity())
    prepare = data.binarization(config.binarization)
    sizes = {"num_steps": config.baseline_steps, "batch_size": config.batch_size}

    def trained(model, key):
        init_key, key = jax.random.split(key)

        def objective(params, key, x, *, step=None):
            return gradient.objective({**model, **params}, key, x, step=step)

        state = training.init_state(estimators.with_baseline({}, gradient.estimator, init_key, images[:1]), optimizer)
        step = training.make_train_step(objective, optimizer, prepare)
        return training.fit(step, state, key, images, **sizes)[0].params["baseline"]

    return jax.jit(trained)


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map` in as many threads as there are cores, up to 8. Most of it is compilation, which leaves Python alone."""
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, items)
