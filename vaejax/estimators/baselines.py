"""Trained baselines of the score function: what the reward of an example is expected to be, learned along the way.

A baseline's parameters stand in `params["baseline"]`, beside the model's, and so travel in the train state and in
checkpoints. Its own loss, half the squared distance to the bound, changes no value and no gradient of the model.
Leave-one-out learns nothing: its mean over the other samples is in `reductions`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from vaejax import checks
from vaejax.distributions import Params
from vaejax.models import networks


class Baseline(NamedTuple):
    """A baseline with parameters of its own.

    Attributes:
        init: `(key, x) -> params`, from a batch of data or an array like one. x: (n, *data_shape).
        apply: `(params, x) -> (n,)`, the reward expected of each example, in nats.
    """

    init: Callable[[Key[Array, ""], Array], Params]
    apply: Callable[[Params, Array], Float[Array, " n"]]


def moving_average() -> Baseline:
    """One number for all examples: under the optimizer of `with_optimizer`, a moving average of the bound.

    Returns:
        A baseline with the parameters {"mean": ()}, in nats.

    >>> baseline = moving_average()
    >>> baseline.init(jax.random.key(0), jnp.ones((7, 3)))
    {'mean': Array(0., dtype=float32)}

    Source: Williams 1992, section 3 (reinforcement comparison).
    """

    def init(key: Key[Array, ""], x: Array) -> Params:
        del key
        return {"mean": jnp.zeros((), x.dtype)}

    return Baseline(init, lambda params, x: jnp.broadcast_to(params["mean"], x.shape[:1]))


def nvil(hidden_sizes: Sequence[int] = (100,), activation: str | networks.Activation = "tanh") -> Baseline:
    """A moving average plus a network of x: the two baselines of neural variational inference and learning (NVIL).

        b(x) = mean + network(x)

    The paper also divides the reward by a running estimate of its standard deviation. That rescales the gradient, which
    would no longer be the bound's, and adaptive optimizers do it anyway; so it is left out.

    Args:
        hidden_sizes: units of each hidden layer.
        activation: a name of `networks.ACTIVATIONS` or a function.

    Returns:
        A baseline with the parameters {"mean": (), "network": ...}, in nats.

    Raises:
        ValueError: when its parameters are made, if a size is not a positive integer or the activation is unknown.

    >>> baseline = nvil()
    >>> x = jnp.ones((7, 3))
    >>> baseline.apply(baseline.init(jax.random.key(0), x), x).shape
    (7,)

    Source: Mnih & Gregor 2014, "Neural variational inference and learning in belief networks", section 2.3.
    """

    def network(x: Array) -> networks.Network:
        return networks.mlp(x[:1].size, hidden_sizes, 1, activation)

    def init(key: Key[Array, ""], x: Array) -> Params:
        return {"mean": jnp.zeros((), x.dtype), "network": network(x).init(key)}

    def apply(params: Params, x: Array) -> Float[Array, " n"]:
        return params["mean"] + network(x).apply(params["network"], x)[:, 0]

    return Baseline(init, apply)


BASELINES: dict[str, Callable[[], Baseline]] = {"moving_average": moving_average, "nvil": nvil}


def with_optimizer(
    optimizer: optax.GradientTransformation, decay: float | Array = 0.9, learning_rate: float | Array = 1e-3
) -> optax.GradientTransformation:
    """An optimizer for a model with a trained baseline: `optimizer` for the model, others for `params["baseline"]`.

    The baseline's loss is half a squared distance, so one step of plain gradient descent of size 1 - decay is one step
    of an exponential moving average: that is what its "mean" gets. The rest of a baseline gets Adam. Parameters without
    a baseline all get `optimizer`.

    Args:
        optimizer: the model's.
        decay: how much of the moving average one step keeps.
        learning_rate: Adam's, for the baseline without its "mean".

    Returns:
        An optimizer of the whole `params`.

    Raises:
        ValueError: if decay is not in [0, 1).

    >>> optimizer = with_optimizer(optax.adam(1e-3))
    >>> state = optimizer.init({"decoder": jnp.ones(3), "baseline": {"mean": jnp.array(-90.0)}})
    >>> sorted(state.inner_states)
    ['baseline', 'model', 'moving average']
    """
    checks.check_number("decay", decay, least=0, below=1)

    def label(path: tuple, leaf: Array) -> str:
        del leaf
        part, *below = (getattr(entry, "key", None) for entry in path)
        if part != "baseline":
            return "model"
        return "moving average" if below[:1] == ["mean"] else "baseline"

    return optax.partition(
        {
            "model": optimizer,
            "moving average": optax.sgd(1 - decay),
            "baseline": optax.adam(learning_rate),
        },
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
