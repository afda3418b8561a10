"""Training: a step is a pure function, a run is one `lax.scan` of it.

Nothing here jits or donates: the caller does, and so may also vmap a run over keys or run it in chunks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, devices
from vaejax.training.step import TrainState, TrainStep, check_state

# Folded into the key of a run to get the key that orders the epochs; no step has this number.
_ORDER = np.uint32(2**32 - 1)
# Of the examples, drawn at one time: 4 MiB, for each run of a population. A longer run draws the next ones in between.
_MOST_ROWS = 2**20


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
    """Take `num_steps` training steps on reshuffled batches, as one scan.

    Step t uses `fold_in(key, t)`, and the order of epoch e a key of its own folded with e. So a run that is cut into
    calls, stopped or resumed goes through the same numbers as one that is not. Each epoch is a fresh permutation of the
    examples, of which the last `n % batch_size` are left out.

    On a mesh that has the axis `devices.BATCH`, with state, key and data replicated on it, each batch is spread over
    the devices, which sum their gradients once a step.

    Args:
        step: `(state, key, batch) -> (state, info)`, such as `make_train_step` makes.
        state: where to start; `state.step` says which step comes next. Under `vmap` over runs, `state.step` must be
            shared (`in_axes` None), and so must `out_axes`: a batched step would redraw the order at every step.
        key: the key of the whole run, the same for every call.
        data: an array, or a tree of arrays, with the examples on the first axis. Whatever NumPy reads as an array, such
            as a data frame or nested lists of numbers, is one.
        num_steps: length of the scan; static under `jit`.
        batch_size: examples in a batch; static under `jit`.
        stop: the step before which to stop, which may be traced: steps from there on change nothing and report NaN.
            So one compilation with one `num_steps` serves runs of any length. With it, the host of a GPU reads at each
            step whether it is the last.

    Returns:
        The state, and the history: what `step` reports, with each scalar stacked to (num_steps,) and everything that is
        not a scalar left out (None).

    Raises:
        ValueError: if there are no data, arrays differ in their number of examples, batch_size is not an integer from
            1 to that number, num_steps is not an integer of at least 0, or the data are concrete and hold NaN or
            infinities, or are float64 while JAX runs in 32 bits; or if step, state or key is none.

    >>> import optax
    >>> from vaejax import models, objectives, training
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> train_step = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-3))
    >>> state = training.init_state(vae.init(jax.random.key(0)), optax.adam(1e-3))
    >>> run = jax.jit(lambda state, key, data: fit(train_step, state, key, data, num_steps=10, batch_size=4))
    >>> state, history = run(state, jax.random.key(1), jnp.ones((20, 3)))
    >>> history.elbo.shape
    (10,)
    """
    _check_run(step, state, key)
    data = _as_arrays(data)
    num_examples = _check_fit(data, num_steps, batch_size)
    if stop is not None:
        checks.check_number("stop", stop)
    data = jax.tree.map(jnp.asarray, data)
    batches = num_examples // batch_size
    order_key = jax.random.fold_in(key, _ORDER)

    def epoch_order(epoch: Array) -> Array:
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), num_examples)
        return order[: batches * batch_size].astype(jnp.int32)

    def run(state: TrainState, num_steps: int, stop: ArrayLike | None) -> tuple[TrainState, Any]:
        start = state.step
        first = start // batches
        end = start + num_steps if stop is None else jnp.clip(stop, start, start + num_steps)
        # Drawn before the steps, since a condition within them stops a GPU until its host has read it. 25 ms for 60,000
        # examples, so no more epochs than these steps touch.
        epochs = (batches + max(num_steps, 1) - 2) // batches + 1  # at most
        blank = jnp.zeros((epochs, batches * batch_size), jnp.int32)
        number = jnp.where(end > start, (end - 1) // batches - first + 1, 0)
        orders = lax.fori_loop(0, number, lambda e, orders: orders.at[e].set(epoch_order(first + e)), blank).ravel()

        def take_step(state: TrainState, _: None) -> tuple[TrainState, Any]:
            rows = lax.dynamic_slice_in_dim(orders, (state.step - first * batches) * batch_size, batch_size)
            batch = devices.spread(devices.BATCH, jax.tree.map(lambda array: array[rows], data))
            state, info = step(state, jax.random.fold_in(key, state.step), batch)
            return state, _scalars(info)

        if stop is None:
            state, history = lax.scan(take_step, state, length=num_steps)
        else:
            state, history = _stopped_scan(take_step, state, None, num_steps, stop - start)
        return state, history()

    most = max(1, _MOST_ROWS // batch_size)
    if num_steps <= most:
        return run(state, num_steps, stop)
    end = state.step + num_steps if stop is None else jnp.minimum(stop, state.step + num_steps)
    state, history = lax.scan(lambda state, _: run(state, most, end), state, length=-(-num_steps // most))
    return state, jax.tree.map(lambda parts: parts.ravel()[:num_steps], history)


def fit_batches(
    step: TrainStep, state: TrainState, key: Key[Array, ""], batches: Any, *, stop: ArrayLike | None = None
) -> tuple[TrainState, Any]:
    """Take one training step on each of the batches that are given, in their order, as one scan.

    `fit` for data that memory does not hold: `streams.read` reads such batches, some at a time.

    Args:
        step: as in `fit`.
        state: as in `fit`.
        key: as in `fit`; step t uses `fold_in(key, t)`.
        batches: an array, or a tree of arrays, (num_steps, batch_size, ...), the first for step `state.step`.
        stop: as in `fit`.

    Returns:
        The state, and the history with each scalar stacked to (num_steps,), as in `fit`.

    Raises:
        ValueError: if there is no batch or no example, or arrays differ in their number of either; and, as `fit`, if
            concrete batches hold NaN or infinities, or would be rounded: the first two numbers of the index that the
            message names are the batch and the example. Under `jit` nobody sees them: `streams.read` looks before.

    >>> import optax
    >>> from vaejax import models, objectives, training
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> train_step = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-3))
    >>> state = training.init_state(vae.init(jax.random.key(0)), optax.adam(1e-3))
    >>> state, history = fit_batches(train_step, state, jax.random.key(1), jnp.ones((10, 4, 3)))
    >>> history.elbo.shape
    (10,)
    """
    _check_run(step, state, key)
    batches = _as_arrays(batches)
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves(batches)}
    if len(shapes) != 1 or len(next(iter(shapes))) < 2 or 0 in next(iter(shapes)):
        raise ValueError(
            f"expected batches on two axes, (num_steps, batch_size, ...), alike in all arrays and not empty; got "
            f"{sorted(shapes)}"
        )
    checks.check_values(batches)
    batches = jax.tree.map(jnp.asarray, batches)

    def take_step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        state, info = step(state, jax.random.fold_in(key, state.step), devices.spread(devices.BATCH, batch))
        return state, _scalars(info)

    if stop is None:
        state, history = lax.scan(take_step, state, batches)
    else:
        state, history = _stopped_scan(take_step, state, batches, next(iter(shapes))[0], stop - state.step)
    return state, history()


def _check_run(step: Any, state: Any, key: Any) -> None:
    checks.check_function("step", step, "(state, key, batch) -> (state, info), as make_train_step makes")
    check_state(state)
    checks.check_key(key)


def _as_arrays(data: Any) -> Any:
    """The tree with arrays at its leaves, also where lists of numbers or a data frame stand."""

    def is_array(node: Any) -> bool:
        return isinstance(node, list) and all(isinstance(leaf, int | float) for leaf in jax.tree.leaves(node))

    def as_array(leaf: Any) -> Any:
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):  # of NumPy or JAX, traced or not; a key
            return leaf
        checks.check_array(leaf)
        return jnp.asarray(leaf) if isinstance(leaf, list) else np.asarray(leaf)

    return jax.tree.map(as_array, data, is_leaf=is_array)


class _Unpacked(NamedTuple):
    """From numbers side by side, of one array for each dtype, to the tree of them, whatever axes are in front."""

    structure: Any
    dtypes: tuple[str, ...]

    def __call__(self, rows: dict[str, Array]) -> Any:
        places = {dtype: iter(range(self.dtypes.count(dtype))) for dtype in rows}
        leaves = [rows[dtype][..., next(places[dtype])] for dtype in self.dtypes]
        return jax.tree.unflatten(self.structure, leaves)


def _scalars(info: Any) -> Partial:
    """The scalars side by side, so that a step writes them to the history at once; called, the tree of them."""
    kept = jax.tree.map(lambda leaf: jnp.asarray(leaf) if jnp.ndim(leaf) == 0 else None, info)
    leaves, structure = jax.tree.flatten(kept)
    dtypes = tuple(str(leaf.dtype) for leaf in leaves)
    rows = {name: jnp.stack([leaf for leaf in leaves if str(leaf.dtype) == name]) for name in sorted(set(dtypes))}
    return Partial(_Unpacked(structure, dtypes), rows)


def _stopped_scan(body: Callable, carry: Any, batches: Any, num_steps: int, count: ArrayLike) -> tuple[Any, Any]:
    """`lax.scan` that ends after `count` of its steps, which may be traced; what the others would report is NaN.

    It is a loop of that length, since a condition inside each step would copy all parameters.
    """

    def batch(i: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[i], batches)

    body = jax.jit(body, inline=True)  # so that it is traced once, for its report and for the loop
    _, report = jax.eval_shape(body, carry, batch(0))
    blank = jax.tree.map(lambda leaf: jnp.full((num_steps, *leaf.shape), jnp.nan, leaf.dtype), report)

    def take(i: Array, carry_and_history: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, info = body(carry_and_history[0], batch(i))
        return carry, jax.tree.map(lambda rows, row: rows.at[i].set(row), carry_and_history[1], info)

    return lax.fori_loop(0, jnp.clip(count, 0, num_steps), take, (carry, blank))


def _check_fit(data: Any, num_steps: int, batch_size: int) -> int:
    """The number of examples, where a run can be made of them."""
    checks.check_count("num_steps", num_steps, least=0)
    checks.check_count("batch_size", batch_size)
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "expected arrays with the same number of examples, at least one, on the first axis; got lengths "
            f"{sorted(lengths)}"
        )
    (num_examples,) = lengths
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of examples; got {batch_size} for {num_examples} examples"
        )
    checks.check_values(data)
    return num_examples
