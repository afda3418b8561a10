"""What a training step costs against the number of samples, the batch size and the latent dimension."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from engines.harness import run_folder, tables
from engines.harness.pictures import STYLE, save
from engines.harness.progress import Progress
from vaejax import models, objectives, training

CHUNK = 50  # of the K samples at once

VALUES = {
    "samples K": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    "batch size": (10, 30, 100, 300, 1000, 3000),
    "latent dimension": (2, 5, 10, 20, 50, 100, 200, 500, 1000),
}

MODELS = {
    "samples K": "784-200-200-50, importance-weighted, batch 20, 50 samples at once",
    "batch size": "784-500-20, ELBO, K = 1",
    "latent dimension": "784-500-L, ELBO, batch 100, K = 1",
}


def run(folder: pathlib.Path, repeats: int, values: dict[str, tuple[int, ...]] = VALUES) -> None:
    """Measure, save, draw and print."""
    rows = [row for axis, numbers in values.items() for row in measured(axis, numbers, repeats)]
    run_folder.write_json(folder / "cost.json", rows)
    with plt.rc_context(STYLE):
        save({"cost": draw(rows)}, folder)
    print(table(rows))
    print(f"\nThe picture is {folder}/cost.png")


def measured(axis: str, numbers: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """A row for each number: seconds of a step, measured in turns, and bytes of temporary memory of its program."""
    steps = {number: compiled(axis, number) for number in numbers}
    seconds: dict[int, list[float]] = {number: [] for number in numbers}
    with Progress(f"cost of {axis}", repeats + 1, unit="rounds") as bar:
        for repeat in range(repeats + 1):
            for number, (step, _) in steps.items():
                took, done = 0.0, 0
                while took < 0.05:
                    start = time.perf_counter()
                    step()
                    took += time.perf_counter() - start
                    done += 1
                if repeat:  # the first warms up
                    seconds[number].append(took / done)
            bar.update()
    rows = []
    for number, (_, work_bytes) in steps.items():
        low, middle, high = np.quantile(seconds[number], (0.25, 0.5, 0.75))
        spread = float((high - low) / middle)
        rows.append(
            {"axis": axis, "value": number, "seconds": float(middle), "spread": spread, "work_bytes": work_bytes}
        )
    return rows


def compiled(axis: str, number: int) -> tuple[Callable[[], None], int]:
    """A function that does one step, and the bytes of temporary memory of its compiled program."""
    rng = np.random.default_rng(0)
    if axis == "samples K":
        vae = models.mlp_vae((28, 28), 50, (200, 200))
        objective = objectives.make_iwae(vae, num_samples=number, chunk_size=CHUNK)
        size = 20
    else:
        vae = models.mlp_vae((28, 28), number if axis == "latent dimension" else 20, (500,))
        objective, size = objectives.make_elbo(vae), number if axis == "batch size" else 100
    optimizer = optax.adam(1e-3)
    step = training.make_train_step(objective, optimizer)
    state = training.init_state(vae.init(jax.random.key(0)), optimizer)
    images = jax.numpy.asarray(rng.random((size, 28, 28)) > 0.8, np.float32)
    key = jax.random.key(1)
    program = jax.jit(step).lower(state, key, images).compile()
    memory = program.memory_analysis()
    return lambda: jax.block_until_ready(program(state, key, images)), int(memory.temp_size_in_bytes)


def slope(rows: list[dict[str, Any]]) -> float:
    """The slope of log seconds against log value, by least squares over the larger half of the values."""
    half = rows[len(rows) // 2 :]
    return float(np.polyfit(*(np.log([row[name] for row in half]) for name in ("value", "seconds")), 1)[0])


def draw(rows: list[dict[str, Any]]) -> plt.Figure:
    """Seconds of a step against each number, on logarithmic axes."""
    axes_of = list(dict.fromkeys(row["axis"] for row in rows))
    figure, axes = plt.subplots(1, len(axes_of), figsize=(3.8 * len(axes_of), 3.2), layout="constrained", squeeze=False)
    for panel, name in zip(axes[0], axes_of, strict=True):
        mine = [row for row in rows if row["axis"] == name]
        values = np.array([row["value"] for row in mine])
        milliseconds = 1e3 * np.array([row["seconds"] for row in mine])
        panel.loglog(values, milliseconds, "o-", label="measured")
        panel.loglog(values, milliseconds[-1] * values / values[-1], ":", color="grey", label="in proportion")
        panel.set_xlabel(name[0].upper() + name[1:])
        panel.set_title(f"{MODELS[name]}\nslope of the larger half {slope(mine):.2f}", fontsize=8)
        panel.legend()
    axes[0, 0].set_ylabel("Time of a training step [ms]")
    return figure


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for the terminal, a table for each axis."""
    parts = []
    for name in dict.fromkeys(row["axis"] for row in rows):
        mine = [row for row in rows if row["axis"] == name]
        cells = [
            (f"{r['value']:,}", f"{1e3 * r['seconds']:.2f} ms", f"{r['work_bytes'] / 2**20:.1f} MiB") for r in mine
        ]
        title = f"\n{name} ({MODELS[name]}); slope of the larger half {slope(mine):.2f}"
        parts += [title, tables.columns(cells, left=0, indent="  ")]
    return "\n".join(parts)
