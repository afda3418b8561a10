"""Rows of a published table: each trained, evaluated on test data once, and written beside the published number."""

import dataclasses
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from engines.harness import command_line, run_folder
from engines.harness.progress import Progress
from engines.reproduce import bits, certificates, images, jobs, pictures, report, text
from engines.reproduce.config import CERTIFICATES, Config
from engines.reproduce.published import Row
from vaejax import training
from vaejax.training import checkpoints

CHUNK = 50  # steps between two looks at the clock
CHECKPOINT_SECONDS = 60.0


# `(config, row, seed) -> Job` of the tables that do not compare the log p(x) of images.
JOBS = {"ppca": images.of_linear_vae, "hinton": images.of_codes, "lagging": text.of_text}
JOBS |= dict.fromkeys(("rodeo", "disarm", "relax"), bits.of_bits)


class Plan(NamedTuple):
    """How long a run takes, and where it leaves its checkpoints.

    Attributes:
        what: name of the run, on the progress bar.
        num_steps: steps at the most.
        seconds: of training, at the most, with a tenth to spare.
        recipe: in words; a checkpoint of another one is refused.
        folder: of the run.
    """

    what: str
    num_steps: int
    seconds: float
    recipe: str
    folder: pathlib.Path


def run(config: Config) -> int:
    """Train and evaluate every row, and draw the table. Returns the exit code: 0, or 128 + a signal that stopped it."""
    folder = run_folder.choose_folder(config.runs_dir, config.name, f"reproduce-{config.table}", config.resume)
    if config.resume:
        run_folder.claim(folder)
    run_folder.check_same_options(folder, command_line.compared(config))
    if config.table != CERTIFICATES:
        for row in {row.dataset: row for row in config.chosen}.values():  # missing data is told before any training
            job_of(config, row, seed=0)
    folder.mkdir(parents=True, exist_ok=config.resume)
    if not config.resume:
        run_folder.claim(folder)
    run_folder.write_json(folder / "config.json", dataclasses.asdict(config))
    if config.table == CERTIFICATES:
        return certify(config, folder)
    print(f"{len(config.chosen)} rows of {config.table}, {config.seeds} runs each; leaves everything in {folder}")
    found = []
    for row in config.chosen:
        runs = []
        for seed in range(config.seeds):
            run_dir = folder / "rows" / f"{row.name}-{seed}"
            run_dir.mkdir(parents=True, exist_ok=True)
            done = run_dir / "result.json"
            if not done.exists():
                stopped_by = run_row(config, row, seed, run_dir)
                if stopped_by is not None:
                    print(f"stopped; continue with: python experiments/reproduce.py --resume --name {folder.name} ...")
                    return 128 + stopped_by
            runs.append(run_folder.read_object(done))
        found.append(report.of_row(config.of_table, row, runs, comparable=not config.dataset))
        print(report.line(found[-1]))
    quantity = config.of_table.quantity
    results = {"table": config.table, "quantity": quantity, "is_error": config.of_table.is_error}
    results |= {"recipe": config.recipe, "rows": found}
    run_folder.write_json(folder / "results.json", results)
    (folder / "table.md").write_text(report.markdown(results))
    drawn = pictures.draw(folder)
    print(f"\n{report.terminal(results)}\n\nNumbers are in {folder}/results.json, the table in table.md, {drawn.name}")
    return 0


def job_of(config: Config, row: Row, seed: int) -> jobs.Job:
    """What it takes to measure a row."""
    return JOBS.get(config.table, images.of_likelihood)(config, row, seed)


def certify(config: Config, folder: pathlib.Path) -> int:
    """Write the certificates, and print them. Returns the exit code: 1 if one of them failed."""
    (folder / "rows").mkdir(exist_ok=True)
    results = certificates.run(folder, config.chosen_cases)
    good = sum(row["verdict"] in certificates.GOOD for row in results["rows"])
    print(certificates.terminal(results))
    drawn = pictures.draw(folder)
    print(f"{good} of {len(results['rows'])} as they must be; the page is {folder / 'table.md'}, with {drawn.name}")
    return int(good < len(results["rows"]))


