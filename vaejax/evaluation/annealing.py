"""Log p(x) by annealed importance sampling, and on simulated data between two bounds.

A path of densities leads from one that can be sampled to p(x, z), and chains walk along it by Hamiltonian moves. What
they collect is an importance weight, however good or bad q(z|x) is. Run backwards from a true posterior sample, which
simulated data bring along, it gives an upper bound.
"""

import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models, records
from vaejax.distributions import Params
from vaejax.evaluation import hamiltonian
from vaejax.evaluation.estimates import bias_of_log_mean, log_mean_weight, log_mean_weight_of_half
from vaejax.evaluation.examples import (
    check_continuous,
    checked_examples,
    latent_dtype,
    like_posterior,
    over_batch,
    simulated,
)
from vaejax.evaluation.hamiltonian import Initial, Path
from vaejax.models import VAE, Batch
from vaejax.models.programs import compiled

_LOG = logging.getLogger(__name__)


class AnnealedLogLikelihood(NamedTuple):
    """Log p(x) of each example by annealed importance sampling, in nats.

    Attributes:
        estimate: log of the mean weight of the chains; in expectation a lower bound on log p(x). (*batch,)
        standard_error: of the estimate over the chains, by the delta method; NaN for one chain. (*batch,)
        ess: effective number of chains, from 1 to num_chains. (*batch,)
        acceptance: fraction of the moves that were accepted. (*batch,)
        num_chains: for each example.
        num_temperatures: densities on the path.
        half_estimate: the same from the two halves of the chains, averaged; it tells the bias. NaN for one chain.
            (*batch,)

    >>> columns = jnp.array([[-90.0], [0.125], [12.0], [0.75]])
    >>> result = AnnealedLogLikelihood(*columns, num_chains=16, num_temperatures=500, half_estimate=jnp.array([-90.25]))
    >>> round(float(result.bias[0]), 3)  # half the chains gave 0.25 nats less: about as much is still missing
    -0.25
    """

    estimate: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    ess: Float[Array, " *batch"]
    acceptance: Float[Array, " *batch"]
    num_chains: int
    num_temperatures: int
    half_estimate: Float[Array, " *batch"] | None = None

    __repr__ = records.short_repr

    @property
    def bias(self) -> Float[Array, " *batch"] | None:
        """How far the estimate's expectation lies above log p(x), as of `LogLikelihood`; for the mean over many."""
        return (
            None if self.half_estimate is None else bias_of_log_mean(self.estimate, self.half_estimate, self.num_chains)
        )


