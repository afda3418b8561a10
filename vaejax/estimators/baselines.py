"""Trained baselines of the score function: what the reward of an example is expected to be, learned along the way.

A baseline's parameters stand in `params["baseline"]`, beside the model's, and so travel in the train state and in
checkpoints. Its own loss, half the squared distance to the bound, changes no value and no gradient of the model.
Leave-one-out learns nothing: its mean over the other samples is in `reductions`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Key

from vaejax import checks
from vaejax.distributions import Params
from vaejax.models import networks


class Baseline(NamedTuple):
    """A baseline with parameters of its own.

    Attributes:
        init: `(key, x) -> params`, from a batch of data or an array like one. x: (n, *data_shape).
        apply: `(params, x) -> (n,)`, the reward expected of each example, in nats.

    >>> from vaejax import estimators
    >>> brighter = Baseline(  # of your own: a line in the mean of the pixels
    ...     init=lambda key, x: {"slope": jnp.array(0.0), "offset": jnp.array(-90.0)},
    ...     apply=lambda params, x: params["offset"] + params["slope"] * x.mean(axis=range(1, x.ndim)),
    ... )
    >>> estimator, x = estimators.score_function(brighter), jnp.ones((5, 8, 8))
    >>> params = estimators.with_baseline({}, estimator, jax.random.key(0), x)
    >>> estimator.baseline.apply(params["baseline"], x).tolist()
    [-90.0, -90.0, -90.0, -90.0, -90.0]
    """

    init: Callable[[Key[Array, ""], Array], Params]
    apply: Callable[[Params, Array], Float[Array, " n"]]


class Trained(NamedTuple):
    """What an estimator trains along beside the model and is no baseline: a temperature, a scale, a control network.

    It stands in `params["baseline"]` too, and the estimator gets it as it is. An unbiased estimator trains it by the
    gradient of its own variance, `less_variance`.

    Attributes:
        init: `(key, x) -> params`, as of a `Baseline`.

    >>> from vaejax import estimators
    >>> kinds = (estimators.score_function("moving_average"), estimators.rebar())
    >>> [isinstance(estimator.baseline, Trained) for estimator in kinds]  # a baseline; a temperature and a scale
    [False, True]
    """

    init: Callable[[Key[Array, ""], Array], Params]


def less_variance(
    gradient: Callable[[Any], Array], trained: Any, bound: Float[Array, " *batch"]
) -> tuple[Array, Float[Array, ""]]:
    """A gradient without bias, and a surrogate whose own gradient makes what is trained along lower its variance.

    The mean of an unbiased gradient g does not depend on what is trained along, and so the gradient of its variance is
    that of E[g^2], of which each draw of g is an estimate without bias.

    Args:
        gradient: `trained -> g`, (*batch, *event), the gradient of each example's bound in the parameters of its q.
        trained: a tree of temperatures, scales, control networks; the gradient gets them in the bound's dtype.
        bound: of each example; over their number an objective takes the mean.

    Returns:
        g, without gradient; and the surrogate of each example's bound, of which the gradient in `trained`, and in
        nothing else, is minus that of the sum of g^2, so that whoever maximises the bound lowers the variance.

    >>> tuned = lambda trained: less_variance(lambda trained: 3.0 - trained, trained, jnp.zeros(1))
    >>> float(tuned(jnp.array(1.0))[0]), float(jax.grad(lambda trained: tuned(trained)[1])(jnp.array(1.0)))
    (2.0, 4.0)

    Source: Tucker et al. 2017, "REBAR", section 3.2; Ruiz, Titsias & Blei 2016.
    """

    def energy(trained: Any) -> tuple[Array, Array]:
        g = gradient(jax.tree.map(lambda leaf: leaf.astype(bound.dtype), trained))
        return (g**2).sum(), g

    slopes, g = lax.stop_gradient(jax.grad(energy, has_aux=True)(lax.stop_gradient(trained)))
    products = jax.tree.map(lambda slope, leaf: (slope * leaf).sum().astype(bound.dtype), slopes, trained)
    return g, -sum(jax.tree.leaves(products), start=jnp.zeros((), bound.dtype)) / bound.size


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
        ValueError: if a size is not a positive integer or the activation is unknown.

    >>> baseline = nvil()
    >>> x = jnp.ones((7, 3))
    >>> baseline.apply(baseline.init(jax.random.key(0), x), x).shape
    (7,)

    Source: Mnih & Gregor 2014, "Neural variational inference and learning in belief networks", section 2.3.
    """
    hidden_sizes, activation = (
        checks.checked_sizes("hidden_sizes", hidden_sizes),
        networks.activation_function(activation),
    )

    def network(x: Array) -> networks.Network:
        return networks.mlp(x[:1].size, hidden_sizes, 1, activation)

    def init(key: Key[Array, ""], x: Array) -> Params:
        return {"mean": jnp.zeros((), x.dtype), "network": network(x).init(key)}

    def apply(params: Params, x: Array) -> Float[Array, " n"]:
        return params["mean"] + network(x).apply(params["network"], x)[:, 0]

    return Baseline(init, apply)


BASELINES: dict[str, Callable[[], Baseline]] = {"moving_average": moving_average, "nvil": nvil}
"""The baselines that `score_function` takes by name and that learn along."""


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
        ValueError: if decay is not in [0, 1), or the learning rate no positive number.

    >>> optimizer = with_optimizer(optax.adam(1e-3))
    >>> state = optimizer.init({"decoder": jnp.ones(3), "baseline": {"mean": jnp.array(-90.0)}})
    >>> sorted(state.inner_states)
    ['baseline', 'model', 'moving average']
    """
    checks.check_optimizer(optimizer)
    checks.check_number("decay", decay, least=0, below=1)
    if not callable(learning_rate):  # optax takes a function of the step too
        checks.check_number("learning_rate", learning_rate, above=0)

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
