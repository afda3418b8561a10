"""The true posterior p(z|x) by Markov chains, beside which q can be held."""

import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Key
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS

from vaejax import checks, distributions, models
from vaejax.distributions import Params
from vaejax.inference import per_example
from vaejax.models import VAE

_LOG = logging.getLogger(__name__)


class PosteriorSample(NamedTuple):
    """Samples of the true posterior p(z|x) by the No-U-Turn sampler.

    Attributes:
        z: (*batch, num_chains, num_samples, latent_dim)
        mean: over all chains. (*batch, latent_dim)
        std: over all chains. (*batch, latent_dim)
        r_hat: split R-hat of each unit; near 1 where the chains agree. (*batch, latent_dim)
    """

    z: Float[Array, "*batch chains samples latent_dim"]
    mean: Float[Array, "*batch latent_dim"]
    std: Float[Array, "*batch latent_dim"]
    r_hat: Float[Array, "*batch latent_dim"]


def sample_posterior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    start: dist.Distribution | None = None,
) -> PosteriorSample:
    """The posterior itself, by numpyro's No-U-Turn sampler: asymptotically exact, and thousands of times slower than q.

    Where split R-hat is above 1.05, a warning is logged.

    Args:
        vae: the model, with a continuous code.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape); the chains of one example after those of another, in one compiled program.
        num_chains: for each example, side by side.
        num_warmup: steps that adapt step size and mass, and are thrown away.
        num_samples: of each chain.
        start: what the chains' first codes are drawn from, of batch shape (); by default each example's q(z|x). Split
            R-hat says whether the chains agree, and so nothing of a mode that none of them started near: from
            `vae.prior(params)` they start far apart, and tell by a large R-hat that they stay in different modes.

    Raises:
        ValueError: if a number is not a positive integer, num_samples is below 4, the code is discrete, `start` is of
            another shape, or x has no batch axis or is refused by `models.check_data`.

    Source: Hoffman & Gelman 2014, "The No-U-Turn sampler".
    """
    counts = {"num_chains": num_chains, "num_warmup": num_warmup, "num_samples": num_samples}
    for name, number in counts.items():
        checks.check_count(name, number)
    if num_samples < 4:
        raise ValueError(f"num_samples must be at least 4, for R-hat compares halves of chains; got {num_samples}")
    models.check_data(vae, params, x)
    per_example.check_continuous(vae, params)
    event_shape = vae.prior(params).event_shape
    if start is not None and (start.batch_shape, start.event_shape) != ((), event_shape):
        raise ValueError(
            f"expected a start of batch shape () and event shape {event_shape}; got {start.batch_shape} and "
            f"{start.event_shape}"
        )

    @jax.jit
    def first(params, keys, example):
        q = vae.encode(params, example[None]) if start is None else start
        return jax.vmap(lambda key: distributions.sample(q, key).reshape(event_shape))(keys)

    def model(params, x):
        z = numpyro.sample("z", vae.prior(params))
        numpyro.factor("log_likelihood", distributions.data_log_prob(vae.decode(params, z), x))

    # Inside numpyro 0.22, which also uses one key for several things.
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
        x = models.with_batch_axis(vae, params, x)
        for example_key, example in zip(jax.random.split(key, len(x)), x, strict=True):
            start_key, run_key = jax.random.split(example_key)
            codes = first(params, jax.random.split(start_key, num_chains), example)
            chains.run(run_key, params, example, init_params={"z": codes if num_chains > 1 else codes[0]})
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
