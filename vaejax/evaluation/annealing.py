"""Log p(x) by annealed importance sampling, and on simulated data between two bounds.

A path of densities leads from one that can be sampled to p(x, z), and chains walk along it by Hamiltonian moves. What
they collect is an importance weight, however good or bad q(z|x) is. Run backwards from a true posterior sample, which
is at hand for simulated data, it gives an upper bound.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, estimators, models
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.models import VAE

_LOG = logging.getLogger(__name__)

Initial = Callable[[VAE, Params, Array], dist.Distribution]

# Beskos et al. 2013, "Optimal tuning of the hybrid Monte Carlo algorithm".
TARGET_ACCEPTANCE = 0.65

_ADAPTATION_RATE = 0.1  # of the log step size, for each move, times acceptance minus its target

_BURN_IN_RATE = 0.5  # likewise, at the first temperature

_NUM_BURN_IN = 100  # moves at the first temperature, from the step size that is given to one that fits

_NUM_PILOT_CHAINS = 4


class AnnealedLogLikelihood(NamedTuple):
    """Log p(x) of each example by annealed importance sampling, in nats.

    Attributes:
        estimate: log of the mean weight of the chains; in expectation a lower bound on log p(x). (*batch,)
        standard_error: of the estimate, over the chains, by the delta method; NaN for one chain. (*batch,)
        ess: effective number of chains, from 1 to num_chains. (*batch,)
        acceptance: fraction of the moves that were accepted. (*batch,)
        num_chains: for each example.
        num_temperatures: densities on the path.
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    ess: Float[Array, " *batch"]
    acceptance: Float[Array, " *batch"]
    num_chains: int
    num_temperatures: int


class BidirectionalBounds(NamedTuple):
    """Log p(x) of examples that were drawn from the model, between two bounds, in nats.

    Attributes:
        x: the examples, drawn from p(z) p(x|z). (num_examples, *data_shape)
        z: the codes they were drawn from. (num_examples, latent_dim)
        lower: by chains to the posterior; at most log p(x), in expectation. (num_examples,)
        upper: by chains from the posterior; at least log p(x), in expectation. (num_examples,)
        lower_standard_error: over the chains. (num_examples,)
        upper_standard_error: over the chains; as all start from z, it tells less than the gap. (num_examples,)
        acceptance: fraction of the moves that were accepted, the smaller of the two directions'. (num_examples,)
        num_chains: for each example and direction.
        num_temperatures: densities on the path.
    """

    x: Array
    z: Float[Array, "n latent_dim"]
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    lower_standard_error: Float[Array, " n"]
    upper_standard_error: Float[Array, " n"]
    acceptance: Float[Array, " n"]
    num_chains: int
    num_temperatures: int


def prior_density(vae: VAE, params: Params, x: Array) -> dist.Distribution:
    """Where chains start by default: p(z), so that the estimate owes nothing to q(z|x) (Wu et al. 2017)."""
    del x
    return vae.prior(params)


def encoder_density(vae: VAE, params: Params, x: Array) -> dist.Distribution:
    """Where chains may start instead: q(z|x), from which the way to the posterior is short if q covers it."""
    return vae.encode(params, x)


