"""The noise of gradients: their moments over many repeats, what they cost, and estimators side by side.

moments = gradient_moments(objective, params, key, x, num_repeats=1000)
summarize(moments)["encoder"].signal_to_noise
cost({"K=1": objective}, params, key, x)["K=1"].seconds
rows = compare(vae, params, key, x, {"pathwise": estimators.pathwise(), ...}, num_samples=(1, 4, 16, 64))
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from vaejax import models, objectives
from vaejax.distributions import Params
from vaejax.laboratory.costs import Cost, cost, seconds_ratio
from vaejax.laboratory.moments import GradientMoments, GradientObjective, gradient, gradient_moments
from vaejax.laboratory.summaries import Summary, noise_ratio, summarize
from vaejax.models import VAE


@dataclass(frozen=True)
class Row:
    """One line of `compare`: an estimator with K samples. `dataclasses.asdict(row)` is ready for JSON.

    Ratios are to the estimator that was chosen for comparison, and None where they are undefined.

    Attributes:
        estimator: its name.
        num_samples: K.
        refusal: why the estimator cannot serve here, in its own words; then all that follows is empty or None.
        summaries: of the whole gradient ("total") and of each part of the parameters ("encoder", "decoder").
        cost: of one gradient.
        variance_ratio: of the variances of one gradient.
        variance_ratio_lower: end of its confidence interval.
        variance_ratio_upper: other end.
        samples_ratio: of K x variance: how many times the samples it takes to reach the same noise.
        samples_ratio_lower: end of its confidence interval.
        samples_ratio_upper: other end.
        work_ratio: of seconds x variance: how many times the time it takes to reach the same noise.
        work_ratio_lower: end of its confidence interval, that of the clock included.
        work_ratio_upper: other end.
    """

    estimator: str
    num_samples: int
    refusal: str | None = None
    summaries: dict[str, Summary] | None = None
    cost: Cost | None = None
    variance_ratio: float | None = None
    variance_ratio_lower: float | None = None
    variance_ratio_upper: float | None = None
    samples_ratio: float | None = None
    samples_ratio_lower: float | None = None
    samples_ratio_upper: float | None = None
    work_ratio: float | None = None
    work_ratio_lower: float | None = None
    work_ratio_upper: float | None = None


def compare(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    estimators: Mapping[str, Any],
    num_samples: Sequence[int] = (1, 4, 16, 64),
    *,
    num_repeats: int = 1000,
    make_objective: Callable[..., GradientObjective] = objectives.make_elbo,
    relative_to: tuple[str, int] = ("pathwise", 1),
    group: str = "total",
    reference: Any = None,
    baselines: Mapping[str, Params] | None = None,
    step: ArrayLike | None = None,
    chunk_size: int = 1,
    num_rounds: int = 20,
    level: float = 0.99,
) -> list[Row]:
    """Estimators by number of samples: how noisy their gradients are, what they cost, and what the same noise would.

    Calls with other parameters, at another point of training say, compile nothing anew.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed; the noise of a row does not depend on which other rows there are.
        x: data, (*batch, *data_shape), the same for all.
        estimators: by name. One that cannot serve the model or K gives a row that says why.
        num_samples: values of K.
        num_repeats: gradients behind each row.
        make_objective: `(vae, estimator, K) -> objective`, such as `objectives.make_iwae`.
        relative_to: name and K of the row that the ratios are relative to.
        group: the part of the parameters that the ratios are about, such as "encoder".
        reference: what the mean gradient should be, as in `summarize`. By default, the mean of the estimator that is
            named in `relative_to` with the K of the row: it must be unbiased, and is not compared with itself.
        baselines: by name of an estimator, the parameters of its trained baseline, for `params["baseline"]`.
        step: handed to the objectives.
        chunk_size: gradients computed at once; see `gradient_moments`.
        num_rounds: gradients timed for each row, all rows by turns.
        level: of the confidence intervals.

    Raises:
        ValueError: if there is no row as named in `relative_to`, or its estimator cannot serve; a number is out of
            range; or x is refused by `models.check_data`.

    >>> from vaejax import estimators
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> chosen = {"pathwise": estimators.pathwise(), "leave-one-out": estimators.score_function("leave_one_out")}
    >>> rows = compare(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)), chosen, (1, 2))
    >>> [(row.estimator, row.num_samples, row.refusal is None) for row in rows]
    [('pathwise', 1, True), ('pathwise', 2, True), ('leave-one-out', 1, False), ('leave-one-out', 2, True)]
    """
    models.check_data(vae, params, x)
    x = jnp.asarray(x)
    settings = [(name, number) for name in estimators for number in num_samples]
    if relative_to not in settings:
        raise ValueError(f"relative_to must be one of the rows, {settings}; got {relative_to!r}")
    row_params = {name: params for name in estimators}
    row_params |= {name: {**params, "baseline": baseline} for name, baseline in (baselines or {}).items()}
    moments_key, cost_key = jax.random.split(key)

    served, refusals = {}, {}
    for name, number in settings:
        try:
            objective = _objective(make_objective, vae, estimators[name], number)
            jax.eval_shape(functools.partial(gradient, objective), row_params[name], cost_key, x, step)
            served[name, number] = objective
        except ValueError as error:
            if (name, number) == relative_to:
                raise
            refusals[name, number] = str(error)

    def moments_of(name: str, number: int) -> GradientMoments:
        row_key = jax.random.fold_in(jax.random.fold_in(moments_key, zlib.crc32(name.encode())), number)
        objective = served[name, number]
        return gradient_moments(objective, row_params[name], row_key, x, num_repeats, chunk_size=chunk_size, step=step)

    unbiased = {number: moments_of(name, number) for name, number in served if name == relative_to[0]}
    summaries = {}
    for name, number in served:
        is_reference = name == relative_to[0]
        moments = unbiased[number] if is_reference else moments_of(name, number)
        expected = unbiased.get(number) if reference is None and not is_reference else reference
        parts = summarize(moments, expected, level)
        summaries[name, number] = {node: part for node, part in parts.items() if "." not in node}
    if group not in summaries[relative_to]:
        raise ValueError(f"group must be one of {list(summaries[relative_to])}; got {group!r}")

    own_baselines = {
        setting: row_params[setting[0]]["baseline"] for setting in served if setting[0] in (baselines or {})
    }
    costs = cost(served, params, cost_key, x, step=step, baselines=own_baselines, num_rounds=num_rounds)

    def row(setting: tuple[str, int]) -> Row:
        if setting in refusals:
            return Row(*setting, refusals[setting])
        noises = summaries[setting][group], summaries[relative_to][group]
        seconds = seconds_ratio(costs[setting], costs[relative_to], level)
        return Row(
            *setting,
            None,
            summaries[setting],
            costs[setting],
            *noise_ratio(*noises),
            *noise_ratio(*noises, price=setting[1] / relative_to[1]),
            *noise_ratio(*noises, *seconds),
        )

    return [row(setting) for setting in settings]


@functools.lru_cache(maxsize=256)
def _objective(make_objective, vae, estimator, num_samples) -> GradientObjective:
    """The same closure for the same arguments, so that what was compiled for it is found again."""
    return make_objective(vae, estimator, num_samples)
