"""Is a posterior calibrated? Ranks of the latents that simulated data were drawn from, among its samples."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vaejax import checks, distributions, models, records
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.evaluation.examples import over_batch, simulated
from vaejax.models import VAE
from vaejax.models.programs import compiled

# `(vae, params, key, x, num_samples) -> z`: samples of a posterior of each example, (n, num_samples, latent_dim).
Draw = Callable[[VAE, Params, Key[Array, ""], Array, int], Array]

_MOST_BINS = 20
_SMALLEST_BIN = 20  # ranks that a bin should hold on average


class Calibration(NamedTuple):
    """Ranks of true latents among samples of their posterior, which are uniform if the posterior is exact.

    Attributes:
        ranks: how many of the samples lie below the latent that the data were drawn from, from 0 to num_samples; ties,
            as of discrete latents, are broken at random. (n, latent_dim)
        p_values: of a chi-square test that the ranks of a unit are uniform. Of several units some are small by chance:
            compare the smallest with a level divided by their number. (latent_dim,)
        num_samples: of the posterior, for each simulated example.

    >>> result = Calibration(jnp.array([[0], [19], [19], [0]]), p_values=jnp.array([1e-6]), num_samples=19)
    >>> bool(result.p_values.min() < 0.01 / len(result.p_values))  # not calibrated
    True
    >>> float(((result.ranks == 0) | (result.ranks == result.num_samples)).mean())  # at both ends: too narrow
    1.0
    """

    ranks: Int[Array, "n latent_dim"]
    p_values: Float[Array, " latent_dim"]
    num_samples: int

    __repr__ = records.short_repr


def encoder_draws(vae: VAE, params: Params, key: Key[Array, ""], x: Array, num_samples: int) -> Array:
    """Samples of the encoder's q(z|x), for `simulation_based_calibration`.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (n, *data_shape).
        num_samples: for each example.

    Returns:
        The samples, (n, num_samples, latent_dim).

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> encoder_draws(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)), 5).shape
    (7, 5, 2)
    """
    checks.check_given(vae=vae, params=params, key=key, num_samples=num_samples)
    return _encoder_draws(vae, num_samples, params, key, x)


def simulation_based_calibration(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    num_simulations: int = 1000,
    num_samples: int = 99,
    *,
    draw: Draw = encoder_draws,
) -> Calibration:
    """Whether samples of a posterior are calibrated: of q(z|x), or of any sampler, for data simulated from the model.

    A latent z is drawn from the prior, an example x from p(x|z), and L samples from the posterior of x. If these are
    exact, z is one more sample of the same distribution, and its rank among them is uniform on 0, ..., L. Ranks that
    pile up at both ends show a posterior that is too narrow, ranks in the middle one that is too wide, and ranks at one
    end a mean that is off.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        num_simulations: examples that are simulated, at least 40.
        num_samples: L, for each of them. Samples of a Markov chain must be thinned until they are nearly independent.
        draw: `(vae, params, key, x, num_samples) -> z` of shape (n, num_samples, latent_dim); `encoder_draws`, or
            `inference.chain_draws()` for the No-U-Turn sampler.

    Returns:
        The ranks, and a p-value for each unit of the latent.

    Raises:
        ValueError: if a number is out of range, q is a point mass, or `draw` returns another shape.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = simulation_based_calibration(vae, vae.init(jax.random.key(0)), jax.random.key(1), 100, 19)
    >>> result.ranks.shape, result.p_values.shape, bool(result.ranks.max() <= 19)
    ((100, 2), (2,), True)

    Source: Talts, Betancourt, Simpson, Vehtari & Gelman 2018, "Validating Bayesian inference algorithms with
    simulation-based calibration"; for discrete latents, ties at random as in Modrák et al. 2023.
    """
    checks.check_count("num_simulations", num_simulations, 2 * _SMALLEST_BIN, "a test of uniform ranks needs them")
    checks.check_given(vae=vae, params=params, key=key, num_samples=num_samples)
    models.check_params(params)
    simulate_key, draw_key, tie_key = jax.random.split(key, 3)
    z, x = simulated(vae, num_simulations, params, simulate_key)
    models.check_data(vae, params, x)
    draws = jnp.asarray(draw(vae, params, draw_key, x, num_samples))
    checks.check_shape("samples of the posteriors", draws.shape, (num_simulations, num_samples, *z.shape[1:]))
    ranks, p_values = _ranked(tie_key, z, draws)
    return Calibration(ranks, p_values, num_samples)


@compiled(0, 1)
def _encoder_draws(vae: VAE, num_samples: int, params: Params, key: Key[Array, ""], x: Array) -> Array:
    def one_example(index, x):
        q = vae.encode(params, x)
        distributions.check_has_density(q)
        keys = jax.random.fold_in(key, index)
        return monte_carlo.over_samples(lambda key: distributions.sample(q, key), keys, num_samples)

    return over_batch(one_example, vae, params, x, 1000)


@jax.jit
def _ranked(key: Key[Array, ""], z: Array, draws: Array) -> tuple[Array, Array]:
    tie_key, within_key = jax.random.split(key)
    below, equal = ((compare(draws, z[:, None])).sum(axis=1) for compare in (jnp.less, jnp.equal))
    ranks = below + jax.random.randint(tie_key, below.shape, 0, equal + 1)
    # Where the number of ranks is no multiple of that of bins, a rank on a border falls to either side at random.
    number, num_ranks = len(z), draws.shape[1] + 1
    num_bins = min(_MOST_BINS, num_ranks, number // _SMALLEST_BIN)
    within = jax.random.uniform(within_key, ranks.shape, jnp.float32)
    place = (ranks.astype(jnp.float32) + within) / num_ranks
    bins = jnp.clip((place * num_bins).astype(jnp.int32), 0, num_bins - 1)
    counts = (bins[None] == jnp.arange(num_bins)[:, None, None]).sum(axis=1)
    expected = number / num_bins
    chi_square = ((counts.astype(jnp.float32) - expected) ** 2 / expected).sum(axis=0)
    return ranks, jax.scipy.special.gammaincc(jnp.float32((num_bins - 1) / 2), chi_square / 2)
