"""One training step: state, update, ascent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from vaejax import checks, records
from vaejax.distributions import Params
from vaejax.models import Batch
from vaejax.objectives import Objective


class TrainState(NamedTuple):
    """What a training step carries to the next one. Keys are not part of it: step t uses `fold_in(key, t)`.

    Attributes:
        params: the model's parameters.
        opt_state: the optimizer's state.
        step: steps taken so far. (), int32

    >>> state = init_state({"w": jnp.ones(3)}, optax.adam(0.1))
    >>> moved = state._replace(params={"w": jnp.zeros(3)})  # other parameters, with the optimizer's state and the step
    >>> moved.params["w"].tolist(), int(moved.step), moved.opt_state is state.opt_state
    ([0.0, 0.0, 0.0], 0, True)
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]

    __repr__ = records.short_repr


TrainStep = Callable[[TrainState, Key[Array, ""], Any], tuple[TrainState, Any]]
"""A train step, `(state, key, batch) -> (state, info)`; `fit` runs any."""


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first training step: the parameters, the optimizer's first state for them, and step 0.

    Args:
        params: where training starts, a tree of arrays, such as `vae.init(key)` gives.
        optimizer: an optax transformation, the same that `make_train_step` gets.

    Returns:
        The state; its `params` are the arrays that were given, not copies.

    Raises:
        ValueError: if there is no parameter, one is no array of numbers, or the optimizer is none of optax.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> state = init_state(vae.init(jax.random.key(0)), optax.sgd(0.1))
    >>> sorted(state.params), int(state.step)
    (['decoder', 'encoder', 'prior'], 0)
    """
    checks.check_optimizer(optimizer)
    if not jax.tree.leaves(params):
        raise ValueError(f"params must be a tree of arrays, such as vae.init(key) gives; got {checks.describe(params)}")
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = f"params{jax.tree_util.keystr(keys)}"
            raise ValueError(f"{where} must be an array of floats; got {checks.describe(leaf)}")
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[Key[Array, ""], Any], Any] | None = None,
) -> TrainStep:
    """One step of gradient ascent on an objective: params + update(grad of the objective's value at params).

    Args:
        objective: what is maximised; `(params, key, x, *, step) -> (value, info)`.
        optimizer: an optax transformation. The sign that turns ascent into optax's descent is here and nowhere else.
            One that asks for the value, such as `optax.contrib.reduce_on_plateau`, gets minus the objective's; a line
            search, as in `optax.lbfgs`, also gets it as a function, of the same batch and key.
        prepare: what is done to each batch first, `(key, batch) -> batch`, such as `data.binarize_dynamic`; it may turn
            what a stream gives, such as a dict, into what the objective takes. Of a `models.Batch` it gets x alone.

    Returns:
        `(state, key, batch) -> (state, info)`, a pure function; `info` is what the objective reports of the batch
        before the step. Without `prepare` the objective gets `key` itself; with it, `prepare` gets the first and the
        objective the second key of `jax.random.split(key)`.

    Raises:
        ValueError: if the objective or `prepare` is no function, or the optimizer none of optax; when the step is
            called, if the key is none; and whatever the objective does.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> step = make_train_step(objectives.make_elbo(vae), optax.adam(1e-3))
    >>> state = init_state(vae.init(jax.random.key(0)), optax.adam(1e-3))
    >>> state, info = step(state, jax.random.key(1), jnp.ones((7, 3)))
    >>> int(state.step)
    1
    """
    checks.check_objective(objective)
    checks.check_optimizer(optimizer)
    if prepare is not None:
        checks.check_function("prepare", prepare, "(key, batch) -> batch, or None", 2)

    def step(state: TrainState, key: Key[Array, ""], batch: Any) -> tuple[TrainState, Any]:
        check_step(state, key)
        if prepare is not None:
            prepare_key, key = jax.random.split(key)
            batch = _prepared(prepare, prepare_key, batch)

        def value(params: Params) -> tuple[Array, Any]:
            again = jax.random.clone(key)  # a line search takes the same function at several places
            return objective(params, again, batch, step=state.step)

        params, opt_state, info = ascend(value, optimizer, state.params, state.opt_state)
        return TrainState(params, opt_state, state.step + 1), info

    return step


def _prepared(prepare: Callable[[Key[Array, ""], Any], Any], key: Key[Array, ""], batch: Any) -> Any:
    if isinstance(batch, Batch):
        return batch._replace(x=prepare(key, batch.x))
    return prepare(key, batch)


def check_state(state: Any) -> None:
    """Refuse what is no state of a training, such as the parameters alone.

    Raises:
        ValueError: with what was given and what makes a state.

    >>> check_state({"w": 1.0})
    Traceback (most recent call last):
    ...
    ValueError: state must be a TrainState, as training.init_state makes; got a dict of w
    """
    if not hasattr(state, "step"):
        given = checks.describe(state)
        raise ValueError(f"state must be a TrainState, as training.init_state makes; got {given}")


def check_step(state: Any, key: Any) -> None:
    """Refuse what a train step cannot take: no state, or no key.

    Raises:
        ValueError: as `check_state` and `checks.check_key`.

    >>> check_step(TrainState({}, (), jnp.zeros((), jnp.int32)), jax.random.key(0))
    """
    check_state(state)
    checks.check_key(key)


def ascend(
    value: Callable[[Any], tuple[Array, Any]],
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: optax.OptState,
) -> tuple[Any, optax.OptState, Any]:
    """One gradient step uphill, for training loops of one's own: params + update(grad of value at params).

    Args:
        value: `params -> (value, aux)`, to be maximised; for a group of parameters, a closure over the others.
        optimizer: an optax transformation. It minimises, so it is given minus the gradient, and where it asks for them
            minus the value and the function of it.
        params: any tree of arrays, with respect to which the gradient is taken.
        opt_state: the optimizer's state.

    Returns:
        The new parameters, the optimizer's new state, and the `aux` of `value` at the old parameters.

    Raises:
        ValueError: if `value` is no function or the optimizer none of optax; and whatever they do.

    >>> params, optimizer = jnp.array(1.0), optax.sgd(0.1)
    >>> params, _, aux = ascend(lambda w: (-(w**2), w), optimizer, params, optimizer.init(params))
    >>> round(float(params), 3), float(aux)
    (0.8, 1.0)
    """
    checks.check_function("value", value, "params -> (value, aux)")
    checks.check_optimizer(optimizer)
    (height, aux), grads = jax.value_and_grad(value, has_aux=True)(params)
    down = jax.tree.map(jnp.negative, grads)
    asked = {"value": -height, "grad": down, "value_fn": lambda params: -value(params)[0]}
    update = optax.with_extra_args_support(optimizer).update  # drops what an optimizer does not ask for
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of its integer count
        updates, opt_state = update(down, opt_state, params, **asked)
    moved: Any = optax.apply_updates(params, updates)
    return moved, opt_state, aux
