"""What a single run and several runs share: how they begin, resume, report, save and stop."""

import math
import pathlib
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from engines.harness import run_folder, spreading
from engines.harness.progress import Progress
from engines.train.events import Record
from engines.train.measures import Measure
from vaejax import devices, training
from vaejax.training import checkpoints

NUM_REPORTS = 100

SNAPSHOTS_AT = (0, 1, 3, 10, 30)  # reports, of 100; and the last


class Plan(NamedTuple):
    """How long a run takes, and what is compared when it is resumed.

    Attributes:
        num_steps: steps at the most.
        batch_size: examples in a batch.
        patience: reports after which a run stops that has not become better; 0: it never does.
        tolerance: by which it has to become better, in nats per example.
        checkpoint_seconds: a checkpoint is saved at the first report after so long.
        compared: the options that a checkpoint must share with the run that resumes it.
    """

    num_steps: int
    batch_size: int
    patience: int
    tolerance: float
    checkpoint_seconds: float
    compared: dict[str, Any]


class Viewer(Protocol):
    """What looks at the model in the course of a run."""

    def snapshot(self, state: training.TrainState) -> None:
        """Look at the model of this step."""


def begin(folder: pathlib.Path, options: Mapping[str, Any], metrics: list[dict[str, Any]], resume: bool) -> None:
    """Make the run's folder, with its options and the metrics of what is resumed."""
    devices.meet("every process has chosen the folder")
    if spreading.is_first():
        folder.mkdir(parents=True, exist_ok=resume)
        if not resume:  # else it is claimed since it was read
            run_folder.claim(folder)
        run_folder.rewrite_metrics(folder, metrics)
        run_folder.write_json(folder / "config.json", options)


def resumed(
    folder: pathlib.Path, state: training.TrainState, compared: dict[str, Any], resume: bool
) -> tuple[training.TrainState, list[dict[str, Any]]]:
    """The state and metrics to continue from: the last checkpoint's, or the first ones. Changes nothing in the folder.

    Raises:
        ValueError: if the run was started with other options, or its checkpoint or metrics are not as it left them.
    """
    if not resume:
        return state, []
    if spreading.is_first():
        run_folder.claim(folder)
    run_folder.check_same_options(folder, compared)
    if checkpoints.steps(folder / "checkpoints"):
        state = checkpoints.restore(folder / "checkpoints", state, config=compared)
        print(f"resumed {folder} at step {int(state.step):,}")
    else:
        print(f"{folder} holds no checkpoint yet: starting at step 0")
    metrics = run_folder.read_metrics(folder, int(state.step))
    last = metrics[-1]["step"] if metrics else 0
    if last != int(state.step):
        raise ValueError(
            f"expected {folder}/metrics.jsonl to reach step {int(state.step):,}, as the checkpoint does; it ends at "
            f"step {last:,}: put the file back as it was, or start anew under another --name"
        )
    return state, metrics


def stopped(folder: pathlib.Path, step: int, number: int, options: list[str]) -> int:
    """Say by which signal, and how to continue.

    Args:
        folder: of the run.
        step: at which it was stopped.
        number: of the signal.
        options: that resume it, as words of its command line.

    Returns:
        The exit code.
    """
    print(f"\nstopped by {signal.Signals(number).name} at step {step:,}; checkpoint in {folder}/checkpoints")
    print(f"continue with: python experiments/train.py {shlex.join(options)}")
    return 128 + number


def chunk_size(num_steps: int) -> int:
    """Steps from one report to the next."""
    return min(1000, math.ceil(num_steps / NUM_REPORTS))


def train_until_done(
    plan: Plan,
    folder: pathlib.Path,
    state: training.TrainState,
    metrics: list[dict[str, Any]],
    fit: Callable[[training.TrainState, int], tuple[training.TrainState, Any]],
    measure: Measure,
    validation: Any,
    viewer: Viewer | None = None,
    record: Record = lambda row: None,
) -> tuple[training.TrainState, int | None]:
    """Train in chunks; after each a line of `metrics`, and at times a checkpoint and a snapshot.

    Args:
        plan: of the run.
        folder: of the run.
        state: where to start.
        metrics: the lines that are there already; new ones are added to the list, and to the run's file.
        fit: as `training.run_chunks` takes it.
        measure: of the model on validation images.
        validation: the images.
        viewer: takes the snapshots.
        record: gets each new line of metrics too.

    Returns:
        The state, of which a checkpoint is saved, and the signal that stopped the run, or None.

    Raises:
        ValueError: if the bound was not finite.
        FileNotFoundError: if the folder is gone.
    """
    chunk = chunk_size(plan.num_steps)
    last_checkpoint = time.perf_counter()

    def is_converged() -> bool:
        return converged([row[measure.name] for row in metrics], plan.patience, plan.tolerance)

    def save(state: training.TrainState) -> None:
        if spreading.is_first():
            run_folder.check_there(folder)
        checkpoints.save(folder / "checkpoints", state, config=plan.compared)

    def show() -> None:
        step = int(state.step)
        if viewer is not None and step < plan.num_steps and step // chunk in SNAPSHOTS_AT and spreading.is_first():
            viewer.snapshot(spreading.local(state))

    with run_folder.GracefulStop() as stop, Progress("training", plan.num_steps, int(state.step)) as bar:
        show()
        remaining = training.run_chunks(fit, state, plan.num_steps, chunk_steps=chunk)
        for taken in () if is_converged() else remaining:
            state = taken.state
            validated = {measure.name: measure.validate(measure.params_of(spreading.local(state)), validation)}
            seconds = taken.seconds + (metrics[-1]["seconds"] if metrics else 0.0)
            metrics.append(report(taken, validated, seconds, plan.batch_size, folder / "checkpoints"))
            if spreading.is_first():
                run_folder.check_there(folder)
                run_folder.append_metrics(folder, metrics[-1])
                record(metrics[-1])
            speed = f"{metrics[-1]['examples_per_second']:,.0f} examples/s"
            bar.update(taken.stop - taken.start, f"{measure.progress(metrics[-1])}, {speed}")
            if spreading.agreed(int(time.perf_counter() - last_checkpoint >= plan.checkpoint_seconds)):
                save(state)
                last_checkpoint = time.perf_counter()
            stop.signal = spreading.agreed(stop.signal)
            if stop.signal is not None or is_converged():
                break
            show()
        save(state)
    return state, stop.signal


