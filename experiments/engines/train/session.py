"""What a single run and several runs share: how they begin, resume, report, save and stop."""

import dataclasses
import json
import math
import pathlib
import shlex
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from engines.harness import loading, run_folder, spreading
from engines.train.config import NOT_COMPARED, Config
from vaejax import autoencoders, checkpoints, data, devices, models, training

NUM_REPORTS = 100

SNAPSHOTS_AT = (0, 1, 3, 10, 30)  # reports, of 100; and the last


def begin(config: Config, folder: pathlib.Path, metrics: list[dict[str, Any]]) -> None:
    """Make the run's folder, with its options and the metrics of what is resumed."""
    devices.meet("every process has chosen the folder")
    if spreading.is_first():
        folder.mkdir(parents=True, exist_ok=config.resume)
        run_folder.rewrite_metrics(folder, metrics)
        run_folder.write_json(folder / "config.json", dataclasses.asdict(config))


def stopped(config: Config, folder: pathlib.Path, state: training.TrainState, number: int) -> int:
    """Say by which signal, and how to continue. Returns the exit code."""
    name = signal.Signals(number).name
    print(f"\nstopped by {name} at step {int(state.step):,}; checkpoint in {folder}/checkpoints")
    print(f"continue with: python experiments/train.py {resume_options(config, folder)}")
    return 128 + number


def binarized_once(config: Config, images: dict[str, data.Dataset], vae, params) -> dict[str, np.ndarray]:
    """Validation and test images, binarized once with a fixed key, so that numbers of all runs and epochs compare.

    Raises:
        ValueError: if the binarization or the likelihood cannot take them, with the options that can.
    """
    prepare = data.binarization(config.binarization)
    binarized = {}
    for i, split in enumerate(("validation", "test")):
        key = jax.random.fold_in(jax.random.key(loading.EVALUATION_KEY), i)
        try:
            binarized[split] = images[split].images if prepare is None else prepare(key, images[split].images)
            if config.objective != "reconstruction":
                models.check_data(vae, params, binarized[split])
            else:  # as a likelihood would not: other errors than its own are defined for grey pixels too
                p = vae.decode(params, vae.encode(params, binarized[split][:1]).mean)
                getattr(autoencoders, config.error)(p, jnp.asarray(binarized[split]))
        except ValueError as error:
            if config.objective == "reconstruction":
                raise ValueError(
                    f"--error {config.error}, --likelihood {config.likelihood} and --binarization "
                    f"{config.binarization} do not go together on {config.dataset}: {error}"
                ) from error
            raise ValueError(
                f"--binarization {config.binarization} and --likelihood {config.likelihood} do not go with "
                f"{config.dataset}: take --binarization dynamic or threshold for grey images under a Bernoulli "
                f"likelihood, and --binarization none --likelihood gaussian for real numbers ({error})"
            ) from error
    return binarized


