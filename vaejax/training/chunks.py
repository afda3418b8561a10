"""The one host loop: a run in calls of one compiled program, with the host free to report, save or stop between them.

`fit` is a scan on the device. What a scan cannot do, such as write a checkpoint, stands in the body of this loop.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax import checks, records
from vaejax.training.step import TrainState, check_state

_log = logging.getLogger(__name__)


class DivergedError(ValueError):
    """A training of which no run reports finite numbers any more.

    Attributes:
        step: the first one that reported a number that is not finite.

    >>> issubclass(DivergedError, ValueError)
    True
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Chunk(NamedTuple):
    """Some steps of a run, from `start` up to but not including `stop`.

    Attributes:
        state: after these steps.
        history: what the steps reported, as NumPy arrays with the steps on the last axis: (..., stop - start).
        start: steps taken before these.
        stop: steps taken after these, as `state.step` says.
        seconds: wall time of these steps, waited for until the device was done.

    >>> state, history = TrainState({}, (), np.int32(8)), {"elbo": np.array([-3.0, -2.5, -2.0, -1.5])}
    >>> chunk = Chunk(state, history, start=4, stop=8, seconds=0.5)
    >>> dict(zip(range(chunk.start, chunk.stop), chunk.history["elbo"].tolist(), strict=True))
    {4: -3.0, 5: -2.5, 6: -2.0, 7: -1.5}
    >>> (chunk.stop - chunk.start) / chunk.seconds  # steps in a second
    8.0
    """

    state: TrainState
    history: Any
    start: int
    stop: int
    seconds: float

    __repr__ = records.short_repr


def run_chunks(
    fit: Callable[[TrainState, int], tuple[TrainState, Any]],
    state: TrainState,
    num_steps: int,
    *,
    chunk_steps: int | None = None,
) -> Iterator[Chunk]:
    """Take the steps of a run in calls of `fit`, and yield the state and the history after each.

    The next steps are taken when the next chunk is asked for. So a loop over the chunks may do anything between them,
    and `break` stops the run. A run that starts from the state of an earlier one continues it, bit for bit. A chunk in
    which the training diverged is told in the log; `check_chunk` refuses it, so that what was saved before stays good.

    Args:
        fit: `(state, stop) -> (state, history)`: some of the steps before step `stop`, as `training.fit`,
            `fit_batches` and `fit_population` take them of one static length. Compile it beforehand, as in the
            example; else the seconds of the first chunk include the compilation. If it donates the state, that of a
            chunk is gone once the next chunk is asked for.
        state: where to start; `state.step` says which step comes next.
        num_steps: the step before which the run stops. Of the last call, only the steps before it count.
        chunk_steps: least number of steps in a chunk, of several calls if need be; by default those of one call.

    Yields:
        The chunks, in order; none if the state has taken all steps.

    Raises:
        ValueError: if `fit` takes no step, or a number is not a positive integer (num_steps may be 0).

    >>> import optax
    >>> from vaejax import models, objectives, training
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> train_step = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-3))
    >>> state = training.init_state(vae.init(jax.random.key(0)), optax.adam(1e-3))
    >>> def take_four(state, key, data, stop):
    ...     return training.fit(train_step, state, key, data, num_steps=4, batch_size=5, stop=stop)
    >>> key, data, num_steps = jax.random.key(1), jax.numpy.ones((20, 3)), 10
    >>> program = jax.jit(take_four).lower(state, key, data, num_steps).compile()
    >>> metrics = []
    >>> for chunk in training.run_chunks(lambda state, stop: program(state, key, data, stop), state, num_steps):
    ...     training.check_chunk(chunk)  # before anything of it is kept; then report, evaluate, save
    ...     metrics.append({"step": chunk.stop, "elbo": chunk.history.elbo.mean()})
    ...     print(chunk.start, chunk.stop, chunk.history.elbo.shape)
    0 4 (4,)
    4 8 (4,)
    8 10 (2,)
    """
    checks.check_function("fit", fit, "(state, stop) -> (state, history)")
    check_state(state)
    checks.check_count("num_steps", num_steps, least=0)
    if chunk_steps is not None:
        checks.check_count("chunk_steps", chunk_steps)
    return _chunks(fit, state, num_steps, chunk_steps or 1)


def _chunks(fit: Callable[..., Any], state: TrainState, num_steps: int, chunk_steps: int) -> Iterator[Chunk]:
    step, lost = int(state.step), None
    while step < num_steps:
        start, histories = step, []
        begin = time.perf_counter()
        while step < min(start + chunk_steps, num_steps):
            before = step
            state, history = jax.block_until_ready(fit(state, num_steps))
            step = int(state.step)
            if step == before:
                raise ValueError(f"expected fit to take at least one step; got none at step {step}")
            histories.append(jax.tree.map(lambda leaf, count=step - before: np.asarray(leaf)[..., :count], history))
        seconds = time.perf_counter() - begin
        history = jax.tree.map(lambda *parts: np.concatenate(parts, -1), *histories)
        chunk = Chunk(state, history, start, step, seconds)
        if lost is None and (lost := _diverged(chunk)):
            _log.warning("%s", lost)
        yield chunk


def check_chunk(chunk: Chunk) -> None:
    """Refuse a chunk in which a training diverged: one whose numbers were not finite at some step, in every run of it.

    Args:
        chunk: of `run_chunks`. Of a population that lost some of its runs the others count.

    Raises:
        DivergedError: with the first such step, and what it reported.
        ValueError: if it is no chunk.

    >>> state = TrainState({}, (), np.int32(3))
    >>> check_chunk(Chunk(state, {"elbo": np.array([-1.0, np.nan, np.nan])}, 0, 3, 0.1))
    Traceback (most recent call last):
    ...
    vaejax.training.chunks.DivergedError: expected finite numbers from every step; got elbo nan at step 1: ...
    """
    if not isinstance(chunk, Chunk):
        raise ValueError(f"chunk must be one that training.run_chunks yields; got {checks.describe(chunk)}")
    if lost := _diverged(chunk):
        raise lost


def _diverged(chunk: Chunk) -> DivergedError | None:
    reported = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(chunk.history)
        if jax.numpy.issubdtype(leaf.dtype, np.number)
    }
    finite = np.logical_and.reduce(np.broadcast_arrays(*map(np.isfinite, reported.values())))  # (..., steps)
    if not reported or finite.all(axis=-1).any():
        return None
    place = int(finite.argmin(axis=-1).max())  # where the last of several runs was lost
    step = chunk.start + place
    at = {name: leaf[..., place] for name, leaf in reported.items()}
    name = next(name for name, values in at.items() if not np.isfinite(values).all())
    value = at[name][~np.isfinite(at[name])].ravel()[0]
    return DivergedError(
        f"expected finite numbers from every step; got {name} {value} at step {step:,}: take a smaller learning rate, "
        f"or look at the data. The state before step {chunk.start:,} is the last good one",
        step,
    )
