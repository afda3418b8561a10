"""What the code says about the data: rate and distortion, active units, mutual information, the aggregate posterior."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from vaejax import checks, distributions, models
from vaejax.distributions import Params, two_sample
from vaejax.estimators import monte_carlo
from vaejax.models import VAE


class RateDistortion(NamedTuple):
    """The two parts of the ELBO, averaged over examples, in nats; elbo = -(rate + distortion).

    Attributes:
        rate: KL(q(z|x) || p(z)), what the code costs. ()
        rate_error: its standard error over examples. ()
        distortion: -E_q log p(x|z), what is lost. ()
        distortion_error: its standard error over examples, samples within. ()
        rate_per_unit: the rate of each unit of the code; their sum is the rate. (latent_dim,)
        num_samples: of z for each example, in the distortion.
    """

    rate: Float[Array, ""]
    rate_error: Float[Array, ""]
    distortion: Float[Array, ""]
    distortion_error: Float[Array, ""]
    rate_per_unit: Float[Array, " latent_dim"]
    num_samples: int


class ActiveUnits(NamedTuple):
    """Which latent units carry anything about the data.

    Attributes:
        variance: variance over the data of the posterior mean of each unit. (latent_dim,)
        active: where the variance is above the threshold. (*threshold, latent_dim)
        num_active: how many are. (*threshold)
    """

    variance: Float[Array, " latent_dim"]
    active: Bool[Array, "*threshold latent_dim"]
    num_active: Int[Array, "*threshold"]


class AggregatePosterior(NamedTuple):
    """The mixture q(z) = (1/N) sum_n q(z|x_n) of all N examples, and how far it is from the prior; in nats.

    rate = mutual_information + kl_to_prior: what the code tells about x, and what it wastes by not filling the prior.

    Attributes:
        mutual_information: I_q(x; z) = (1/N) sum_n KL(q(z|x_n) || q(z)), at most log N. ()
        mutual_information_error: its standard error over examples and samples. ()
        kl_to_prior: KL(q(z) || p(z)). ()
        kl_to_prior_error: its standard error over examples and samples. ()
        mean: of q(z). (latent_dim,)
        mean_of_squared_means: (1/N) sum_n mu_n^2. (latent_dim,)
        mean_of_variances: (1/N) sum_n sigma_n^2. The sum of the two is the second moment of q(z); of a standard normal
            prior it is 1. (latent_dim,)
        energy_distance: between at most 2,000 samples of q(z) and as many of p(z), and its standard error.
        p_value: of the permutation test that they come from one distribution, on at most 1,000 of each. ()
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


class MutualInformation(NamedTuple):
    """What a sample z of q(z|x) tells about which of N examples x is, in nats.

    Attributes:
        estimate: I_q(x; z), at most log N. ()
        standard_error: over examples and samples. ()
        num_examples: N.
    """

    estimate: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_examples: int


def rate_distortion(
    vae: VAE, params: Params, key: Key[Array, ""], x: ArrayLike, num_samples: int = 10, *, batch_size: int = 100
) -> RateDistortion:
    """Rate and distortion of a model, the rate in closed form and by units of the code.

    Args:
        vae: the model, with a posterior whose units are independent.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (n, *data_shape), n >= 2.
        num_samples: of z for each example.
        batch_size: examples at once.

    Raises:
        ValueError: if there are fewer than two examples, a number is not a positive integer, x is refused by
            `models.check_data`, or the units of q are not independent.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = rate_distortion(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> bool(jnp.allclose(result.rate_per_unit.sum(), result.rate))
    True

    Source: Alemi et al. 2018, "Fixing a broken ELBO".
    """
    x = _checked(vae, params, x, num_samples=num_samples, batch_size=batch_size)
    rates, distortions = _rates_and_distortions(vae, num_samples, batch_size, params, key, x)
    totals = rates.sum(axis=1)
    scale = 1 / math.sqrt(len(x))
    return RateDistortion(
        rate=totals.mean(),
        rate_error=totals.std(ddof=1) * scale,
        distortion=distortions.mean(),
        distortion_error=distortions.std(ddof=1) * scale,
        rate_per_unit=rates.mean(axis=0),
        num_samples=num_samples,
    )


