"""Training: a step is a pure function, a run is one `lax.scan` of it.

Nothing here jits or donates: the caller does, and so may also vmap a run over keys or run it in chunks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Int, Key

from vaejax import devices, models, monte_carlo
from vaejax.data import check_finite
from vaejax.distributions import Params
from vaejax.objectives import Objective

# Folded into the key of a run to get the key that orders the epochs; no step has this number.
_ORDER = np.uint32(2**32 - 1)


class TrainState(NamedTuple):
    """What a training step carries along. Keys are not part of it: step t uses `fold_in(key, t)`.

    Attributes:
        params: the model's parameters.
        opt_state: the optimizer's state.
        step: steps taken so far. (), int32
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


TrainStep = Callable[[TrainState, Key[Array, ""], Any], tuple[TrainState, Any]]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[Key[Array, ""], Array], Array] | None = None,
) -> TrainStep:
    """One step of gradient ascent on an objective.

    Args:
        objective: what is maximised; `(params, key, x, *, step) -> (value, info)`.
        optimizer: an optax transformation. The sign that turns ascent into optax's descent is here and nowhere else.
        prepare: what is done to each batch first, `(key, batch) -> batch`, such as `data.binarize_dynamic`.

    Returns:
        `(state, key, batch) -> (state, info)`, pure. Without `prepare` the objective gets `key` itself; with it,
        `prepare` and the objective get one half each of `jax.random.split(key)`.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> step = make_train_step(objectives.make_elbo(vae), optax.adam(1e-3))
    >>> state = init_state(vae.init(jax.random.key(0)), optax.adam(1e-3))
    >>> state, info = step(state, jax.random.key(1), jnp.ones((7, 3)))
    >>> int(state.step)
    1
    """

    def step(state: TrainState, key: Key[Array, ""], batch: Any) -> tuple[TrainState, Any]:
        if prepare is not None:
            prepare_key, key = jax.random.split(key)
            batch = prepare(prepare_key, batch)
        params, opt_state, info = ascend(
            lambda params: objective(params, key, batch, step=state.step), optimizer, state.params, state.opt_state
        )
        return TrainState(params, opt_state, state.step + 1), info

    return step


def ascend(
    value: Callable[[Any], tuple[Array, Any]],
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: optax.OptState,
) -> tuple[Any, optax.OptState, Any]:
    """One gradient step uphill: the parameters, the optimizer's state, and what `value` reports beside its value.

    Args:
        value: `params -> (value, aux)`, to be maximised; of a group of parameters, a closure over the others.
        optimizer: which minimises, as optax's do, and so is given the gradient's negative.
        params: any tree, of which the gradient is taken.
        opt_state: the optimizer's.
    """
    grads, aux = jax.grad(value, has_aux=True)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of its integer count
        updates, opt_state = optimizer.update(jax.tree.map(jnp.negative, grads), opt_state, params)
    moved: Any = optax.apply_updates(params, updates)
    return moved, opt_state, aux


