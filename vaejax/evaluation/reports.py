"""All evaluations of a model on one set of data in one report, as a record, as numbers for a file, and in words."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, distributions, records
from vaejax.distributions import Params
from vaejax.evaluation import importance, sampling
from vaejax.evaluation.aggregate import AggregatePosterior, aggregate_posterior
from vaejax.evaluation.estimates import Average, Elbo, LogLikelihood, average, is_trustworthy
from vaejax.evaluation.examples import checked_examples, like_posterior, number_of
from vaejax.evaluation.images import VarianceLoss, has_mean, variance_loss
from vaejax.evaluation.representation import (
    ActiveUnits,
    RateDistortion,
    active_units,
    has_own_priors,
    rate_distortion,
)
from vaejax.models import VAE, Batch

_PART = 1000  # examples between two calls of `progress`


class Report(NamedTuple):
    """How good a model is on one set of data, in nats per example; `numbers` and `in_words` read it out.

    Attributes:
        log_likelihood: mean of log p(x) by importance sampling, with its standard errors.
        num_samples: K of log p(x).
        num_trusted: for how many examples `is_trustworthy` says that log p(x) can be trusted.
        mean_ess: effective sample size, averaged over examples.
        elbo: mean of the ELBO, with its standard errors.
        rate_distortion: the two parts of the ELBO, and the rate of each unit.
        units: active units at the threshold 0.01; None for a latent of categories, which has no mean.
        aggregate: aggregate posterior against the prior, and the mutual information; None for a latent of categories,
            which has no moments, and for a prior that depends on a context.
        variance_loss: of data, reconstructions and samples; None for sequences of tokens, which have no mean, and where
            numbers are missing.
        num_examples: of the data.

    >>> likelihood, bound = (Average(*jnp.array([nats, 0.5, 0.1])) for nats in (-90.0, -92.0))
    >>> rates = RateDistortion(*jnp.array([12.0, 0.2, 80.0, 0.4]), rate_per_unit=None, num_samples=10)
    >>> result = Report(likelihood, 1000, 95, 400.0, bound, rates, None, None, None, num_examples=100)
    >>> float(result.log_likelihood.estimate - result.elbo.estimate), result.num_examples - result.num_trusted
    (2.0, 5)
    """

    log_likelihood: Average
    num_samples: int
    num_trusted: int
    mean_ess: float
    elbo: Average
    rate_distortion: RateDistortion
    units: ActiveUnits | None
    aggregate: AggregatePosterior | None
    variance_loss: VarianceLoss | None
    num_examples: int

    __repr__ = records.short_repr


def report(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    num_samples: int = 1000,
    *,
    progress: Callable[[int], Any] = lambda num_examples: None,
) -> Report:
    """Evaluate a model: log p(x), ELBO, rate, distortion, active units, aggregate posterior and variances.

    It calls `log_likelihood`, `elbo`, `rate_distortion`, `active_units`, `aggregate_posterior` and `variance_loss`, and
    leaves out what the model does not have. Log p(x) takes most of the time.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed; each of the evaluations gets a key of its own.
        x: data, (n, *data_shape), n >= 2, or a `models.Batch`.
        num_samples: K of log p(x). The ELBO takes 100 samples.
        progress: called after every 1,000 examples of log p(x), with the number of examples just done.

    Returns:
        The results, averaged over examples, in nats per example. Print `in_words(report)`, save `numbers(report)`.

    Raises:
        ValueError: if there are fewer than two examples, num_samples is not a positive integer, or `models.check_data`
            refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = report(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3), num_samples=100)
    >>> result.num_examples
    3
    """
    checks.check_function("progress", progress, "number of examples -> None", 1)
    x = checked_examples(vae, params, x, least=2, key=key, num_samples=num_samples)
    likelihood_key, elbo_key, rate_key, aggregate_key, image_key, units_key = jax.random.split(key, 6)
    q = like_posterior(vae, params, x)
    distributions.check_has_density(q)
    is_category = isinstance(distributions.family_of(q), dist.CategoricalLogits)
    # Of a flow, n^2 densities by inversion would take longer than all the rest.
    is_slow = isinstance(distributions.family_of(q), distributions.AutoregressiveFlow)
    no_aggregate = is_category or is_slow or has_own_priors(vae, params, x)
    no_variance = (isinstance(x, Batch) and x.mask is not None) or not has_mean(vae, params, x)
    likelihood, bound = _in_parts(vae, params, likelihood_key, elbo_key, x, num_samples, progress)
    return Report(
        log_likelihood=average(likelihood),
        num_samples=num_samples,
        num_trusted=int(is_trustworthy(likelihood).sum()),
        mean_ess=float(likelihood.ess.mean()),
        elbo=average(bound),
        rate_distortion=rate_distortion(vae, params, rate_key, x),
        units=None if is_category else active_units(vae, params, x, key=units_key),
        aggregate=None if no_aggregate else aggregate_posterior(vae, params, aggregate_key, x),
        variance_loss=None if no_variance else variance_loss(vae, params, image_key, x),
        num_examples=number_of(x),
    )


def _in_parts(vae, params, likelihood_key, elbo_key, x, num_samples, progress) -> tuple[LogLikelihood, Elbo]:
    """Log p(x) and ELBO of all examples, a part of them after the other."""
    parts = []
    for start in range(0, number_of(x), _PART):
        part = jax.tree.map(lambda leaf, start=start: leaf[start : start + _PART], x)
        keys = [jax.random.fold_in(key, start) for key in (likelihood_key, elbo_key)]
        (likelihood,) = sampling.log_likelihoods(
            sampling.ENCODER, vae, params, keys[0], part, (num_samples,), warn=False
        )
        parts.append((likelihood, importance.elbo(vae, params, keys[1], part)))
        progress(number_of(part))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves) if jnp.ndim(leaves[0]) else leaves[0], *parts)


def numbers(result: Report) -> dict[str, float]:
    """The scalars of a report by name, as plain Python numbers for a JSON file.

    Arrays, such as the rate of each unit, are left out; so are the scalars of parts that are None.

    Args:
        result: of `report`.

    Returns:
        In nats per example: log_likelihood, elbo, rate, distortion, mutual_information, aggregate_kl, each with its
        standard error over examples; variances of data, reconstructions, samples and noise in squared units of the
        data; and counts such as num_trusted, active_units, latent_dim and num_examples.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = report(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3), num_samples=100)
    >>> numbers(result)["latent_dim"], numbers(result)["num_examples"]
    (2, 3)
    """
    rates = result.rate_distortion
    named = {
        "log_likelihood": result.log_likelihood.estimate,
        "standard_error": result.log_likelihood.error_over_data,
        "standard_error_over_samples": result.log_likelihood.error_over_samples,
        "num_samples": result.num_samples,
        "num_trusted": result.num_trusted,
        "mean_effective_sample_size": result.mean_ess,
        "elbo": result.elbo.estimate,
        "elbo_standard_error": result.elbo.error_over_data,
        "rate": rates.rate,
        "rate_standard_error": rates.rate_error,
        "distortion": rates.distortion,
        "distortion_standard_error": rates.distortion_error,
        "num_examples": result.num_examples,
    }
    if result.units is not None:
        named |= {"active_units": result.units.num_active, "latent_dim": len(result.units.variance)}
    if result.variance_loss is not None:
        named |= {
            "data_variance": result.variance_loss.data,
            "reconstruction_variance": result.variance_loss.reconstructions,
            "sample_variance": result.variance_loss.samples,
            "noise_variance": result.variance_loss.noise,
        }
    if result.aggregate is not None:
        named |= {
            "mutual_information": result.aggregate.mutual_information,
            "mutual_information_standard_error": result.aggregate.mutual_information_error,
            "aggregate_kl": result.aggregate.kl_to_prior,
            "aggregate_kl_standard_error": result.aggregate.kl_to_prior_error,
            "aggregate_energy_distance": result.aggregate.energy_distance.estimate,
            "aggregate_energy_distance_standard_error": result.aggregate.energy_distance.standard_error,
            "aggregate_p_value": result.aggregate.p_value,
        }
    return {name: number.item() if isinstance(number, jax.Array) else number for name, number in named.items()}


def in_words(result: Report) -> str:
    """The report as four to seven lines of text, log p(x) first; each ± is a standard error over examples.

    Args:
        result: of `report`.

    Returns:
        The lines, joined by newlines; numbers in nats per example, variances as a share of the data's.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = report(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3), num_samples=100)
    >>> print(in_words(result).splitlines()[3])
    1 of 2 units active (variance of their posterior mean above 0.01)
    """
    value = numbers(result)
    doubtful = result.num_examples - result.num_trusted

    def estimate(name: str) -> str:
        return f"{value[name]:.2f} ± {value[f'{name}_standard_error']:.2f}"

    lines = [
        f"log p(x) {value['log_likelihood']:.2f} ± {value['standard_error']:.2f} nats per example (importance "
        f"sampling, K = {result.num_samples:,}; standard errors are over examples)",
        f"ELBO {estimate('elbo')} nats, {value['log_likelihood'] - value['elbo']:.2f} below log p(x)",
        f"rate (KL) {estimate('rate')} and distortion {estimate('distortion')} nats",
    ]
    if doubtful:
        lines.insert(
            1,
            f"in {doubtful:,} of {result.num_examples:,} examples a few of the {result.num_samples:,} weights decide "
            "all: log p(x) is probably higher than that; a larger K tells",
        )
    if result.units is not None:
        active = f"{value['active_units']} of {value['latent_dim']} units active"
        lines.append(f"{active} (variance of their posterior mean above 0.01)")
    if result.aggregate is not None:
        # The mutual information cannot exceed log N.
        at_limit = value["mutual_information"] > math.log(result.num_examples) - 0.1
        limit = ", as much as so many examples can show" if at_limit else ""
        lines.append(
            f"the latent tells {estimate('mutual_information')} nats about which example it is{limit}; aggregate "
            f"posterior {estimate('aggregate_kl')} nats from the prior"
        )
    if value.get("data_variance"):  # examples that are all alike have none
        shares = (value[f"{what}_variance"] / value["data_variance"] for what in ("reconstruction", "sample", "noise"))
        lines.append(
            "variance, as a share of the data's: {:.0%} in reconstructions, {:.0%} in samples, {:.0%} in the noise of "
            "p(x|z)".format(*shares)
        )
    return "\n".join(lines)
