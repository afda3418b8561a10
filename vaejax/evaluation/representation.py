"""What the latents say about the data: rate and distortion, active units, mutual information, aggregate posterior."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from vaejax import distributions, records
from vaejax.distributions import Params, two_sample
from vaejax.estimators import monte_carlo
from vaejax.evaluation.estimates import mean_and_error
from vaejax.evaluation.examples import checked_examples, over_batch, posterior_means, posterior_moments
from vaejax.models import VAE


class RateDistortion(NamedTuple):
    """The two parts of the ELBO, averaged over examples, in nats; elbo = -(rate + distortion).

    Attributes:
        rate: KL(q(z|x) || p(z)), what the latent costs. ()
        rate_error: its standard error over examples. ()
        distortion: -E_q log p(x|z), what is lost. ()
        distortion_error: its standard error over examples, which includes the error over samples. ()
        rate_per_unit: the rate of each unit of the latent; their sum is the rate. (latent_dim,)
        num_samples: samples of z for each example, in the distortion.
    """

    rate: Float[Array, ""]
    rate_error: Float[Array, ""]
    distortion: Float[Array, ""]
    distortion_error: Float[Array, ""]
    rate_per_unit: Float[Array, " latent_dim"]
    num_samples: int

    __repr__ = records.short_repr


class ActiveUnits(NamedTuple):
    """Which latent units say anything about the data.

    Attributes:
        variance: variance over the data of each unit's posterior mean. (latent_dim,)
        active: where the variance is above the threshold. (*threshold, latent_dim)
        num_active: how many units are active. (*threshold,)
    """

    variance: Float[Array, " latent_dim"]
    active: Bool[Array, "*threshold latent_dim"]
    num_active: Int[Array, "*threshold"]

    __repr__ = records.short_repr


class AggregatePosterior(NamedTuple):
    """The mixture q(z) = (1/N) sum_n q(z|x_n) of all N examples, and how far it is from the prior; in nats.

    rate = mutual_information + kl_to_prior: what the latent tells about x, and the cost of an aggregate posterior that
    is not the prior.

    Attributes:
        mutual_information: I_q(x; z) = (1/N) sum_n KL(q(z|x_n) || q(z)), at most log N. ()
        mutual_information_error: its standard error over examples and samples. ()
        kl_to_prior: KL(q(z) || p(z)). ()
        kl_to_prior_error: its standard error over examples and samples. ()
        mean: of q(z). (latent_dim,)
        mean_of_squared_means: (1/N) sum_n mu_n^2. (latent_dim,)
        mean_of_variances: (1/N) sum_n sigma_n^2. The sum of the two is the second moment of q(z), which is 1 for a
            standard normal prior. (latent_dim,)
        energy_distance: between at most 2,000 samples of q(z) and as many of p(z), and its standard error.
        p_value: of the permutation test that both come from one distribution, on at most 1,000 samples each. ()
        num_examples: N.
    """

    mutual_information: Float[Array, ""]
    mutual_information_error: Float[Array, ""]
    kl_to_prior: Float[Array, ""]
    kl_to_prior_error: Float[Array, ""]
    mean: Float[Array, " latent_dim"]
    mean_of_squared_means: Float[Array, " latent_dim"]
    mean_of_variances: Float[Array, " latent_dim"]
    energy_distance: two_sample.Distance
    p_value: Float[Array, ""]
    num_examples: int

    __repr__ = records.short_repr


class MutualInformation(NamedTuple):
    """What a sample z of q(z|x) tells about which of N examples it belongs to, in nats.

    Attributes:
        estimate: I_q(x; z), at most log N. ()
        standard_error: over examples and samples. ()
        num_examples: N.
    """

    estimate: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_examples: int

    __repr__ = records.short_repr


def rate_distortion(
    vae: VAE, params: Params, key: Key[Array, ""], x: ArrayLike, num_samples: int = 10, *, batch_size: int = 100
) -> RateDistortion:
    """Rate KL(q(z|x) || p(z)) and distortion -E_q[log p(x|z)], the two parts of the ELBO, averaged over examples.

    The rate is in closed form, for each unit of the latent; the distortion is a mean over samples of z.

    Args:
        vae: the model, with a posterior whose units are independent.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (n, *data_shape), n >= 2.
        num_samples: samples of z for each example.
        batch_size: examples at once.

    Returns:
        Both in nats per example, with standard errors over examples, and the rate of each unit.

    Raises:
        ValueError: if there are fewer than two examples, a number is not a positive integer, `models.check_data`
            refuses x, or the units of q are not independent.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = rate_distortion(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> bool(jnp.allclose(result.rate_per_unit.sum(), result.rate))
    True

    Source: Alemi et al. 2018, "Fixing a broken ELBO".
    """
    x = checked_examples(vae, params, x, least=2, num_samples=num_samples, batch_size=batch_size)
    rates, distortions = _rates_and_distortions(vae, num_samples, batch_size, params, key, x)
    return RateDistortion(
        *mean_and_error(rates.sum(axis=1)), *mean_and_error(distortions), rates.mean(axis=0), num_samples
    )


def active_units(
    vae: VAE, params: Params, x: ArrayLike, threshold: ArrayLike = 0.01, *, batch_size: int = 1000
) -> ActiveUnits:
    """Units of the latent whose posterior mean varies over the data: Var_x(E_q[z_j]) > threshold.

    Where units are neither dead nor alive, the number of active ones depends on the threshold; several thresholds at
    once show whether it does.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), n >= 2; take all you have, because a rare feature varies in few examples.
        threshold: on the variance, one or several. (*threshold,)
        batch_size: examples encoded at once.

    Returns:
        The variance of each unit, in squared units of the latent, and which units are active at each threshold.

    Raises:
        ValueError: if there are fewer than two examples, batch_size is not a positive integer, or `models.check_data`
            refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> units = active_units(vae, vae.init(jax.random.key(0)), jnp.eye(3), threshold=jnp.array([0.001, 0.01]))
    >>> units.variance.shape, units.num_active.shape
    ((2,), (2,))

    Source: Burda, Grosse & Salakhutdinov 2015, section 5.
    """
    x = checked_examples(vae, params, x, least=2, batch_size=batch_size)
    variance = posterior_means(vae, params, x, batch_size).var(axis=0)
    threshold = jnp.asarray(threshold, variance.dtype)[..., None]
    active = jnp.broadcast_to(variance, (*threshold.shape[:-1], *variance.shape)) > threshold
    return ActiveUnits(variance, active, active.sum(axis=-1))


def mutual_information(
    vae: VAE, params: Params, key: Key[Array, ""], x: ArrayLike, *, batch_size: int = 100
) -> MutualInformation:
    """Mutual information I_q(x; z) of an example and its latent, where x is one of the N given examples.

    It is estimated by the mean of log q(z_n|x_n) - log q(z_n), with one z_n from each q(z|x_n). The mixture q(z) =
    (1/N) sum_m q(z|x_m) is summed in full, so the estimate has no bias and costs N^2 densities. It cannot exceed log N.
    Near log N the latents tell all N examples apart, and the information about the data at large may be greater.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (n, *data_shape), n >= 2.
        batch_size: latents at once, each against all N posteriors.

    Returns:
        The estimate in nats, and its standard error over examples and samples.

    Raises:
        ValueError: as `active_units`.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = mutual_information(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> bool(result.estimate < jnp.log(3))
    True

    Source: Hoffman & Johnson 2016, "ELBO surgery".
    """
    x = checked_examples(vae, params, x, least=2, batch_size=batch_size)
    log_q, log_mixture, _, _ = _aggregate_terms(vae, batch_size, params, key, x)
    return MutualInformation(*mean_and_error(log_q - log_mixture), len(x))


def aggregate_posterior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    *,
    num_permutations: int = 199,
    batch_size: int = 100,
) -> AggregatePosterior:
    """The aggregate posterior q(z) = (1/N) sum_n q(z|x_n) against the prior p(z).

    The further q(z) is from the prior, the worse are samples that the decoder makes of the prior's latents.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), n >= 2.
        num_permutations: of the two-sample test, whose p-value is at least 1 / (num_permutations + 1).
        batch_size: as in `mutual_information`.

    Returns:
        Mutual information and KL to the prior in nats with standard errors, moments, and a two-sample test.

    Raises:
        ValueError: as `active_units`.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = aggregate_posterior(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> result.mean_of_variances.shape
    (2,)

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Makhzani et al. 2015 for the name.
    """
    x = checked_examples(vae, params, x, least=2, batch_size=batch_size, num_permutations=num_permutations)
    posterior_key, prior_key, test_key = jax.random.split(key, 3)
    log_q, log_mixture, log_prior, z = _aggregate_terms(vae, batch_size, params, posterior_key, x)
    from_prior = _prior_samples(vae, min(len(x), 2000), params, prior_key)
    z, from_prior = (array.astype(log_q.dtype) for array in (z, from_prior))  # of discrete latents, too
    means, variances = posterior_moments(vae, params, x)
    return AggregatePosterior(
        *mean_and_error(log_q - log_mixture),
        *mean_and_error(log_mixture - log_prior),
        mean=means.mean(axis=0),
        mean_of_squared_means=(means**2).mean(axis=0),
        mean_of_variances=variances.mean(axis=0),
        energy_distance=two_sample.energy_distance(z[:2000], from_prior[:2000]),
        p_value=two_sample.p_value(test_key, z[:1000], from_prior[:1000], num_permutations=num_permutations),
        num_examples=len(x),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rates_and_distortions(vae, num_samples, batch_size, params, key, x) -> tuple[Array, Array]:
    """(n, latent_dim) and (n,)."""
    prior = vae.prior(params)

    def one_example(index, x):
        q = vae.encode(params, x)
        log_likelihoods = monte_carlo.over_samples(
            lambda key: distributions.data_log_prob(vae.decode(params, distributions.sample(q, key)), x),
            jax.random.fold_in(key, index),
            num_samples,
        )
        return distributions.kl_per_unit(q, prior), -log_likelihoods.mean()

    return over_batch(one_example, vae, params, x, batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _aggregate_terms(vae, batch_size, params, key, x) -> tuple[Array, Array, Array, Array]:
    """Log q(z_n|x_n), log q(z_n), log p(z_n), all (n,), and the latents z_n (n, latent_dim)."""
    posteriors = _encode_in_batches(vae, params, x)
    prior = vae.prior(params)

    def one_example(index, x):
        own = vae.encode(params, x)
        z = distributions.sample(own, jax.random.fold_in(key, index))
        log_densities = distributions.log_prob(posteriors, z)
        log_mixture = jax.nn.logsumexp(log_densities) - math.log(log_densities.shape[0])
        return distributions.log_prob(own, z), log_mixture, distributions.log_prob(prior, z), z

    return over_batch(one_example, vae, params, x, batch_size)


def _encode_in_batches(vae: VAE, params: Params, x: Array, batch_size: int = 1000) -> Any:
    """All posteriors as one distribution of batch shape (n,), encoded `batch_size` at a time."""
    like = jax.eval_shape(vae.encode, params, x)
    leaves = monte_carlo.over_examples(lambda example: jax.tree.leaves(vae.encode(params, example)), x, batch_size)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prior_samples(vae: VAE, number: int, params: Params, key) -> Array:
    prior = vae.prior(params)
    return monte_carlo.over_samples(lambda key: distributions.sample(prior, key), key, number)
