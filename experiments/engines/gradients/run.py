"""Gradient estimators at three moments of a training run, and the training that each of them makes.

`config.py` holds its options, `training.py` the training runs, `tables.py` its words and `pictures.py` its pictures.
"""

import dataclasses
import functools
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from engines.gradients import pictures, tables, training
from engines.gradients.config import Config
from engines.gradients.training import Gradient
from engines.harness import loading, run_folder
from vaejax import data, estimators, laboratory, models, objectives

Setting = tuple[str, int]  # name of an estimator, and K

LEVEL = 0.99  # of all intervals

UNIT = ("pathwise", 1)  # one reparameterized sample

MOMENTS = ("start", "middle", "end")

TRAINED = (
    ("pathwise", 1),
    ("score_function", 1),
    ("score_function", 4),
    ("moving_average", 1),
    ("nvil", 1),
    ("leave_one_out", 4),
    ("measure_valued", 1),
)


class Contestant(NamedTuple):
    """An estimator of the gradient of a bound."""

    label: str
    bound: str
    estimator: estimators.Estimator
    make_objective: Callable[..., objectives.Objective]

    def gradient(self, vae: models.VAE, num_samples: int) -> Gradient:
        """With K samples."""
        return Gradient(self.estimator, self.make_objective(vae, self.estimator, num_samples))


def contestants() -> dict[str, Contestant]:
    """By the names of the command line."""
    elbo, iwae = objectives.make_elbo, objectives.make_iwae
    sampled = functools.partial(elbo, kl="sampled")
    reinforce = estimators.score_function
    return {
        "pathwise": Contestant("pathwise", "elbo", estimators.pathwise(), elbo),
        "score_function": Contestant("REINFORCE", "elbo", reinforce(), elbo),
        "moving_average": Contestant("REINFORCE, moving average", "elbo", reinforce("moving_average"), elbo),
        "nvil": Contestant("REINFORCE, NVIL", "elbo", reinforce("nvil"), elbo),
        "leave_one_out": Contestant("REINFORCE, leave-one-out", "elbo", reinforce("leave_one_out"), elbo),
        "measure_valued": Contestant("measure-valued", "elbo", estimators.measure_valued(), elbo),
        "pathwise_sampled_kl": Contestant("pathwise, sampled KL", "elbo", estimators.pathwise(), sampled),
        "sticking_the_landing": Contestant("sticking the landing", "elbo", estimators.sticking_the_landing(), sampled),
        "iwae_pathwise": Contestant("pathwise", "iwae", estimators.pathwise(), iwae),
        "doubly_reparameterized": Contestant(
            "doubly reparameterized", "iwae", estimators.doubly_reparameterized(), iwae
        ),
        "vimco": Contestant("VIMCO", "iwae", estimators.vimco(), iwae),
    }


def run(config: Config) -> None:
    """Train, compare, write, draw and report."""
    begin = time.perf_counter()
    folder = run_folder.choose_folder(config.runs_dir, config.name, f"gradients-{config.dataset}", resume=False)
    images, validation, x = load(config)
    vae = models.mlp_vae(images.shape[1:], config.latent_dim, config.hidden_sizes)
    models.check_data(vae, vae.init(jax.random.key(0)), validation)
    folder.mkdir(parents=True)
    run_folder.write_json(folder / "config.json", dataclasses.asdict(config))
    print(
        f"{config.dataset}: {len(images):,} training images, {len(x)} of them compared; leaves everything in {folder}"
    )

    chosen = {name: contestant for name, contestant in contestants().items() if name in config.estimators}
    trained = {
        (name, number): chosen[name].gradient(vae, number)
        for name, number in TRAINED
        if name in chosen and num_decodings(config.latent_dim, name, number) <= config.max_training_decodings
    }
    curves, moments = training.train(config, vae, trained, images, validation, UNIT)
    for _, params in moments:
        models.check_data(vae, params, x)  # refuses parameters that are not finite
    rows = compare(config, vae, chosen, moments, images, x)
    results = {
        "labels": {name: contestant.label for name, contestant in chosen.items()},
        "moments": [{"name": name, "step": step} for name, (step, _) in zip(MOMENTS, moments, strict=True)],
        "level": LEVEL,
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "rows": rows,
        "training": [
            {
                "estimator": name,
                "num_samples": number,
                "decodings": num_decodings(config.latent_dim, name, number),
                **curve,
            }
            for (name, number), curve in curves.items()
        ],
        "headline": tables.headline(rows),
        "seconds": time.perf_counter() - begin,
    }
    run_folder.write_json(folder / "results.json", results)
    (folder / "table.md").write_text(tables.markdown(results, dataclasses.asdict(config)))
    drawn = pictures.draw(folder)
    print(tables.terminal(results))
    print(
        f"The numbers are in {folder}: results.json, table.md; the pictures: {', '.join(path.name for path in drawn)}"
    )


