"""Runs `benchmark.py`: every system in a process of its own, checked against the others, then timed in turns."""

import dataclasses
import logging
import math
import multiprocessing
import resource
import time
from typing import Any

import numpy as np

from engines.benchmark.config import Config
from engines.benchmark.work import WORK, Work, images_of, multiplications, num_parameters, weights_of
from engines.harness import run_folder, tables
from engines.harness.progress import Progress

AGREEMENT = 0.003  # the relative difference of two systems' values that is allowed beside their standard errors
LARGE, BYTES = 3000, 2**28  # side of the large product of the floor, bytes of its copy


def run(config: Config) -> None:
    """Check, time, print and save."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, "benchmark", False)
    folder.mkdir(parents=True)
    run_folder.write_json(folder / "config.json", dataclasses.asdict(config))
    rows: list[dict[str, Any]] = []
    for name in config.work:
        if name == "cost":
            from engines.benchmark import cost  # here alone, since it imports JAX into this process

            cost.run(folder, config.repeats)
            continue
        if name == "choices":
            from engines.benchmark import choices  # as above

            choices.run(folder, config.repeats)
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


class Worker:
    """A system in a process of its own, so that it is not charged for the threads and memory of another."""

    def __init__(self, name: str, work: Work):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, work), daemon=True)
        self.process.start()
        theirs.close()
        self.seconds_to_start = 0.0

    def ask(self, *words: Any) -> Any:
        """The answer to one command.

        Raises:
            RuntimeError: if the process failed, with what it said.
        """
        self.pipe.send(words)
        try:
            kind, answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process of {words} ended with code {self.process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(answer)
        return answer if kind == "answer" else None

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()


def maker(name: str) -> Any:
    """What makes a system. Its libraries are imported here, so that a worker imports no others."""
    if name == "vaejax":
        from engines.benchmark.systems_jax import MAKE
    elif name.startswith("torch"):
        from engines.benchmark.systems_torch import MAKE
    else:
        from engines.benchmark.systems_flax import MAKE
    return MAKE[name]


def serve(pipe: Any, name: str, work: Work) -> None:
    """What a worker's process does: build the system, then answer commands."""
    # The models are not trained, so warnings about their importance weights would not help.
    logging.getLogger("vaejax").setLevel(logging.ERROR)
    system: Any = None
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            start = time.perf_counter()
            if command == "start":
                system = maker(name)(work, *weights_of(work), images_of(work))
                pipe.send(("answer", time.perf_counter() - start))
            elif command == "value":
                pipe.send(("answer", system.value()))
            elif command == "layers":
                pipe.send(("answer", system.layers()))
            elif command in ("advance", "compile"):
                getattr(system, command)(*arguments)
                pipe.send(("answer", time.perf_counter() - start))
            else:
                pipe.send(("answer", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        except (NotImplementedError, ModuleNotFoundError) as error:
            pipe.send(("missing", None if command != "start" else print(f"{work.name}: no {name}: {error}")))
        except Exception as error:
            pipe.send(("error", f"{work.name} by {name}: {type(error).__name__}: {error}"))


def started(work: Work, systems: tuple[str, ...]) -> dict[str, Worker]:
    """The workers of all systems that are installed and can do the work."""
    workers = {}
    for name in systems:
        worker = Worker(name, work)
        if worker.ask("start") is None:
            worker.stop()
        else:
            workers[name] = worker
    return workers


def check_agreement(work: Work, workers: dict[str, Worker]) -> None:
    """Refuse to time systems that do not compute the same.

    Raises:
        RuntimeError: with the two numbers.
    """
    values = {name: worker.ask("value") for name, worker in workers.items()}
    first, (expected, error) = next(iter(values.items()))
    for name, (value, own) in values.items():
        # The variance of 1,000 gradients is known to a few percent only, and log p(x) from one set of samples.
        room = {"train": 0.0, "likelihood": 0.01, "moments": 0.05}[work.kind] * abs(expected)
        room += AGREEMENT * abs(expected) + 4 * math.hypot(np.nan_to_num(own), np.nan_to_num(error))
        if not abs(value - expected) <= room:
            raise RuntimeError(f"{work.name}: {name} gives {value:.6g} where {first} gives {expected:.6g}: not timed")


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
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((LARGE, LARGE), np.float32) for _ in range(2))
    left @ right
    start = time.perf_counter()
    for _ in range(3):
        left @ right
    per_multiplication = (time.perf_counter() - start) / (3 * LARGE**3)
    source = np.ones(BYTES // 4, np.float32)
    target = np.empty_like(source)
    np.copyto(target, source)
    start = time.perf_counter()
    for _ in range(3):
        np.copyto(target, source)
    per_byte = (time.perf_counter() - start) / (3 * 2 * BYTES)
    # Adam reads the gradient, a weight and two moments, and writes the last three.
    moved = 4 * 7 * num_parameters(work) if work.kind == "train" else 0
    return multiplications(work) * per_multiplication + moved * per_byte


def table(work: Work, rows: list[dict[str, Any]]) -> str:
    """The rows of one work, for the terminal."""
    lines = [("system", "examples/s", "spread", "vaejax is", "of the floor", "peak MiB", "start s")]
    for row in rows:
        if row["work"] == work.name:
            ratio = row["ratio_to_vaejax"]
            times = "-" if row["system"] == "vaejax" or not math.isfinite(ratio) else f"{1 / ratio:.2f} x"
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