def active_units(
    vae: VAE, params: Params, x: ArrayLike, threshold: ArrayLike = 0.01, *, batch_size: int = 1000
) -> ActiveUnits:
    """Units of the code whose posterior mean varies over the data: Var_x(E_q[z_j]) > threshold.

    The number depends on the threshold where units are neither dead nor alive; several at once show whether it does.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), n >= 2; take all there are, for a rare feature varies in few of them.
        threshold: on the variance, one or several. (*threshold)
        batch_size: examples encoded at once.

    Raises:
        ValueError: if there are fewer than two examples, or x is refused by `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> units = active_units(vae, vae.init(jax.random.key(0)), jnp.eye(3), threshold=jnp.array([0.001, 0.01]))
    >>> units.variance.shape, units.num_active.shape
    ((2,), (2,))

    Source: Burda, Grosse & Salakhutdinov 2015, section 5.
    """
    x = _checked(vae, params, x, batch_size=batch_size)
    variance = posterior_means(vae, params, x, batch_size).var(axis=0)
    threshold = jnp.asarray(threshold, variance.dtype)[..., None]
    active = jnp.broadcast_to(variance, (*threshold.shape[:-1], *variance.shape)) > threshold
    return ActiveUnits(variance, active, active.sum(axis=-1))


def mutual_information(
    vae: VAE, params: Params, key: Key[Array, ""], x: ArrayLike, *, batch_size: int = 100
) -> MutualInformation:
    """I_q(x; z) under the model's encoder and the N given examples, each as likely as the other.

    The mean of log q(z_n|x_n) - log q(z_n) with one z_n from each q(z|x_n) and q(z) the mixture of all N, which is
    summed in full: without bias, in N^2 densities. It cannot exceed log N, and where it comes near that the code tells
    all N apart: then it says that the information is at least so large.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (n, *data_shape), n >= 2.
        batch_size: codes at once, each against all N posteriors.

    Raises:
        ValueError: as `active_units`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = mutual_information(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> bool(result.estimate < jnp.log(3))
    True

    Source: Hoffman & Johnson 2016, "ELBO surgery".
    """
    x = _checked(vae, params, x, batch_size=batch_size)
    log_q, log_mixture, _, _ = _aggregate_terms(vae, batch_size, params, key, x)
    return MutualInformation(*_mean_and_error(log_q - log_mixture), len(x))


def mutual_information_of(vae: VAE, params: Params, key: Key[Array, ""], x: Array) -> Float[Array, ""]:
    """The estimate of `mutual_information` alone, unchecked, for use inside a compiled program."""
    log_q, log_mixture, _, _ = _aggregate_terms(vae, 100, params, key, x)
    return (log_q - log_mixture).mean()


