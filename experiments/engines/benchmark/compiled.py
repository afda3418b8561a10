"""The work of `benchmark.py` compiled for accelerators that are not there: what a step would need and do."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType

from engines.benchmark.config import Config
from engines.benchmark.systems_jax import model_of, objective_of
from engines.benchmark.work import LEARNING_RATE, NUM_IMAGES, WORK, Work
from engines.harness import run_folder, tables
from vaejax import devices, evaluation, laboratory, training

NUM_RUNS, NUM_DEVICES = 16, 4
MANY = WORK["iwae"]._replace(num_samples=5000, chunk=5)
CHUNK = 50  # of the 5,000 samples at once
HEADER = ("work", "kernels", "host", "sums", "launches", "roofline", "limit", "memory", "fits", "compiled in")


class Program(NamedTuple):
    """A function and the shapes of its arguments, and over how many devices it is spread."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    num_devices: int = 1


def run(config: Config) -> None:
    """Compile, print and save."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, "benchmark", False)
    folder.mkdir(parents=True)
    run_folder.write_json(folder / "config.json", dataclasses.asdict(config))
    rows: list[dict[str, Any]] = []
    for device in config.devices:
        for name, program in programs(config.work).items():
            print(f"\r{device}: {name:30}", end="", flush=True)
            rows.append({"device": device, "work": name, **row(device, program)})
            run_folder.write_json(folder / "compiled.json", rows)
        print("\r" + " " * 70, end="\r")
        print(table(device, rows))
    print(f"\nEvery row is in {folder}/compiled.json")


def programs(chosen: tuple[str, ...]) -> dict[str, Program]:
    """The programs of the work that was chosen, and three that it is not measured with."""
    work = {name: WORK[name] for name in chosen if name in WORK}
    found = {name: program_of(each) for name, each in work.items()}
    found[f"aevb, population of {NUM_RUNS}"] = population(WORK["aevb"])
    found[f"aevb, mesh of {NUM_DEVICES}"] = program_of(WORK["aevb"])._replace(num_devices=NUM_DEVICES)
    found[f"iwae, K = 5,000, {CHUNK} at once"] = program_of(MANY, CHUNK)
    return found


def program_of(work: Work, chunk_size: int | None = None) -> Program:
    """A call of vaejax: some steps of training, the likelihoods of a batch, or the moments of a gradient."""
    vae = model_of(work)
    objective, key = objective_of(work, vae, chunk_size), jax.random.key(0)
    batch = jax.ShapeDtypeStruct((work.batch_size, *work.image_shape), jnp.float32)
    params = jax.eval_shape(vae.init, key)
    if work.kind == "likelihood":
        count = functools.partial(evaluation.log_likelihood, num_samples=work.num_samples)
        return Program(lambda params, key, x: count(vae, params, key, x), (params, key, batch))
    if work.kind == "moments":
        moments = functools.partial(laboratory.gradient_moments, objective, num_repeats=work.chunk)
        return Program(moments, (params, key, batch))
    optimizer = optax.adam(LEARNING_RATE)
    step = training.make_train_step(objective, optimizer)
    state = jax.eval_shape(lambda params: training.init_state(params, optimizer), params)
    fit = functools.partial(training.fit, step, num_steps=work.chunk, batch_size=work.batch_size)
    images = jax.ShapeDtypeStruct((NUM_IMAGES, *work.image_shape), jnp.float32)
    return Program(jax.jit(fit, donate_argnums=0), (state, key, images))


def population(work: Work) -> Program:
    """Runs of other learning rates, side by side."""
    vae = model_of(work)
    objective = objective_of(work, vae)

    def fit(states: Any, keys: Any, images: Any, rates: Any) -> Any:
        return training.fit_population(
            lambda rate: training.make_train_step(objective, optax.adam(rate)),
            *(states, keys, images, rates),
            num_steps=work.chunk,
            batch_size=work.batch_size,
        )

    init = functools.partial(training.init_population, vae.init, optax.adam(LEARNING_RATE))
    keys = jax.random.split(jax.random.key(0), NUM_RUNS)
    images = jax.ShapeDtypeStruct((NUM_IMAGES, *work.image_shape), jnp.float32)
    arguments = (jax.eval_shape(init, keys), keys, images, jnp.full(NUM_RUNS, LEARNING_RATE))
    return Program(jax.jit(fit, donate_argnums=0), arguments)


def row(device: str, program: Program) -> dict[str, Any]:
    """What the compiler says of a program."""
    name, mesh = device, AbstractMesh((), ())
    if program.num_devices > 1:
        mesh = AbstractMesh((program.num_devices,), (devices.BATCH,), axis_types=(AxisType.Auto,))
        if ":" not in device and len(devices.devices_of(device)) < program.num_devices:
            name = f"{device}:{program.num_devices}"
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        found = devices.compile_for(name, program.function, *program.arguments)
    return {
        **{field: getattr(found, field) for field in found._fields if field not in ("device", "text")},
        "memory_bytes": found.memory_bytes._asdict(),
        "limits": found.limits and found.limits._asdict(),
        "fits": found.fits,
        "roofline_seconds": found.roofline_seconds,
        "limit": found.limit,
    }


def table(device: str, rows: list[dict[str, Any]]) -> str:
    """The rows of one device, for the terminal."""
    lines = [HEADER]
    for row in rows:
        if row["device"] == device:
            known = row["limits"] is not None
            lines.append(
                (
                    row["work"],
                    str(row["kernels"]) if known else "-",
                    str(row["host_transfers"]) if known else "-",
                    str(row["all_reduces"]) if known else "-",
                    f"{1e6 * row['limits']['launches']:,.0f} us" if known else "-",
                    f"{1e6 * row['roofline_seconds']:,.1f} us" if known else "-",
                    row["limit"] if known else "-",
                    f"{sum(row['memory_bytes'].values()) / 2**20:,.0f} MiB",
                    "yes" if row["fits"] else f"no, {-row['spare_bytes'] / 2**30:,.1f} GiB short",
                    f"{row['seconds']:.0f} s",
                )
            )
    return f"\n{device}, compiled, not run; of one pass through the hottest loop\n{tables.columns(lines, 1, '  ')}"
