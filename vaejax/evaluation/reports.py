"""How good a model is: log p(x) one can trust, what the code carries, what samples lose; and all of it in a report.

The public face of five rooms: `importance`, `annealing` and `exact` for log p(x), `representation` for the code,
`blur` for the images.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, distributions, models
from vaejax.distributions import Params
from vaejax.evaluation import importance
from vaejax.evaluation.estimates import Average, average, is_trustworthy
from vaejax.evaluation.images import VarianceLoss, has_mean, variance_loss
from vaejax.evaluation.importance import elbo
from vaejax.evaluation.representation import (
    ActiveUnits,
    AggregatePosterior,
    RateDistortion,
    active_units,
    aggregate_posterior,
    rate_distortion,
)
from vaejax.models import VAE

_PART = 1000  # examples between two words of progress


class Report(NamedTuple):
    """What is worth knowing of a model on one set of data, in nats per example; `in_words` and `numbers` tell it.

    Attributes:
        log_likelihood: mean of log p(x) by importance sampling, with its standard errors.
        num_samples: its K.
        num_trusted: examples of which `is_trustworthy` says yes.
        mean_ess: mean over examples of the effective sample size.
        elbo: mean of the ELBO, with its standard errors.
        rate_distortion: its two parts, and the rate by units.
        units: active ones, at the threshold 0.01.
        aggregate: aggregate posterior against prior, and the mutual information; None for a code of categories, which
            has no moments.
        variance_loss: of data, reconstructions and samples; None for sequences of tokens, which have no mean.
        num_examples: of the data.
    """

    log_likelihood: Average
    num_samples: int
    num_trusted: int
    mean_ess: float
    elbo: Average
    rate_distortion: RateDistortion
    units: ActiveUnits
    aggregate: AggregatePosterior | None
    variance_loss: VarianceLoss | None
    num_examples: int


def report(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    num_samples: int = 1000,
    *,
    progress: Callable[[int], Any] = lambda num_examples: None,
) -> Report:
    """All of the above in one record.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), n >= 2.
        num_samples: K of log p(x).
        progress: called with the number of examples that the slow part, log p(x), has just done.

    Raises:
        ValueError: as `log_likelihood` and `active_units`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = report(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3), num_samples=100)
    >>> result.num_examples
    3
    """
    checks.check_count("num_samples", num_samples)
    models.check_data(vae, params, x)
    x = models.with_batch_axis(vae, params, x)
    likelihood_key, elbo_key, rate_key, code_key, image_key = jax.random.split(key, 5)
    likelihoods, elbos = [], []
    for start in range(0, len(x), _PART):
        part = x[start : start + _PART]
        for results, function, part_key, number in (
            (likelihoods, importance.log_likelihood_unwarned, likelihood_key, num_samples),
            (elbos, elbo, elbo_key, 100),
        ):
            results.append(function(vae, params, jax.random.fold_in(part_key, start), part, number))
        progress(len(part))
    likelihood, bound = (jax.tree.map(_joined, *results) for results in (likelihoods, elbos))
    categorical = isinstance(distributions.without_wrappers(vae.prior(params)), dist.CategoricalLogits)
    return Report(
        log_likelihood=average(likelihood),
        num_samples=num_samples,
        num_trusted=int(is_trustworthy(likelihood).sum()),
        mean_ess=float(likelihood.ess.mean()),
        elbo=average(bound),
        rate_distortion=rate_distortion(vae, params, rate_key, x),
        units=active_units(vae, params, x),
        aggregate=None if categorical else aggregate_posterior(vae, params, code_key, x),
        variance_loss=variance_loss(vae, params, image_key, x) if has_mean(vae, params) else None,
        num_examples=len(x),
    )


def numbers(result: Report) -> dict[str, float]:
    """The report's numbers by name, as plain ones for a JSON file; what is an array of them is left out.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = report(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3), num_samples=100)
    >>> numbers(result)["latent_dim"], numbers(result)["num_examples"]
    (2, 3)
    """
    code = result.rate_distortion
    named = {
        "log_likelihood": result.log_likelihood.estimate,
        "standard_error": result.log_likelihood.error_over_data,
        "standard_error_over_samples": result.log_likelihood.error_over_samples,
        "num_samples": result.num_samples,
        "num_trusted": result.num_trusted,
        "mean_effective_sample_size": result.mean_ess,
        "elbo": result.elbo.estimate,
        "elbo_standard_error": result.elbo.error_over_data,
        "rate": code.rate,
        "rate_standard_error": code.rate_error,
        "distortion": code.distortion,
        "distortion_standard_error": code.distortion_error,
        "active_units": result.units.num_active,
        "latent_dim": len(code.rate_per_unit),
        "num_examples": result.num_examples,
    }
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
    """The report in plain words, a line for each thing.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = report(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.eye(3), num_samples=100)
    >>> print(in_words(result).splitlines()[3])
    1 of 2 units active (variance of their posterior mean above 0.01)
    """
    value = numbers(result)
    doubtful = result.num_examples - result.num_trusted
    trusted = f"; in {doubtful:,} of {result.num_examples:,} a few weights decide all" if doubtful else ""
    lines = [
        f"log p(x) {value['log_likelihood']:.2f} ± {value['standard_error']:.2f} nats per example (importance "
        f"sampling, K = {result.num_samples:,}; the standard error is over examples{trusted})",
        f"ELBO {value['elbo']:.2f} nats, {value['log_likelihood'] - value['elbo']:.2f} below log p(x)",
        f"rate (KL) {value['rate']:.2f} and distortion {value['distortion']:.2f} nats",
        f"{value['active_units']} of {value['latent_dim']} units active (variance of their posterior mean above 0.01)",
    ]
    if result.aggregate is not None:
        limit = ", as much as so many examples can show" if _is_near_limit(result) else ""
        lines.append(
            f"the code tells {value['mutual_information']:.2f} nats about which example it is{limit}; aggregate "
            f"posterior {value['aggregate_kl']:.2f} nats from the prior"
        )
    if value.get("data_variance"):  # there is none in examples that are all alike
        shares = (value[f"{what}_variance"] / value["data_variance"] for what in ("reconstruction", "sample", "noise"))
        lines.append(
            "variance, as a share of the data's: {:.0%} in reconstructions, {:.0%} in samples, {:.0%} in the noise of "
            "p(x|z)".format(*shares)
        )
    return "\n".join(lines)


def _is_near_limit(result: Report) -> bool:
    """Whether the mutual information is within a tenth of a nat of log N, which it cannot exceed."""
    assert result.aggregate is not None
    return bool(result.aggregate.mutual_information > math.log(result.num_examples) - 0.1)


def _joined(*parts: Any) -> Any:
    return jnp.concatenate(parts) if isinstance(parts[0], jax.Array) else parts[0]
