"""What the latents say about the data: rate and distortion, the units that are active, the codes that are used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from vaejax import checks, distributions, models, records
from vaejax.distributions import Params
from vaejax.estimators import monte_carlo
from vaejax.evaluation.estimates import mean_and_error
from vaejax.evaluation.examples import (
    checked_examples,
    like_posterior,
    over_batch,
    posterior_means,
)
from vaejax.models import VAE, Batch
from vaejax.models.programs import compiled

Rate = Callable[[Any, Any], Array]


class RateDistortion(NamedTuple):
    """The two parts of the ELBO, averaged over examples, in nats; elbo = -(rate + distortion).

    Attributes:
        rate: KL(q(z|x) || p(z)), what the latent costs. ()
        rate_error: its standard error over examples, which includes that over samples where the rate is sampled. ()
        distortion: -E_q log p(x|z), what is lost. ()
        distortion_error: its standard error over examples, which includes the error over samples. ()
        rate_per_unit: the rate of each unit of the latent, of a model with layers given the layers before it in q and
            in p; their sum is the rate. None where the units of q or of the prior depend on each other. (latent_dim,)
        num_samples: samples of z for each example, in the distortion.

    >>> parts = RateDistortion(*jnp.array([12.0, 0.2, 80.0, 0.4]), jnp.array([8.0, 4.0, 0.0]), num_samples=10)
    >>> float(-(parts.rate + parts.distortion)), int((parts.rate_per_unit > 0.01).sum())  # the ELBO; units that cost
    (-92.0, 2)
    """

    rate: Float[Array, ""]
    rate_error: Float[Array, ""]
    distortion: Float[Array, ""]
    distortion_error: Float[Array, ""]
    rate_per_unit: Float[Array, " latent_dim"] | None
    num_samples: int

    __repr__ = records.short_repr


class ActiveUnits(NamedTuple):
    """Which latent units say anything about the data.

    Attributes:
        variance: variance over the data of each unit's posterior mean. (latent_dim,)
        active: where the variance is above the threshold. (*threshold, latent_dim)
        num_active: how many units are active. (*threshold,)

    >>> variance = jnp.array([0.9, 0.001, 0.4])
    >>> units = ActiveUnits(variance, active=variance > 0.01, num_active=(variance > 0.01).sum())
    >>> int(units.num_active), units.active.tolist()  # how many, and which
    (2, [True, False, True])
    """

    variance: Float[Array, " latent_dim"]
    active: Bool[Array, "*threshold latent_dim"]
    num_active: Int[Array, "*threshold"]

    __repr__ = records.short_repr


class CodebookUsage(NamedTuple):
    """How the codes of quantized latents are used by the data.

    Attributes:
        counts: how often each code is taken, by all examples at all positions. (num_codes,)
        num_used: codes that are taken at least once. ()
        perplexity: exp of the entropy of the codes' frequencies: num_codes where all are used evenly. ()

    >>> counts = jnp.array([50, 50, 0, 0])
    >>> usage = CodebookUsage(counts, (counts > 0).sum(), distributions.perplexity(counts))
    >>> int(usage.num_used), round(float(usage.perplexity), 3)  # two of the four codes, evenly
    (2, 2.0)
    """

    counts: Int[Array, " num_codes"]
    num_used: Int[Array, ""]
    perplexity: Float[Array, ""]

    __repr__ = records.short_repr


def rate_distortion(
    vae: VAE, params: Params, key: Key[Array, ""], x: Batch | ArrayLike, num_samples: int = 10, *, batch_size: int = 100
) -> RateDistortion:
    """Rate KL(q(z|x) || p(z)) and distortion -E_q[log p(x|z)], the two parts of the ELBO, averaged over examples.

    The rate is in closed form where one is known for q and the prior; else it is a mean of log q(z|x) - log p(z) over
    the samples of z, as the distortion is. It is given for each unit of the latent where the units are independent, or
    those of each layer given the layer before it.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (n, *data_shape), n >= 2, or a `models.Batch`.
        num_samples: samples of z for each example.
        batch_size: examples at once.

    Returns:
        Both in nats per example, with standard errors over examples, and the rate of each unit.

    Raises:
        ValueError: if there are fewer than two examples, a number is not a positive integer, or `models.check_data`
            refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = rate_distortion(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3))
    >>> bool(jnp.allclose(result.rate_per_unit.sum(), result.rate))
    True

    Source: Alemi et al. 2018, "Fixing a broken ELBO".
    """
    x = checked_examples(vae, params, x, least=2, key=key, num_samples=num_samples, batch_size=batch_size)
    rate = _known_for(vae, params, x, distributions.kl_per_unit, distributions.kl_divergence)
    by_unit = rate is None and _known_for(vae, params, x, _by_unit) is not None
    rates, distortions = _rates_and_distortions(vae, rate, by_unit, num_samples, batch_size, params, key, x)
    per_unit = rates.mean(axis=0) if rates.ndim == 2 else None
    rates = rates.sum(axis=1) if rates.ndim == 2 else rates
    return RateDistortion(*mean_and_error(rates), *mean_and_error(distortions), per_unit, num_samples)


def active_units(
    vae: VAE,
    params: Params,
    x: Batch | ArrayLike,
    threshold: ArrayLike = 0.01,
    *,
    key: Key[Array, ""] | None = None,
    num_samples: int = 100,
    batch_size: int = 1000,
) -> ActiveUnits:
    """Units of the latent whose posterior mean varies over the data: Var_x(E_q[z_j]) > threshold.

    Where units are neither dead nor alive, the number of active ones depends on the threshold; several thresholds at
    once show whether it does. Where q has no mean in closed form, as that of a model with layers, the mean is one of
    samples, and the variance is without the bias of their noise: it may then be a little below 0.

    Args:
        vae: the model.
        params: its parameters.
        x: data, (n, *data_shape), n >= 2, or a `models.Batch`; take all you have, because a rare feature varies in few
            examples.
        threshold: on the variance, one or several. (*threshold,)
        key: consumed; needed where q has no mean in closed form, ignored elsewhere.
        num_samples: of z for each example, at least 2, where the mean is sampled.
        batch_size: examples encoded at once.

    Returns:
        The variance of each unit, in squared units of the latent, and which units are active at each threshold.

    Raises:
        ValueError: if there are fewer than two examples, a number is out of range, q has no mean in closed form and
            there is no key, or `models.check_data` refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> units = active_units(vae, vae.init(jax.random.key(0)), jnp.eye(3), threshold=jnp.array([0.001, 0.01]))
    >>> units.variance.shape, units.num_active.shape
    ((2,), (2,))

    Source: Burda, Grosse & Salakhutdinov 2015, section 5.
    """
    given = {} if key is None else {"key": key}
    x = checked_examples(vae, params, x, least=2, batch_size=batch_size, **given)
    checks.check_count("num_samples", num_samples, 2, "the noise of a mean is estimated from them")
    if has_moments(vae, params, x):
        variance = posterior_means(vae, params, x, batch_size).var(axis=0)
    else:
        variance = _variance_of_sampled_means(vae, params, x, key, num_samples, batch_size)
    threshold = jnp.asarray(threshold, variance.dtype)[..., None]
    active = jnp.broadcast_to(variance, (*threshold.shape[:-1], *variance.shape)) > threshold
    return ActiveUnits(variance, active, active.sum(axis=-1))


def codebook_usage(vae: VAE, params: Params, x: ArrayLike, *, batch_size: int = 1000) -> CodebookUsage:
    """How often the data take each code of a quantized model, and the perplexity of the codebook.

    Args:
        vae: a model with quantized latents: `models.vq_vae`, `models.fsq_vae`.
        params: its parameters.
        x: data, (n, *data_shape); take all you have, because a rare code is used by few examples.
        batch_size: examples encoded at once.

    Returns:
        The counts of the codes, how many are used, and their perplexity.

    Raises:
        ValueError: if the latents are not quantized, batch_size is not a positive integer, or `models.check_data`
            refuses x.

    >>> from vaejax import models
    >>> vae = models.vq_vae((3,), num_codes=5, code_dim=2, num_positions=4)
    >>> usage = codebook_usage(vae, vae.init(jax.random.key(0)), jnp.eye(3))
    >>> usage.counts.shape, int(usage.counts.sum())
    ((5,), 12)
    """
    x = checked_examples(vae, params, x, least=1, batch_size=batch_size)
    q = distributions.as_quantized(like_posterior(vae, params, x))
    counts = jnp.bincount(_code_indices(vae, params, x, batch_size).reshape(-1), length=q.num_codes)
    return CodebookUsage(counts, (counts > 0).sum(), distributions.perplexity(counts))


@compiled(0, 3)
def _code_indices(vae, params, x, batch_size) -> Int[Array, "n positions"]:
    def one_example(example):
        model, x = models.given(vae, example)
        return distributions.as_quantized(model.encode(params, x)).indices

    return monte_carlo.over_examples(one_example, x, batch_size)


def _variance_of_sampled_means(vae, params, x, key, num_samples, batch_size) -> Float[Array, " latent_dim"]:
    """Var_x(E_q[z]) of each unit: the variance of means of samples, less what the samples' noise adds to it."""
    if key is None:
        q = distributions.name_of(like_posterior(vae, params, x))
        raise ValueError(f"q(z|x) = {q} has no mean in closed form, so that it is sampled: expected a key; got none")
    means, noise = _sampled_moments(vae, num_samples, batch_size, params, key, x)
    return means.var(axis=0) - (1 - 1 / len(means)) * noise.mean(axis=0)


