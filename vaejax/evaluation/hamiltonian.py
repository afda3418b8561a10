"""Hamiltonian chains along a path of densities from one that can be sampled to p(x, z), and their log-weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, Key

from vaejax import distributions, models
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.models import VAE

Initial = Callable[[VAE, Params, Array], dist.Distribution]

# Beskos et al. 2013, "Optimal tuning of the hybrid Monte Carlo algorithm".
TARGET_ACCEPTANCE = 0.65

ADAPTATION_RATE = 0.1  # of the log step size after each move, times acceptance minus its target
BURN_IN_RATE = 0.5  # the same, at the first temperature
NUM_BURN_IN = 100  # moves at the first temperature, from the step size that is given to one that fits
NUM_PILOT_CHAINS = 4


class Path(NamedTuple):
    """The densities initial(z)^(1 - b_t) p(x, z)^(b_t) that chains walk along; static for the compiler."""

    vae: VAE
    initial: Initial
    num_chains: int
    num_temperatures: int
    num_leapfrog: int

    def betas(self, dtype: Any) -> Float[Array, " num_temperatures"]:
        """The powers b_0 = 0, ..., 1: slow at both ends, where the densities change fastest."""
        places = jax.nn.sigmoid(jnp.linspace(-4.0, 4.0, self.num_temperatures, dtype=dtype))
        return (places - places[0]) / (places[-1] - places[0])

    def densities(self, params: Params, x: Any) -> tuple[dist.Distribution, Callable, Callable]:
        """For one example: the first density, its log at z, and log p(x, z) minus that log, at one z."""
        vae, x = models.given(self.vae, x)
        prior, first = vae.prior(params), self.initial(vae, params, x)

        def log_ratio(z):
            log_joint = distributions.data_log_prob(vae.decode(params, z), x) + distributions.log_prob(prior, z)
            return log_joint - distributions.log_prob(first, z)

        return first, lambda z: distributions.log_prob(first, z), log_ratio


def move(
    log_density: Callable, num_leapfrog: int, key: Key[Array, ""], z: Float[Array, " d"], step_size: Any
) -> tuple[Array, Array]:
    """One Hamiltonian move of one chain, and the probability with which it was accepted."""
    momentum_key, accept_key = jax.random.split(key)
    momentum = jax.random.normal(momentum_key, z.shape, z.dtype)
    gradient = jax.grad(log_density)

    def leap(carry, _):
        place, momentum, slope = carry
        momentum = momentum + 0.5 * step_size * slope
        place = place + step_size * momentum
        slope = gradient(place)
        return (place, momentum + 0.5 * step_size * slope, slope), None

    (proposal, last, _), _ = lax.scan(leap, (z, momentum, gradient(z)), length=num_leapfrog)
    gain = log_density(proposal) - log_density(z) + 0.5 * ((momentum**2).sum() - (last**2).sum())
    probability = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(gain), -jnp.inf, gain), 0))
    accepted = jax.random.uniform(accept_key, dtype=z.dtype) < probability
    return jnp.where(accepted, proposal, z), probability


def walk(path: Path, params: Params, key, x, z: Float[Array, "C d"], betas, log_step_sizes, rate: float | None = None):
    """Chains from z through the densities `betas`, in order: log-weights, acceptance, and step sizes.

    Going from density s to t a chain adds (b_t - b_s) log_ratio(z) to its log-weight and then moves by density t. With
    a `rate` the step size adapts from move to move, and only the first of those given is used.
    """
    _, log_first, log_ratio = path.densities(params, x)

    def step(carry, beta_and_step_size):
        z, log_w, beta_before, log_adapted, t = carry
        beta, log_step_size = beta_and_step_size
        log_step_size = log_step_size if rate is None else log_adapted
        log_w = log_w + (beta - beta_before) * jax.vmap(log_ratio)(z)
        move_keys = jax.vmap(lambda chain: jax.random.fold_in(jax.random.fold_in(key, t), chain))(jnp.arange(len(z)))
        z, probability = jax.vmap(
            lambda key, z: move(
                lambda z: log_first(z) + beta * log_ratio(z), path.num_leapfrog, key, z, jnp.exp(log_step_size)
            )
        )(move_keys, z)
        acceptance = probability.mean()
        adapted = log_step_size + (rate or 0.0) * (acceptance - TARGET_ACCEPTANCE)
        return (z, log_w, beta, adapted, t + 1), (acceptance, log_step_size)

    start = (z, jnp.zeros_like(z[:, 0]), betas[0], log_step_sizes[0], 0)
    (z, log_w, _, last, _), (acceptance, used) = lax.scan(step, start, (betas, log_step_sizes))
    return log_w, acceptance.mean(), used, last


def pilot(path: Path, params: Params, key, x, step_size, betas) -> Float[Array, " num_temperatures"]:
    """Log step size for each density, found by chains whose weights do not count."""
    start_key, burn_key, walk_key = jax.random.split(key, 3)
    chains = starts(path, params, start_key, x, NUM_PILOT_CHAINS)
    given = jnp.full(NUM_BURN_IN, jnp.log(jnp.asarray(step_size, betas.dtype)))
    *_, fitting = walk(path, params, burn_key, x, chains, jnp.zeros_like(given), given, BURN_IN_RATE)
    _, _, used, _ = walk(path, params, walk_key, x, chains, betas, jnp.full_like(betas, fitting), ADAPTATION_RATE)
    return used


def starts(path: Path, params: Params, key: Key[Array, ""], x: Any, number: int) -> Float[Array, "number d"]:
    """Samples of the path's first density."""
    first, _, _ = path.densities(params, x)
    return monte_carlo.over_samples(lambda key: distributions.sample(first, key), key, number)
