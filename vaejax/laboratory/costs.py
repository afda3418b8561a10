"""What one gradient costs: decoder evaluations, arithmetic, time. Public as `laboratory.cost`."""

import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, models
from vaejax.laboratory.moments import (
    GradientObjective,
    check_objective,
    checked_objective,
    gradient,
    normal_quantile,
    with_own_baseline,
)


@dataclass(frozen=True)
class Cost:
    """What one gradient of a batch costs.

    Attributes:
        decoder_evaluations: latents decoded for each example in the forward pass. Where the gradient passes through
            the decoder, the backward pass costs about twice as much again. None if `models.make_vae` did not make the
            model, the objective does not report `per_example`, or a loop of unknown length decodes.
        flops: floating point operations, as `cost` counts them. None where XLA does not count them.
        seconds: wall time, median over the rounds.
        seconds_lower: first quartile.
        seconds_upper: third quartile.
        num_rounds: number of rounds that were timed.
        temporary_bytes: memory that the program takes beside its arguments and results. None where XLA does not say.

    >>> one = Cost(decoder_evaluations=8.0, flops=2e9, seconds=0.5, seconds_lower=0.4, seconds_upper=0.6, num_rounds=20)
    >>> one.flops / one.seconds, one.flops / one.decoder_evaluations  # in a second, and for each latent
    (4000000000.0, 250000000.0)
    """

    decoder_evaluations: float | None
    flops: float | None
    seconds: float
    seconds_lower: float
    seconds_upper: float
    num_rounds: int
    temporary_bytes: int | None = None


def seconds_ratio(cost: Cost, unit: Cost, level: float = 0.99) -> tuple[float, float]:
    """How many times the seconds of another gradient one gradient takes, and how well the clock knows that.

    The true ratio lies between `ratio * exp(-error)` and `ratio * exp(error)`, at the level of confidence. This uses
    that the standard error of the median of n normal numbers is 0.93 times the distance of their quartiles, over
    sqrt(n).

    Args:
        cost: of the gradient.
        unit: of the gradient to compare with. Compared with itself (the same object), a cost has ratio 1, error 0.
        level: of the interval.

    Returns:
        The ratio of the median seconds, and the error of its logarithm: half the width of the confidence interval.

    Raises:
        ValueError: if level is not between 0 and 1.

    >>> ratio, error = seconds_ratio(Cost(1.0, None, 4.0, 3.9, 4.1, 30), Cost(1.0, None, 2.0, 2.0, 2.0, 30))
    >>> ratio, round(error, 3)
    (2.0, 0.022)
    """
    z = normal_quantile(level)
    if cost is unit:
        return 1.0, 0.0
    errors = [
        0.93 * (of.seconds_upper - of.seconds_lower) / of.seconds / math.sqrt(of.num_rounds) for of in (cost, unit)
    ]
    return cost.seconds / unit.seconds, z * math.hypot(*errors)