def fit(
    step: TrainStep,
    state: TrainState,
    key: Key[Array, ""],
    data: Any,
    *,
    num_steps: int,
    batch_size: int,
    stop: ArrayLike | None = None,
) -> tuple[TrainState, Any]:
    """Take `num_steps` steps on reshuffled batches, as one scan.

    Step t uses `fold_in(key, t)`, and the order of epoch e a key of its own folded with e. So a run that is cut into
    calls, stopped or resumed goes through the same numbers as one that is not. Each epoch is a fresh permutation of the
    examples, of which the last `n % batch_size` are left out.

    On a mesh that has the axis `devices.BATCH`, with state, key and data replicated on it, each batch is spread over
    the devices, which sum their gradients once a step.

    Args:
        step: `(state, key, batch) -> (state, info)`.
        state: where to start; `state.step` says which step comes next. Under `vmap` over runs, `state.step` must be
            shared (`in_axes` None), and so must `out_axes`: a batched step would redraw the order at every step.
        key: the key of the whole run, the same for every call.
        data: an array, or a tree of arrays, with the examples on the first axis.
        num_steps: length of the scan; static under `jit`.
        batch_size: examples in a batch; static under `jit`.
        stop: the step before which to stop, which may be traced: steps from there on change nothing and report NaN.
            So one compilation with one `num_steps` serves runs of any length.

    Returns:
        The state, and the history: what `step` reports, with each scalar stacked to (num_steps,) and everything that is
        not a scalar left out (None).

    Raises:
        ValueError: if there are no data, the batch is larger than the data, a size is not a positive integer, or the
            data are concrete and hold NaN or infinities, or are float64 while JAX runs in 32 bits.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> train_step = make_train_step(objectives.make_elbo(vae), optax.adam(1e-3))
    >>> state = init_state(vae.init(jax.random.key(0)), optax.adam(1e-3))
    >>> run = jax.jit(lambda state, key, data: fit(train_step, state, key, data, num_steps=10, batch_size=4))
    >>> state, history = run(state, jax.random.key(1), jnp.ones((20, 3)))
    >>> history.elbo.shape
    (10,)
    """
    num_examples = _check_fit(data, num_steps, batch_size)
    data = jax.tree.map(jnp.asarray, data)
    batches = num_examples // batch_size
    order_key = jax.random.fold_in(key, _ORDER)
    start = state.step

    def epoch_order(t: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(order_key, t // batches), num_examples)

    def take_step(carry: tuple[TrainState, Array], _: None) -> tuple[tuple[TrainState, Array], Any]:
        state, order = carry
        t = state.step
        # 25 ms for 60,000 examples, so drawn once an epoch and carried.
        order = lax.cond((t % batches == 0) & (t > start), epoch_order, lambda t: order, t)
        rows = lax.dynamic_slice_in_dim(order, (t % batches) * batch_size, batch_size)
        batch = devices.spread(devices.BATCH, jax.tree.map(lambda array: array[rows], data))
        state, info = step(state, jax.random.fold_in(key, t), batch)
        return (state, order), _scalars(info)

    if stop is None:
        (state, _), history = lax.scan(take_step, (state, epoch_order(start)), length=num_steps)
    else:
        (state, _), history = _stopped_scan(take_step, (state, epoch_order(start)), None, num_steps, stop - start)
    return state, history


def fit_batches(
    step: TrainStep, state: TrainState, key: Key[Array, ""], batches: Any, *, stop: ArrayLike | None = None
) -> tuple[TrainState, Any]:
    """`fit` on batches that are handed over one by one, as `streams.read` does: for data that memory does not hold.

    Args:
        step: as in `fit`.
        state: as in `fit`.
        key: as in `fit`; step t uses `fold_in(key, t)`.
        batches: an array, or a tree of arrays, (num_steps, batch_size, ...), the first for step `state.step`.
        stop: as in `fit`.

    Returns:
        The state and the history, as `fit` does.

    Raises:
        ValueError: if there is no batch or no example.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> train_step = make_train_step(objectives.make_elbo(vae), optax.adam(1e-3))
    >>> state = init_state(vae.init(jax.random.key(0)), optax.adam(1e-3))
    >>> state, history = fit_batches(train_step, state, jax.random.key(1), jnp.ones((10, 4, 3)))
    >>> history.elbo.shape
    (10,)
    """
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves(batches)}
    if len(shapes) != 1 or len(next(iter(shapes))) < 2 or 0 in next(iter(shapes)):
        raise ValueError(
            f"expected batches on two axes, (num_steps, batch_size, ...), alike in all arrays and not empty; came "
            f"{sorted(shapes)}"
        )

    def take_step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        state, info = step(state, jax.random.fold_in(key, state.step), devices.spread(devices.BATCH, batch))
        return state, _scalars(info)

    if stop is None:
        return lax.scan(take_step, state, batches)
    return _stopped_scan(take_step, state, batches, next(iter(shapes))[0], stop - state.step)


def _scalars(info: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) == 0 else None, info)