@compiled(0, 1, 2)
def _sampled_moments(vae, num_samples, batch_size, params, key, x) -> tuple[Array, Array]:
    """The mean of samples of each unit, and its squared standard error, both (n, latent_dim)."""

    def one_example(index, x):
        model, x = models.given(vae, x)
        q = model.encode(params, x)
        z = monte_carlo.over_samples(
            lambda key: distributions.sample(q, key), jax.random.fold_in(key, index), num_samples
        )
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        return z.mean(axis=0), z.var(axis=0, ddof=1) / num_samples

    return over_batch(one_example, vae, params, x, batch_size)


def has_moments(vae: VAE, params: Params, x: Batch | ArrayLike) -> bool:
    """Whether q(z|x) has a mean and a variance in closed form."""

    def moments(params, x):
        model, x = models.given(vae, x)
        q = model.encode(params, x)
        return distributions.center(q), q.variance

    return _is_known(moments, params, x)


def has_own_priors(vae: VAE, params: Params, x: Batch | ArrayLike) -> bool:
    """Whether each example has a prior of its own, as of a context on which it depends."""
    return bool(jax.eval_shape(models.given(vae, x)[0].prior, params).batch_shape)


def _known_for(vae: VAE, params: Params, x: Batch | ArrayLike, *forms: Rate) -> Rate | None:
    """The first of the functions of q and the prior that is known for them; else None."""
    for form in forms:

        def rate(params, x, form=form):
            model, x = models.given(vae, x)
            return form(model.encode(params, x), model.prior(params))

        if _is_known(rate, params, x):
            return form
    return None


