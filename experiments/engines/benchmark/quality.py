"""Seconds to each quality: recipes of `train.py` by vaejax and by PyTorch doing the same steps."""

import math
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from engines.benchmark import systems_jax
from engines.benchmark.work import Layers, Recipe, Work, filled
from engines.benchmark.workers import check_agreement, started
from engines.harness import run_folder, tables
from engines.harness.pictures import STYLE, save
from engines.harness.progress import Progress
from engines.train import build
from engines.train.config import PRESETS, Config
from vaejax import data, evaluation, models, objectives
from vaejax.evaluation import sampling

DATASET = "binarized_mnist"
RECIPES = ("binarized_mnist_quick", "binarized_mnist")
SYSTEMS = ("vaejax", "torch-eager", "torch-compile")
NUM_MARKS = 20  # how often the model is kept while it trains
NUM_IMAGES, NUM_SAMPLES = 1000, 200  # of the validation images, and of each for log p(x)
LEVELS = (-120, -110, -105, -100, -98, -96, -95, -94, -93, -92)  # nats
COLOURS = {"vaejax": "tab:blue", "torch-eager": "tab:orange", "torch-compile": "tab:red"}
LABELS = {"vaejax": "vaejax", "torch-eager": "PyTorch", "torch-compile": "PyTorch, compiled"}


def run(folder: pathlib.Path, systems: tuple[str, ...]) -> None:
    """Train by each system, measure log p(x) of validation images, save, draw and print, if MNIST is prepared."""
    try:
        train, validation = (data.load(DATASET, split=split).images for split in ("train", "validation"))
    except FileNotFoundError:
        print(f"quality is left out: {DATASET} is not prepared, as train.py --preset {DATASET} does it once")
        return
    chosen = [system for system in SYSTEMS if system in systems]
    if not chosen:
        print(f"quality is left out: it is measured of {', '.join(SYSTEMS)}")
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        np.save(f"{place}/train.npy", np.asarray(train, np.float32))
        for name in RECIPES:
            work = work_of(name, PRESETS[name], f"{place}/train.npy")
            rows += trained(name, work, chosen, np.asarray(validation[:NUM_IMAGES]))
            run_folder.write_json(folder / "quality.json", rows)
    with plt.rc_context(STYLE):
        save({"quality": draw(rows)}, folder)
    print(table(rows))
    print(f"\nThe picture is {folder}/quality.png")


def work_of(name: str, config: Config, images: str) -> Work:
    """A preset of `train.py` as a work that PyTorch can do too."""
    steps = jnp.arange(config.num_steps)
    rates = jax.vmap(build.build_schedule(config, config.learning_rate[0]))(steps)
    betas = jnp.ones(len(steps))
    if config.kl_warmup_steps:
        betas = jax.vmap(objectives.linear_warmup(config.kl_warmup_steps))(steps)
    recipe = Recipe(images, config.activation, np.asarray(rates), np.asarray(betas))
    sizes = config.hidden_sizes, config.latent_dim, config.batch_size, config.num_samples
    return Work(name, "train", (28, 28), *sizes, config.objective, 100, recipe)


def trained(name: str, work: Work, systems: list[str], x: np.ndarray) -> list[dict[str, Any]]:
    """A row for each system: seconds of training and log p(x) at each mark. Up to each they train in turns."""
    workers = started(work, tuple(systems))
    seconds: dict[str, list[float]] = {system: [] for system in workers}
    kept: dict[str, list[tuple[Layers, Layers]]] = {system: [] for system in workers}
    steps = np.linspace(0, len(work.recipe.rates) if work.recipe else 0, NUM_MARKS + 1).astype(int)
    try:
        check_agreement(work, workers)
        for worker in workers.values():
            worker.ask("compile")
        with Progress(name, NUM_MARKS * len(workers), unit="parts") as bar:
            for number, units in enumerate(np.diff(steps)):
                turn = number % len(workers)  # each system goes first once
                for system in [*workers][turn:] + [*workers][:turn]:
                    seconds[system].append(workers[system].ask("advance", int(units)))
                    kept[system].append(workers[system].ask("layers"))
                    bar.update(note=system)
    finally:
        for worker in workers.values():
            worker.stop()
    rows, vae = [], systems_jax.model_of(work)
    with Progress(f"{name}: log p(x)", NUM_MARKS * len(workers), unit="models") as bar:
        for system in workers:
            found = []
            for layers in kept[system]:
                found.append(log_likelihood(vae, layers, x))
                bar.update(note=system)
            numbers = {"seconds": np.cumsum(seconds[system]).tolist(), "log_likelihood": [value for value, _ in found]}
            errors = [error for _, error in found]
            rows.append({"recipe": name, "system": system, "steps": steps[1:].tolist(), **numbers, "errors": errors})
    return rows