def run_row(config: Config, row: Row, seed: int, folder: pathlib.Path) -> int | None:
    """One run of a row: train until its minutes are over, then evaluate once. Returns the signal that stopped it."""
    job, state, seconds, stopped_by = job_of(config, row, seed), None, 0.0, None
    whole = job.published_steps
    if job.start is not None:
        if not (folder / "plan.json").exists():
            fit, first = fit_of(job, job.most_steps or 10 * CHUNK)
            most = whole or min(measured_steps(fit, first, config.minutes), job.most_steps or 10**9)
            run_folder.write_json(folder / "plan.json", {"num_steps": most})
        num_steps = int(run_folder.read_object(folder / "plan.json")["num_steps"])
        plan = Plan(f"{row.name}, seed {seed}", num_steps, 60 * config.minutes, job.words, folder)
        state, seconds, stopped_by = train_for(plan, *fit_of(job, num_steps))
    if stopped_by is not None:
        return stopped_by
    steps = 0 if state is None else int(state.step)
    of_run = {"steps": steps, "share": whole and steps / whole, "train_seconds": seconds, "words": job.words}
    run_folder.write_json(folder / "result.json", job.evaluate(state) | of_run)
    return None


def fit_of(job: jobs.Job, num_steps: int) -> tuple[Any, training.TrainState]:
    """`(state, stop) -> (state, history)`, compiled, for a run of that length, and where it starts."""
    assert job.start is not None
    step, state = job.start(num_steps)

    def fit(state, key, x, stop):
        return training.fit(step, state, key, x, num_steps=CHUNK, batch_size=job.batch_size, stop=stop)

    program = jax.jit(fit).lower(state, job.key, job.x, num_steps).compile()
    return lambda state, stop: program(state, job.key, job.x, stop), state


def measured_steps(fit: Any, state: training.TrainState, minutes: float) -> int:
    """How many steps the minutes hold, by the clock of two chunks."""
    jax.block_until_ready(fit(state, CHUNK))
    start = time.perf_counter()
    jax.block_until_ready(fit(state, CHUNK))
    return max(CHUNK, int(CHUNK * 60 * minutes / (time.perf_counter() - start)))


def train_for(plan: Plan, fit: Any, state: training.TrainState) -> tuple[training.TrainState, float, int | None]:
    """Train from the last checkpoint until all steps are taken or the time is over.

    Returns:
        The state, the seconds of training, and the signal that stopped it, or None.
    """
    compared = {"what": plan.what, "num_steps": plan.num_steps, "recipe": plan.recipe}
    saved_in, seconds = plan.folder / "checkpoints", 0.0
    if checkpoints.steps(saved_in):
        state = checkpoints.restore(saved_in, state, config=compared)
        seconds = run_folder.read_object(plan.folder / "seconds.json")["seconds"]

    def save(state: training.TrainState, seconds: float) -> None:
        checkpoints.save(saved_in, state, config=compared)
        run_folder.write_json(plan.folder / "seconds.json", {"seconds": seconds})

    saved_at = time.perf_counter()
    with run_folder.GracefulStop() as stop, Progress(plan.what, plan.num_steps, int(state.step)) as bar:
        for chunk in training.run_chunks(fit, state, plan.num_steps, chunk_steps=CHUNK):
            state, seconds = chunk.state, seconds + chunk.seconds
            bound = float(np.mean(chunk.history.bound))
            if not math.isfinite(bound):
                raise ValueError(f"{plan.what}: expected a finite bound; got {bound} at step {chunk.stop:,}")
            bar.update(chunk.stop - chunk.start, f"{bound:.2f} nats")
            if time.perf_counter() - saved_at > CHECKPOINT_SECONDS:
                save(state, seconds)
                saved_at = time.perf_counter()
            if seconds > 1.1 * plan.seconds or stop.signal is not None:
                break
        save(state, seconds)
    return state, seconds, stop.signal
