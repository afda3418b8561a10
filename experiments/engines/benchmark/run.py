"""Runs `benchmark.py`: every system in a process of its own, checked against the others, then timed in turns."""

import dataclasses
import importlib
import math
import time
from typing import Any

import numpy as np

from engines.benchmark.config import Config
from engines.benchmark.work import WORK, Work, multiplications, num_parameters
from engines.benchmark.workers import Worker, check_agreement, started
from engines.harness import run_folder, tables
from engines.harness.progress import Progress
from engines.harness.rows import interval_of_ratios

BY_VAEJAX = ("parts", "cost", "choices")  # each by the file of its name
LARGE, BYTES = 3000, 2**28  # side of the large product of the floor, bytes of its copy


def run(config: Config) -> None:
    """Check, time, print and save."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, "benchmark", False)
    folder.mkdir(parents=True)
    run_folder.write_json(folder / "config.json", dataclasses.asdict(config))
    rows: list[dict[str, Any]] = []
    for name in config.work:
        if name in BY_VAEJAX:  # imported here alone, since it brings JAX into this process
            importlib.import_module(f"engines.benchmark.{name}").run(folder, config.repeats)
            continue
        if name == "quality":
            from engines.benchmark import quality  # as above

            quality.run(folder, config.systems)
            continue
        work = WORK[name]
        rows += measured(work, config.systems, config.repeats, config.seconds)
        run_folder.write_json(folder / "results.json", rows)
        print(table(work, rows))
    if rows:
        print(f"\nEvery row is in {folder}/results.json")


def measured(work: Work, systems: tuple[str, ...], repeats: int, seconds_each: float) -> list[dict[str, Any]]:
    """The rows of one work: for each system that can do it, `repeats` measurements of about `seconds_each`."""
    workers = started(work, systems)
    try:
        check_agreement(work, workers)
        sizes = {name: calibrated(worker, work, seconds_each) for name, worker in workers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        floors = []
        with Progress(work.name, repeats * len(workers), unit="measurements") as bar:
            for number in range(repeats):
                floors.append(floor_seconds(work))
                time.sleep(0.5)  # until the floor's threads rest
                turn = number % len(workers)  # each system goes first once
                for name in [*workers][turn:] + [*workers][:turn]:
                    seconds[name].append(workers[name].ask("advance", sizes[name]) / sizes[name])
                    bar.update(note=name)
        peaks = {name: worker.ask("peak") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()
    floor = float(np.median(floors))
    rows = []
    for name in workers:
        rates = work.batch_size / np.array(seconds[name])
        own = np.median(seconds["vaejax"]) if "vaejax" in seconds else math.nan
        rows.append(
            {
                "work": work.name,
                "system": name,
                "examples_per_second": float(np.median(rates)),
                "spread": float((np.quantile(rates, 0.75) - np.quantile(rates, 0.25)) / np.median(rates)),
                "peak_bytes": peaks[name],
                "ratio_to_vaejax": float(own / np.median(seconds[name])),
                "fraction_of_floor": float(floor / np.median(seconds[name])),
                "seconds_to_start": workers[name].seconds_to_start,
                "seconds_per_unit": [float(value) for value in seconds[name]],
                "floor_seconds": floor,
            }
        )
    return rows


def calibrated(worker: Worker, work: Work, seconds: float) -> int:
    """The number of units that takes about so long, after compilation. Sets the worker's `seconds_to_start`."""
    worker.seconds_to_start = worker.ask("advance", max(2, work.chunk if work.kind == "train" else 2))
    if work.kind == "moments":  # their number is a shape: another number would be compiled again
        worker.ask("advance", work.chunk)
        return work.chunk
    units, took = 2, 0.0
    while took < min(0.2, seconds / 2):
        units *= 2
        took = worker.ask("advance", units)
    whole = max(2, round(units * seconds / took))
    if work.kind == "train":
        whole = max(work.chunk, whole // work.chunk * work.chunk)
    worker.ask("advance", whole)  # a number of units may be a shape
    return whole


def floor_seconds(work: Work) -> float:
    """Seconds of one unit's matrix products at the rate of a large one, and of the optimizer's bytes at that of a copy.

    Both rates are measured now: on a shared machine they change.
    """
    source = np.ones(BYTES // 4, np.float32)
    target = np.empty_like(source)
    np.copyto(target, source)
    start = time.perf_counter()
    for _ in range(3):
        np.copyto(target, source)
    per_byte = (time.perf_counter() - start) / (3 * 2 * BYTES)
    # Adam reads the gradient, a weight and two moments, and writes the last three.
    moved = 4 * 7 * num_parameters(work) if work.kind == "train" else 0
    return seconds_of_products(work) + moved * per_byte


def seconds_of_products(work: Work) -> float:
    """Seconds of one unit's matrix products at the rate that a large one has now."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((LARGE, LARGE), np.float32) for _ in range(2))
    left @ right
    start = time.perf_counter()
    for _ in range(3):
        left @ right
    return multiplications(work) * (time.perf_counter() - start) / (3 * LARGE**3)


def table(work: Work, rows: list[dict[str, Any]]) -> str:
    """The rows of one work, for the terminal."""
    own = next((row for row in rows if row["work"] == work.name and row["system"] == "vaejax"), None)
    lines = [("system", "examples/s", "spread", "vaejax is", "of the floor", "peak MiB", "start s")]
    for row in rows:
        if row["work"] == work.name:
            times = "-" if row["system"] == "vaejax" or own is None else in_words(row, own)
            lines.append(
                (
                    row["system"],
                    f"{row['examples_per_second']:,.0f}",
                    f"{100 * row['spread']:.0f}%",
                    times,
                    f"{100 * row['fraction_of_floor']:.0f}%",
                    f"{row['peak_bytes'] / 2**20:,.0f}",
                    f"{row['seconds_to_start']:.1f}",
                )
            )
    return f"\n{work.name}\n{tables.columns(lines, left=1, indent='  ')}"


def in_words(row: dict[str, Any], own: dict[str, Any]) -> str:
    """How many times as fast as this system vaejax is, with a 95% interval over the pairs of measurements."""
    found = interval_of_ratios(np.divide(row["seconds_per_unit"], own["seconds_per_unit"]))
    known = f" [{found['low']:.2f}, {found['high']:.2f}]" if len(own["seconds_per_unit"]) > 1 else ""
    return f"{found['value']:.2f}{known} x"