def _is_known(function: Callable[..., Any], *args: Any) -> bool:
    try:
        jax.eval_shape(function, *args)
    except (NotImplementedError, ValueError):
        return False
    return True


def _by_unit(q: Any, prior: Any) -> tuple[Array, Array]:
    """Fails where the densities are not those of units by themselves."""
    z = jnp.zeros((*q.batch_shape, *q.event_shape))
    return distributions.log_prob_per_unit(q, z), distributions.log_prob_per_unit(prior, z)


@compiled(0, 1, 2, 3, 4)
def _rates_and_distortions(vae, rate, by_unit, num_samples, batch_size, params, key, x) -> tuple[Array, Array]:
    """(n, latent_dim) or (n,), and (n,)."""

    def one_example(index, x):
        model, x = models.given(vae, x)
        q, prior = model.encode(params, x), model.prior(params)

        def sample_term(key):
            if rate:
                z = distributions.sample(q, key)
                return distributions.data_log_prob(model.decode(params, z), x), jnp.zeros(())
            if by_unit:
                z = distributions.sample(q, key)
                log_ratio = distributions.log_prob_per_unit(q, z) - distributions.log_prob_per_unit(prior, z)
            else:
                z, log_q = distributions.sample_with_log_prob(q, key)
                log_ratio = log_q - distributions.log_prob(prior, z)
            return distributions.data_log_prob(model.decode(params, z), x), log_ratio

        terms = monte_carlo.over_samples(sample_term, jax.random.fold_in(key, index), num_samples)
        return rate(q, prior) if rate else terms[1].mean(axis=0), -terms[0].mean()

    return over_batch(one_example, vae, params, x, batch_size)
