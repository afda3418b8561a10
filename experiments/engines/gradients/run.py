"""Gradient estimators at three moments of a training run, and the training that each of them makes.

`compare_gradients.py` is its command line, `gradient_tables.py` its words and `gradient_plots.py` its pictures.
"""

import dataclasses
import functools
import os
import time
import zlib
from collections.abc import Callable, Mapping
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
        if name in chosen and num_decodings(config, name, number) <= config.max_training_decodings
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
            {"estimator": name, "num_samples": number, "decodings": num_decodings(config, name, number), **curve}
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
    images = loading.load(config, "train").images
    largest = max(config.comparison_batch_size, config.batch_size)
    if largest > len(images):
        raise ValueError(
            f"--batch-size and --comparison-batch-size must be at most {len(images)}, the training images of "
            f"{config.dataset}; got {largest}"
        )
    compared_key, validation_key = jax.random.split(jax.random.key(loading.EVALUATION_KEY))
    order = np.random.default_rng(config.seed).permutation(len(images))
    x = images[order[: config.comparison_batch_size]]
    validation = loading.load(config, "validation").images[:1000]
    prepare = data.binarization(config.binarization)
    if prepare is not None:
        x, validation = prepare(compared_key, x), prepare(validation_key, validation)
    return images, np.asarray(validation), np.asarray(x)


def num_decodings(config: Config, name: str, number: int) -> int:
    """Codes that are decoded for one example, as `laboratory.cost` counts them once it is compiled."""
    return number * (1 + 4 * config.latent_dim if name == "measure_valued" else 1)


def compare(
    config: Config,
    vae: models.VAE,
    chosen: Mapping[str, Contestant],
    moments: list[tuple[int, Any]],
    images: np.ndarray,
    x: np.ndarray,
) -> list[dict[str, Any]]:
    """The rows of the table: every estimator with every K at every moment."""
    noise_key, baseline_key, cost_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 3)
    params = [dict.fromkeys(chosen, model) for _, model in moments]
    with_baselines = [name for name in chosen if chosen[name].estimator.baseline is not None]

    def learn(name: str) -> list[Any]:
        trained = training.train_baseline(config, chosen[name].gradient(vae, 1), images)
        keys = [jax.random.fold_in(baseline_key, i) for i in range(len(moments))]
        return [trained(model, key) for (_, model), key in zip(moments, keys, strict=True)]

    for name, learned in zip(with_baselines, training.in_threads(learn, with_baselines), strict=True):
        for of_moment, baseline in zip(params, learned, strict=True):
            of_moment[name] = {**of_moment[name], "baseline": baseline}

    served, refusals = {}, {}
    for setting in ((name, number) for name in chosen for number in config.num_samples):
        name, number = setting
        decodings = num_decodings(config, name, number)
        try:
            if decodings > config.max_decodings:
                raise ValueError(f"decodes {decodings:,} codes for an example, above --max-decodings")
            objective = chosen[name].gradient(vae, number).objective
            jax.eval_shape(objective, params[0][name], cost_key, x)
            served[setting] = objective
        except ValueError as error:
            refusals[setting] = str(error)

    summaries = measured_noise(config, chosen, served, params, noise_key, x)
    costs = measured_costs(config, served, params[-1], cost_key, x)
    rows = []
    for (step, _), moment, parts in zip(moments, MOMENTS, summaries, strict=True):
        encoder = {setting: part["encoder"] for setting, part in parts.items()}
        for name, number in (*served, *refusals):
            setting = name, number
            row = {"moment": moment, "step": step, "estimator": name, "bound": chosen[name].bound}
            row |= {"num_samples": number, "refusal": refusals.get(setting)}
            if setting in served:
                row["summaries"] = {part: dataclasses.asdict(summary) for part, summary in parts[setting].items()}
                row["cost"] = dataclasses.asdict(costs[setting])
                row |= noise_ratios(encoder, costs, setting)
                same_mean = [other for other in served if mean_of(chosen, other) == mean_of(chosen, setting)]
                shared = laboratory.shared_signal_to_noise(encoder[setting], [encoder[other] for other in same_mean])
                row["signal_to_noise"] = whole(*shared)
            rows.append(row)
    order = {setting: i for i, setting in enumerate((name, number) for name in chosen for number in config.num_samples)}
    return sorted(rows, key=lambda row: (row["step"], order[row["estimator"], row["num_samples"]]))


