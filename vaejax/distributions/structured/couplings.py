"""A normalizing flow of coupling layers, whose density and whose samples both take one pass."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Key
from numpyro.distributions import constraints

LOG_SCALE_BOUND = 3.0


class CouplingFlow(dist.Distribution):
    """Standard normal noise after affine couplings: each layer shifts and scales half of the units, by the other half.

    The halves alternate: the odd units and the even ones, so that latents of an odd number are served too.

    Args:
        params: of each layer's network, a tree of arrays.
        conditioner: `(params, half) -> (..., latent_dim)`, of the half that stays, with zeros for the other: a shift
            and then an unbounded log scale for each unit that moves. Static: it closes over no array.
        latent_dim: units, at least 2.

    >>> identity = CouplingFlow([None], lambda params, kept: jnp.zeros((*kept.shape[:-1], 4)), latent_dim=2)
    >>> f"{identity.log_prob(jnp.zeros(2)):.2f}"
    '-1.84'

    Source: Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP".
    """

    support = constraints.real_vector
    pytree_data_fields = ("params",)
    pytree_aux_fields = ("conditioner", "latent_dim")

    def __init__(self, params: Sequence[Any], conditioner: Callable[[Any, Array], Array], latent_dim: int):
        self.params, self.conditioner, self.latent_dim = tuple(params), conditioner, latent_dim
        super().__init__((), (latent_dim,), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Yes: a sample is a differentiable function of the networks' parameters."""
        return True

    def sample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        """Samples, (*sample_shape, latent_dim)."""
        z = jax.random.normal(key, (*sample_shape, self.latent_dim))
        for number, params in enumerate(self.params):
            moves, shift, log_scale = self._moved(number, params, z)
            z = jnp.where(moves, z * jnp.exp(log_scale) + shift, z)
        return z

    def rsample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        """The same, with their gradient."""
        return self.sample(key, sample_shape)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density in nats, (*samples)."""
        del intermediates  # of numpyro's transformed distributions
        z, log_density = value, jnp.zeros(value.shape[:-1], value.dtype)
        for number, params in reversed(list(enumerate(self.params))):
            moves, shift, log_scale = self._moved(number, params, z)
            z = jnp.where(moves, (z - shift) * jnp.exp(-log_scale), z)
            log_density = log_density - jnp.where(moves, log_scale, 0).sum(axis=-1)
        normal = dist.Normal(jnp.zeros((), z.dtype), jnp.ones((), z.dtype))
        with jax.numpy_rank_promotion("allow"):
            return log_density + normal.log_prob(z).sum(axis=-1)

    def _moved(self, number: int, params: Any, z: Array) -> tuple[Array, Array, Array]:
        """Which units layer `number` moves, and their shift and log scale, bounded so that nothing overflows."""
        moves = (jnp.arange(self.latent_dim) % 2 == number % 2).reshape(*[1] * (z.ndim - 1), -1)
        outputs = self.conditioner(params, jnp.where(moves, 0, z))
        shift, raw = outputs[..., : self.latent_dim], outputs[..., self.latent_dim :]
        return moves, shift, LOG_SCALE_BOUND * jnp.tanh(raw / LOG_SCALE_BOUND)