def annealed_log_likelihood(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_chains: int = 16,
    num_temperatures: int = 500,
    *,
    num_leapfrog: int = 10,
    step_size: float = 0.1,
    initial: Initial = prior_density,
    batch_size: int = 100,
) -> AnnealedLogLikelihood:
    """Log p(x) of each example by annealed importance sampling with Hamiltonian moves.

    Density t of the path is initial(z)^(1 - b_t) p(x, z)^(b_t), with b_t rising from 0 to 1 along a sigmoid. At each a
    chain multiplies its weight by the ratio of that density to the last, and then makes one Hamiltonian move.

    The step size of each density is found beforehand, by chains of a pilot run with random numbers of their own, and
    stands still in the run that counts: adapted on the way it would bias the weights. Where nevertheless less than a
    fifth of the moves of an example are accepted, a warning is logged.

    Args:
        vae: the model, with a continuous code.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape).
        num_chains: for each example; more of them narrow the error.
        num_temperatures: densities on the path; more of them close the gap to log p(x).
        num_leapfrog: steps of a Hamiltonian move, each with one gradient of the decoder.
        step_size: of the leapfrog, where the pilot run starts.
        initial: `(vae, params, x) -> distribution` of codes; `prior_density` or `encoder_density`.
        batch_size: examples at once; memory grows with num_chains * batch_size and with nothing else.

    Returns:
        Estimate, standard error, effective number of chains and acceptance of each example. Compiled once for a shape.

    Raises:
        ValueError: if the code is discrete, a number is out of range, or x is refused by `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> annealed_log_likelihood(vae, params, jax.random.key(1), x, num_temperatures=50).estimate.shape
    (7,)

    Source: Neal 2001, "Annealed importance sampling"; for decoders, Wu, Burda, Salakhutdinov & Grosse 2017.
    """
    _check(vae, params, num_chains, num_temperatures, num_leapfrog, step_size, batch_size)
    models.check_data(vae, params, x)
    distributions.check_has_density(jax.eval_shape(vae.encode, params, x))  # an autoencoder's prior models no code
    path = _Path(vae, initial, num_chains, num_temperatures, num_leapfrog)
    estimate, error, ess, acceptance = _forward(path, batch_size, params, key, jnp.asarray(x), step_size)
    result = AnnealedLogLikelihood(estimate, error, ess, acceptance, num_chains, num_temperatures)
    _warn_where_rejected(result.acceptance)
    return result


def bidirectional_bounds(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    num_examples: int = 100,
    num_chains: int = 16,
    num_temperatures: int = 500,
    *,
    num_leapfrog: int = 10,
    step_size: float = 0.1,
    initial: Initial = prior_density,
    batch_size: int = 100,
) -> BidirectionalBounds:
    """Log p(x) of data simulated from the model, bounded from below and from above.

    The lower bound is `annealed_log_likelihood`'s. For the upper one the chains start at the code that the example was
    drawn from, which is an exact sample of its posterior, and walk the path backwards: the mean of their weights
    estimates 1 / p(x) without bias. The gap between the two bounds the error of both, and so tells how well the
    settings do for this decoder; on data not simulated nothing bounds log p(x) from above like this.

    Args:
        vae: the model, with a continuous code.
        params: its parameters.
        key: consumed.
        num_examples: simulated.
        num_chains: as in `annealed_log_likelihood`, for each direction.
        num_temperatures: as in `annealed_log_likelihood`.
        num_leapfrog: as in `annealed_log_likelihood`.
        step_size: as in `annealed_log_likelihood`.
        initial: as in `annealed_log_likelihood`.
        batch_size: as in `annealed_log_likelihood`.

    Raises:
        ValueError: as `annealed_log_likelihood`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params = vae.init(jax.random.key(0))
    >>> bounds = bidirectional_bounds(vae, params, jax.random.key(1), 50, num_temperatures=100)
    >>> bool(abs(bounds.upper.mean() - bounds.lower.mean()) < 0.1)
    True

    Source: Grosse, Ghahramani & Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo".
    """
    checks.check_count("num_examples", num_examples)
    _check(vae, params, num_chains, num_temperatures, num_leapfrog, step_size, batch_size)
    path = _Path(vae, initial, num_chains, num_temperatures, num_leapfrog)
    simulate_key, forward_key, backward_key = jax.random.split(key, 3)
    z, x = _simulate(vae, num_examples, params, simulate_key)
    models.check_data(vae, params, x)
    lower, lower_error, _, accepted_forward = _forward(path, batch_size, params, forward_key, x, step_size)
    inverse, upper_error, _, accepted_backward = _backward(path, batch_size, params, backward_key, x, z, step_size)
    acceptance = jnp.minimum(accepted_forward, accepted_backward)
    _warn_where_rejected(acceptance)
    return BidirectionalBounds(
        x, z, lower, -inverse, lower_error, upper_error, acceptance, num_chains, num_temperatures
    )


