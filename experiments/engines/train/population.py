"""Several training runs in one program, over seeds, weights of the KL and learning rates, and what they say."""

import itertools
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engines.harness import loading, run_folder, spreading
from engines.train import build, measures, population_pictures, session
from engines.train.config import Config
from vaejax import data, devices, evaluation, models, training

MEMORY = 2**30  # bytes that the states and the work of a group may take

# Multiplications of one step above which a single run keeps two cores busy: vmap then only adds to what is moved.
LARGE_STEP = 30_000_000


class Member(NamedTuple):
    """What distinguishes a run from the others.

    Attributes:
        beta: weight of the KL.
        learning_rate: at the start.
        seed: of parameters, order and noise.
    """

    beta: float
    learning_rate: float
    seed: int


class NoViewer:
    """In the place of a `snapshots.Viewer`: of many models nobody looks at each."""

    def snapshot(self, state: training.TrainState) -> None:
        """Keep nothing."""


def run(config: Config) -> int:
    """Train, evaluate and report. Returns the exit code: 0, or 128 + the signal that stopped it."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, config.dataset, config.resume)
    mesh = spreading.chosen_mesh(config, devices.RUNS, len(members_of(config)))
    images = {split: loading.load(config, split) for split in ("train", "validation", "test")}
    vae = build.build_model(config, images["train"].images.shape[1:])
    print(f"{config.dataset}: {', '.join(f'{len(part.images):,} {split}' for split, part in images.items())} examples")
    members = members_of(config)

    # The same keys as in a run by itself.
    seeds = jnp.array([member.seed for member in members])
    init_keys, keys = jax.vmap(lambda seed: tuple(jax.random.split(jax.random.key(seed))))(seeds)
    estimator = build.build_estimator(config)
    init = build.build_init(vae, estimator, images["test"].images.shape[1:])
    optimizer = build.build_optimizer(config, config.learning_rate[0], estimator)
    states = training.init_population(init, optimizer, init_keys)
    first = member_of(states.params, 0)
    held_out = session.binarized_once(config, images, vae, first)
    states, metrics = session.resumed(config, folder, spreading.placed(mesh, states))
    train_images = spreading.placed(mesh, jnp.asarray(images["train"].images))
    group = config.group_size or chosen_group_size(config, first, len(members))
    fit, compile_seconds = compiled(config, mesh, vae, estimator, states, keys, members, train_images, group)

    session.begin(config, folder, metrics)
    sides = "side by side" if group >= len(members) else f"{group} at a time" if group > 1 else "one after another"
    print(f"compiled in {compile_seconds:.1f} s; {len(members)} runs {sides}; leaves everything in {folder}")
    measure = measure_of(config, vae, group)
    states, metrics, stopped_by = session.train_until_done(
        config, folder, states, metrics, fit, keys, train_images, measure, held_out["validation"], NoViewer()
    )
    if stopped_by is not None:
        return session.stopped(config, folder, states, stopped_by)

    if not spreading.is_first():
        return 0
    states = spreading.local(states)
    results = evaluated(config, vae, states, members, held_out["test"])
    seconds = metrics[-1]["seconds"]
    totals = {
        "train_seconds": seconds,
        "compile_seconds": compile_seconds,
        "examples_per_second": len(members) * int(states.step) * config.batch_size / seconds,
        "num_steps": int(states.step),
        "group_size": group,
        "dataset": config.dataset,
        "test_images": images["test"].description,
    }
    summary = summarized(config, results)
    run_folder.write_json(folder / "result.json", {"runs": results, "groups": summary, **totals})
    drawn = population_pictures.draw(folder)
    print(in_words(summary, totals, config, folder, drawn))
    return 0


def members_of(config: Config) -> list[Member]:
    """Every run of the grid, the seeds of one kind beside each other."""
    seeds = range(config.seed, config.seed + config.seeds)
    return [Member(*numbers) for numbers in itertools.product(config.beta, config.learning_rate, seeds)]


def chosen_group_size(config: Config, params: Any, number: int) -> int:
    """How many runs go side by side: as many as the memory holds, but one where one alone fills the cores."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    # Forward and backward, each weight once for each code: exact for dense layers, too little for convolutions.
    multiplications = 3 * size * config.batch_size * config.num_samples
    if jax.default_backend() == "cpu" and (multiplications > LARGE_STEP or config.model == "conv"):
        return 1
    units = max(max(leaf.shape, default=0) for leaf in jax.tree.leaves(params)) + sum(config.hidden_sizes)
    work = 4 * 4 * size + 4 * 10 * config.batch_size * config.num_samples * units
    return max(1, min(number, MEMORY // work))


def compiled(config, mesh, vae: models.VAE, estimator, states, keys, members: list[Member], images, group: int):
    """The program that takes the steps of all runs from one report to the next, and the seconds of its compilation."""
    prepare = data.binarization(config.binarization)
    numbers = {name: jnp.array([getattr(member, name) for member in members]) for name in ("beta", "learning_rate")}

    def make_step(numbers) -> training.TrainStep:
        objective = build.build_objective(config, vae, estimator, numbers["beta"])
        optimizer = build.build_optimizer(config, numbers["learning_rate"], estimator)
        return training.make_train_step(objective, optimizer, prepare)

    def chunk(states, keys, images, stop):
        return training.fit_population(
            make_step,
            states,
            keys,
            images,
            numbers,
            num_steps=session.chunk_size(config),
            batch_size=config.batch_size,
            group_size=group,
            stop=stop,
        )

    start = time.perf_counter()
    fit = spreading.compiled(mesh, chunk, states, keys, images, config.num_steps)
    return fit, time.perf_counter() - start


def measure_of(config: Config, vae: models.VAE, group: int) -> measures.Measure:
    """The measure of a single run, of all runs at once between reports."""
    single = build.build_measure(config, vae)
    if config.objective == "reconstruction" or config.objective == "optimal_std":

        def validate(params, images):
            runs = len(jax.tree.leaves(params)[0])
            return np.array([single.validate(member_of(params, i), images) for i in range(runs)])
    else:

        @jax.jit
        def elbos(params, images):
            def one(params):
                key = jax.random.key(loading.EVALUATION_KEY)
                return evaluation.elbo(vae, params, key, images, num_samples=1).estimate.mean()

            return jax.lax.map(one, params, batch_size=group)

        def validate(params, images):
            return np.asarray(elbos(params, jnp.asarray(images[:1000])))

    def progress(row: dict[str, Any]) -> str:
        bounds = np.asarray(row["bound"])
        lost = int((~np.isfinite(bounds)).sum())
        good = bounds[np.isfinite(bounds)]
        words = f"bounds {good.min():.2f} to {good.max():.2f} nats"
        return words + (f", {lost} diverged" if lost else "")

    return single._replace(validate=validate, progress=progress)


def member_of(params: Any, number: int) -> Any:
    """The parameters of one run."""
    return jax.tree.map(lambda leaf: leaf[number], params)


def evaluated(config: Config, vae: models.VAE, states, members: list[Member], test) -> list[dict[str, Any]]:
    """The numbers of each run on test images; of one that diverged only that it did."""
    measure = build.build_measure(config, vae)
    results = []
    for i, member in enumerate(members):
        params = member_of(states.params, i)
        found = measure.evaluate(params, test)[0] if measures.finite(params) else {"diverged": True}
        results.append({**member._asdict(), **found})
    return results


def summarized(config: Config, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each weight and rate the mean of every number over its seeds, and its standard error."""
    summary = []
    for beta, rate in itertools.product(config.beta, config.learning_rate):
        mine = [run for run in results if (run["beta"], run["learning_rate"]) == (beta, rate)]
        whole = [run for run in mine if not run.get("diverged")]
        group = {"beta": beta, "learning_rate": rate, "runs": len(mine), "diverged": len(mine) - len(whole)}
        for name, value in (whole[0] if whole else {}).items():
            if isinstance(value, (int, float)) and name not in Member._fields:
                values = np.array([run[name] for run in whole], np.float64)
                error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
                group[name] = float(values.mean())
                group[f"{name}_error_over_seeds"] = float(error)
        summary.append(group)
    return summary


COLUMNS = {
    "test_log_likelihood": ("test log p(x)", 2),
    "test_elbo": ("test ELBO", 2),
    "rate": ("rate", 2),
    "distortion": ("distortion", 2),
    "active_units": ("active units", 1),
    "test_squared_error": ("squared error", 3),
}


def in_words(summary, totals, config: Config, folder: pathlib.Path, drawn: list[pathlib.Path]) -> str:
    """The report's last lines: a table with a line for each weight and rate."""
    shown = [name for name in COLUMNS if any(name in group for group in summary)]
    heads = ["beta", "learning rate", "runs", *(COLUMNS[name][0] for name in shown)]
    lines = [heads]
    for group in summary:
        lost = f" ({group['diverged']} diverged)" if group["diverged"] else ""
        cells = [f"{group['beta']:g}", f"{group['learning_rate']:g}", f"{group['runs']}{lost}"]
        for name in shown:
            places = COLUMNS[name][1]
            error = group.get(f"{name}_error_over_seeds", math.nan)
            known = f" ± {error:.{places}f}" if math.isfinite(error) else ""
            cells.append(f"{group[name]:.{places}f}{known}" if name in group else "-")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    table = "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
    return f"""
{config.dataset}: means over seeds with their standard errors, in nats per test example
{table}
  training       {sum(group["runs"] for group in summary)} runs of {totals["num_steps"]:,} steps in \
{totals["train_seconds"]:.1f} s, compilation apart ({totals["compile_seconds"]:.1f} s); \
{totals["examples_per_second"]:,.0f} examples a second
The numbers of each run are in {folder}/result.json, the pictures in {folder}: {", ".join(p.name for p in drawn)}"""