class BidirectionalBounds(NamedTuple):
    """Log p(x) of examples that were drawn from the model, between two bounds, in nats.

    Attributes:
        x: the examples, drawn from p(z) p(x|z). (num_examples, *data_shape)
        z: the latents they were drawn from. (num_examples, latent_dim)
        lower: by chains to the posterior; at most log p(x), in expectation. (num_examples,)
        upper: by chains from the posterior; at least log p(x), in expectation. (num_examples,)
        lower_standard_error: over the chains. (num_examples,)
        upper_standard_error: over the chains; as all start from z, it tells less than the gap. (num_examples,)
        acceptance: fraction of the moves that were accepted, the smaller of the two directions'. (num_examples,)
        num_chains: for each example and direction.
        num_temperatures: densities on the path.

    >>> x, z, each = jnp.zeros((1, 3)), jnp.zeros((1, 2)), jnp.array([[-90.5], [-90.25], [0.1], [0.1], [0.8]])
    >>> bounds = BidirectionalBounds(x, z, *each, num_chains=16, num_temperatures=500)
    >>> (bounds.upper - bounds.lower).tolist()  # these settings know log p(x) to a quarter of a nat
    [0.25]
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

    __repr__ = records.short_repr


def prior_density(vae: VAE, params: Params, x: Array) -> dist.Distribution:
    """The prior p(z), where chains start by default; then the estimate does not depend on q(z|x) (Wu et al. 2017).

    Args:
        vae: the model.
        params: its parameters.
        x: one example, (*data_shape,), which is not used.

    Returns:
        The distribution, of batch shape ().

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> prior_density(vae, vae.init(jax.random.key(0)), jnp.ones(3)).event_shape
    (2,)
    """
    del x
    return vae.prior(params)


def encoder_density(vae: VAE, params: Params, x: Array) -> dist.Distribution:
    """The encoder's q(z|x), where chains may start instead; from there the path is short if q covers the posterior.

    Args:
        vae: the model.
        params: its parameters.
        x: one example, (*data_shape,).

    Returns:
        The distribution, of batch shape ().

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> encoder_density(vae, vae.init(jax.random.key(0)), jnp.ones(3)).event_shape
    (2,)
    """
    return vae.encode(params, x)


def annealed_log_likelihood(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    num_chains: int = 16,
    num_temperatures: int = 500,
    *,
    num_leapfrog: int = 10,
    step_size: float = 0.1,
    initial: Initial = prior_density,
    batch_size: int = 100,
) -> AnnealedLogLikelihood:
    """Log p(x) of each example by annealed importance sampling with Hamiltonian moves.

    Density t of the path is initial(z)^(1 - b_t) p(x, z)^(b_t), with b_t rising from 0 to 1 along a sigmoid. At each
    density a chain multiplies its weight by the ratio of this density to the last one, and then makes one Hamiltonian
    move. The estimate is the log of the chains' mean weight.

    The step size for each density is found beforehand, by a pilot run with random numbers of its own. It is fixed in
    the run that counts, because adapting it there would bias the weights. A warning is logged where less than a fifth
    of the moves of an example are accepted all the same.

    Args:
        vae: the model, with continuous latents.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape), or a `models.Batch`.
        num_chains: for each example; more of them narrow the error.
        num_temperatures: densities on the path; more of them close the gap to log p(x).
        num_leapfrog: steps of a Hamiltonian move, each with one gradient of the decoder.
        step_size: of the leapfrog, where the pilot run starts.
        initial: `(vae, params, x) -> distribution` of the latents; `prior_density` or `encoder_density`.
        batch_size: examples at once; memory grows with num_chains * batch_size and with nothing else.

    Returns:
        Estimate in nats, standard error, effective number of chains and acceptance of each example, (*batch,). Compiled
        once for a shape of x.

    Raises:
        ValueError: if the latents are discrete, a number is out of range, or `models.check_data` refuses x.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> annealed_log_likelihood(vae, params, jax.random.key(1), x, num_temperatures=50).estimate.shape
    (7,)

    Source: Neal 2001, "Annealed importance sampling"; for decoders, Wu, Burda, Salakhutdinov & Grosse 2017.
    """
    x = checked_examples(vae, params, x, key=key, batch_size=batch_size)
    path = _checked_path(vae, params, x, initial, num_chains, num_temperatures, num_leapfrog, step_size)
    distributions.check_has_density(like_posterior(vae, params, x))  # an autoencoder's prior is no model of z
    estimate, error, ess, acceptance, half = _forward(path, batch_size, params, key, x, step_size)
    _warn_where_rejected(acceptance)
    return AnnealedLogLikelihood(estimate, error, ess, acceptance, num_chains, num_temperatures, half)


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

    The lower bound is `annealed_log_likelihood`'s. For the upper one the chains start at the latent that the example
    was drawn from, which is an exact sample of its posterior, and walk the path backwards: the mean of their weights
    estimates 1 / p(x) without bias. The gap between the two limits the error of both, and so shows how good the
    settings are for this decoder. Data that are not simulated have no such upper bound.

    Args:
        vae: the model, with continuous latents.
        params: its parameters.
        key: consumed.
        num_examples: simulated.
        num_chains: as in `annealed_log_likelihood`, for each direction.
        num_temperatures: as in `annealed_log_likelihood`.
        num_leapfrog: as in `annealed_log_likelihood`.
        step_size: as in `annealed_log_likelihood`.
        initial: as in `annealed_log_likelihood`.
        batch_size: as in `annealed_log_likelihood`.

    Returns:
        The simulated examples, their latents, and both bounds in nats with standard errors, (num_examples,).

    Raises:
        ValueError: as `annealed_log_likelihood`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params = vae.init(jax.random.key(0))
    >>> bounds = bidirectional_bounds(vae, params, jax.random.key(1), 50, num_temperatures=100)
    >>> bool(abs(bounds.upper.mean() - bounds.lower.mean()) < 0.1)
    True

    Source: Grosse, Ghahramani & Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo".
    """
    checks.check_given(vae=vae, params=params, key=key, num_examples=num_examples, batch_size=batch_size)
    path = _checked_path(vae, params, None, initial, num_chains, num_temperatures, num_leapfrog, step_size)
    simulate_key, forward_key, backward_key = jax.random.split(key, 3)
    z, x = simulated(vae, num_examples, params, simulate_key)
    models.check_data(vae, params, x)
    lower, lower_error, _, accepted_forward, _ = _forward(path, batch_size, params, forward_key, x, step_size)
    inverse, upper_error, _, accepted_backward = _backward(path, batch_size, params, backward_key, x, z, step_size)
    acceptance = jnp.minimum(accepted_forward, accepted_backward)
    _warn_where_rejected(acceptance)
    return BidirectionalBounds(
        x, z, lower, -inverse, lower_error, upper_error, acceptance, num_chains, num_temperatures
    )