class _Path(NamedTuple):
    """What the chains walk along; static for the compiler."""

    vae: VAE
    initial: Initial
    num_chains: int
    num_temperatures: int
    num_leapfrog: int

    def betas(self, dtype: Any) -> Float[Array, " num_temperatures"]:
        """The powers b_0 = 0, ..., 1: slow at both ends, where the densities change fastest."""
        places = jax.nn.sigmoid(jnp.linspace(-4.0, 4.0, self.num_temperatures, dtype=dtype))
        return (places - places[0]) / (places[-1] - places[0])

    def densities(self, params: Params, x: Array) -> tuple[dist.Distribution, Callable, Callable]:
        """Of one example: the first density, its log, and log p(x, z) less that; both of one code z."""
        prior = self.vae.prior(params)
        first = self.initial(self.vae, params, x)

        def log_ratio(z):
            log_joint = distributions.data_log_prob(self.vae.decode(params, z), x) + distributions.log_prob(prior, z)
            return log_joint - distributions.log_prob(first, z)

        return first, lambda z: distributions.log_prob(first, z), log_ratio


def _move(log_density: Callable, num_leapfrog: int, key, z: Float[Array, " d"], step_size) -> tuple[Array, Array]:
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


def _walk(path: _Path, params, key, x, z: Float[Array, "C d"], betas, log_step_sizes, rate: float | None):
    """Chains from z through the densities `betas`, in order: log-weights, acceptance, and step sizes.

    Going from density s to t a chain adds (b_t - b_s) log_ratio(z) to its log-weight and then moves by density t. With
    a `rate` the step size adapts from move to move, and those given are not looked at after the first.
    """
    _, log_first, log_ratio = path.densities(params, x)

    def step(carry, beta_and_step_size):
        z, log_w, beta_before, log_adapted, t = carry
        beta, log_step_size = beta_and_step_size
        log_step_size = log_step_size if rate is None else log_adapted
        log_w = log_w + (beta - beta_before) * jax.vmap(log_ratio)(z)
        move_keys = jax.vmap(lambda chain: jax.random.fold_in(jax.random.fold_in(key, t), chain))(jnp.arange(len(z)))
        z, probability = jax.vmap(
            lambda key, z: _move(
                lambda z: log_first(z) + beta * log_ratio(z), path.num_leapfrog, key, z, jnp.exp(log_step_size)
            )
        )(move_keys, z)
        acceptance = probability.mean()
        adapted = log_step_size + (rate or 0.0) * (acceptance - TARGET_ACCEPTANCE)
        return (z, log_w, beta, adapted, t + 1), (acceptance, log_step_size)

    start = (z, jnp.zeros_like(z[:, 0]), betas[0], log_step_sizes[0], 0)
    (z, log_w, _, last, _), (acceptance, used) = lax.scan(step, start, (betas, log_step_sizes))
    return log_w, acceptance.mean(), used, last


