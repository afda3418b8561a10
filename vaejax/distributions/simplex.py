"""Discrete distributions at relaxed samples: the log-probability, linear in the weights of the values.

    log q(z) = sum_c w_c log q(c),  w in the simplex; of a bit z log q(1) + (1 - z) log q(0)

At a hard sample it is the log-probability. Between those it is none, but what an estimator may put into a control
variate, or into a gradient that is biased anyway.
"""
# ruff: noqa: D102

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from vaejax.distributions.wrappers import without_wrappers


class Weights(NamedTuple):
    """A relaxed sample of categories: in the place of one, the weights of all, which sum to one.

    A decoder of categorical latents takes them for the one-hot numbers of its input.

    Attributes:
        array: (*samples, *batch, *event, categories).

    >>> Weights(jnp.full((7, 2, 3), 1 / 3)).shape
    (7, 2)
    """

    array: Float[Array, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the categories."""
        return self.array.shape[:-1]

    @property
    def ndim(self) -> int:
        """How many axes the categories have."""
        return self.array.ndim - 1


class RelaxedBernoulli(dist.BernoulliLogits):
    """A Bernoulli whose log-probability takes relaxed bits, from 0 to 1.

    >>> f"{RelaxedBernoulli(jnp.array(0.0)).log_prob(jnp.array(0.3)):.4f}"
    '-0.6931'
    """

    def log_prob(self, value: Any) -> Array:
        logits = jnp.asarray(self.logits)
        return value * logits - jax.nn.softplus(logits)


class RelaxedCategorical(dist.CategoricalLogits):
    """A categorical distribution whose log-probability takes `Weights`.

    >>> f"{RelaxedCategorical(jnp.zeros(2)).log_prob(Weights(jnp.array([0.3, 0.7]))):.4f}"
    '-0.6931'
    """

    def log_prob(self, value: Any) -> Array:
        return (value.array * jax.nn.log_softmax(self.logits, axis=-1)).sum(axis=-1)


def is_relaxed(q: Any) -> bool:
    """Whether it is what `relaxed` makes.

    >>> is_relaxed(dist.BernoulliLogits(0.0)), is_relaxed(relaxed(dist.BernoulliLogits(0.0)))
    (False, True)
    """
    base = without_wrappers(getattr(q, "q", q))  # of a `Told` too
    if hasattr(base, "is_relaxed"):
        return base.is_relaxed()
    return isinstance(base, RelaxedBernoulli | RelaxedCategorical)


def relaxed(q: dist.Distribution) -> dist.Distribution:
    """The same distribution with a log-probability of relaxed samples.

    Args:
        q: Bernoulli or categorical, with independent coordinates; of `Parts`, those parts that are Bernoulli.

    Returns:
        A distribution of the same shape, for `log_prob` and `own_log_prob` at bits from 0 to 1, or at `Weights`.

    Raises:
        ValueError: if q is another.

    >>> q = relaxed(dist.BernoulliLogits(jnp.zeros((7, 2))).to_event(1))
    >>> q.log_prob(jnp.full((7, 2), 0.3)).shape
    (7,)
    """
    base = without_wrappers(q)
    if hasattr(base, "relaxed"):
        return base.relaxed()
    if isinstance(base, RelaxedBernoulli | RelaxedCategorical):
        return q
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        made = RelaxedBernoulli(jnp.broadcast_to(jnp.asarray(base.logits), q.shape()))
    elif isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
        logits = jnp.asarray(base.logits)
        made = RelaxedCategorical(jnp.broadcast_to(logits, (*q.shape(), logits.shape[-1])))
    else:
        raise ValueError(
            "relaxed samples need a log-probability that takes them, as Bernoulli and categorical distributions with "
            f"independent coordinates have; got {type(base).__name__}: use estimators.disarm() or "
            "estimators.score_function(baseline='leave_one_out'), which evaluate at hard samples alone"
        )
    return made.to_event(len(q.event_shape)) if q.event_shape else made
