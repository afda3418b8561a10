"""One training step: state, update, ascent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from vaejax import records
from vaejax.distributions import Params
from vaejax.objectives import Objective


class TrainState(NamedTuple):
    """What a training step carries to the next one. Keys are not part of it: step t uses `fold_in(key, t)`.

    Attributes:
        params: the model's parameters.
        opt_state: the optimizer's state.
        step: steps taken so far. (), int32
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]

    __repr__ = records.short_repr


TrainStep = Callable[[TrainState, Key[Array, ""], Any], tuple[TrainState, Any]]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first training step: the parameters, the optimizer's first state for them, and step 0.

    Args:
        params: where training starts, a tree of arrays, such as `vae.init(key)` gives.
        optimizer: an optax transformation, the same that `make_train_step` gets.

    Returns:
        The state; its `params` are the arrays that were given, not copies.

    Raises:
        Whatever `optimizer.init` does where it cannot serve such parameters.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> state = init_state(vae.init(jax.random.key(0)), optax.sgd(0.1))
    >>> sorted(state.params), int(state.step)
    (['decoder', 'encoder', 'prior'], 0)
    """
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[Key[Array, ""], Array], Array] | None = None,
) -> TrainStep:
    """One step of gradient ascent on an objective: params + update(grad of the objective's value at params).

    Args:
        objective: what is maximised; `(params, key, x, *, step) -> (value, info)`.
        optimizer: an optax transformation. The sign that turns ascent into optax's descent is here and nowhere else.
        prepare: what is done to each batch first, `(key, batch) -> batch`, such as `data.binarize_dynamic`.

    Returns:
        `(state, key, batch) -> (state, info)`, a pure function; `info` is what the objective reports of the batch
        before the step. Without `prepare` the objective gets `key` itself; with it, `prepare` gets the first and the
        objective the second key of `jax.random.split(key)`.

    Raises:
        Whatever the objective does, when the step is called.

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
    """One gradient step uphill, for training loops of one's own: params + update(grad of value at params).

    Args:
        value: `params -> (value, aux)`, to be maximised; for a group of parameters, a closure over the others.
        optimizer: an optax transformation. It minimises, so it is given minus the gradient.
        params: any tree of arrays, with respect to which the gradient is taken.
        opt_state: the optimizer's state.

    Returns:
        The new parameters, the optimizer's new state, and the `aux` of `value` at the old parameters.

    Raises:
        Whatever `value` or the optimizer does.

    >>> params, optimizer = jnp.array(1.0), optax.sgd(0.1)
    >>> params, _, aux = ascend(lambda w: (-(w**2), w), optimizer, params, optimizer.init(params))
    >>> round(float(params), 3), float(aux)
    (0.8, 1.0)
    """
    grads, aux = jax.grad(value, has_aux=True)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of its integer count
        updates, opt_state = optimizer.update(jax.tree.map(jnp.negative, grads), opt_state, params)
    moved: Any = optax.apply_updates(params, updates)
    return moved, opt_state, aux
