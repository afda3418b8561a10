"""What vaejax's own choices cost or save: pairs of programs timed in turns, what bfloat16 loses, how a run starts."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.harness import run_folder, tables
from engines.harness.progress import Progress
from engines.harness.rows import interval, interval_of_ratios
from vaejax import data, models, objectives, training
from vaejax.evaluation import sampling

ADAM = optax.adam(1e-3)
TRAIN = pathlib.Path(__file__).parents[2] / "train.py"
NUM_RUNS, NUM_SEEDS = 16, 5

Call = Callable[[], Any]


class Sizes(NamedTuple):
    """How much each program does.

    Attributes:
        num_steps: of one measurement of small networks.
        num_large_steps: the same of a large convolutional one.
        image_side: of its images.
        training_steps: of the runs whose log p(x) is compared.
        num_starts: of a command, cold and warm each.
    """

    num_steps: int = 200
    num_large_steps: int = 10
    image_side: int = 64
    training_steps: int = 3000
    num_starts: int = 3


class Pair(NamedTuple):
    """Two ways to do the same, of which the first is expected to take longer."""

    name: str
    first: Call
    second: Call


def run(folder: pathlib.Path, repeats: int, sizes: Sizes | None = None) -> None:
    """Measure, save and print."""
    sizes = sizes or Sizes()
    rows = []
    for make in (binarization, population, streaming, half_precision):
        rows.append(ratio(make(folder, sizes), repeats))
    rows.append(nats_of_half_precision(sizes))
    rows += starts(sizes)
    run_folder.write_json(folder / "choices.json", rows)
    print(table(rows))
    print(f"\nThe rows are in {folder}/choices.json")


def ratio(pair: Pair, repeats: int) -> dict[str, Any]:
    """The seconds of the first over those of the second, with a 95% interval over the repeats, measured in turns."""
    for call in pair[1:]:
        jax.block_until_ready(call())  # compiles
    ratios = []
    with Progress(pair.name, repeats, unit="measurements") as bar:
        for number in range(repeats):
            order = pair[1:] if number % 2 else pair[:0:-1]
            took = {call: seconds_of(call) for call in order}
            ratios.append(took[pair.first] / took[pair.second])
            bar.update()
    return {"what": pair.name, **interval_of_ratios(ratios), "unit": "times", "number": repeats}


def seconds_of(call: Call) -> float:
    """Seconds until all that the call returns is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def binarization(_: pathlib.Path, sizes: Sizes) -> Pair:
    """Steps of AEVB's network with its pixels drawn anew, and with pixels drawn once."""
    vae = models.mlp_vae((28, 28), 20, (500,))
    grey = np.random.default_rng(0).random((6000, 28, 28), np.float32)
    anew = fit_of(vae, grey, sizes.num_steps, prepare=data.binarize_dynamic)
    once = fit_of(vae, (grey > 0.5).astype(np.float32), sizes.num_steps)
    return Pair("AEVB's steps, pixels drawn at each step / drawn once", anew, once)


def population(_: pathlib.Path, sizes: Sizes) -> Pair:
    """Small VAEs by one compiled program each, one after another, and all in one program."""
    vae = models.mlp_vae((8, 8), 8, (32,))
    step = training.make_train_step(objectives.make_elbo(vae), ADAM)
    x = jnp.asarray(data.binarize_threshold(None, data.load("digits", split="train").images))
    first_keys, keys = (jax.random.split(jax.random.key(seed), NUM_RUNS) for seed in range(2))
    settings = {"num_steps": sizes.num_steps, "batch_size": 100}
    states = training.init_population(vae.init, ADAM, first_keys)
    alone = jax.jit(functools.partial(training.fit, step, **settings))
    of_each = [
        jax.tree.map(lambda leaf, i=i: leaf[i], states._replace(step=jnp.zeros(NUM_RUNS, int))) for i in range(NUM_RUNS)
    ]
    together = jax.jit(functools.partial(training.fit_population, lambda _: step, **settings))
    return Pair(
        f"{NUM_RUNS} small VAEs, one after another / in one program",
        lambda: [jax.block_until_ready(alone(state, key, x)) for state, key in zip(of_each, keys, strict=True)],
        lambda: together(states, keys, x),
    )


def streaming(folder: pathlib.Path, sizes: Sizes) -> Pair:
    """Steps of a convolutional VAE on images in a file, read batch by batch, and on the same in memory."""
    shape = (sizes.image_side, sizes.image_side, 3)
    images = np.random.default_rng(0).random((1000, *shape), np.float32)
    np.save(folder / "images.npy", images)
    vae = models.conv_vae(shape, 32, (16, 32, 64))
    stream = data.streams.make_stream(np.load(folder / "images.npy", mmap_mode="r"), 50, seed=0)
    reader = data.streams.read(stream, 0, sizes.num_large_steps)
    step = training.make_train_step(objectives.make_elbo(vae), ADAM)
    state = training.init_state(vae.init(jax.random.key(0)), ADAM)
    on_batches = jax.jit(functools.partial(training.fit_batches, step))
    return Pair(
        f"convolutions on {shape[0]}x{shape[1]}x3, read from a file / from memory",
        lambda: on_batches(state, jax.random.key(1), next(reader)),
        fit_of(vae, images, sizes.num_large_steps, batch_size=50),
    )


