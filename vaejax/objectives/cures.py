"""Objectives against posterior collapse and imbalance: free bits, the decoder's std in closed form, an MMD term.

Each maximises something other than a bound and reports the plain ELBO beside it, in `info.elbo`.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models
from vaejax.distributions import LOG_STD_BOUND, Params, two_sample
from vaejax.estimators import EstimateFunction, Estimator, effective_sample_size, monte_carlo
from vaejax.models import VAE
from vaejax.objectives.objective import Objective, ObjectiveInfo, make_penalized
from vaejax.objectives.weights import Weight, check_weight, weight_at


def make_free_bits(
    vae: VAE,
    free_bits: float | Array,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 1,
    *,
    per: Literal["unit", "code"] = "unit",
    beta: Weight = 1.0,
    chunk_size: int | None = None,
) -> Objective:
    """ELBO whose KL costs nothing below a threshold, so that nothing is gained by switching the code off.

        E_q[log p(x|z)] - beta sum_j max(free_bits, KL_j),  KL_j the mean over the batch of the KL of unit j

    Args:
        vae: the model, with a KL in closed form.
        free_bits: nats that are free, of each unit or of the whole code.
        estimator: how the gradient of the first term is estimated; by default `estimators.pathwise()`.
        num_samples: K, samples of z for each example.
        per: "unit" gives `free_bits` to each unit of the code, "code" to all of them together.
        beta: weight of the KL, a number or a function of the step.
        chunk_size: as in `objectives.make_elbo`.

    Returns:
        An objective; its value is not above the ELBO (of weight beta), and `info.elbo` is the plain one.

    Raises:
        ValueError: if free_bits is negative, an option unknown; and as `objectives.make_elbo`.

    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> value, info = make_free_bits(vae, 0.5)(params, jax.random.key(1), x)
    >>> bool(value <= info.elbo)
    True

    Source: Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", appendix C.8.
    """
    if not isinstance(free_bits, Tracer) and not 0 <= free_bits < math.inf:
        raise ValueError(f"free_bits must be a number of nats of at least 0; got {free_bits!r}")
    if per not in ("unit", "code"):
        raise ValueError(f"per must be 'unit' or 'code'; got {per!r}")

    def penalty(params: Params, key: Key[Array, ""], q: dist.Distribution, prior: dist.Distribution):
        del params, key
        rates = distributions.kl_per_unit(q, prior)
        per_unit = rates.reshape(-1, rates.shape[-1]).mean(axis=0)
        return jnp.maximum(per_unit if per == "unit" else per_unit.sum(), free_bits).sum()

    return make_penalized(vae, estimator, num_samples, beta, chunk_size, penalty)


def make_info_vae(
    vae: VAE,
    mmd_weight: Weight,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 1,
    *,
    beta: Weight = 0.0,
    bandwidth: float | Array | None = None,
    chunk_size: int | None = None,
) -> Objective:
    """ELBO with a KL of weight beta, and a maximum mean discrepancy that draws the aggregate posterior to the prior.

        E_q[log p(x|z)] - beta KL(q(z|x) || p(z)) - mmd_weight MMD^2(q(z), p(z))

    The KL takes information about x out of each code; the discrepancy only asks the codes of a batch to look, together,
    like the prior. It is estimated from one sample of q for each example and as many of p, with a Gaussian kernel.

    Args:
        vae: the model, with a reparameterized posterior.
        mmd_weight: nats per unit of the squared discrepancy, a number or a function of the step.
        estimator: how the gradient of the first term is estimated; by default `estimators.pathwise()`.
        num_samples: K, samples of z for each example.
        beta: weight of the KL, a number or a function of the step. InfoVAE's alpha is 1 - beta; MMD-VAE's beta is 0.
        bandwidth: of the kernel, by default sqrt(latent_dim), the distance that two codes of the prior have but for a
            factor of sqrt(2).
        chunk_size: as in `objectives.make_elbo`.

    Returns:
        An objective, no bound; `info.elbo` is the plain one.

    Raises:
        ValueError: if a weight is negative, q cannot be reparameterized, the batch has fewer than two examples; and as
            `objectives.make_elbo`.

    Source: Zhao, Song & Ermon 2019, "InfoVAE: balancing learning and inference in variational autoencoders".
    """
    check_weight("mmd_weight", mmd_weight)
    if bandwidth is not None and not isinstance(bandwidth, Tracer) and not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be a positive number; got {bandwidth!r}")

    def discrepancy(params: Params, key: Key[Array, ""], q: dist.Distribution, prior: dist.Distribution):
        del params
        if not q.has_rsample:
            raise ValueError(
                f"the discrepancy needs a posterior that can be reparameterized; got {distributions.name_of(q)}: "
                "choose posterior='gaussian'"
            )
        q_key, prior_key = jax.random.split(key)
        codes = jnp.asarray(q.rsample(q_key))
        codes = codes.reshape(-1, codes.shape[-1])
        from_prior = monte_carlo.over_samples(lambda key: distributions.sample(prior, key), prior_key, len(codes))
        width = math.sqrt(codes.shape[-1]) if bandwidth is None else bandwidth
        return two_sample.maximum_mean_discrepancy(codes, from_prior, bandwidth=width).estimate

    return make_penalized(vae, estimator, num_samples, beta, chunk_size, None, (mmd_weight, discrepancy))


def make_optimal_std_elbo(
    vae: VAE,
    num_samples: int = 1,
    *,
    beta: Weight = 1.0,
    min_std: float = math.exp(-LOG_STD_BOUND),
    chunk_size: int | None = None,
) -> Objective:
    """ELBO of a Gaussian likelihood whose one std is always the best there is: the root of the mean squared error.

        -d/2 (1 + log(2 pi s^2)) - beta KL,  s^2 = E (x - E[x|z])^2, the mean over batch, samples and the d numbers

    The std that the decoder brings along is not looked at, and gets no gradient; `with_optimal_std` sets it when
    training is done. At a fixed residual the best variance is the mean squared residual and not 0: there is no weight
    of the reconstruction to tune.

    Args:
        vae: the model, with the likelihood "gaussian_shared_std" and a reparameterized posterior.
        num_samples: K, samples of z for each example.
        beta: weight of the KL.
        min_std: floor of s, without which a perfect reconstruction has an infinite likelihood.
        chunk_size: as in `objectives.make_elbo`.

    Returns:
        An objective.

    Raises:
        ValueError: if min_std is not positive; when called, if the likelihood is another; and as
            `objectives.make_elbo`.

    Source: Rybkin, Daniilidis & Levine 2021, "Simple and effective VAE training with calibrated decoders".
    """
    checks.check_count("num_samples", num_samples)
    check_weight("beta", beta)
    if not 0 < min_std < math.inf:
        raise ValueError(f"min_std must be a positive number, in the units of the data; got {min_std!r}")

    def objective(params: Params, key: Key[Array, ""], x: ArrayLike, *, step: ArrayLike | None = None):
        weight = weight_at("beta", beta, step)
        squares, log_w_but_likelihood, kl, size = _squared_residuals(vae, params, key, x, num_samples, chunk_size)
        variance = jnp.maximum(squares.mean() / size, min_std**2)
        log_likelihood = -0.5 * (squares / variance + size * jnp.log(2 * math.pi * variance))
        elbo = log_likelihood.mean(axis=0) - kl
        per_example = log_likelihood.mean(axis=0) - weight * kl
        value = per_example.mean()
        log_w = log_likelihood + log_w_but_likelihood
        info = ObjectiveInfo(
            bound=value,
            elbo=elbo.mean(),
            reconstruction=log_likelihood.mean(),
            kl=kl.mean(),
            per_example=per_example,
            ess=effective_sample_size(log_w),
            log_w=log_w,
        )
        return value, lax.stop_gradient(info)

    return objective


def with_optimal_std(
    vae: VAE, params: Params, key: Key[Array, ""], x: ArrayLike, num_samples: int = 10, *, chunk_size: int = 10
) -> Params:
    """The parameters with the decoder's std set to the best there is for x: the root of the mean squared error.

    Args:
        vae: a model with the likelihood "gaussian_shared_std".
        params: its parameters.
        key: consumed.
        x: data, (*batch, *data_shape).
        num_samples: of z for each example.
        chunk_size: samples at once.

    Raises:
        ValueError: if the decoder has no shared std, or x is refused by `models.check_data`.
    """
    models.check_data(vae, params, x)
    squares, _, _, size = _squared_residuals(vae, params, key, x, num_samples, chunk_size)
    head = params["decoder"]["head"]
    raw = distributions.unbounded_log_std(0.5 * jnp.log(squares.mean() / size))
    return {**params, "decoder": {**params["decoder"], "head": {"log_std": raw.astype(head["log_std"].dtype)}}}


def _squared_residuals(
    vae: VAE, params: Params, key: Key[Array, ""], x: ArrayLike, num_samples: int, chunk_size: int | None
) -> tuple[Float[Array, "K *batch"], Float[Array, "K *batch"], Float[Array, " *batch"], int]:
    """|x - E[x|z]|^2 and log p(z) - log q(z) of K reparameterized samples, the KL, and the numbers in an example."""
    head = params["decoder"]["head"]
    if set(head) != {"log_std"} or head["log_std"].shape != ():
        raise ValueError(
            "the best std is one for all numbers: expected a decoder that has it, likelihood='gaussian_shared_std'; "
            f"got one whose head has {sorted(head) or 'no parameters'}"
        )
    q, prior = vae.encode(params, x), vae.prior(params)
    x = jnp.asarray(x)
    if not q.has_rsample:
        raise ValueError(
            f"expected a posterior that can be reparameterized; got {distributions.name_of(q)}: choose "
            "posterior='gaussian'"
        )

    def sample_term(key):
        z = q.rsample(key)
        squares = ((x - vae.decode(params, z).mean) ** 2).reshape(*q.batch_shape, -1).sum(axis=-1)
        return squares, distributions.log_prob(prior, z) - distributions.log_prob(q, z)

    squares, rest = monte_carlo.over_samples(sample_term, key, num_samples, chunk_size)
    return squares, rest, distributions.kl_divergence(q, prior), x.size // squares[0].size