def alarm(metrics: list[dict[str, Any]], name: str, untrained: Any) -> str | None:
    """What is wrong with a run that ended with a model worse than the one it began with, in words; else None.

    Args:
        metrics: the run's lines.
        name: of the number on validation images in them.
        untrained: that number of the parameters before the first step; of several runs an array with one for each.
    """
    last, first = np.atleast_1d(metrics[-1][name]), np.atleast_1d(untrained)
    worse = np.flatnonzero(last < first)
    if not len(worse):
        return None
    runs = f"{len(worse)} of {len(last)} runs are" if len(last) > 1 else "the model is"
    return (
        f"{runs} worse than before the first step: {name.replace('_', ' ')} {last[worse[0]]:,.2f}, and "
        f"{first[worse[0]]:,.2f} of the parameters that it began with: take a smaller --learning-rate, or more steps; "
        "where a bound of more samples is trained, --validation-samples looks at that"
    )


def alarm_in_words(result: Mapping[str, Any]) -> str:
    """A line of its own in the report, if there is an alarm."""
    return f"WARNING: {result['alarm']}\n" if "alarm" in result else ""


def times(metrics: list[dict[str, Any]], compile_seconds: float, batch_size: int, num_runs: int = 1) -> dict[str, Any]:
    """What result.json says of the steps and their speed."""
    num_steps, seconds = metrics[-1]["step"], metrics[-1]["seconds"]
    return {
        "train_seconds": seconds,
        "compile_seconds": compile_seconds,
        "examples_per_second": num_runs * num_steps * batch_size / seconds,
        "num_steps": num_steps,
    }


def times_in_words(times: Mapping[str, Any]) -> str:
    """The same for the report."""
    return (
        f"{times['num_steps']:,} steps in {times['train_seconds']:.1f} s, compilation apart "
        f"({times['compile_seconds']:.1f} s); {times['examples_per_second']:,.0f} examples a second"
    )


def report(
    taken: training.Chunk, validated: Mapping[str, Any], seconds: float, batch_size: int, saved: pathlib.Path
) -> dict[str, Any]:
    """One line of metrics.jsonl: means over the steps since the last one, and what was validated after them.

    Args:
        taken: the steps.
        validated: numbers on validation images after them, of several runs an array with one for each.
        seconds: of training so far.
        batch_size: examples in a step of one run.
        saved: the folder of checkpoints, for the message.

    Raises:
        ValueError: if in no run the bound was finite at all steps and on validation images after them.
    """
    values = np.stack(list(validated.values()), axis=-1)
    bounds = np.concatenate([taken.history.bound, values], axis=-1)
    num_runs = bounds.size // bounds.shape[-1]
    if not np.isfinite(bounds).all(axis=-1).any():
        bounds = bounds.reshape(-1, bounds.shape[-1])[0]
        first = int(np.argmin(np.isfinite(bounds)))
        good = checkpoints.steps(saved)
        stays = f"the last good checkpoint, of step {good[-1]:,}, stays" if good else "there was no checkpoint yet"
        cause = (
            "take a smaller --learning-rate"
            if taken.start + first > 0
            else "no step has been taken yet, so that its cause is an option such as --beta or --likelihood-std"
        )
        raise ValueError(
            f"expected a finite bound; got {bounds[first]} at step {taken.start + first:,}: {cause}; {stays}. The "
            f"folder {saved.parent} stays: take another --name"
        )
    kept = {name: value for name, value in taken.history._asdict().items() if value is not None}
    means = {name: np.mean(value, axis=-1).tolist() for name, value in kept.items()}
    speed = num_runs * taken.stop * batch_size / seconds
    validated = {name: np.asarray(value).tolist() for name, value in validated.items()}
    return {"step": taken.stop, "seconds": seconds, "examples_per_second": speed, **means, **validated}


def converged(validated: list[float], patience: int, tolerance: float) -> bool:
    """Whether the last `patience` reports have not raised the best number on validation images by `tolerance`."""
    if patience == 0 or len(validated) <= patience:
        return False
    return max(validated[-patience:]) < max(validated[:-patience]) + tolerance