def _stopped_scan(body: Callable, carry: Any, batches: Any, num_steps: int, count: ArrayLike) -> tuple[Any, Any]:
    """`lax.scan` that ends after `count` of its steps, which may be traced; what the others would report is NaN.

    A loop of that length, for a condition inside each step would copy all parameters.
    """

    def batch(i: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[i], batches)

    report = jax.eval_shape(lambda carry: body(carry, batch(0))[1], carry)
    blank = jax.tree.map(lambda leaf: jnp.full((num_steps, *leaf.shape), jnp.nan, leaf.dtype), report)

    def take(i: Array, carry_and_history: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, info = body(carry_and_history[0], batch(i))
        return carry, jax.tree.map(lambda rows, row: rows.at[i].set(row), carry_and_history[1], info)

    return lax.fori_loop(0, jnp.clip(count, 0, num_steps), take, (carry, blank))


def init_population(
    init: Callable[[Key[Array, ""]], Params], optimizer: optax.GradientTransformation, keys: Key[Array, " runs"]
) -> TrainState:
    """The states of several runs before their first step, stacked: each array has an axis for the runs in front.

    Args:
        init: `key -> params`, such as a model's.
        optimizer: of all of them; what `make_step` of `fit_population` makes may differ in numbers, such as the rate.
        keys: one for each run.
    """
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
) -> tuple[TrainState, Any]:
    """`fit` of many runs in one program: other seeds, and other numbers in the objective, estimator or optimizer.

    Each run is the one that `fit` makes of its state, key and step, to rounding.

    Args:
        make_step: `hyperparameters of one run -> step`; it gets traced numbers, and closes the objective and the
            optimizer over them.
        states: of all runs, with an axis for them in front of each array but `step`, which they share; such as
            `init_population` gives.
        keys: one for each run.
        data: the same for all, with the examples on the first axis.
        hyperparameters: a tree of arrays with the runs on the first axis, or None.
        num_steps: as in `fit`.
        batch_size: as in `fit`.
        group_size: runs side by side, under one `vmap`; the groups go one after another, so that it bounds the memory.
            By default all of them. 1 is best where a single run fills the machine, as large matrices do on CPU. On a
            mesh that has the axis `devices.RUNS`, so many on each device.
        stop: as in `fit`.

    Returns:
        The states, and the history, each scalar stacked to (runs, num_steps).

    Raises:
        ValueError: as `fit`; and if the numbers of runs differ, or group_size is not a positive integer.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> def make(beta):
    ...     return make_train_step(objectives.make_elbo(vae, beta=beta), optax.adam(1e-3))
    >>> states = init_population(vae.init, optax.adam(1e-3), jax.random.split(jax.random.key(0), 4))
    >>> keys, betas = jax.random.split(jax.random.key(1), 4), jnp.array([0.5, 0.5, 1.0, 1.0])
    >>> states, history = fit_population(make, states, keys, jnp.ones((20, 3)), betas, num_steps=10, batch_size=4)
    >>> history.elbo.shape
    (4, 10)
    """
    number = len(keys)
    hyperparameters = jax.tree.map(jnp.asarray, hyperparameters)
    lengths = {
        len(leaf) if jnp.ndim(leaf) else 0
        for leaf in jax.tree.leaves((states.params, states.opt_state, hyperparameters))
    }
    if lengths != {number}:
        raise ValueError(
            f"expected states and hyperparameters of {number} runs, as there are keys, on the first axis of each "
            f"array; came lengths {sorted(lengths)}: init_population makes such states"
        )
    if group_size is not None:
        monte_carlo.check_count("group_size", group_size)

    def one(run: tuple[Any, Any, Any, Any]) -> tuple[TrainState, Any]:
        params, opt_state, key, numbers = run
        state = TrainState(params, opt_state, states.step)
        return fit(make_step(numbers), state, key, data, num_steps=num_steps, batch_size=batch_size, stop=stop)

    runs = (states.params, states.opt_state, keys, hyperparameters)
    if group_size == 1 and devices.size(devices.RUNS) == 1:
        ended, history = lax.map(one, runs)
    else:
        ended, history = monte_carlo.over_examples(one, runs, group_size or number, devices.RUNS)
    return ended._replace(step=ended.step[0]), history


def _check_fit(data: Any, num_steps: int, batch_size: int) -> int:
    for name, number, least in (("num_steps", num_steps, 0), ("batch_size", batch_size, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {number!r}")
    leaves = jax.tree.leaves(data)
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(lengths) != 1:
        raise ValueError(f"expected arrays with the same number of examples; came lengths {sorted(lengths)}")
    (num_examples,) = lengths
    if num_examples == 0:
        raise ValueError("expected at least one example to train on; came none")
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of examples; got {batch_size} for {num_examples} examples"
        )
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            models.check_floating(leaf)
            check_finite(leaf, "data")
    return num_examples
