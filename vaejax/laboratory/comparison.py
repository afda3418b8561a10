"""Estimators side by side: which can serve, how noisy their gradients are, what they cost, and how they compare.

`compare` does all of it at one point of training, by the other functions of this file. A study of many points, or with
references of its own, calls those.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, evaluation, objectives
from vaejax.distributions import Params
from vaejax.laboratory.costs import cost
from vaejax.laboratory.moments import (
    GradientMoments,
    GradientObjective,
    check_objective,
    gradient,
    gradient_moments,
    groups,
    with_own_baseline,
)
from vaejax.laboratory.rows import Row, Setting, noise_ratios
from vaejax.laboratory.summaries import Summary, summarize
from vaejax.models import VAE, Batch


def compare(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    estimators: Mapping[str, Any],
    num_samples: Sequence[int] = (1, 4, 16, 64),
    *,
    num_repeats: int = 1000,
    make_objective: Callable[..., GradientObjective] = objectives.make_elbo,
    relative_to: Setting = ("pathwise", 1),
    group: str = "total",
    reference: Any = None,
    baselines: Mapping[str, Params] | None = None,
    step: ArrayLike | None = None,
    chunk_size: int = 1,
    num_rounds: int = 20,
    level: float = 0.99,
) -> list[Row]:
    """Compare estimators, each with several K: how noisy a gradient is, what it costs, and both in relation to one.

    A second call with the same estimators and other parameters, at another point of training say, compiles nothing.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed; the noise of a row does not depend on which other rows there are.
        x: data, the same for all. (*batch, *data_shape), or a `models.Batch`.
        estimators: by name. One that cannot serve the model or K gets a row that says why.
        num_samples: values of K.
        num_repeats: gradients behind each row.
        make_objective: `(vae, estimator, K) -> objective`, such as `objectives.make_iwae`.
        relative_to: name and K of the row that the ratios compare with.
        group: the part of the parameters that the ratios are about, such as "encoder".
        reference: what the mean gradient should be, as in `summarize`. By default it is the mean gradient of the
            estimator named in `relative_to`, with the K of the row. That estimator must then be unbiased; its own rows
            have no reference.
        baselines: by name of an estimator, the parameters of its trained baseline, for `params["baseline"]`.
        step: passed to the objectives.
        chunk_size: gradients computed at once; see `gradient_moments`.
        num_rounds: gradients timed for each row; the rows take turns.
        level: of the confidence intervals.

    Returns:
        A row for each estimator and K: estimators in their order, and for each the K in theirs.

    Raises:
        ValueError: if `relative_to` names no row or one that cannot serve, `group` names no part of the parameters, a
            number is out of range, or `models.check_data` refuses x.

    >>> import jax.numpy as jnp
    >>> from vaejax import estimators, models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> chosen = {"pathwise": estimators.pathwise(), "leave-one-out": estimators.score_function("leave_one_out")}
    >>> rows = compare(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)), chosen, (1, 2))
    >>> [(row.estimator, row.num_samples, row.refusal is None) for row in rows]
    [('pathwise', 1, True), ('pathwise', 2, True), ('leave-one-out', 1, False), ('leave-one-out', 2, True)]
    """
    checks.check_kind("estimators", estimators, Mapping, "a dict of estimators by name")
    x = evaluation.checked_examples(vae, params, x, key=key, estimators=len(estimators), num_rounds=num_rounds)
    numbers = checks.checked_shape("num_samples", num_samples)
    settings = [(name, number) for name in estimators for number in numbers]
    checks.check_choice("relative_to", relative_to, settings)
    own = {setting: baselines[setting[0]] for setting in settings if setting[0] in (baselines or {})}
    own_params = with_own_baseline(params, own, relative_to)
    checks.check_choice("group", group, [node for node in groups(own_params) if "." not in node])
    moments_key, cost_key = jax.random.split(key)

    def objective_of(setting: Setting) -> GradientObjective:
        return _objective(make_objective, vae, estimators[setting[0]], setting[1])

    served, refusals = serving(objective_of, settings, params, x, step=step, baselines=own)
    if relative_to in refusals:
        raise ValueError(refusals[relative_to])
    keys = {
        (name, number): jax.random.fold_in(jax.random.fold_in(moments_key, zlib.crc32(name.encode())), number)
        for name, number in served
    }
    summaries = measure_noise(
        served,
        params,
        keys,
        x,
        num_repeats,
        reference_of=lambda setting: (relative_to[0], setting[1]),
        reference=reference,
        baselines=own,
        step=step,
        chunk_size=chunk_size,
        level=level,
    )
    costs = cost(served, params, cost_key, x, step=step, baselines=own, num_rounds=num_rounds)
    noise = {setting: parts[group] for setting, parts in summaries.items()}

    def row(setting: Setting) -> Row:
        if setting in refusals:
            return Row(*setting, refusals[setting])
        variance, samples, seconds = noise_ratios(noise, costs, setting, relative_to, level)
        return Row(*setting, None, summaries[setting], costs[setting], *variance, *samples, *seconds)

    return [row(setting) for setting in settings]


@functools.lru_cache(maxsize=256)
def _objective(make_objective, vae, estimator, num_samples) -> GradientObjective:
    """The same closure for the same arguments, so that what was compiled for it is found again."""
    return make_objective(vae, estimator, num_samples)


def serving(
    objective_of: Callable[[Setting], GradientObjective],
    settings: Iterable[Setting],
    params: Params,
    x: Batch | ArrayLike,
    *,
    step: ArrayLike | None = None,
    baselines: Mapping[Setting, Params] | None = None,
) -> tuple[dict[Setting, GradientObjective], dict[Setting, str]]:
    """The objectives that have a gradient here, and why the others have none. Nothing is compiled or computed.

    Args:
        objective_of: makes the objective of a setting, or raises a `ValueError` that says why it cannot.
        settings: names of estimators, each with a K.
        params: the model's parameters.
        x: data.
        step: passed to the objectives.
        baselines: by setting, the parameters of its trained baseline, for `params["baseline"]`.

    Returns:
        The objectives by setting, and the words of the refusal by setting. Each setting is in one of the two.

    >>> import jax.numpy as jnp
    >>> from vaejax import estimators, models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> def leave_one_out(setting):
    ...     return objectives.make_elbo(vae, estimators.score_function("leave_one_out"), num_samples=setting[1])
    >>> settings = [("leave-one-out", 1), ("leave-one-out", 2)]
    >>> served, refusals = serving(leave_one_out, settings, vae.init(jax.random.key(0)), jnp.ones((7, 3)))
    >>> list(served), list(refusals)
    ([('leave-one-out', 2)], [('leave-one-out', 1)])
    """
    checks.check_function("objective_of", objective_of, "setting -> objective", 1)
    checks.check_leaves(params)
    served, refusals = {}, {}
    for setting in settings:
        try:
            objective = objective_of(setting)
            own_params = with_own_baseline(params, baselines, setting)
            jax.eval_shape(functools.partial(gradient, objective), own_params, jax.random.key(0), x, step)
            served[setting] = objective
        except ValueError as error:
            refusals[setting] = str(error)
    return served, refusals


def measure_noise(
    served: Mapping[Setting, GradientObjective],
    params: Params,
    keys: Mapping[Setting, Key[Array, ""]],
    x: Batch | ArrayLike,
    num_repeats: int = 1000,
    *,
    reference_of: Callable[[Setting], Setting],
    reference: Any = None,
    baselines: Mapping[Setting, Params] | None = None,
    step: ArrayLike | None = None,
    chunk_size: int = 1,
    level: float = 0.99,
    map_jobs: Callable[..., Iterable[Any]] = map,
) -> dict[Setting, dict[str, Summary]]:
    """Summaries of the gradients of several objectives, each beside the mean gradient of another that is unbiased.

    Args:
        served: the objectives by setting, as `serving` returns them.
        params: the model's parameters, the same for all.
        keys: by setting; consumed.
        x: data, the same for all.
        num_repeats: gradients behind each summary.
        reference_of: `setting -> setting`: whose mean gradient is the reference of this one. One that names itself is
            such a reference, and has none.
        reference: the reference of all, as in `summarize`, instead of those.
        baselines: by setting, the parameters of its trained baseline, for `params["baseline"]`.
        step: passed to the objectives.
        chunk_size: gradients computed at once; see `gradient_moments`.
        level: of the confidence intervals.
        map_jobs: `map`, or a function like it that works in threads, so that programs compile side by side.

    Returns:
        By setting, the summaries of the whole gradient ("total") and of each part of the parameters ("encoder", ...).

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> served = {("pathwise", K): objectives.make_elbo(vae, num_samples=K) for K in (1, 4)}
    >>> keys = dict(zip(served, jax.random.split(jax.random.key(0), 2)))
    >>> params, x = vae.init(jax.random.key(1)), jnp.ones((7, 3))
    >>> summaries = measure_noise(served, params, keys, x, 10, reference_of=lambda setting: ("pathwise", 4))
    >>> list(summaries["pathwise", 1])
    ['total', 'decoder', 'encoder']
    """
    checks.check_kind("served", served, Mapping, "a dict of objectives by setting")
    checks.check_function("reference_of", reference_of, "setting -> setting", 1)

    def moments_of(setting: Setting) -> GradientMoments:
        own_params = with_own_baseline(params, baselines, setting)
        objective = served[setting]
        check_objective(objective, own_params, x)
        return gradient_moments(objective, own_params, keys[setting], x, num_repeats, chunk_size=chunk_size, step=step)

    is_reference = {setting: reference_of(setting) == setting for setting in served}
    references: dict[Setting, GradientMoments] = {}
    summaries = {}
    for chosen in (True, False):  # the references first; of the others no moments are kept
        group = [setting for setting in served if is_reference[setting] is chosen]
        for setting, moments in zip(group, map_jobs(moments_of, group), strict=True):
            if chosen:
                references[setting] = moments
            expected = None if chosen else references.get(reference_of(setting))
            parts = summarize(moments, expected if reference is None else reference, level)
            summaries[setting] = {node: part for node, part in parts.items() if "." not in node}
    return summaries