def _pilot(path: _Path, params, key, x, step_size, dtype) -> Float[Array, " num_temperatures"]:
    """Log step size of each density."""
    start_key, burn_key, walk_key = jax.random.split(key, 3)
    first, _, _ = path.densities(params, x)
    chains = monte_carlo.over_samples(lambda key: distributions.sample(first, key), start_key, _NUM_PILOT_CHAINS)
    log_step_size = jnp.log(jnp.asarray(step_size, dtype))
    burn_in = jnp.zeros(_NUM_BURN_IN, dtype)
    given = jnp.full(_NUM_BURN_IN, log_step_size)
    *_, log_step_size = _walk(path, params, burn_key, x, chains, burn_in, given, _BURN_IN_RATE)
    betas = path.betas(dtype)
    _, _, used, _ = _walk(
        path, params, walk_key, x, chains, betas, jnp.full_like(betas, log_step_size), _ADAPTATION_RATE
    )
    return used


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(path: _Path, batch_size: int, params, key, x, step_size):
    """Log of the mean weight, its standard error, effective number of chains and acceptance of each example."""
    batch_shape = jax.eval_shape(path.vae.encode, params, x).batch_shape
    x = x.reshape(-1, *x.shape[len(batch_shape) :])
    dtype = _code_dtype(path.vae, params)

    def one_example(index_and_x):
        index, x = index_and_x
        pilot_key, start_key, walk_key = jax.random.split(jax.random.fold_in(key, index), 3)
        log_step_sizes = _pilot(path, params, pilot_key, x, step_size, dtype)
        first, _, _ = path.densities(params, x)
        chains = monte_carlo.over_samples(lambda key: distributions.sample(first, key), start_key, path.num_chains)
        log_w, accepted, _, _ = _walk(path, params, walk_key, x, chains, path.betas(dtype), log_step_sizes, None)
        return (*_summarize(log_w), accepted)

    result = monte_carlo.over_examples(one_example, (jnp.arange(x.shape[0]), x), batch_size)
    return jax.tree.map(lambda leaf: leaf.reshape(batch_shape), result)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(path: _Path, batch_size: int, params, key, x, z, step_size):
    """The same of chains that go from the code z of each example to the first density: they estimate 1 / p(x)."""
    dtype = _code_dtype(path.vae, params)

    def one_example(index_and_data):
        index, x, z = index_and_data
        pilot_key, walk_key = jax.random.split(jax.random.fold_in(key, index))
        log_step_sizes = _pilot(path, params, pilot_key, x, step_size, dtype)
        chains = jnp.broadcast_to(z[None], (path.num_chains, *z.shape))
        betas = path.betas(dtype)[::-1]  # the first, 1, adds nothing to the weights, and parts the chains by a move
        log_w, accepted, _, _ = _walk(path, params, walk_key, x, chains, betas, log_step_sizes[::-1], None)
        return (*_summarize(log_w), accepted)

    return monte_carlo.over_examples(one_example, (jnp.arange(x.shape[0]), x, z), batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _simulate(vae: VAE, num_examples: int, params, key) -> tuple[Array, Array]:
    prior = vae.prior(params)

    def one_example(key):
        code_key, data_key = jax.random.split(key)
        z = distributions.sample(prior, code_key)
        return z, models.sample_data(vae, params, data_key, z)

    return monte_carlo.over_samples(one_example, key, num_examples)


def _summarize(log_w: Float[Array, " C"]) -> tuple[Array, Array, Array]:
    number = log_w.shape[0]
    ess = estimators.effective_sample_size(log_w)
    unbiased = number / (number - 1) if number > 1 else math.nan
    error = jnp.sqrt(unbiased * jnp.maximum(1 / ess - 1 / number, 0))
    return jax.nn.logsumexp(log_w) - math.log(number), error, ess


def _code_dtype(vae: VAE, params: Params) -> Any:
    return jnp.asarray(vae.prior(params).mean).dtype


def _check(vae, params, num_chains, num_temperatures, num_leapfrog, step_size, batch_size) -> None:
    counts = {"num_chains": num_chains, "num_leapfrog": num_leapfrog, "batch_size": batch_size}
    for name, number in counts.items():
        checks.check_count(name, number)
    if isinstance(num_temperatures, bool) or not isinstance(num_temperatures, int) or num_temperatures < 2:
        raise ValueError(f"num_temperatures must be an integer of at least 2, from 0 to 1; got {num_temperatures!r}")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be a positive number; got {step_size!r}")
    prior = vae.prior(params)
    if prior.is_discrete:
        raise ValueError(
            "expected a continuous code, along which Hamiltonian moves can follow a gradient; got a discrete one, "
            f"{distributions.name_of(prior)}: use log_likelihood"
        )


def _warn_where_rejected(acceptance: Array) -> None:
    if isinstance(acceptance, Tracer) or not (rejected := acceptance < 0.2).any():
        return
    _LOG.warning(
        "fewer than a fifth of the Hamiltonian moves of %d of %d examples were accepted (of one only %.1f%%), though "
        "the step size was adapted: their chains stood nearly still, and the estimate is far from log p(x). Start "
        "from a step_size nearer to the width of the posterior, or take more temperatures",
        int(rejected.sum()),
        rejected.size,
        100 * float(acceptance.min()),
    )
