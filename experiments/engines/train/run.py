"""One training run from its options to its report; `population` has several."""

import itertools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from engines.harness import command_line, loading, run_folder, spreading
from engines.train import build, events, examples, measures, session, snapshots
from engines.train.config import Config
from vaejax import data, devices, training
from vaejax.data import streams

STREAMED_BYTES = 2**26  # of what is read at once; four times as much is in memory


def run(config: Config) -> int:
    """Train, evaluate, draw and report. Returns the exit code: 0, or 128 + the signal that stopped it."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, config.dataset, config.resume)
    mesh = spreading.chosen_mesh(
        config.devices, config.distributed, devices.BATCH, config.batch_size, options="--batch-size"
    )
    images = {split: loading.load(config.dataset, split, config.where) for split in ("validation", "test")}
    if config.stream:
        source = loading.open_source(config.dataset, "train", config.where)
    else:
        train = loading.load(config.dataset, "train", config.where)
        source = train.images
    data_shape = images["test"].images.shape[1:]
    num_labels = examples.num_labels(images, config.condition_on)
    vae = build.build_model(config, data_shape, num_labels)
    splits = {"train": source} | {split: part.images for split, part in images.items()}
    print(loading.sizes_in_words(config.dataset, splits))

    keys = loading.run_keys(config.dataset, config.seed)
    (beta,), (learning_rate,) = config.beta, config.learning_rate
    estimator = build.build_estimator(config)
    like = images["validation"].images if config.stream else source
    params = build.build_init(config, vae, estimator, like)(keys.of_init)
    if config.start_from is not None and not config.resume:
        params = build.started_from(pathlib.Path(config.start_from).expanduser(), params)
    held_out = build.build_held_out(config, images, vae, params, num_labels)
    optimizer = build.build_optimizer(config, learning_rate, estimator)
    objective = build.build_objective(config, vae, estimator, beta)
    step, state, batch_size = build.build_step(config, vae, objective, optimizer, params, len(source), held_out)

    plan = build.build_plan(config)
    state, metrics = session.resumed(folder, spreading.placed(mesh, state), plan.compared, config.resume)
    if config.stream:
        fit, compile_seconds = streamed(
            mesh, step, state, keys.training, source, plan.num_steps, batch_size, config.seed
        )
    else:
        whole = jax.tree.map(jnp.asarray, examples.of_split(train, "train", num_labels, config.missing))
        train_images = spreading.placed(mesh, whole)
        fit, compile_seconds = in_memory(mesh, step, state, keys.training, train_images, plan.num_steps, batch_size)

    # Whatever can be refused has been: only now is anything written.
    session.begin(folder, vars(config), metrics, config.resume)
    where = "" if mesh is None else f" on {mesh.size} devices"
    every = f"{session.chunk_size(plan.num_steps):,} steps"
    print(f"compiled in {compile_seconds:.1f} s{where}; a report every {every}; leaves everything in {folder}")
    measure = build.build_measure(config, vae)
    # What a resumed run started from may be gone, and is not asked for: then there is nothing to compare with.
    is_known = config.start_from is None or not config.resume
    untrained = measure.validate(params, held_out["validation"]) if is_known else -math.inf
    viewer = snapshots.Viewer(
        vae, held_out["test"], images["test"], folder, num_labels, measure.params_of, build.white(config)
    )
    with events.recorder(config.tensorboard and spreading.is_first(), folder, int(state.step)) as record:
        state, stopped_by = session.train_until_done(
            plan, folder, state, metrics, fit, measure, held_out["validation"], viewer, record
        )
    if stopped_by is not None:
        options = command_line.to_resume(config, folder.name)
        return session.stopped(folder, int(state.step), stopped_by, options)
    if not spreading.is_first():
        return 0

    state = spreading.local(state)
    finish(
        config, folder, state, metrics, compile_seconds, measure, untrained, viewer, held_out["test"], images["test"]
    )
    return 0


def finish(
    config: Config,
    folder: pathlib.Path,
    state: training.TrainState,
    metrics: list[dict[str, Any]],
    compile_seconds: float,
    measure: measures.Measure,
    untrained: float,
    viewer: snapshots.Viewer,
    test: examples.Examples,
    original: data.Dataset,
) -> None:
    """Evaluate on test images, draw, and report."""
    from engines.train import pictures  # only now: to import matplotlib takes half as long as to import JAX

    params = measure.params_of(state)
    result, measured = measure.evaluate(params, test)
    result |= session.times(metrics, compile_seconds, config.batch_size) | {
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "latent_dim": config.num_latents,
        "dataset": config.dataset,
        "test_images": original.description,
    }
    if warning := session.alarm(metrics, measure.name, untrained):
        result["alarm"] = warning
    viewer.snapshot(state)
    result |= viewer.pictures(params)
    run_folder.write_json(folder / "result.json", result)
    print(in_words(result, measured, folder, pictures.draw(folder)))


def in_memory(mesh, step: training.TrainStep, state, key, images, num_steps: int, batch_size: int):
    """What `training.run_chunks` takes, compiled: the steps from one report to the next. And the seconds it took."""

    def chunk(state, key, images, stop):
        steps = session.chunk_size(num_steps)
        return training.fit(step, state, key, images, num_steps=steps, batch_size=batch_size, stop=stop)

    program, seconds = spreading.compiled(mesh, chunk, state, key, images, num_steps)
    return lambda state, stop: program(state, key, images, stop), seconds


def streamed(
    mesh, step: training.TrainStep, state, key, source: streams.Source, num_steps: int, batch_size: int, seed: int
):
    """`in_memory`, but of images that are read from disk, from the state's step on, and fewer steps at once."""
    report_steps, batch_bytes = session.chunk_size(num_steps), batch_size * source[0].nbytes
    steps = max(n for n in range(1, report_steps + 1) if report_steps % n == 0 and n * batch_bytes <= STREAMED_BYTES)
    pieces = streams.read(streams.make_stream(source, batch_size, seed), int(state.step), steps, mesh=mesh)
    first = next(pieces)
    pieces = itertools.chain([first], pieces)

    def piece(state, key, images, stop):
        return training.fit_batches(step, state, key, images, stop=stop)

    program, seconds = spreading.compiled(mesh, piece, state, key, first, num_steps)
    return lambda state, stop: program(state, key, next(pieces), stop), seconds


def in_words(result: dict[str, Any], measured: str, folder: pathlib.Path, drawn: list[pathlib.Path]) -> str:
    """The report's last lines."""
    return f"""
{result["dataset"]}: {result["num_test_examples"]:,} test examples
{measured}
{measures.calibration_in_words(result)}\
  training       {session.times_in_words(result)}; {result["num_parameters"]:,} parameters
{session.alarm_in_words(result)}The numbers are in {folder}/result.json, the pictures in {folder}: \
{", ".join(path.name for path in drawn)}"""
