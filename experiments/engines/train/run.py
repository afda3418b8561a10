"""One training run from its configuration to its report; `train.py` is its command line."""

import itertools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engines.harness import loading, run_folder, spreading
from engines.train import build, pictures, snapshots
from engines.train.config import Config
from engines.train.session import begin, binarized_once, chunk_size, resumed, stopped, train_until_done
from vaejax import devices, streams, training


def run(config: Config) -> int:
    """Train, evaluate, draw and report. Returns the exit code: 0, or 128 + the signal that stopped it."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, config.dataset, config.resume)
    mesh = spreading.chosen_mesh(config, devices.BATCH, config.batch_size)
    images = {split: loading.load(config, split) for split in ("validation", "test")}
    source = loading.open_source(config, "train") if config.stream else loading.load(config, "train").images
    vae = build.build_model(config, images["test"].images.shape[1:])
    sizes = {"train": len(source)} | {split: len(part.images) for split, part in images.items()}
    print(f"{config.dataset}: {', '.join(f'{size:,} {split}' for split, size in sizes.items())} examples")

    params_key, run_key = jax.random.split(jax.random.key(config.seed))
    (beta,), (learning_rate,) = config.beta, config.learning_rate
    estimator = build.build_estimator(config)
    params = build.build_init(vae, estimator, images["test"].images.shape[1:])(params_key)
    held_out = binarized_once(config, images, vae, params)
    optimizer = build.build_optimizer(config, learning_rate, estimator)
    objective = build.build_objective(config, vae, estimator, beta)
    step, state, batch_size = build.build_step(config, vae, objective, optimizer, params, len(source), held_out)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))

    state, metrics = resumed(config, folder, spreading.placed(mesh, state))
    if config.stream:
        train_images = None
        fit, compile_seconds = compiled_stream(config, mesh, step, state, run_key, source)
    else:
        train_images = spreading.placed(mesh, jnp.asarray(source))
        fit, compile_seconds = compiled(config, mesh, step, state, run_key, train_images, batch_size)

    # Whatever can be refused has been: only now is anything written.
    begin(config, folder, metrics)
    where = "" if mesh is None else f" on {mesh.size} devices"
    print(
        f"compiled in {compile_seconds:.1f} s{where}; a report every {chunk_size(config):,} steps; leaves everything "
        f"in {folder}"
    )
    measure = build.build_measure(config, vae)
    viewer = snapshots.Viewer(vae, held_out["test"], images["test"], folder)
    state, metrics, stopped_by = train_until_done(
        config, folder, state, metrics, fit, run_key, train_images, measure, held_out["validation"], viewer
    )
    if stopped_by is not None:
        return stopped(config, folder, state, stopped_by)
    if not spreading.is_first():
        return 0

    state = spreading.local(state)
    result, measured = measure.evaluate(state.params, held_out["test"])
    seconds = metrics[-1]["seconds"]
    result |= {
        "train_seconds": seconds,
        "compile_seconds": compile_seconds,
        "examples_per_second": int(state.step) * config.batch_size / seconds,
        "num_steps": int(state.step),
        "num_parameters": num_parameters,
        "latent_dim": config.latent_dim,
        "dataset": config.dataset,
        "test_images": images["test"].description,
    }
    viewer.snapshot(state)
    viewer.pictures(state.params)
    run_folder.write_json(folder / "result.json", result)
    drawn = pictures.draw(folder)
    print(in_words(result, measured, config, folder, drawn))
    return 0


def compiled(config: Config, mesh, step: training.TrainStep, state, key, images, batch_size: int):
    """The program that takes the steps from one report to the next, and how long it took to compile, in seconds."""

    def chunk(state, key, images, stop):
        return training.fit(step, state, key, images, num_steps=chunk_size(config), batch_size=batch_size, stop=stop)

    start = time.perf_counter()
    fit = spreading.compiled(mesh, chunk, state, key, images, config.num_steps)
    return fit, time.perf_counter() - start


STREAMED_BYTES = 2**26  # of what is read at once; four times as much is in memory


def compiled_stream(config: Config, mesh, step: training.TrainStep, state, key, source: streams.Source):
    """As `compiled`, of images that are read from disk, from the state's step on."""
    report_steps, batch_bytes = chunk_size(config), config.batch_size * source[0].nbytes
    steps = max(n for n in range(1, report_steps + 1) if report_steps % n == 0 and n * batch_bytes <= STREAMED_BYTES)
    chunks = streams.read(
        streams.make_stream(source, config.batch_size, config.seed), int(state.step), steps, mesh=mesh
    )
    first = next(chunks)
    chunks = itertools.chain([first], chunks)

    def piece(state, key, images, stop):
        return training.fit_batches(step, state, key, images, stop=stop)

    start = time.perf_counter()
    program = spreading.compiled(mesh, piece, state, key, first, config.num_steps)

    def fit(state, key, _, stop):
        histories = []
        for _ in range(report_steps // steps):
            state, history = program(state, key, next(chunks), stop)
            histories.append(history)
        return state, jax.tree.map(lambda *parts: np.concatenate(parts), *histories)

    return fit, time.perf_counter() - start


def in_words(result: dict[str, Any], measured: str, config: Config, folder, drawn: list[pathlib.Path]) -> str:
    """The report's last lines."""
    return f"""
{config.dataset}: {result["num_test_examples"]:,} test examples
{measured}
  training       {result["num_steps"]:,} steps in {result["train_seconds"]:.1f} s, compilation apart \
({result["compile_seconds"]:.1f} s); {result["examples_per_second"]:,.0f} examples a second; \
{result["num_parameters"]:,} parameters
The numbers are in {folder}/result.json, the pictures in {folder}: {", ".join(path.name for path in drawn)}"""
