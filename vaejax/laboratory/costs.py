"""What one gradient costs: decoder evaluations, arithmetic, time. Public as `laboratory.cost`."""

import math
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, models
from vaejax.laboratory.moments import GradientObjective, checked_objective, gradient, normal_quantile


@dataclass(frozen=True)
class Cost:
    """What one gradient of a batch costs.

    Attributes:
        decoder_evaluations: codes decoded for each example on the way forward; the way back costs about twice as much
            where the gradient passes through the decoder. None where the model was not made by `models.make_vae`, the
            objective does not report `per_example`, or a loop of unknown length decodes.
        flops: floating point operations; see `cost`. None where XLA does not count them.
        seconds: median over the rounds.
        seconds_lower: first quartile.
        seconds_upper: third quartile.
        num_rounds: how many were timed.
    """

    decoder_evaluations: float | None
    flops: float | None
    seconds: float
    seconds_lower: float
    seconds_upper: float
    num_rounds: int


def seconds_ratio(cost: Cost, unit: Cost, level: float = 0.99) -> tuple[float, float]:
    """How many times the seconds of another gradient one takes, and the error of the ratio's logarithm at a level.

    The ratio lies between `ratio * exp(-error)` and `ratio * exp(error)`. The standard error of a median is 0.93 times
    the distance of the quartiles over sqrt(n), for n normal numbers.

    Args:
        cost: of the one.
        unit: of the other; the ratio of a cost to itself is 1 without error.
        level: of the interval.

    Raises:
        ValueError: if level is not between 0 and 1.

    >>> seconds_ratio(Cost(1.0, None, 4.0, 3.9, 4.1, 30), Cost(1.0, None, 2.0, 2.0, 2.0, 30))[0]
    2.0
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
) -> dict[Hashable, Cost]:
    """Decoder evaluations, FLOPs and seconds of one gradient of each objective, measured side by side.

    In each round every objective takes one gradient, so that a machine that slows down slows all of them. Compilation
    and a first call come before. The FLOPs are XLA's count for the program that is given to its compiler: the compiler
    may hide matrix products in library calls, which count for nothing. XLA also counts the body of a loop once; here it
    counts as often as it runs, where that is known beforehand.

    Args:
        objectives: `(params, key, x, *, step) -> (value, info)`, or `(params, key) -> (value, info)` with x = None.
        params: the parameters, the same for all.
        key: consumed.
        x: a batch of data.
        step: handed to the objectives.
        baselines: by the name of an objective, the parameters that it finds in `params["baseline"]`.
        num_rounds: gradients timed for each objective.

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
    checks.check_count("num_rounds", num_rounds)
    own_params = {name: params for name in objectives}
    own_params |= {name: {**params, "baseline": baseline} for name, baseline in (baselines or {}).items()}
    seconds: dict[Hashable, list[float]] = {name: [] for name in objectives}
    for round_key in jax.random.split(key, num_rounds + 1):
        for name, gradient_key in zip(objectives, jax.random.split(round_key, len(objectives)), strict=True):
            jax.block_until_ready(gradient_key)
            start = time.perf_counter()
            jax.block_until_ready(_jitted_gradient(objectives[name], own_params[name], gradient_key, x, step))
            seconds[name].append(time.perf_counter() - start)
    costs = {}
    for name, objective in objectives.items():
        lower, median, upper = np.quantile(seconds[name][1:], (0.25, 0.5, 0.75)).tolist()  # without the compilation
        arguments = (objective, own_params[name], key, x, step)
        costs[name] = Cost(_decoder_evaluations(*arguments), _flops(*arguments), median, lower, upper, num_rounds)
    return costs


_jitted_gradient = jax.jit(gradient, static_argnums=0)


def _decoder_evaluations(objective, params, key, x, step) -> float | None:
    program, (_, info) = jax.make_jaxpr(checked_objective(objective), return_shape=True)(params, key, x, step)
    num_codes = _codes_decoded(_needed(program, num_outputs=1))
    if not num_codes or not math.isfinite(num_codes) or not hasattr(info, "per_example"):
        return None
    return num_codes / math.prod(info.per_example.shape)


def _codes_decoded(program: core.Jaxpr) -> float:
    """How many codes a program hands to decoders; NaN where that depends on the numbers."""
    num_codes = 0.0
    for equation in program.eqns:
        kind, options = equation.primitive.name, equation.params
        inner = [_codes_decoded(part) for part in core.jaxprs_in_params(options)]
        if kind == "name" and options["name"].startswith(models.CODE):
            # vmap may put its axis anywhere, even last: so the size of one code stands in the name.
            code: Any = equation.outvars[0].aval
            num_codes += code.size / int(options["name"].removeprefix(models.CODE))
        elif kind == "while":
            num_codes += math.nan if any(inner) else 0
        elif kind == "cond":
            num_codes += max(inner)
        else:
            num_codes += options["length"] * sum(inner) if kind == "scan" else sum(inner)
    return num_codes


def _flops(objective, params, key, x, step) -> float | None:
    traced = _jitted_gradient.trace(objective, params, key, x, step)
    once = _counted_once(traced.lower())
    return None if once is None else once + _flops_of_further_rounds(_needed(traced.jaxpr))


def _flops_of_further_rounds(program: core.Jaxpr) -> float:
    """What XLA leaves out of its count: all rounds of each loop but the first."""
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
    """A program without what its first outputs do not need; `jit` leaves out likewise what no output needs."""
    num_all = len(program.jaxpr.outvars)
    return partial_eval.dce_jaxpr(program.jaxpr, [i < (num_outputs or num_all) for i in range(num_all)])[0]
