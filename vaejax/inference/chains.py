"""Samples of the true posterior p(z|x) by Markov chains, to compare q(z|x) with."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Key
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS

from vaejax import checks, distributions, evaluation, models, records
from vaejax.distributions import Params
from vaejax.inference import per_example
from vaejax.models import VAE, Batch

_LOG = logging.getLogger(__name__)


class PosteriorSample(NamedTuple):
    """Samples of the true posterior p(z|x) by the No-U-Turn sampler.

    Attributes:
        z: the samples. (n, num_chains, num_samples, latent_dim)
        mean: of z over all chains. (n, latent_dim)
        std: of z over all chains. (n, latent_dim)
        r_hat: split R-hat of each unit; near 1 where the chains agree. (n, latent_dim)

    >>> z = jnp.array([[[[0.0], [2.0]], [[2.0], [0.0]]]])  # one example, two chains of two samples, one unit
    >>> sample = PosteriorSample(z, mean=z.mean(axis=(1, 2)), std=z.std(axis=(1, 2)), r_hat=jnp.array([[1.01]]))
    >>> sample.mean.tolist(), sample.std.tolist(), bool((sample.r_hat < 1.05).all())  # the chains have met
    ([[1.0]], [[1.0]], True)
    """

    z: Float[Array, "*batch chains samples latent_dim"]
    mean: Float[Array, "*batch latent_dim"]
    std: Float[Array, "*batch latent_dim"]
    r_hat: Float[Array, "*batch latent_dim"]

    __repr__ = records.short_repr


def sample_posterior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    start: dist.Distribution | None = None,
) -> PosteriorSample:
    """Samples of p(z|x), proportional to p(x|z) p(z), of each example by numpyro's No-U-Turn sampler.

    They are exact in the limit of long chains, and thousands of times slower to draw than samples of q(z|x). A warning
    is logged where split R-hat is above 1.05.

    Args:
        vae: the model, with continuous latents.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), or a `models.Batch`; one compiled program runs for one example after the other.
        num_chains: for each example, side by side.
        num_warmup: steps that adapt step size and mass; their samples are dropped.
        num_samples: of each chain, at least 4.
        start: what the chains' first latents are drawn from, of batch shape (); by default each example's q(z|x). R-hat
            cannot show a mode that no chain started near. Chains that start at samples of `vae.prior(params)` start far
            apart, and a large R-hat then shows that they stay in different modes.

    Returns:
        Samples, their moments, and R-hat, which tells whether the chains agree.

    Raises:
        ValueError: if a number is not a positive integer, num_samples is below 4, the latents are discrete, `start` is
            of another shape, x has no batch axis, or `models.check_data` refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((1, 3))
    >>> sample_posterior(vae, params, jax.random.key(1), x, num_chains=1, num_warmup=20, num_samples=10).z.shape
    (1, 1, 10, 2)

    Source: Hoffman & Gelman 2014, "The No-U-Turn sampler".
    """
    checks.check_count("num_samples", num_samples, 4, "R-hat compares the halves of each chain")
    x = evaluation.checked_examples(vae, params, x, least=1, key=key, num_chains=num_chains, num_warmup=num_warmup)
    evaluation.check_continuous(models.given(vae, x)[0], params, per_example.DISCRETE)
    event_shape = evaluation.like_posterior(vae, params, x).event_shape
    if start is not None:
        per_example.check_start(start, event_shape, ())

    @jax.jit
    def first(params, keys, example):
        known, x = models.given(vae, jax.tree.map(lambda leaf: leaf[None], example))
        q = known.encode(params, x) if start is None else start
        return jax.vmap(lambda key: distributions.sample(q, key).reshape(event_shape))(keys)

    def model(params, example):
        known, x = models.given(vae, example)
        z = numpyro.sample("z", known.prior(params))
        numpyro.factor("log_likelihood", distributions.data_log_prob(known.decode(params, z), x))

    # Needed inside numpyro 0.22, which also uses one key several times.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        chains = MCMC(
            NUTS(model),
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
            jit_model_args=True,
        )
        drawn = []
        for number, example_key in enumerate(jax.random.split(key, evaluation.number_of(x))):
            example = jax.tree.map(lambda leaf, number=number: leaf[number], x)
            start_key, run_key = jax.random.split(example_key)
            starts = first(params, jax.random.split(start_key, num_chains), example)
            chains.run(run_key, params, example, init_params={"z": starts if num_chains > 1 else starts[0]})
            drawn.append(np.asarray(chains.get_samples(group_by_chain=True)["z"]))
    z = np.stack(drawn)
    r_hat = np.stack([split_gelman_rubin(each) for each in z])
    if (apart := (r_hat > 1.05).any(axis=1)).any():
        _LOG.warning(
            "the chains of %d of %d examples have not met (split R-hat up to %.2f): their mean and std are not the "
            "posterior's. Take more samples or a longer warm-up; where modes lie apart, more chains",
            int(apart.sum()),
            len(apart),
            float(r_hat.max()),
        )
    return PosteriorSample(*(jnp.asarray(array) for array in (z, z.mean(axis=(1, 2)), z.std(axis=(1, 2)), r_hat)))


def chain_draws(num_warmup: int = 500, thinning: int = 5) -> Callable[..., Array]:
    """Samples of p(z|x) by the No-U-Turn sampler, for `evaluation.simulation_based_calibration`.

    Args:
        num_warmup: steps of each chain that adapt it.
        thinning: one of so many samples is kept, so that those kept are nearly independent.

    Returns:
        `(vae, params, key, x, num_samples) -> z` of shape (n, num_samples, latent_dim), of one chain for each example.

    Raises:
        ValueError: if a number is not a positive integer; when called, as `sample_posterior`.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((1, 3))
    >>> chain_draws(num_warmup=20, thinning=2)(vae, params, jax.random.key(1), x, 10).shape
    (1, 10, 2)
    """
    checks.check_counts(num_warmup=num_warmup, thinning=thinning)

    def draw(vae: VAE, params: Params, key: Key[Array, ""], x: Array, num_samples: int) -> Array:
        drawn = sample_posterior(
            vae, params, key, x, num_chains=1, num_warmup=num_warmup, num_samples=thinning * num_samples
        )
        return drawn.z[:, 0, thinning - 1 :: thinning]

    return draw
