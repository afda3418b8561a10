"""Moving averages of the parameters along a run, kept in the optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from vaejax import checks, records
from vaejax.distributions import Params
from vaejax.training.step import TrainState, check_state


class AveragesState(NamedTuple):
    """What an optimizer `with_averages` carries.

    Attributes:
        inner: the state of the optimizer within.
        count: steps averaged so far. (), int32
        mean: the averages, as the parameters, in single precision at least.

    >>> with_averages(optax.sgd(0.1), 0.9).init({"w": jnp.ones(2)}).count.shape
    ()
    """

    inner: optax.OptState
    count: Int[Array, ""]
    mean: Params

    __repr__ = records.short_repr


def with_averages(
    optimizer: optax.GradientTransformation, decay: float = 0.999
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, which also averages the parameters p_1, p_2, ... after its steps; training is not changed.

        mean_t = sum_s decay^(t - s) p_s / sum_s decay^(t - s),  s = 1, ..., t

    The weights sum to 1 from the first step on, so that the initial parameters leave no trace.

    Args:
        optimizer: an optax transformation; all of it, so that its updates are what the parameters move by.
        decay: weight of a step relative to the next one; the average is over about 1 / (1 - decay) steps.

    Returns:
        The optimizer, for `make_train_step` and `init_state`; `averages` reads the means from the state. They are part
        of the optimizer's state, and so of checkpoints, chunks and populations.

    Raises:
        ValueError: if the optimizer is none of optax, or decay is not a number from 0 to below 1.

    >>> from vaejax import training
    >>> optimizer = with_averages(optax.sgd(1.0), decay=0.5)
    >>> step = training.make_train_step(lambda params, key, x, *, step: (params["w"], {}), optimizer)
    >>> state = training.init_state({"w": jnp.array(0.0)}, optimizer)
    >>> for _ in range(2):
    ...     state, _ = step(state, jax.random.key(0), None)
    >>> float(state.params["w"]), round(float(training.averages(state)["w"]), 4)  # (2 + 1 / 2) / (1 + 1 / 2)
    (2.0, 1.6667)

    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; with forgetting.
    """
    checks.check_optimizer(optimizer)
    checks.check_number("decay", decay, least=0, below=1)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> AveragesState:
        return AveragesState(
            inner.init(params), jnp.zeros((), jnp.int32), jax.tree.map(lambda p: jnp.copy(_wide(p)), params)
        )

    def update(updates: Any, state: AveragesState, params: Params | None = None, **asked: Any) -> Any:
        updates, inner_state = inner.update(updates, state.inner, params, **asked)
        moved = optax.apply_updates(params, updates)
        count = state.count + 1
        # 1 / sum_s decay^(t - s) = (1 - decay) / (1 - decay^t), without the cancellation; 1 at the first step.
        log_decay = jnp.log1p(jnp.asarray(decay - 1, jnp.float32))
        rate = jnp.expm1(log_decay) / jnp.expm1(log_decay * count.astype(jnp.float32))
        mean = jax.tree.map(lambda mean, p: mean + rate.astype(mean.dtype) * (_wide(p) - mean), state.mean, moved)
        return updates, AveragesState(inner_state, count, mean)

    return optax.GradientTransformationExtraArgs(init, update)


def averages(state: TrainState) -> Params:
    """The averaged parameters of a run whose optimizer was made by `with_averages`; before its first step, the first.

    Args:
        state: of the run; of a population, the averages of each of its runs.

    Returns:
        Parameters in the place of `state.params`, of their dtypes.

    Raises:
        ValueError: if the optimizer keeps no averages, or more than one.

    >>> from vaejax import training
    >>> state = training.init_state({"w": jnp.ones(2)}, with_averages(optax.adam(1e-3)))
    >>> averages(state)
    {'w': Array([1., 1.], dtype=float32)}
    """
    check_state(state)
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, AveragesState))
    found = [node for node in nodes if isinstance(node, AveragesState)]
    if len(found) != 1:
        raise ValueError(
            f"expected an optimizer with averages; got a state with {len(found)} of them: make the optimizer by "
            "training.with_averages(optimizer)"
        )
    return jax.tree.map(lambda mean, p: mean.astype(p.dtype), found[0].mean, state.params)


def _wide(p: Any) -> Array:
    p = jnp.asarray(p)
    return p.astype(checks.wide_dtype(p.dtype)) if jnp.issubdtype(p.dtype, jnp.floating) else p