def cost(
    objectives: Mapping[Hashable, GradientObjective],
    params: Any,
    key: Key[Array, ""],
    x: Any = None,
    *,
    step: ArrayLike | None = None,
    baselines: Mapping[Hashable, Any] | None = None,
    num_rounds: int = 20,
    map_jobs: Callable[..., Iterable[Any]] = map,
) -> dict[Hashable, Cost]:
    """Count the decoder evaluations and FLOPs of one gradient of each objective, and time them side by side.

    All programs are compiled and called once before the clock starts. In each round every objective then computes one
    gradient, so that a machine that slows down slows all of them.

    The FLOPs are XLA's count, of the program before XLA optimizes it; in the optimized one, matrix products may be
    library calls, which XLA counts as nothing. XLA counts the body of a loop once; here it counts as often as it runs,
    if that is known before it runs.

    Args:
        objectives: by name; `(params, key, x, *, step) -> (value, info)`, or `(params, key) -> (value, info)` with
            x = None.
        params: the parameters, the same for all.
        key: consumed.
        x: a batch of data.
        step: passed to the objectives.
        baselines: by the name of an objective, the parameters of its trained baseline, for `params["baseline"]`.
        num_rounds: gradients timed for each objective.
        map_jobs: `map`, or a function like it that works in threads, so that the programs compile side by side.

    Returns:
        The costs by name.

    Raises:
        ValueError: if num_rounds is not a positive integer, or an objective does not return `(value, info)`.

    >>> import jax.numpy as jnp
    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> elbos = {f"K={K}": objectives.make_elbo(vae, num_samples=K) for K in (1, 4)}
    >>> costs = cost(elbos, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> {name: cost.decoder_evaluations for name, cost in costs.items()}
    {'K=1': 1.0, 'K=4': 4.0}
    """
    checks.check_given(key=key, num_rounds=num_rounds)
    checks.check_kind("objectives", objectives, Mapping, "a dict of objectives by name")
    for objective in objectives.values():
        check_objective(objective, params, x)
    own_params = {name: with_own_baseline(params, baselines, name) for name in objectives}
    round_keys = jax.random.split(key, num_rounds + 1)
    first, *rounds = (jax.random.split(round_key, len(objectives)) for round_key in round_keys)

    def prepare(name: Hashable, gradient_key: Key[Array, ""]) -> tuple[Any, tuple[float | None, float | None, Any]]:
        arguments = (objectives[name], own_params[name], gradient_key, x, step)
        program = _jitted_gradient.lower(*arguments).compile()
        jax.block_until_ready(program(*arguments[1:]))
        memory = program.memory_analysis()
        return program, (_decoder_evaluations(*arguments), _flops(*arguments), memory and memory.temp_size_in_bytes)

    prepared = list(map_jobs(prepare, objectives, first))
    seconds: dict[Hashable, list[float]] = {name: [] for name in objectives}
    for gradient_keys in rounds:
        for name, (program, _), gradient_key in zip(objectives, prepared, gradient_keys, strict=True):
            jax.block_until_ready(gradient_key)
            start = time.perf_counter()
            jax.block_until_ready(program(own_params[name], gradient_key, x, step))
            seconds[name].append(time.perf_counter() - start)
    costs = {}
    for name, (_, (decodings, flops, memory)) in zip(objectives, prepared, strict=True):
        lower, median, upper = np.quantile(seconds[name], (0.25, 0.5, 0.75)).tolist()
        costs[name] = Cost(decodings, flops, median, lower, upper, num_rounds, memory)
    return costs


_jitted_gradient = jax.jit(gradient, static_argnums=0)


def _decoder_evaluations(objective, params, key, x, step) -> float | None:
    program, (_, info) = jax.make_jaxpr(checked_objective(objective), return_shape=True)(params, key, x, step)
    num_decodings = _decodings(_needed(program, num_outputs=1))
    if not num_decodings or not math.isfinite(num_decodings) or not hasattr(info, "per_example"):
        return None
    return num_decodings / math.prod(info.per_example.shape)


def _decodings(program: core.Jaxpr) -> float:
    """How many latents a program hands to decoders; NaN where that depends on the numbers."""
    count = 0.0
    for equation in program.eqns:
        kind, options = equation.primitive.name, equation.params
        inner = [_decodings(part) for part in core.jaxprs_in_params(options)]
        if kind == "name" and options["name"] == models.LATENTS:
            latents: Any = equation.outvars[0].aval
            count += math.prod(latents.shape[:-1])
        elif kind == "while":
            count += math.nan if any(inner) else 0
        elif kind == "cond":
            count += max(inner)
        else:
            count += options["length"] * sum(inner) if kind == "scan" else sum(inner)
    return count


def _flops(objective, params, key, x, step) -> float | None:
    traced = _jitted_gradient.trace(objective, params, key, x, step)
    once = _counted_once(traced.lower())
    return None if once is None else once + _flops_of_further_rounds(_needed(traced.jaxpr))


def _flops_of_further_rounds(program: core.Jaxpr) -> float:
    """What XLA's count leaves out: all rounds of each loop but the first."""
    missing = 0.0
    for equation in program.eqns:
        if equation.primitive.name == "scan":
            body = equation.params["jaxpr"]
            once = _counted_once(jax.jit(core.jaxpr_as_fun(body)).lower(*body.in_avals)) or 0.0
            missing += equation.params["length"] * (once + _flops_of_further_rounds(body.jaxpr)) - once
        else:
            missing += sum(_flops_of_further_rounds(part) for part in core.jaxprs_in_params(equation.params))
    return missing


def _counted_once(lowered: jax.stages.Lowered) -> float | None:
    return (lowered.cost_analysis() or {}).get("flops")


def _needed(program: core.ClosedJaxpr, num_outputs: int | None = None) -> core.Jaxpr:
    """The part of a program that its first outputs need, by default all outputs; `jit` runs no more than that."""
    num_all = len(program.jaxpr.outvars)
    return partial_eval.dce_jaxpr(program.jaxpr, [i < (num_outputs or num_all) for i in range(num_all)])[0]
