"""Gradient estimators at three moments of a training run, and the training that each of them makes.

`config.py` holds its options, `contestants.py` who is compared, `training.py` the training runs, `tables.py` its words
and `pictures.py` its pictures.
"""

import dataclasses
import os
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from engines.gradients import contestants, pictures, tables, training
from engines.gradients.config import Config
from engines.gradients.contestants import Contestant, Field, Setting
from engines.harness import loading, run_folder
from engines.harness.progress import Progress
from vaejax import data, laboratory, models, objectives

LEVEL = 0.99  # of all intervals

MOMENTS = ("start", "middle", "end")


def run(config: Config) -> None:
    """Train, compare, write, draw and report."""
    begin = time.perf_counter()
    folder = run_folder.choose_folder(config.runs_dir, config.name, f"gradients-{config.dataset}", resume=False)
    images, validation, x = load(config)
    field = contestants.field_of(config.latents, config.latent_dim)
    vae = models.mlp_vae(images.shape[1:], config.latent_dim, config.hidden_sizes, posterior=field.posterior)
    run_keys, comparison_key = keys_of(config.seed)
    models.check_data(vae, vae.init(loading.evaluation_key("any parameters")), validation)
    folder.mkdir(parents=True)
    run_folder.write_json(folder / "config.json", dataclasses.asdict(config))
    print(
        f"{config.dataset}: {len(images):,} training images, {len(x)} of them compared; leaves everything in {folder}"
    )

    chosen = {name: contestant for name, contestant in field.contestants.items() if name in config.estimators}
    trained = {
        (name, number): chosen[name].gradient(vae, number)
        for name, number in field.trained
        if (name, number) == field.unit  # at moments of its training all are compared
        or (name in chosen and number * chosen[name].decodings <= config.max_training_decodings)
    }
    curves, moments = training.train(config, run_keys, vae, trained, images, validation, field.unit)
    for _, params in moments:
        models.check_data(vae, params, x)  # refuses parameters that are not finite
    rows = compare(config, comparison_key, vae, field, moments, images, x)
    results = {
        "labels": {name: contestant.label for name, contestant in chosen.items()},
        "moments": [{"name": name, "step": step} for name, (step, _) in zip(MOMENTS, moments, strict=True)],
        "level": LEVEL,
        "unit": {"estimator": field.unit[0], "num_samples": field.unit[1], "words": field.unit_words},
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "rows": rows,
        "training": [
            {"estimator": name, "num_samples": number, "decodings": number * chosen[name].decodings, **curve}
            for (name, number), curve in curves.items()
        ],
        "headline": tables.headline(rows) if config.latents == "gaussian" else [],
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
    order = np.random.default_rng(config.seed).permutation(len(images))
    x = images[order[: config.comparison_batch_size]]
    validation = loading.load(config.dataset, "validation", config.where).images[:1000]
    prepare = data.binarization(config.binarization)
    if prepare is not None:
        x = prepare(loading.evaluation_key("held-out images"), x)
        validation = prepare(loading.evaluation_key("other held-out images"), validation)
    return images, np.asarray(validation), np.asarray(x)


def keys_of(seed: int) -> tuple[loading.RunKeys, jax.Array]:
    """The keys of the training runs, and the one of the comparison."""
    params, training_key, baseline, comparison, inputs = jax.random.split(jax.random.key(seed), 5)
    return loading.RunKeys(params, baseline, training_key, inputs), comparison


def compare(
    config: Config,
    key: jax.Array,
    vae: models.VAE,
    field: Field,
    moments: Sequence[tuple[int, Any]],
    images: np.ndarray,
    x: np.ndarray,
) -> list[dict[str, Any]]:
    """The rows of the table: every estimator with every K at every moment."""
    noise_key, baseline_key, cost_key = jax.random.split(key, 3)
    steps, params = zip(*moments, strict=True)
    chosen = {name: contestant for name, contestant in field.contestants.items() if name in config.estimators}
    settings = [(name, number) for name in chosen for number in config.num_samples]
    prepare = data.binarization(config.binarization)

    def learn(name: str) -> list[Any]:
        gradient = chosen[name].gradient(vae, chosen[name].estimator.fewest_samples)
        learned = training.train_baseline(gradient, images, prepare, config.baseline_steps, config.batch_size)
        return [learned(model, jax.random.fold_in(baseline_key, i)) for i, model in enumerate(params)]

    with_baselines = [name for name in chosen if chosen[name].estimator.baseline is not None]
    learned = dict(zip(with_baselines, training.in_threads(learn, with_baselines), strict=True))
    baselines = [{s: learned[s[0]][i] for s in settings if s[0] in learned} for i in range(len(params))]

    def objective_of(setting: Setting) -> objectives.Objective:
        contestant, number = chosen[setting[0]], setting[1]
        if (decodings := number * contestant.decodings) > config.max_decodings:
            raise ValueError(f"decodes {decodings:,} latents for an example, above --max-decodings")
        return contestant.gradient(vae, number).objective

    def key_of(i: int, setting: Setting) -> jax.Array:
        # So the noise of a row does not depend on which other rows there are.
        return jax.random.fold_in(jax.random.fold_in(noise_key, i), zlib.crc32("{} {}".format(*setting).encode()))

    served, refusals = laboratory.serving(objective_of, settings, params[0], x, baselines=baselines[0])
    summaries = []
    with Progress("gradients", len(params) * len(served), unit="estimates") as bar:
        for i, model in enumerate(params):
            keys = {setting: key_of(i, setting) for setting in served}
            options = {"baselines": baselines[i], "level": LEVEL, "map_jobs": training.in_threads_with(bar)}
            noise = laboratory.measure_noise(
                served,
                model,
                keys,
                x,
                config.num_repeats,
                reference_of=lambda setting: reference_of(field, served, setting),
                **options,
            )
            summaries.append(noise)
    with Progress("costs: compiling", len(served), unit="programs") as bar:
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
                row |= ratios(encoder, costs, setting, field.unit)
                row["signal_to_noise"] = whole(laboratory.shared_signal_to_noise(encoder[setting], same_mean))
            rows.append(row)
    return rows


def reference_of(field: Field, served: Collection[Setting], setting: Setting) -> Setting:
    """Whose mean gradient is the reference of a setting's: an unbiased one of the same bound."""
    bound = field.contestants[setting[0]].bound
    serving = {name for name, _ in served}
    name = next(name for name in field.references[bound] if name in serving)
    if bound == "iwae":  # whose gradient depends on K
        return name, setting[1]
    return max((other for other in served if other[0] == name), key=lambda other: other[1])


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
    encoder: Mapping[Setting, laboratory.Summary],
    costs: Mapping[Setting, laboratory.Cost],
    setting: Setting,
    unit: Setting,
) -> dict[str, laboratory.Ratio | None]:
    """A row's ratios to the unit, each with the ends of its interval."""
    compared = laboratory.noise_ratios(encoder, costs, setting, unit, LEVEL)
    return {f"{quantity}_ratio": whole(ratio) for quantity, ratio in compared._asdict().items()}


def whole(numbers: laboratory.Ratio) -> laboratory.Ratio | None:
    """The numbers, or None where one of them is missing."""
    return None if None in numbers else numbers