def half_precision(_: pathlib.Path, sizes: Sizes) -> Pair:
    """Steps of AEVB's network with its arithmetic in bfloat16 and in float32."""
    x = (np.random.default_rng(0).random((6000, 28, 28)) > 0.8).astype(np.float32)
    calls = [
        fit_of(models.mlp_vae((28, 28), 20, (500,), compute_dtype=dtype), x, sizes.num_steps)
        for dtype in (jnp.bfloat16, None)
    ]
    return Pair("AEVB's steps, in bfloat16 / in float32", *calls)


def nats_of_half_precision(sizes: Sizes) -> dict[str, Any]:
    """Log p(x) of test digits after training in bfloat16 less that after training in float32, by seed."""
    splits = [data.load("digits", split=split).images for split in ("train", "test")]
    train, test = (jnp.asarray(data.binarize_threshold(None, images)) for images in splits)
    found = []
    for dtype in (jnp.bfloat16, None):
        # The same for both, so that they differ by their arithmetic alone.
        first_keys, keys, last_keys = (jax.random.split(jax.random.key(seed), NUM_SEEDS) for seed in range(3))
        vae = models.mlp_vae((8, 8), 8, (64,), compute_dtype=dtype)
        step = training.make_train_step(objectives.make_elbo(vae), ADAM)
        states = training.init_population(vae.init, ADAM, first_keys)
        settings = {"num_steps": sizes.training_steps, "batch_size": 100}
        fit = jax.jit(functools.partial(training.fit_population, lambda _, step=step: step, **settings))
        states, _ = fit(states, keys, train)
        for i in range(NUM_SEEDS):
            params = jax.tree.map(lambda leaf, i=i: leaf[i], states.params)
            # Without a warning for each: doubtful weights are as many in both.
            (likelihood,) = sampling.log_likelihoods(
                sampling.ENCODER, vae, params, last_keys[i], test, (500,), warn=False
            )
            found.append(float(likelihood.estimate.mean()))
    differences = np.subtract(*np.split(np.array(found), 2))
    what = f"log p(x) of digits, trained in bfloat16 less float32, {NUM_SEEDS} seeds"
    return {"what": what, **interval(differences), "unit": "nats", "number": NUM_SEEDS}


def starts(sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds from starting `train.py` until its first step can run: nothing kept from before, and programs kept."""
    cold, warm = [], []
    with Progress("starts", sizes.num_starts, unit="pairs") as bar:
        for _ in range(sizes.num_starts):
            with tempfile.TemporaryDirectory() as kept:
                cold.append(seconds_to_first_step(kept))
                warm.append(seconds_to_first_step(kept))
            bar.update()
    return [
        {
            "what": f"train.py until its first step, {words}",
            **{"value": float(np.median(seconds)), "low": min(seconds), "high": max(seconds)},
            **{"unit": "s", "number": sizes.num_starts},
        }
        for words, seconds in (("nothing compiled before", cold), ("programs kept", warm))
    ]


def seconds_to_first_step(kept: str) -> float:
    """Seconds until the command says that it has compiled; it is then ended.

    Raises:
        RuntimeError: if it ends before, with what it said.
    """
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{kept}/compiled"}
    command = [sys.executable, "-u", str(TRAIN), "--runs-dir", tempfile.mkdtemp(dir=kept)]
    said, start = [], time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        for line in run.stdout or ():
            said.append(line)
            if line.startswith("compiled in"):
                took = time.perf_counter() - start
                run.kill()
                return took
    raise RuntimeError(f"{' '.join(command)} ended before its first step: {''.join(said)}")


def fit_of(vae: models.VAE, images: np.ndarray, num_steps: int, *, batch_size: int = 100, prepare: Any = None) -> Call:
    """A call that trains for some steps, always from the same state."""
    step = training.make_train_step(objectives.make_elbo(vae), ADAM, prepare)
    state = training.init_state(vae.init(jax.random.key(0)), ADAM)
    fit = jax.jit(functools.partial(training.fit, step, num_steps=num_steps, batch_size=batch_size))
    x = jnp.asarray(images)
    return lambda: fit(state, jax.random.key(1), x)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for the terminal."""
    lines = [("what", "", "", "interval", "measured")]
    for row in rows:
        digits = 3 if row["unit"] == "nats" else 2
        interval = f"[{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
        lines.append((row["what"], f"{row['value']:.{digits}f}", row["unit"], interval, str(row["number"])))
    words = "95% over repeats or seeds; of starts the least and the greatest, around the median"
    return f"\nvaejax's own choices; intervals: {words}\n{tables.columns(lines, 1, '  ')}"
