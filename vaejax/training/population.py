"""Many training runs in one program: side by side, in groups, or spread over devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, devices
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.training.loop import fit
from vaejax.training.step import TrainState, TrainStep, check_state


def init_population(
    init: Callable[[Key[Array, "..."]], Params], optimizer: optax.GradientTransformation, keys: Key[Array, "runs ..."]
) -> TrainState:
    """The states of several runs before their first step, stacked: each array but `step` has an axis for them in front.

    Args:
        init: `key -> params`, such as a model's.
        optimizer: of all runs. The one that `make_step` of `fit_population` uses may differ from it in numbers, such as
            the learning rate.
        keys: one for each run. (runs,); or several, (runs, ...), if `init` takes several.

    Returns:
        The states in one, with the step 0 that they share.

    Raises:
        ValueError: if `init` is no function or the optimizer none of optax; and whatever they do.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> states = init_population(vae.init, optax.adam(1e-3), jax.random.split(jax.random.key(0), 4))
    >>> states.params["decoder"]["network"]["layer_0"]["kernel"].shape, states.step.shape
    ((4, 2, 3), ())
    """
    checks.check_function("init", init, "key -> params")
    checks.check_optimizer(optimizer)
    checks.check_keys(keys, most_axes=2)
    params = jax.vmap(init)(keys)
    return TrainState(params, jax.vmap(optimizer.init)(params), jnp.zeros((), jnp.int32))


def fit_population(
    make_step: Callable[[Any], TrainStep],
    states: TrainState,
    keys: Key[Array, " runs"],
    data: Any,
    hyperparameters: Any = None,
    *,
    num_steps: int,
    batch_size: int,
    group_size: int | None = None,
    stop: ArrayLike | None = None,
    data_axis: int | None = None,
) -> tuple[TrainState, Any]:
    """`fit` of many runs in one program: other seeds, data, and numbers in the objective, estimator or optimizer.

    Each run is the one that `fit` makes of its state, key, data and step, to rounding.

    Args:
        make_step: `hyperparameters of one run -> step`; it gets traced numbers, and closes the objective and the
            optimizer over them.
        states: of all runs, with an axis for them in front of each array but `step`, which they share; such as
            `init_population` gives.
        keys: one for each run. (runs,)
        data: an array or a tree of arrays. The same examples for all runs, on the first axis; or, with `data_axis`,
            examples for each run, as many for one as for another.
        hyperparameters: a tree of arrays with the runs on the first axis, or None.
        num_steps: as in `fit`.
        batch_size: as in `fit`.
        group_size: runs side by side, under one `vmap`; the groups run one after another, so that it bounds the memory.
            By default all of them. 1 is best where a single run fills the machine, as large matrices do on CPU. On a
            mesh that has the axis `devices.RUNS`, so many on each device.
        stop: as in `fit`.
        data_axis: which axis of each array of data counts the runs; the first of the other axes then counts the
            examples. None: all runs share the data.

    Returns:
        The states, and the history, each scalar stacked to (runs, num_steps).

    Raises:
        ValueError: as `fit`; and if the numbers of runs differ, or group_size is not a positive integer.

    >>> from vaejax import models, objectives, training
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> def make(beta):
    ...     return training.make_train_step(objectives.make_elbo(vae, beta=beta), optax.adam(1e-3))
    >>> states = init_population(vae.init, optax.adam(1e-3), jax.random.split(jax.random.key(0), 4))
    >>> keys, betas = jax.random.split(jax.random.key(1), 4), jnp.array([0.5, 0.5, 1.0, 1.0])
    >>> states, history = fit_population(make, states, keys, jnp.ones((20, 3)), betas, num_steps=10, batch_size=4)
    >>> history.elbo.shape
    (4, 10)
    """
    checks.check_function("make_step", make_step, "hyperparameters -> step")
    check_state(states)
    checks.check_keys(keys)
    number = len(keys)
    hyperparameters = jax.tree.map(jnp.asarray, hyperparameters)
    own_data = None
    if data_axis is not None:
        checks.check_values(data)  # here, since `fit` then sees traced data
        own_data = jax.tree.map(lambda array: jnp.moveaxis(jnp.asarray(array), data_axis, 0), data)
    runs = (states.params, states.opt_state, hyperparameters, own_data)
    lengths = {len(leaf) if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(runs)}
    if lengths != {number}:
        raise ValueError(
            f"expected states{'' if data_axis is None else ', data'} and hyperparameters of {number} runs, as there "
            f"are keys, on the axis for runs of each array; got lengths {sorted(lengths)}: init_population makes such "
            "states"
        )
    if group_size is not None:
        checks.check_count("group_size", group_size)

    def one(run: tuple[Any, Any]) -> tuple[TrainState, Any]:
        (params, opt_state, numbers, examples), key = run
        state = TrainState(params, opt_state, states.step)
        examples = data if data_axis is None else examples
        return fit(make_step(numbers), state, key, examples, num_steps=num_steps, batch_size=batch_size, stop=stop)

    if group_size == 1 and devices.size(devices.RUNS) == 1:
        ended, history = lax.map(one, (runs, keys))
    else:
        ended, history = monte_carlo.over_examples(one, (runs, keys), group_size or number, devices.RUNS)
    return ended._replace(step=ended.step[0]), history
