"""One training step: state, update, ascent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from vaejax.distributions import Params
from vaejax.objectives import Objective


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
