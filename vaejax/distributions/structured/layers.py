"""Latents in stochastic layers, each drawn from what the layer before it says."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Key
from numpyro.distributions import constraints

from vaejax.distributions.densities import center, log_prob, rsample, sample
from vaejax.distributions.wrappers import without_wrappers

Conditional = Callable[[Any, Array], dist.Distribution]


class Layers(dist.Distribution):
    """A Markov chain of latents as one vector: the first layer, then each given the one before.

        q(z_1, ..., z_L) = first(z_1) conditional_1(z_2; z_1) ... conditional_{L-1}(z_L; z_{L-1})

    A model's posterior draws from the data upwards and its prior from the top downwards; both write the same layer to
    the same place of z, so that their densities can be compared.

    Args:
        first: of the layer that is drawn first, with event shape (size,).
        params: of each conditional, a tree of arrays.
        conditionals: `(params, z) -> distribution` of the next layer, for z of shape (*samples, *batch, size), with the
            batch shape (*samples, *batch). Static: the same function each time, which closes over no array.
        sizes: units of each layer, in the order of drawing.
        downward: whether the layer drawn first stands last in z, as that of a prior does.

    >>> top = dist.Normal(jnp.zeros(1), 1.0).to_event(1)
    >>> below = lambda weight, z: dist.Normal(weight * z.repeat(2, axis=-1), 1.0).to_event(1)
    >>> prior = Layers(top, (jnp.array(3.0),), (below,), sizes=(1, 2), downward=True)
    >>> prior.sample(jax.random.key(0), (7,)).shape, [part.shape for part in prior.split(jnp.zeros((7, 3)))]
    ((7, 3), [(7, 1), (7, 2)])

    Source: Burda, Grosse & Salakhutdinov 2015, section 2.
    """

    pytree_data_fields = ("first", "params")
    pytree_aux_fields = ("conditionals", "sizes", "downward")

    def __init__(
        self,
        first: dist.Distribution,
        params: Sequence[Any],
        conditionals: Sequence[Conditional],
        sizes: Sequence[int],
        downward: bool = False,
    ):
        self.first, self.params = first, tuple(params)
        self.conditionals, self.sizes, self.downward = tuple(conditionals), tuple(sizes), downward
        super().__init__(first.batch_shape, (sum(sizes),), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """That of the first layer, for every unit."""
        return self.first.support

    @property
    def has_rsample(self) -> bool:
        """Whether its samples are a differentiable function of its parameters; all layers are of the first's family."""
        return self.first.has_rsample

    def split(self, z: Array) -> list[Array]:
        """The layers of z (..., latent_dim), in the order of drawing, each (..., size)."""
        sizes = self.sizes[::-1] if self.downward else self.sizes
        starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        parts = [z[..., start:stop] for start, stop in itertools.pairwise(starts)]
        return parts[::-1] if self.downward else parts

    def join(self, parts: Sequence[Array]) -> Array:
        """The opposite of `split`; it also joins what belongs to each unit of the layers, in the order of z."""
        return jnp.concatenate(parts[::-1] if self.downward else parts, axis=-1)

    def layers(self, z: Array) -> list[dist.Distribution]:
        """The distribution of each layer given the layer before it in z, in the order of drawing."""
        steps = zip(self.conditionals, self.params, self.split(z), strict=False)
        return [self.first, *(conditional(params, part) for conditional, params, part in steps)]

    def sample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        """One sample of all layers, (*sample_shape, *batch, latent_dim)."""
        return self._drawn(sample, key, sample_shape)[0]

    def rsample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        """The same with its gradient."""
        return self._drawn(rsample, key, sample_shape)[0]

    def rsample_with_log_prob(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        """One sample with its gradient, and its log density in nats: each network runs once."""
        z, layers = self._drawn(rsample if self.has_rsample else sample, key, ())
        parts = zip(layers, self.split(z), strict=True)
        return z, sum(log_prob(layer, part) for layer, part in parts)  # pyright: ignore[reportReturnType]

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density in nats of z, (*samples, *batch)."""
        del intermediates  # of numpyro's transformed distributions
        parts = zip(self.layers(value), self.split(value), strict=True)
        return sum(log_prob(layer, part) for layer, part in parts)  # pyright: ignore[reportReturnType]

    def center(self) -> Array:
        """Each layer's mean, or its most probable categories, given that of the layer before. (*batch, latent_dim)."""
        parts = [center(self.first)]
        for conditional, params in zip(self.conditionals, self.params, strict=True):
            parts.append(center(conditional(params, parts[-1])))
        return self.join(parts)

    def _drawn(self, draw: Callable, key: Key[Array, ""], sample_shape: tuple[int, ...]) -> tuple[Array, list]:
        """A sample, and the distribution of each layer that it was drawn from."""
        keys = jax.random.split(key, len(self.sizes))
        first = self.first.expand((*sample_shape, *self.first.batch_shape)) if sample_shape else self.first
        layers, parts = [first], [draw(first, keys[0])]
        for conditional, params, layer_key in zip(self.conditionals, self.params, keys[1:], strict=True):
            layers.append(conditional(params, parts[-1]))
            parts.append(draw(layers[-1], layer_key))
        return self.join(parts), layers


def log_prob_per_unit(q: dist.Distribution, z: Array) -> Array:
    """Log density in nats of each unit of z, given the layers before it where q has layers.

    Args:
        q: a distribution of a vector whose units, or those of each layer, are independent.
        z: (*samples, *batch, latent_dim).

    Returns:
        (*samples, *batch, latent_dim); its sum over the units is `log_prob`.

    Raises:
        ValueError: if the units depend on each other.

    >>> q = dist.Normal(jnp.zeros(2), jnp.array([1.0, 2.0])).to_event(1)
    >>> log_prob_per_unit(q, jnp.zeros(2)).round(2).tolist()
    [-0.91..., -1.61...]
    """
    if isinstance(q, Layers):
        parts = zip(q.layers(z), q.split(z), strict=True)
        return q.join([log_prob_per_unit(layer, part) for layer, part in parts])
    base = without_wrappers(q)
    if len(base.batch_shape) != len(q.shape()):
        raise ValueError(f"expected a distribution whose units are independent; got {type(base).__name__}")
    return log_prob(base, z)