def mean_of(chosen: Mapping[str, Contestant], setting: Setting) -> tuple[str, int | None]:
    """What the mean gradient depends on: the bound, and K where the bound depends on it."""
    bound = chosen[setting[0]].bound
    return bound, setting[1] if bound == "iwae" else None


def measured_noise(
    config: Config,
    chosen: Mapping[str, Contestant],
    served: Mapping[Setting, objectives.Objective],
    params: list[dict[str, Any]],
    key: jax.Array,
    x: np.ndarray,
) -> list[dict[Setting, dict[str, laboratory.Summary]]]:
    """What is to be said of each estimator's gradient, and of its parts, at each moment."""

    def moments_of(job: tuple[int, Setting]) -> laboratory.GradientMoments:
        i, (name, number) = job
        # So the noise of a row does not depend on which other rows there are.
        row_key = jax.random.fold_in(jax.random.fold_in(key, i), zlib.crc32(f"{name} {number}".encode()))
        return laboratory.gradient_moments(served[name, number], params[i][name], row_key, x, config.num_repeats)

    # Reparameterization of the same bound by as many samples is what the others' mean is compared with.
    reference_of = {"elbo": "pathwise", "iwae": "iwae_pathwise"}
    references, summaries = {}, [{} for _ in params]
    first = [setting for setting in served if setting[0] in reference_of.values()]
    rest = [setting for setting in served if setting not in first]
    with tqdm(total=len(params) * len(served), desc="gradients", unit=" estimates") as bar:
        for settings in (first, rest):
            jobs = [(i, setting) for i in range(len(params)) for setting in settings]
            for job, moments in zip(jobs, training.in_threads(moments_of, jobs), strict=True):
                i, (name, number) = job
                if settings is first:
                    references[job] = moments
                reference = references[i, (reference_of[chosen[name].bound], number)]
                parts = laboratory.summarize(moments, None if reference is moments else reference, LEVEL)
                summaries[i][name, number] = {part: parts[part] for part in ("total", "encoder", "decoder")}
                bar.update()
    return summaries


def measured_costs(
    config: Config,
    served: Mapping[Setting, objectives.Objective],
    params: Mapping[str, Any],
    key: jax.Array,
    x: np.ndarray,
) -> dict[Setting, laboratory.Cost]:
    """What one gradient costs, all timed by turns once they are compiled."""

    def costs(settings: list[Setting], i: int, num_rounds: int) -> dict[Setting, laboratory.Cost]:
        own = {(name, number): params[name]["baseline"] for name, number in settings if "baseline" in params[name]}
        measured = {setting: served[setting] for setting in settings}
        own_key = jax.random.fold_in(key, i)
        return laboratory.cost(measured, params["pathwise"], own_key, x, baselines=own, num_rounds=num_rounds)

    compiled = training.in_threads(lambda job: costs([job[1]], job[0], 1), enumerate(served, 1))
    for _ in tqdm(compiled, "costs: compiling", len(served), leave=False):
        pass
    return costs(list(served), 0, config.timing_rounds)


def noise_ratios(
    parts: Mapping[Setting, laboratory.Summary], costs: Mapping[Setting, laboratory.Cost], setting: Setting
) -> dict[str, tuple[float, float, float] | None]:
    """A row's variance, and its ratios to one reparameterized sample, each with the ends of its interval."""
    part, unit = parts[setting], parts[UNIT]
    seconds = laboratory.seconds_ratio(costs[setting], costs[UNIT], LEVEL)
    return {
        "variance": whole(part.variance, part.variance_lower, part.variance_upper),
        "variance_ratio": whole(*laboratory.noise_ratio(part, unit)),
        "samples_ratio": whole(*laboratory.noise_ratio(part, unit, price=setting[1] / UNIT[1])),
        "seconds_ratio": whole(*laboratory.noise_ratio(part, unit, *seconds)),
    }


def whole(*numbers: float | None) -> tuple[float, ...] | None:
    """The numbers, or None where one of them is missing."""
    return None if None in numbers else numbers