def load(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images; at most 1,000 for validation and those to be compared, both binarized once and for all."""
    images = loading.load(config.dataset, "train", config.where).images
    largest = max(config.comparison_batch_size, config.batch_size)
    if largest > len(images):
        raise ValueError(
            f"--batch-size and --comparison-batch-size must be at most {len(images)}, the training images of "
            f"{config.dataset}; got {largest}"
        )
    compared_key, validation_key = jax.random.split(jax.random.key(loading.EVALUATION_KEY))
    order = np.random.default_rng(config.seed).permutation(len(images))
    x = images[order[: config.comparison_batch_size]]
    validation = loading.load(config.dataset, "validation", config.where).images[:1000]
    prepare = data.binarization(config.binarization)
    if prepare is not None:
        x, validation = prepare(compared_key, x), prepare(validation_key, validation)
    return images, np.asarray(validation), np.asarray(x)


def num_decodings(latent_dim: int, name: str, number: int) -> int:
    """Latents decoded for one example, as `laboratory.cost` counts them in the program."""
    return number * (1 + 4 * latent_dim if name == "measure_valued" else 1)


def compare(
    config: Config,
    vae: models.VAE,
    chosen: Mapping[str, Contestant],
    moments: Sequence[tuple[int, Any]],
    images: np.ndarray,
    x: np.ndarray,
) -> list[dict[str, Any]]:
    """The rows of the table: every estimator with every K at every moment."""
    noise_key, baseline_key, cost_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 3)
    steps, params = zip(*moments, strict=True)
    settings = [(name, number) for name in chosen for number in config.num_samples]
    prepare = data.binarization(config.binarization)

    def learn(name: str) -> list[Any]:
        gradient = chosen[name].gradient(vae, 1)
        learned = training.train_baseline(gradient, images, prepare, config.baseline_steps, config.batch_size)
        return [learned(model, jax.random.fold_in(baseline_key, i)) for i, model in enumerate(params)]

    with_baselines = [name for name in chosen if chosen[name].estimator.baseline is not None]
    learned = dict(zip(with_baselines, training.in_threads(learn, with_baselines), strict=True))
    baselines = [{s: learned[s[0]][i] for s in settings if s[0] in learned} for i in range(len(params))]

    def objective_of(setting: Setting) -> objectives.Objective:
        decodings = num_decodings(config.latent_dim, *setting)
        if decodings > config.max_decodings:
            raise ValueError(f"decodes {decodings:,} latents for an example, above --max-decodings")
        return chosen[setting[0]].gradient(vae, setting[1]).objective

    def reference_of(setting: Setting) -> Setting:
        # Reparameterization of the same bound by as many samples is what the others' mean is compared with.
        return {"elbo": "pathwise", "iwae": "iwae_pathwise"}[chosen[setting[0]].bound], setting[1]

    def key_of(i: int, setting: Setting) -> jax.Array:
        # So the noise of a row does not depend on which other rows there are.
        return jax.random.fold_in(jax.random.fold_in(noise_key, i), zlib.crc32("{} {}".format(*setting).encode()))

    served, refusals = laboratory.serving(objective_of, settings, params[0], x, baselines=baselines[0])
    summaries = []
    with tqdm(total=len(params) * len(served), desc="gradients", unit=" estimates") as bar:
        for i, model in enumerate(params):
            keys = {setting: key_of(i, setting) for setting in served}
            options = {"baselines": baselines[i], "level": LEVEL, "map_jobs": training.in_threads_with(bar)}
            noise = laboratory.measure_noise(
                served, model, keys, x, config.num_repeats, reference_of=reference_of, **options
            )
            summaries.append(noise)
    with tqdm(total=len(served), desc="costs: compiling", leave=False) as bar:
        options = {"num_rounds": config.timing_rounds, "map_jobs": training.in_threads_with(bar)}
        costs = laboratory.cost(served, params[-1], cost_key, x, baselines=baselines[-1], **options)
    rows = []
    for step, moment, parts in zip(steps, MOMENTS, summaries, strict=True):
        encoder = {setting: part["encoder"] for setting, part in parts.items()}
        for setting in settings:
            name, number = setting
            row = {"moment": moment, "step": step, "estimator": name, "bound": chosen[name].bound}
            row |= {"num_samples": number, "refusal": refusals.get(setting)}
            if setting in served:
                same_mean = [encoder[other] for other in served if mean_of(chosen, other) == mean_of(chosen, setting)]
                row |= measured(parts[setting], costs[setting])
                row |= ratios(encoder, costs, setting)
                row["signal_to_noise"] = whole(laboratory.shared_signal_to_noise(encoder[setting], same_mean))
            rows.append(row)
    return rows


def mean_of(chosen: Mapping[str, Contestant], setting: Setting) -> tuple[str, int | None]:
    """What the mean gradient depends on: the bound, and K where the bound depends on it."""
    bound = chosen[setting[0]].bound
    return bound, setting[1] if bound == "iwae" else None


def measured(parts: Mapping[str, laboratory.Summary], cost: laboratory.Cost) -> dict[str, Any]:
    """What a row says of its own gradient: its noise, by parts of the parameters, and its cost."""
    encoder = parts["encoder"]
    return {
        "summaries": {part: dataclasses.asdict(parts[part]) for part in ("total", "encoder", "decoder")},
        "cost": dataclasses.asdict(cost),
        "variance": whole((encoder.variance, encoder.variance_lower, encoder.variance_upper)),
    }


def ratios(
    encoder: Mapping[Setting, laboratory.Summary], costs: Mapping[Setting, laboratory.Cost], setting: Setting
) -> dict[str, laboratory.Ratio | None]:
    """A row's ratios to one reparameterized sample, each with the ends of its interval."""
    compared = laboratory.noise_ratios(encoder, costs, setting, UNIT, LEVEL)
    return {f"{quantity}_ratio": whole(ratio) for quantity, ratio in compared._asdict().items()}


def whole(numbers: laboratory.Ratio) -> laboratory.Ratio | None:
    """The numbers, or None where one of them is missing."""
    return None if None in numbers else numbers