def aggregate_posterior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    *,
    num_permutations: int = 199,
    batch_size: int = 100,
) -> AggregatePosterior:
    """The aggregate posterior against the prior: the gap that makes samples of the prior worse than reconstructions.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), n >= 2.
        num_permutations: of the two-sample test, whose p-value is at least 1 / (num_permutations + 1).
        batch_size: as in `mutual_information`.

    Raises:
        ValueError: as `active_units`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = aggregate_posterior(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> result.mean_of_variances.shape
    (2,)

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Makhzani et al. 2015 for the name.
    """
    x = _checked(vae, params, x, batch_size=batch_size, num_permutations=num_permutations)
    code_key, prior_key, test_key = jax.random.split(key, 3)
    log_q, log_mixture, log_prior, codes = _aggregate_terms(vae, batch_size, params, code_key, x)
    from_prior = _prior_codes(vae, min(len(x), 2000), params, prior_key)
    codes, from_prior = (array.astype(log_q.dtype) for array in (codes, from_prior))  # of discrete codes, too
    means, variances = posterior_moments(vae, params, x)
    return AggregatePosterior(
        *_mean_and_error(log_q - log_mixture),
        *_mean_and_error(log_mixture - log_prior),
        mean=means.mean(axis=0),
        mean_of_squared_means=(means**2).mean(axis=0),
        mean_of_variances=variances.mean(axis=0),
        energy_distance=two_sample.energy_distance(codes[:2000], from_prior[:2000]),
        p_value=two_sample.p_value(test_key, codes[:1000], from_prior[:1000], num_permutations=num_permutations),
        num_examples=len(x),
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def posterior_means(vae: VAE, params: Params, x: Array, batch_size: int = 1000) -> Float[Array, "n latent_dim"]:
    """E_q[z] of each example of x (n, *data_shape), `batch_size` of them at once; of categories, the most probable."""
    return monte_carlo.over_examples(lambda example: distributions.center(vae.encode(params, example)), x, batch_size)


@functools.partial(jax.jit, static_argnums=(0, 3))
def posterior_moments(
    vae: VAE, params: Params, x: Array, batch_size: int = 1000
) -> tuple[Float[Array, "n latent_dim"], Float[Array, "n latent_dim"]]:
    """Mean and variance of q(z|x) of each example of x (n, *data_shape), `batch_size` of them at once."""

    def moments(example: Array) -> tuple[Array, Array]:
        q = vae.encode(params, example)
        return jnp.asarray(q.mean), jnp.asarray(q.variance)

    return monte_carlo.over_examples(moments, x, batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rates_and_distortions(vae, num_samples, batch_size, params, key, x) -> tuple[Array, Array]:
    """(n, latent_dim) and (n,)."""
    prior = vae.prior(params)

    def one_example(index_and_x):
        index, x = index_and_x
        q = vae.encode(params, x)
        log_likelihoods = monte_carlo.over_samples(
            lambda key: distributions.data_log_prob(vae.decode(params, distributions.sample(q, key)), x),
            jax.random.fold_in(key, index),
            num_samples,
        )
        return distributions.kl_per_unit(q, prior), -log_likelihoods.mean()

    return monte_carlo.over_examples(one_example, (jnp.arange(len(x)), x), batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _aggregate_terms(vae, batch_size, params, key, x) -> tuple[Array, Array, Array, Array]:
    """Log q(z_n|x_n), log q(z_n), log p(z_n), all (n,), and the codes z_n (n, latent_dim)."""
    posteriors = _encode_in_batches(vae, params, x)
    prior = vae.prior(params)

    def one_code(index_and_x):
        index, x = index_and_x
        own = vae.encode(params, x)
        z = distributions.sample(own, jax.random.fold_in(key, index))
        log_densities = distributions.log_prob(posteriors, z)
        log_mixture = jax.nn.logsumexp(log_densities) - math.log(log_densities.shape[0])
        return distributions.log_prob(own, z), log_mixture, distributions.log_prob(prior, z), z

    return monte_carlo.over_examples(one_code, (jnp.arange(len(x)), x), batch_size)


def _encode_in_batches(vae: VAE, params: Params, x: Array, batch_size: int = 1000) -> Any:
    """All posteriors as one distribution of batch shape (n,), encoded `batch_size` at a time."""
    like = jax.eval_shape(vae.encode, params, x)
    leaves = monte_carlo.over_examples(lambda example: jax.tree.leaves(vae.encode(params, example)), x, batch_size)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prior_codes(vae: VAE, number: int, params: Params, key) -> Array:
    prior = vae.prior(params)
    return monte_carlo.over_samples(lambda key: distributions.sample(prior, key), key, number)


def _mean_and_error(terms: Float[Array, " n"]) -> tuple[Array, Array]:
    return terms.mean(), terms.std(ddof=1) / math.sqrt(terms.shape[0])


def _checked(vae: VAE, params: Params, x: ArrayLike, **counts: int) -> Array:
    for name, number in counts.items():
        checks.check_count(name, number)
    models.check_data(vae, params, x)
    x = jnp.asarray(x)
    if x.shape[0] < 2:
        raise ValueError(f"expected at least two examples, for a variance over the data; got {x.shape[0]}")
    return x