def log_likelihood(vae: models.VAE, layers: tuple[Layers, Layers], x: np.ndarray) -> tuple[float, float]:
    """The mean over images and its standard error, by the same evaluation and noise whoever trained the weights."""
    params = vae.init(jax.random.key(0))
    for name, of_network in zip(("encoder", "decoder"), layers, strict=True):
        params[name]["network"] = jax.tree.map(jnp.asarray, filled(params[name]["network"], of_network))
    key = jax.random.key(1)
    # Without a warning for each: doubtful weights are as many for all.
    (result,) = sampling.log_likelihoods(sampling.ENCODER, vae, params, key, jnp.asarray(x), (NUM_SAMPLES,), warn=False)
    average = evaluation.average(result)
    return float(average.estimate), float(average.error_over_data)


def seconds_to(row: dict[str, Any], level: float) -> float:
    """Seconds of training until log p(x) is that high, on straight lines between the marks; NaN if it never is."""
    heights = np.array(row["log_likelihood"])
    above = np.flatnonzero(heights >= level)
    if not len(above):
        return math.nan
    first = int(above[0])
    if first == 0:
        return row["seconds"][0]
    return float(np.interp(level, heights[first - 1 : first + 1], row["seconds"][first - 1 : first + 1]))


def draw(rows: list[dict[str, Any]]) -> plt.Figure:
    """Log p(x) against seconds of training, a panel for each recipe."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    figure, axes = plt.subplots(1, len(recipes), figsize=(4.6 * len(recipes), 3.4), layout="constrained", squeeze=False)
    for panel, recipe in zip(axes[0], recipes, strict=True):
        for row in (row for row in rows if row["recipe"] == recipe):
            panel.plot(
                row["seconds"], row["log_likelihood"], ".-", color=COLOURS[row["system"]], label=LABELS[row["system"]]
            )
        panel.set_xlabel("Seconds of training")
        heights = np.concatenate([row["log_likelihood"] for row in rows if row["recipe"] == recipe])
        panel.set_ylim(max(heights.min(), heights.max() - 20) - 0.5, heights.max() + 0.5)
        panel.set_title(recipe, fontsize=9)
        panel.grid(alpha=0.3)
        panel.legend()
    axes[0, 0].set_ylabel("Validation log p(x) [nats]")
    return figure


def table(rows: list[dict[str, Any]]) -> str:
    """Seconds to each level for the terminal, a table for each recipe."""
    parts = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        mine = [row for row in rows if row["recipe"] == recipe]
        lines = [("log p(x) [nats]", *(row["system"] for row in mine))]
        for level in LEVELS:
            numbers = [seconds_to(row, level) for row in mine]
            if not all(map(math.isnan, numbers)):
                lines.append((f"{level}", *("-" if math.isnan(n) else f"{n:.1f} s" for n in numbers)))
        ends = (
            f"{row['log_likelihood'][-1]:.2f} ± {row['errors'][-1]:.2f} in {row['seconds'][-1]:.0f} s" for row in mine
        )
        lines.append(("at the end", *ends))
        parts.append(f"\n{recipe}: seconds of training\n{tables.columns(lines, left=1, indent='  ')}")
    return "\n".join(parts)
