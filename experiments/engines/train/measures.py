"""What a run reports of its model: of a VAE bounds on log p(x), of an autoencoder its reconstruction error."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engines.harness import loading, rows
from engines.harness.progress import Progress
from engines.train import examples
from vaejax import autoencoders, evaluation, models
from vaejax.evaluation import sampling


class Measure(NamedTuple):
    """How good a model is, in one number between reports and in several at the end.

    Attributes:
        name: of the number in metrics.jsonl; it rises as the model gets better.
        validate: `(params, images) -> number`, NaN where a parameter is not finite.
        evaluate: `(params, images) -> (numbers, words)`, for result.json and for the lines of the report.
        progress: `(line of metrics.jsonl) -> words` beside the progress bar.
        params_of: `state -> params`, those that are measured.
    """

    name: str
    validate: Callable[[Any, np.ndarray], float]
    evaluate: Callable[[Any, np.ndarray], tuple[dict[str, Any], str]]
    progress: Callable[[dict[str, Any]], str]
    params_of: Callable[[Any], Any] = lambda state: state.params


def of_bounds(vae: models.VAE, num_samples: int, validation_samples: int = 1) -> Measure:
    """A bound of at most 1,000 validation images, always with the same key; test ELBO, log p(x) and active units.

    Args:
        vae: the model.
        num_samples: K of the test log p(x).
        validation_samples: K of the validation bound: of 1 the ELBO.
    """

    def validate(params, images: np.ndarray) -> float:
        if not finite(params):  # numpyro would refuse to make the distribution, and not say why
            return math.nan
        first, key = examples.take(images, slice(1000)), loading.evaluation_key("validation")
        if validation_samples == 1:
            return float(evaluation.elbo(vae, params, key, first, num_samples=1).estimate.mean())
        (result,) = sampling.log_likelihoods(
            sampling.ENCODER, vae, params, key, first, (validation_samples,), warn=False
        )
        return float(result.estimate.mean())

    def evaluate(params, images: np.ndarray) -> tuple[dict[str, Any], str]:
        key = loading.evaluation_key("report")
        number = len(models.numbers_of(images))
        with Progress(f"test {bounded(images)}", number, unit="examples") as bar:
            report = evaluation.report(vae, params, key, images, num_samples, progress=bar.update)
        named = evaluation.numbers(report)
        renamed = {
            "test_elbo": named.pop("elbo"),
            "test_log_likelihood": named.pop("log_likelihood"),
            "num_test_examples": named.pop("num_examples"),
        }
        lines = evaluation.in_words(report).splitlines()
        lines[0] = lines[0].replace("log p(x)", bounded(images))
        return renamed | named, "\n".join(f"  {line}" for line in ("test " + lines[0], *lines[1:]))

    name = "validation_elbo" if validation_samples == 1 else "validation_iwae"
    return Measure(name, validate, evaluate, lambda row: f"bound {row['bound']:.2f} nats")


def calibrated(vae: models.VAE, params, images: examples.Examples) -> evaluation.Calibration | None:
    """Ranks of latents among samples of q(z|x), for data that the model makes; None where it is given more than x."""
    if isinstance(images, models.Batch):
        return None
    return evaluation.simulation_based_calibration(vae, params, loading.evaluation_key("calibration"))


def bounded(images: examples.Examples) -> str:
    """What the bound is a bound on."""
    numbers = "observed x" if getattr(images, "mask", None) is not None else "x"
    return f"log p({numbers} | label)" if getattr(images, "context", None) is not None else f"log p({numbers})"


def calibration_in_words(result: dict[str, Any]) -> str:
    """A line of the report on the ranks of latents, if they were looked at."""
    if "smallest_rank_p_value" not in result:
        return ""
    worst, number = result["smallest_rank_p_value"], result["latent_dim"]
    verdict = "may be exact" if worst > 0.01 / number else "is not the posterior of the model"
    return (
        f"  q(z|x) {verdict}: on {result['num_simulations']:,} simulated examples the ranks of the true latents are "
        f"uniform with p = {worst:.2g} in the worst of {number} unit{'s' if number > 1 else ''}\n"
    )


def of_reconstructions(vae: models.VAE, error_name: str, described: str) -> Measure:
    """Reconstruction errors of clean images, the one that was trained and the squared one.

    Args:
        vae: the autoencoder.
        error_name: of the error that was trained, in `autoencoders`.
        described: of what images the squared error is, for the report.
    """
    error = getattr(autoencoders, error_name)

    @jax.jit
    def errors(params, images):
        p = vae.decode(params, vae.encode(params, images).mean)
        return error(p, images), autoencoders.squared_error(p, images)

    def validate(params, images: np.ndarray) -> float:
        return -float(errors(params, images[:1000])[0].mean()) if finite(params) else math.nan

    def evaluate(params, images: np.ndarray) -> tuple[dict[str, Any], str]:
        trained, squared = (np.asarray(values, np.float64) for values in errors(params, images))
        mean, standard_error = rows.mean_and_error(squared)
        result = {
            "test_error": float(trained.mean()),
            "test_squared_error": float(mean),
            "standard_error": float(standard_error),
            "num_test_examples": len(squared),
        }
        return result, in_words(result)

    def in_words(result: dict[str, Any]) -> str:
        lines = [
            f"  squared error  {result['test_squared_error']:.4f} ± {result['standard_error']:.4f} per example, "
            f"summed over it, {described} (the standard error is over examples)"
        ]
        if error_name != "squared_error":
            lines.append(f"  {error_name.replace('_', ' ')} {result['test_error']:.3f} nats per example")
        lines.append("  log p(x)       an autoencoder has none")
        return "\n".join(lines)

    return Measure("validation_bound", validate, evaluate, lambda row: f"error {row['error']:.3f}")


def finite(params: Any) -> bool:
    """Whether every parameter is."""
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