def compared(config: Config) -> dict[str, Any]:
    """The options that decide the numbers, which a checkpoint must share with the run that resumes it."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_COMPARED}


def resumed(
    config: Config, folder: pathlib.Path, state: training.TrainState
) -> tuple[training.TrainState, list[dict[str, Any]]]:
    """The state and metrics to continue from: the last checkpoint's, or the first ones. Changes nothing in the folder.

    Raises:
        ValueError: if the run was started with other options, or its checkpoint or metrics are not as it left them.
    """
    if not config.resume:
        return state, []
    check_same_options(config, folder)
    if checkpoints.steps(folder / "checkpoints"):
        state = checkpoints.restore(folder / "checkpoints", state, config=compared(config))
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


def check_same_options(config: Config, folder: pathlib.Path) -> None:
    """Refuse to continue with a run under other options than it was started with, also before its first checkpoint.

    Raises:
        ValueError: naming each option and both values.
    """
    path = folder / "config.json"
    if not path.exists():  # killed before it was written
        return
    there, here = json.loads(path.read_text()), json.loads(json.dumps(compared(config)))
    others = [
        f"--{name.replace('_', '-')} was {spelt(there.get(name))}, is {spelt(value)}"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if others:
        raise ValueError(
            f"expected the options that {folder} was started with; {'; '.join(others)}. Resume it with those of "
            f"{path}, or start another run under another --name"
        )


def spelt(value: Any) -> str:
    """An option's value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def resume_options(config: Config, folder: pathlib.Path) -> str:
    """The command-line options that resume a run: its own ones that are not the defaults."""
    options = ["--resume", "--name", config.name or folder.name]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name not in ("resume", "name"):
            words = [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
            flag = "--" + field.name.replace("_", "-")
            options += [flag] if value is True else [flag, *words]
    return shlex.join(options)


def chunk_size(config: Config) -> int:
    """Steps from one report to the next."""
    return min(1000, math.ceil(config.num_steps / NUM_REPORTS))


def train_until_done(config, folder, state, metrics, fit, key, images, measure, validation, viewer):
    """Chunks of one compiled program; between them, reports, checkpoints, snapshots and the wish to stop."""
    chunk = chunk_size(config)
    last_checkpoint = time.perf_counter()
    seconds = metrics[-1]["seconds"] if metrics else 0.0
    with run_folder.GracefulStop() as stop, progress_bar(config, int(state.step)) as bar:
        while int(state.step) < config.num_steps and stop.signal is None:
            if converged(config, [row[measure.name] for row in metrics]):
                break
            before = int(state.step)
            if before // chunk in SNAPSHOTS_AT and spreading.is_first():
                viewer.snapshot(spreading.local(state))
            start = time.perf_counter()
            state, history = jax.block_until_ready(fit(state, key, images, config.num_steps))
            seconds += time.perf_counter() - start
            after = int(state.step)
            validated = {measure.name: measure.validate(spreading.local(state.params), validation)}
            row = report(history, validated, before, after, seconds, config, folder)
            if spreading.is_first():
                run_folder.append_metrics(folder, row)
            metrics.append(row)
            bar.set_postfix_str(f"{measure.progress(row)}, {row['examples_per_second']:,.0f} examples/s")
            bar.update(after - before)
            due = time.perf_counter() - last_checkpoint >= config.checkpoint_seconds
            if spreading.agreed(int(due)):
                checkpoints.save(folder / "checkpoints", state, config=compared(config))
                last_checkpoint = time.perf_counter()
            stop.signal = spreading.agreed(stop.signal)
        checkpoints.save(folder / "checkpoints", state, config=compared(config))
    return state, metrics, stop.signal


def progress_bar(config: Config, done: int) -> tqdm:
    """Steps done, the bound and the speed."""
    layout = "training {percentage:3.0f}%|{bar:30}| {n:,}/{total:,} steps, {remaining} left{postfix}"
    return tqdm(total=config.num_steps, initial=done, bar_format=layout, mininterval=0.2)


def report(history, validated, before: int, after: int, seconds, config: Config, folder) -> dict[str, Any]:
    """One line of metrics.jsonl: means over the steps since the last one, and what was `validated` after them.

    Raises:
        ValueError: if the bound was not finite at some step, or is not on validation images after the last of them.
    """
    count = after - before
    values = np.stack(list(validated.values()), axis=-1)  # of a population, with an axis for its runs in front
    bounds = np.concatenate([np.asarray(history.bound)[..., :count], values], axis=-1)
    num_runs = bounds.size // bounds.shape[-1]
    if not np.isfinite(bounds).all(axis=-1).any():
        bounds = bounds.reshape(-1, bounds.shape[-1])[0]
        first = int(np.argmin(np.isfinite(bounds)))
        good = checkpoints.steps(folder / "checkpoints")
        raise ValueError(
            f"expected a finite bound; at step {before + first:,} it was {bounds[first]}. A smaller --learning-rate is "
            f"the usual cure; "
            + (f"the last good checkpoint, of step {good[-1]:,}, stays" if good else "there was no checkpoint yet")
        )
    kept = {name: value for name, value in history._asdict().items() if value is not None}
    means = {name: np.mean(np.asarray(value)[..., :count], axis=-1).tolist() for name, value in kept.items()}
    validated = {name: np.asarray(value).tolist() for name, value in validated.items()}
    speed = num_runs * after * config.batch_size / seconds
    return {"step": after, "seconds": seconds, "examples_per_second": speed, **means, **validated}


def converged(config: Config, validated: list[float]) -> bool:
    """Whether the last `patience` reports have not raised the best number on validation images by `tolerance`."""
    if config.patience == 0 or len(validated) <= config.patience:
        return False
    return max(validated[-config.patience :]) < max(validated[: -config.patience]) + config.tolerance
