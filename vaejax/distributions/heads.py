"""Heads, which turn the outputs of a network into a numpyro distribution: likelihoods, posteriors and their priors.

A head says how many outputs it wants for each number it describes, owns the parameters that do not depend on the input
(a shared standard deviation), and bounds scales smoothly, so that no output of a network gives an infinite density.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key

from vaejax import checks
from vaejax.distributions.likelihoods.bits import BernoulliLogits

Params = dict[str, Any]
"""Parameters: a dict of arrays, or of such dicts."""

LOG_STD_BOUND = 8.0
"""The largest log standard deviation that `bounded_log_std` gives, and minus the least."""

CHANNELS = ("first", "last")


def standard_normal(event_shape: tuple[int, ...], dtype: Any) -> dist.Distribution:
    """The prior N(0, I).

    Args:
        event_shape: of one sample.
        dtype: of its numbers.

    Returns:
        A distribution whose batch shape is the event's: the model declares the axes with `to_event`.

    >>> standard_normal((2,), jnp.float32).to_event(1).event_shape
    (2,)
    """
    return dist.Normal(jnp.zeros(event_shape, dtype), jnp.ones(event_shape, dtype))


class Head(NamedTuple):
    """How the outputs of a network parametrize a distribution.

    Attributes:
        num_outputs: arrays of the event's shape that `apply` takes from the network; or a function of that shape, where
            their number depends on it, as for a full covariance. Ask `outputs_for`.
        init: `(key, event_shape) -> params`, the head's own parameters, `{}` for most.
        apply: `(params, *outputs) -> distribution`, each output of shape (*batch, *event). The axes of the event may
            be left as batch axes of the distribution: the model declares them with `to_event`.
        prior: `(event_shape, dtype) -> distribution`, what goes with a posterior of this kind as p(z).
        num_categories: for a categorical head, how many; a decoder then sees its latents one-hot.
        channels: where the outputs of a network for images stand: one after another before the axes of the image,
            "first", or beside each other on the last axis, "last", as convolutions emit them.
        takes_context: whether `apply` takes the context of the model too, flat, as `context=` of shape (*batch, size):
            as likelihoods of counts do, whose library size is the context's.
        seen: of a likelihood, how the encoder sees its data, such as 8-bit pixels scaled to [-1, 1]; None: as they are.
        apply_stacked: `apply` of one array (*batch, *event, number) with all outputs on its last axis, for heads of
            hundreds of outputs; None: it has none. A model calls it where there is one, instead of `apply`: to slice
            that many apart and stack them again takes longer than all the rest.

    >>> laplace = Head(1, lambda key, event_shape: {}, lambda params, mean: dist.Laplace(mean, jnp.ones_like(mean)))
    >>> p = laplace.apply({}, jnp.array([[1.0, 2.0]]))  # a likelihood of your own, of one example with two numbers
    >>> p.mean.tolist(), p.batch_shape, p.to_event(1).batch_shape
    ([[1.0, 2.0]], (1, 2), (1,))
    """

    num_outputs: int | Callable[[tuple[int, ...]], int]
    init: Callable[..., Params]
    apply: Callable[..., dist.Distribution]
    prior: Callable[[tuple[int, ...], Any], dist.Distribution] = standard_normal
    num_categories: int | None = None
    channels: Literal["first", "last"] = "first"
    takes_context: bool = False
    seen: Callable[[Array], Array] | None = None
    apply_stacked: Callable[..., dist.Distribution] | None = None

    def outputs_for(self, event_shape: tuple[int, ...]) -> int:
        """How many arrays of this shape the head takes from the network.

        >>> gaussian().outputs_for((28, 28))
        2
        """
        return self.num_outputs(event_shape) if callable(self.num_outputs) else self.num_outputs


def bounded_log_std(raw: Float[Array, "*shape"], bound: float = LOG_STD_BOUND) -> Float[Array, "*shape"]:
    """Squash an unbounded number into a log standard deviation in (-bound, bound), as `bound * tanh(raw / bound)`.

    Near zero it is the identity. At the default bound the standard deviation stays within [3.4e-4, 2981]: a floor,
    without which a Gaussian likelihood has no maximum, and a ceiling, without which it overflows.

    Args:
        raw: any number.
        bound: of the log standard deviation, on both sides.

    Returns:
        The log standard deviation, in the log of the data's unit.

    >>> bounded_log_std(jnp.array([-1e4, 0.0, 0.1, 1e4])).round(3).tolist()
    [-8.0, 0.0, 0.10000000149011612, 8.0]
    """
    return bound * jnp.tanh(raw / bound)


def unbounded_log_std(log_std: Float[Array, "*shape"], bound: float = LOG_STD_BOUND) -> Float[Array, "*shape"]:
    """The raw number from which `bounded_log_std` makes this log standard deviation.

    Args:
        log_std: the log standard deviation; one at or beyond the bound is taken just inside it.
        bound: as in `bounded_log_std`.

    Returns:
        The raw number.

    >>> unbounded_log_std(bounded_log_std(jnp.array([-1.0, 0.0, 3.0]))).round(3).tolist()
    [-1.0, 0.0, 3.0...]
    """
    return bound * jnp.arctanh(jnp.clip(log_std / bound, -1 + 1e-6, 1 - 1e-6))


def bernoulli() -> Head:
    """Bernoulli with the network's output as its logit, log p(1) - log p(0). Its prior is a fair coin for each number.

    >>> from vaejax import distributions
    >>> distributions.log_prob(bernoulli().apply({}, jnp.array([1e4, -1e4])), jnp.array([1.0, 1.0])).tolist()
    [-0.0, -10000.0]
    """

    def fair_coins(event_shape: tuple[int, ...], dtype: Any) -> dist.Distribution:
        return BernoulliLogits(jnp.zeros(event_shape, dtype))

    return Head(1, no_params, lambda params, logits: BernoulliLogits(logits), fair_coins)


def categorical(num_categories: int = 10, channels: Literal["first", "last"] = "first") -> Head:
    """Categorical with the network's outputs as its logits: whole numbers below `num_categories`, latents or pixels.

    Args:
        num_categories: of each number. The prior holds all of them equally probable.
        channels: as in `Head`.

    Raises:
        ValueError: if num_categories is not an integer of at least 2, or channels is another word.

    >>> categorical(3).apply({}, *jnp.zeros((3, 5))).probs.shape
    (5, 3)
    """
    checks.check_count("num_categories", num_categories, least=2)
    checks.check_choice("channels", channels, CHANNELS)

    def uniform(event_shape: tuple[int, ...], dtype: Any) -> dist.Distribution:
        return dist.CategoricalLogits(jnp.zeros((*event_shape, num_categories), dtype))

    def apply(params: Params, *logits: Float[Array, "*shape"]) -> dist.Distribution:
        return apply_stacked(params, jnp.stack(logits, axis=-1))

    def apply_stacked(params: Params, logits: Float[Array, "*shape categories"]) -> dist.Distribution:
        del params
        return dist.CategoricalLogits(logits)

    return Head(num_categories, no_params, apply, uniform, num_categories, channels, apply_stacked=apply_stacked)


def gaussian(channels: Literal["first", "last"] = "first") -> Head:
    """Gaussian whose mean and bounded log standard deviation both come from the network: the usual posterior.

    Args:
        channels: as in `Head`.

    Raises:
        ValueError: if channels is another word.

    >>> gaussian().apply({}, jnp.zeros(2), jnp.zeros(2)).scale.tolist()
    [1.0, 1.0]
    """
    checks.check_choice("channels", channels, CHANNELS)

    def apply(params: Params, mean: Float[Array, "*shape"], raw: Float[Array, "*shape"]) -> dist.Normal:
        return dist.Normal(mean, jnp.exp(bounded_log_std(raw)))

    return Head(2, no_params, apply, channels=channels)


def gaussian_shared_std(std_shape: tuple[int, ...] = ()) -> Head:
    """Gaussian with its mean from the network and a learned standard deviation that does not depend on the input.

    Args:
        std_shape: shape of the parameter `log_std`, broadcast over the event: `()` for one shared number.

    Raises:
        ValueError: if it is no tuple of positive integers.

    >>> import jax
    >>> gaussian_shared_std().init(jax.random.key(0), (28, 28))["log_std"].tolist()
    0.0
    """
    if std_shape != ():
        expected = f"std_shape must be a tuple of positive integers, or (); got {std_shape!r}"
        if not isinstance(std_shape, tuple | list):
            raise ValueError(expected)
        std_shape = checks.checked_shape("std_shape", std_shape)

    def init(key: Key[Array, ""], event_shape: tuple[int, ...]) -> Params:
        del key, event_shape
        return {"log_std": jnp.zeros(std_shape)}

    def apply(params: Params, mean: Float[Array, "*shape"]) -> dist.Normal:
        std = jnp.exp(bounded_log_std(params["log_std"]))
        return dist.Normal(mean, jnp.broadcast_to(std, mean.shape))

    return Head(1, init, apply)


def gaussian_fixed_std(std: float = 1.0) -> Head:
    """Gaussian with its mean from the network and a given standard deviation.

    Args:
        std: the standard deviation, in the units of the data.

    Raises:
        ValueError: if std is not a positive number.

    >>> gaussian_fixed_std(0.5).apply({}, jnp.zeros(2)).scale.tolist()
    [0.5, 0.5]
    """
    checks.check_number("std", std, above=0, advice="give it in the units of the data")
    return Head(1, no_params, lambda params, mean: dist.Normal(mean, jnp.full_like(mean, std)))


def point() -> Head:
    """All probability at the network's output: the latents of a deterministic autoencoder.

    As a posterior it can be decoded and measured, but it has no density and an infinite KL, so that it makes no bound
    on log p(x): `log_prob`, `kl_divergence` and `entropy` refuse it. `autoencoders.make_reconstruction` trains it.

    >>> point().apply({}, jnp.array([0.5, -2.0])).mean.tolist()
    [0.5, -2.0]
    """
    return Head(1, no_params, lambda params, value: dist.Delta(value))


def no_params(key: Key[Array, ""], event_shape: tuple[int, ...]) -> Params:
    """The `init` of a head without parameters of its own."""
    del key, event_shape
    return {}
