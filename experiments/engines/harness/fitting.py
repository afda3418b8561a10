"""Training in chunks of one compiled program, with a progress bar: for every part of a command."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engines.harness.progress import Progress
from vaejax import training

CHUNKS = 100  # of a training run: reports of the progress bar


class Trained(NamedTuple):
    """A finished training run.

    Attributes:
        params: parameters at the end.
        history: what the objective reported, each scalar stacked over the steps, (num_steps,) or (runs, num_steps).
        snapshots: `{step: params}` of the steps that were asked for.
        seconds: of training, without compilation.
    """

    params: Any
    history: Any
    snapshots: dict[int, Any]
    seconds: float


def train(
    what: str,
    objective: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    params: Any,
    key: jax.Array,
    x: Any,
    *,
    num_steps: int,
    batch_size: int,
    prepare: Callable[..., Any] | None = None,
    snapshots_at: Sequence[float] = (),
) -> Trained:
    """Maximise an objective by `training.fit`, in 100 calls of one compiled program.

    Args:
        what: name of the run on the progress bar.
        objective: of `vaejax`.
        optimizer: of `optax`.
        params: where to start.
        key: of order and noise.
        x: training data.
        num_steps: number of steps.
        batch_size: examples in a batch; of a smaller set, all of it. To train on all of them at every step give them as
            one, `x[None]`: there is then no order to draw.
        prepare: as in `training.make_train_step`.
        snapshots_at: fractions of the run after which parameters are kept, to a hundredth; 1 is the end.

    Raises:
        ValueError: if the value of the objective is not finite.
    """
    step = training.make_train_step(objective, optimizer, prepare)
    state = training.init_state(params, optimizer)
    return train_steps(what, step, state, key, x, num_steps=num_steps, batch_size=batch_size, snapshots_at=snapshots_at)


def train_steps(
    what: str,
    step: training.TrainStep,
    state: training.TrainState,
    key: jax.Array,
    x: Any,
    *,
    num_steps: int,
    batch_size: int,
    snapshots_at: Sequence[float] = (),
) -> Trained:
    """`train` with a train step of another kind, such as those of `vaejax.inference`, and its first state."""
    x = jax.tree.map(jnp.asarray, x)
    batch_size = min(batch_size, len(jax.tree.leaves(x)[0]))
    chunk = math.ceil(num_steps / CHUNKS)

    def fit(state, key, x, stop):
        return training.fit(step, state, key, x, num_steps=chunk, batch_size=batch_size, stop=stop)

    wanted = {num_steps if part == 1 else chunk * round(part * num_steps / chunk) for part in snapshots_at}
    return _trained(what, fit, state, key, x, num_steps, wanted)


def train_many(
    what: str,
    objective: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    params: Any,
    keys: jax.Array,
    x: Any,
    *,
    num_steps: int,
    batch_size: int,
) -> Trained:
    """`train` for a population: parameters, keys and data have one more axis, the first, and so does what is returned.

    To train on all examples at every step give each run a set of one, `x[:, None]`, with batch_size=1: there is then no
    order to draw, which for 5,000 examples takes longer than a step.
    """
    step = training.make_train_step(objective, optimizer)
    state = training.TrainState(params, jax.vmap(optimizer.init)(params), jnp.zeros((), jnp.int32))
    sizes = {"num_steps": math.ceil(num_steps / CHUNKS), "batch_size": batch_size}

    def fit(state, keys, x, stop):
        return training.fit_population(lambda _: step, state, keys, x, data_axis=0, stop=stop, **sizes)

    return _trained(what, fit, state, keys, x, num_steps)


def _trained(
    what: str,
    fit: Callable[..., tuple[training.TrainState, Any]],
    state: training.TrainState,
    key: jax.Array,
    x: Any,
    num_steps: int,
    wanted: Collection[int] = (),
) -> Trained:
    program = jax.jit(fit).lower(state, key, x, num_steps).compile()
    snapshots, histories, seconds = {step: state.params for step in wanted if step == 0}, [], 0.0
    with Progress(what, num_steps) as bar:
        for chunk in training.run_chunks(lambda state, stop: program(state, key, x, stop), state, num_steps):
            value = jax.tree.leaves(chunk.history)[0][..., -1]
            if not np.isfinite(value).all():
                raise ValueError(f"{what}: expected a finite objective; got {value} at step {chunk.stop:,}")
            if chunk.stop in wanted:
                snapshots[chunk.stop] = chunk.state.params
            state, seconds = chunk.state, seconds + chunk.seconds
            histories.append(chunk.history)
            bar.update(chunk.stop - chunk.start, f"{value.mean():.3f}")
    history = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *histories)
    return Trained(state.params, history, snapshots, seconds)


def adamw(learning_rate: float, num_steps: int, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """AdamW with a rate that rises over a tenth of the run, 500 steps at most, and falls to 0 as a cosine does."""
    warmup = max(1, min(500, num_steps // 10))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, num_steps)
    return optax.adamw(schedule, weight_decay=weight_decay)
