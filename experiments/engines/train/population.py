"""Several training runs in one program, over seeds, weights of the KL and learning rates, and what they say."""

import itertools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engines.harness import command_line, loading, rows, run_folder, spreading, tables
from engines.train import build, events, examples, measures, session
from engines.train.config import Config
from vaejax import data, devices, estimators, evaluation, models, training

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


def run(config: Config) -> int:
    """Train, evaluate and report. Returns the exit code: 0, or 128 + the signal that stopped it."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, config.dataset, config.resume)
    members = members_of(config.beta, config.learning_rate, range(config.seed, config.seed + config.seeds))
    options = "--seeds times the values of --beta and --learning-rate"
    mesh = spreading.chosen_mesh(config.devices, config.distributed, devices.RUNS, len(members), options)
    images = {split: loading.load(config.dataset, split, config.where) for split in ("train", "validation", "test")}
    data_shape = images["test"].images.shape[1:]
    num_labels = examples.num_labels(images, config.condition_on)
    vae = build.build_model(config, data_shape, num_labels)
    print(loading.sizes_in_words(config.dataset, {split: part.images for split, part in images.items()}))

    # The same keys as in a run by itself.
    seeds = jnp.array([member.seed for member in members])
    keys = jax.vmap(lambda seed: loading.run_keys(config.dataset, seed))(seeds)
    estimator = build.build_estimator(config)
    init = build.build_init(config, vae, estimator, images["train"].images)
    optimizer = build.build_optimizer(config, config.learning_rate[0], estimator)
    # To JAX's checker of keys to stack them is to use them, hence the clone.
    init_keys = jax.random.clone(jnp.stack(keys.of_init, axis=1))
    states = training.init_population(init, optimizer, init_keys)
    first = member_of(states.params, 0)
    held_out = build.build_held_out(config, images, vae, first, num_labels)
    plan = build.build_plan(config)
    group = config.group_size or chosen_group_size(
        first,
        len(members),
        config.batch_size * config.num_samples,
        config.hidden_sizes,
        is_convolutional=config.model == "conv",
    )
    measure = measure_of(config, vae, group)
    untrained = measure.validate(states.params, held_out["validation"])
    states, metrics = session.resumed(folder, spreading.placed(mesh, states), plan.compared, config.resume)
    whole = examples.of_split(images["train"], "train", num_labels, config.missing)
    train_images = spreading.placed(mesh, jax.tree.map(jnp.asarray, whole))
    make_step = steps_of(config, vae, estimator)
    fit, compile_seconds = compiled(mesh, make_step, states, keys.training, train_images, members, plan, group)

    session.begin(folder, vars(config), metrics, config.resume)
    sides = "side by side" if group >= len(members) else f"{group} at a time" if group > 1 else "one after another"
    print(f"compiled in {compile_seconds:.1f} s; {len(members)} runs {sides}; leaves everything in {folder}")
    with events.recorder(config.tensorboard and spreading.is_first(), folder, int(states.step)) as record:
        states, stopped_by = session.train_until_done(
            plan, folder, states, metrics, fit, measure, held_out["validation"], record=record
        )
    if stopped_by is not None:
        options = command_line.to_resume(config, folder.name)
        return session.stopped(folder, int(states.step), stopped_by, options)
    if not spreading.is_first():
        return 0

    states = spreading.local(states)
    results = evaluated(build.build_measure(config, vae), states, members, held_out["test"])
    totals = session.times(metrics, compile_seconds, plan.batch_size, len(members)) | {
        "group_size": group,
        "dataset": config.dataset,
        "test_images": images["test"].description,
    }
    if warning := session.alarm(metrics, measure.name, untrained):
        totals["alarm"] = warning
    summary = summarized(results)
    run_folder.write_json(folder / "result.json", {"runs": results, "groups": summary, **totals})
    from engines.train import population_pictures  # only now, as for a single run

    drawn = population_pictures.draw(folder)
    print(in_words(summary, totals, folder, drawn))
    return 0


def members_of(betas: Sequence[float], learning_rates: Sequence[float], seeds: Sequence[int]) -> list[Member]:
    """Every run of the grid, the seeds of one kind beside each other."""
    return [Member(*numbers) for numbers in itertools.product(betas, learning_rates, seeds)]


def chosen_group_size(
    params: Any, number: int, num_latents: int, hidden_sizes: Sequence[int], *, is_convolutional: bool
) -> int:
    """How many runs go side by side: as many as the memory holds, but one where one alone fills the cores.

    Args:
        params: of one run.
        number: of runs.
        num_latents: that one step of a run decodes.
        hidden_sizes: of its networks.
        is_convolutional: whether they are.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    # Forward and backward, each weight once for each latent: exact for dense layers, too little for convolutions.
    multiplications = 3 * size * num_latents
    if jax.default_backend() == "cpu" and (multiplications > LARGE_STEP or is_convolutional):
        return 1
    units = max(max(leaf.shape, default=0) for leaf in jax.tree.leaves(params)) + sum(hidden_sizes)
    work = 4 * 4 * size + 4 * 10 * num_latents * units
    return max(1, min(number, MEMORY // work))


def steps_of(config: Config, vae: models.VAE, estimator: estimators.Estimator) -> Callable[[Any], training.TrainStep]:
    """What `training.fit_population` takes: `{"beta": ..., "learning_rate": ...} -> step` of one run."""
    prepare = data.binarization(config.binarization)

    def make_step(numbers):
        objective = build.build_objective(config, vae, estimator, numbers["beta"])
        optimizer = build.build_optimizer(config, numbers["learning_rate"], estimator)
        return training.make_train_step(objective, optimizer, prepare)

    return make_step


def compiled(mesh, make_step, states, keys, images, members: list[Member], plan: session.Plan, group_size: int):
    """What `training.run_chunks` takes, compiled: the steps of all runs to the next report. And its seconds."""
    numbers = {name: jnp.array([getattr(member, name) for member in members]) for name in ("beta", "learning_rate")}
    sizes = {
        "num_steps": session.chunk_size(plan.num_steps),
        "batch_size": plan.batch_size,
        "group_size": group_size,
    }

    def chunk(states, keys, images, stop):
        return training.fit_population(make_step, states, keys, images, numbers, stop=stop, **sizes)

    program, seconds = spreading.compiled(mesh, chunk, states, keys, images, plan.num_steps)
    return lambda states, stop: program(states, keys, images, stop), seconds


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
                key = loading.evaluation_key("validation")
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


def evaluated(measure: measures.Measure, states, members: list[Member], test) -> list[dict[str, Any]]:
    """The numbers of each run on test images; of one that diverged only that it did."""
    results = []
    for i, member in enumerate(members):
        params = member_of(measure.params_of(states), i)
        found = measure.evaluate(params, test)[0] if measures.finite(params) else {"diverged": True}
        results.append({**member._asdict(), **found})
    return results


def summarized(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each weight and rate the mean of every number over its seeds, and its standard error."""
    summary = []
    for beta, rate in dict.fromkeys((run["beta"], run["learning_rate"]) for run in results):
        mine = [run for run in results if (run["beta"], run["learning_rate"]) == (beta, rate)]
        whole = [run for run in mine if not run.get("diverged")]
        group = {"beta": beta, "learning_rate": rate, "runs": len(mine), "diverged": len(mine) - len(whole)}
        for name, value in (whole[0] if whole else {}).items():
            if isinstance(value, (int, float)) and name not in Member._fields:
                mean, error = rows.mean_and_error([run[name] for run in whole])
                group |= {name: float(mean), f"{name}_error_over_seeds": float(error)}
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


def in_words(
    summary: list[dict[str, Any]], totals: dict[str, Any], folder: pathlib.Path, drawn: list[pathlib.Path]
) -> str:
    """The report's last lines: a table with a line for each weight and rate."""
    shown = [name for name in COLUMNS if any(name in group for group in summary)]
    lines = [["beta", "learning rate", "runs", *(COLUMNS[name][0] for name in shown)]]
    for group in summary:
        lost = f" ({group['diverged']} diverged)" if group["diverged"] else ""
        cells = [f"{group['beta']:g}", f"{group['learning_rate']:g}", f"{group['runs']}{lost}"]
        for name in shown:
            places = COLUMNS[name][1]
            error = group.get(f"{name}_error_over_seeds", math.nan)
            known = f" ± {error:.{places}f}" if math.isfinite(error) else ""
            cells.append(f"{group[name]:.{places}f}{known}" if name in group else "-")
        lines.append(cells)
    return f"""
{totals["dataset"]}: means over seeds with their standard errors, in nats per test example
{tables.columns(lines, indent="  ")}
  training       {sum(group["runs"] for group in summary)} runs of {session.times_in_words(totals)}
{session.alarm_in_words(totals)}The numbers of each run are in {folder}/result.json, the pictures in {folder}: \
{", ".join(path.name for path in drawn)}"""
