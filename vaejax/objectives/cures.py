"""Objectives against posterior collapse and imbalance: free bits, the decoder's std in closed form, an MMD term.

Each maximises something other than a bound and reports the plain ELBO beside it, in `info.elbo`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, distributions, estimators, models
from vaejax.distributions import LOG_STD_BOUND, Params, two_sample
from vaejax.estimators import EstimateFunction, Estimator, monte_carlo
from vaejax.models import VAE
from vaejax.objectives.objective import Call, Objective, Parts, build_objective, log_densities, objective_info
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
    """ELBO whose KL costs nothing below a threshold, so that nothing is gained by switching latents off.

        E_q[log p(x|z)] - beta sum_j max(free_bits, KL_j),  KL_j the mean over the batch of the KL of latent j

    Args:
        vae: the model, with a KL in closed form.
        free_bits: nats that are free, of each latent or of all of them together.
        estimator: how the gradient of the first term is estimated; by default `estimators.pathwise()`.
        num_samples: K, samples of z for each example.
        per: "unit" gives `free_bits` to each latent, "code" to all of them together.
        beta: weight of the KL, a number or a function of the step.
        chunk_size: as in `objectives.make_elbo`.

    Returns:
        An objective, as `objectives.make_elbo` does. Its value is at most the ELBO with that beta; `info.elbo` and
        `info.per_example` are the plain ELBO.

    Raises:
        ValueError: if free_bits is negative, an option unknown; and as `objectives.make_elbo`.

    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> value, info = make_free_bits(vae, 0.5)(params, jax.random.key(1), x)
    >>> bool(value <= info.elbo)
    True

    Source: Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", appendix C.8.
    """
    checks.check_number("free_bits", free_bits, least=0, advice="they are nats")
    checks.check_choice("per", per, ("unit", "code"))

    def penalized(call: Call, reconstruction: Array, kl: Array) -> Array:
        del kl
        rates = distributions.kl_per_unit(call.q, call.prior)
        per_unit = rates.reshape(-1, rates.shape[-1]).mean(axis=0)
        cost = jnp.maximum(per_unit if per == "unit" else per_unit.sum(), free_bits).sum()
        return reconstruction - call.weight * cost

    return _penalized_reconstruction(vae, estimator, num_samples, beta, chunk_size, penalized)


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
    """ELBO with a KL of weight beta, and a maximum mean discrepancy (MMD) that draws the latents to the prior.

        E_q[log p(x|z)] - beta KL(q(z|x) || p(z)) - mmd_weight MMD^2(q(z), p(z))

    The KL takes information about x out of the latents of each example. The discrepancy only asks that the latents of
    a batch, together, are distributed like the prior. It is estimated from one sample of q for each example and as many
    of p, with a Gaussian kernel.

    Args:
        vae: the model, with a reparameterized posterior.
        mmd_weight: nats per unit of the squared discrepancy, a number or a function of the step.
        estimator: how the gradient of the first term is estimated; by default `estimators.pathwise()`.
        num_samples: K, samples of z for each example.
        beta: weight of the KL, a number or a function of the step. InfoVAE's alpha is 1 - beta; MMD-VAE's beta is 0.
        bandwidth: of the kernel, in units of the latents; by default sqrt(latent_dim), which is about the distance of
            two samples of the prior, divided by sqrt(2).
        chunk_size: as in `objectives.make_elbo`.

    Returns:
        An objective, as `objectives.make_elbo` does. Its value is no bound; `info.elbo` and `info.per_example` are the
        plain ELBO.

    Raises:
        ValueError: if a weight is negative, q cannot be reparameterized, the batch has fewer than two examples; and as
            `objectives.make_elbo`.

    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> value, info = make_info_vae(vae, mmd_weight=10.0, beta=1.0)(params, jax.random.key(1), x)
    >>> bool(value != info.elbo)
    True

    Source: Zhao, Song & Ermon 2019, "InfoVAE: balancing learning and inference in variational autoencoders".
    """
    check_weight("mmd_weight", mmd_weight)
    if bandwidth is not None:
        checks.check_number("bandwidth", bandwidth, above=0)

    def penalized(call: Call, reconstruction: Array, kl: Array) -> Array:
        _check_reparameterized("the discrepancy", call.q)
        q_key, prior_key = jax.random.split(call.key)
        z = distributions.rsample(call.q, q_key)
        z = z.reshape(-1, z.shape[-1])
        from_prior = monte_carlo.over_samples(lambda key: distributions.sample(call.prior, key), prior_key, len(z))
        width = math.sqrt(z.shape[-1]) if bandwidth is None else bandwidth
        discrepancy = two_sample.maximum_mean_discrepancy(z, from_prior, bandwidth=width).estimate
        weight = weight_at("mmd_weight", mmd_weight, call.step)
        return reconstruction - call.weight * kl.mean() - weight * discrepancy

    return _penalized_reconstruction(vae, estimator, num_samples, beta, chunk_size, penalized)


def make_optimal_std_elbo(
    vae: VAE,
    num_samples: int = 1,
    *,
    beta: Weight = 1.0,
    min_std: float = math.exp(-LOG_STD_BOUND),
    chunk_size: int | None = None,
) -> Objective:
    """ELBO of a Gaussian likelihood whose one std is always the best: the root of the mean squared error.

        -d/2 (1 + log(2 pi s^2)) - beta KL,  s^2 = E (x - E[x|z])^2, the mean over batch, samples and the d numbers

    The decoder's own std is not used and gets no gradient; `with_optimal_std` sets it when training is done. The
    reconstruction needs no weight, because the best variance follows the error.

    Args:
        vae: the model, with the likelihood "gaussian_shared_std" and a reparameterized posterior.
        num_samples: K, samples of z for each example.
        beta: weight of the KL, a number or a function of the step.
        min_std: floor of s, in the units of the data; without one a perfect reconstruction has an infinite likelihood.
        chunk_size: as in `objectives.make_elbo`.

    Returns:
        An objective, as `objectives.make_elbo` does; its gradient is the pathwise one. `info.elbo` is the plain ELBO
        of the decoder with the best std.

    Raises:
        ValueError: if min_std is not positive; when called, if the likelihood is another; and as
            `objectives.make_elbo`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (7, 3))
    >>> value, info = make_optimal_std_elbo(vae)(params, jax.random.key(2), x)
    >>> info.per_example.shape
    (7,)

    Source: Rybkin, Daniilidis & Levine 2021, "Simple and effective VAE training with calibrated decoders".
    """
    checks.check_number("min_std", min_std, above=0, advice="it has the units of the data")

    def parts_of(call: Call) -> Parts:
        _check_one_std(call.params, call.q)

        def integrand(z: Any, q: Any):
            squares = _squared_errors(call.model, call.params, z, call.x)
            return squares, (squares, distributions.log_prob(call.prior, z) - distributions.own_log_prob(q, z))

        def finish(bound: Array, terms: tuple[Array, Array]):
            del bound
            squares, log_w_but_likelihood = terms
            kl = distributions.kl_divergence(call.q, call.prior)
            size = call.x.size // squares[0].size
            variance = jnp.maximum(squares.mean() / size, min_std**2)
            log_likelihood = -0.5 * (squares / variance + size * jnp.log(2 * math.pi * variance))
            elbo = log_likelihood.mean(axis=0) - kl
            per_example = log_likelihood.mean(axis=0) - call.weight * kl
            value = per_example.mean()
            log_w = log_likelihood + log_w_but_likelihood
            return value, objective_info(value, per_example, elbo, log_likelihood, kl, log_w)

        return integrand, finish

    mean, estimator = estimators.mean_reduction(), estimators.pathwise()
    return build_objective(vae, mean, estimator, num_samples, beta, chunk_size, parts_of, closed_form_kl=True)


def with_optimal_std(
    vae: VAE, params: Params, key: Key[Array, ""], x: ArrayLike, num_samples: int = 10, *, chunk_size: int = 10
) -> Params:
    """The parameters with the decoder's std set to the best one for x: the root of the mean squared error.

        s^2 = E (x - E[x|z])^2, the mean over batch, samples and the numbers of an example

    Args:
        vae: a model with the likelihood "gaussian_shared_std".
        params: its parameters.
        key: consumed.
        x: data, (*batch, *data_shape).
        num_samples: of z for each example.
        chunk_size: samples at once.

    Returns:
        New parameters; all but the decoder's `head` are those that were given.

    Raises:
        ValueError: if the decoder has no shared std, q cannot be reparameterized, or x is refused by
            `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> x = 5 * jax.random.normal(jax.random.key(1), (100, 3))
    >>> params = with_optimal_std(vae, vae.init(jax.random.key(0)), jax.random.key(2), x)
    >>> bool(distributions.bounded_log_std(params["decoder"]["head"]["log_std"]) > jnp.log(4.0))
    True
    """
    models.check_data(vae, params, x)
    vae, x = models.given(vae, x)
    q, x = vae.encode(params, x), jnp.asarray(x)
    _check_one_std(params, q)
    squares = monte_carlo.over_samples(
        lambda key: _squared_errors(vae, params, distributions.rsample(q, key), x), key, num_samples, chunk_size
    )
    variance = squares.mean() / (x.size // squares[0].size)
    head = params["decoder"]["head"]
    raw = distributions.unbounded_log_std(0.5 * jnp.log(variance))
    return {**params, "decoder": {**params["decoder"], "head": {"log_std": raw.astype(head["log_std"].dtype)}}}


def _penalized_reconstruction(
    vae: VAE,
    estimator: Estimator | EstimateFunction | None,
    num_samples: int,
    beta: Weight,
    chunk_size: int | None,
    penalized: Callable[[Call, Array, Array], Array],
) -> Objective:
    """E_q[log p(x|z)] less penalties of the whole batch: `penalized(call, reconstruction, kl)` is the value."""

    def parts_of(call: Call) -> Parts:
        kl = distributions.kl_divergence(call.q, call.prior)

        @estimators.Broadcasting
        def integrand(z: Any, q: Any):
            reconstruction, log_prior, log_q = log_densities(call, z, q)
            return reconstruction, (reconstruction, reconstruction + log_prior - log_q)

        def finish(bound: Array, terms: tuple[Array, Array]):
            reconstruction, log_w = terms
            value = penalized(call, bound.mean(), kl)
            elbo = reconstruction.mean() - kl.mean()
            return value, objective_info(value, reconstruction.mean(axis=0) - kl, elbo, reconstruction, kl, log_w)

        return integrand, finish

    return build_objective(
        vae,
        estimators.mean_reduction(),
        estimator,
        num_samples,
        beta,
        chunk_size,
        parts_of,
        closed_form_kl=True,
        finish_draws=True,
    )


def _squared_errors(vae: VAE, params: Params, z: Array, x: Array) -> Array:
    """|x - E[x|z]|^2 of each example, (*batch,)."""
    p = vae.decode(params, z)
    if distributions.mask_of(p) is not None:
        raise ValueError("the best std is of whole examples; got a batch with a mask: use make_elbo, which takes one")
    return ((x - p.mean) ** 2).reshape(*z.shape[:-1], -1).sum(axis=-1)


def _check_one_std(params: Params, q: dist.Distribution) -> None:
    """Refuse a decoder without one std for all numbers, and a posterior without reparameterized samples."""
    head = params["decoder"]["head"]
    if set(head) != {"log_std"} or head["log_std"].shape != ():
        raise ValueError(
            "the best std is one for all numbers: expected a decoder that has it, likelihood='gaussian_shared_std'; "
            f"got one whose head has {sorted(head) or 'no parameters'}"
        )
    _check_reparameterized("the best std", q)


def _check_reparameterized(what: str, q: dist.Distribution) -> None:
    if not q.has_rsample:
        raise ValueError(
            f"{what} needs a posterior that can be reparameterized; got {distributions.name_of(q)}: choose "
            "posterior='gaussian'"
        )