def _checked_path(vae, params, x, initial, num_chains, num_temperatures, num_leapfrog, step_size) -> Path:
    checks.check_counts(num_chains=num_chains, num_leapfrog=num_leapfrog)
    checks.check_count("num_temperatures", num_temperatures, 2, "the first is 0 and the last is 1")
    checks.check_number("step_size", step_size, above=0)
    model = vae if x is None else models.given(vae, x)[0]
    check_continuous(model, params, "Hamiltonian moves need a gradient, so use log_likelihood")
    return Path(vae, initial, num_chains, num_temperatures, num_leapfrog)


@compiled(0, 1)
def _forward(path: Path, batch_size: int, params, key, x, step_size):
    """Log of the mean weight, its standard error, effective number of chains, acceptance; log of half the chains."""
    betas = path.betas(latent_dtype(path.vae, params, x))

    def one_example(index, x):
        pilot_key, start_key, walk_key = jax.random.split(jax.random.fold_in(key, index), 3)
        log_step_sizes = hamiltonian.pilot(path, params, pilot_key, x, step_size, betas)
        chains = hamiltonian.starts(path, params, start_key, x, path.num_chains)
        log_w, accepted, _, _ = hamiltonian.walk(path, params, walk_key, x, chains, betas, log_step_sizes)
        return *log_mean_weight(log_w), accepted, log_mean_weight_of_half(log_w)

    return over_batch(one_example, path.vae, params, x, batch_size)


@compiled(0, 1)
def _backward(path: Path, batch_size: int, params, key, x, z, step_size):
    """The same for chains from the latent z of each example to the first density: they estimate 1 / p(x)."""
    betas = path.betas(latent_dtype(path.vae, params, x))

    def one_example(index, x, z):
        pilot_key, walk_key = jax.random.split(jax.random.fold_in(key, index))
        log_step_sizes = hamiltonian.pilot(path, params, pilot_key, x, step_size, betas)
        chains = jnp.broadcast_to(z[None], (path.num_chains, *z.shape))
        # The first beta, 1, adds nothing to the weights, and its move takes the chains apart.
        log_w, accepted, _, _ = hamiltonian.walk(path, params, walk_key, x, chains, betas[::-1], log_step_sizes[::-1])
        return *log_mean_weight(log_w), accepted

    return over_batch(one_example, path.vae, params, x, batch_size, z)


def _warn_where_rejected(acceptance: Array) -> None:
    if isinstance(acceptance, Tracer) or not (rejected := acceptance < 0.2).any():
        return
    _LOG.warning(
        "fewer than a fifth of the Hamiltonian moves of %d of %d examples were accepted (of one only %.1f%%), though "
        "the step size was adapted: their chains stood nearly still. The mean weight is without bias all the same, but "
        "a few weights decide it, so that its log is probably too low and the standard error too small: look at ess. "
        "Start from a step_size nearer to the width of the posterior, or take more temperatures",
        int(rejected.sum()),
        rejected.size,
        100 * float(acceptance.min()),
    )
