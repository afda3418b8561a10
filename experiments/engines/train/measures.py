"""What a run reports of its model: of a VAE bounds on log p(x), of an autoencoder its reconstruction error."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from engines.harness import rows
from engines.harness.loading import EVALUATION_KEY
from vaejax import autoencoders, evaluation, models


class Measure(NamedTuple):
    """How good a model is, in one number between reports and in several at the end.

    Attributes:
        name: of the number in metrics.jsonl; it rises as the model gets better.
        validate: `(params, images) -> number`, NaN where a parameter is not finite.
        evaluate: `(params, images) -> (numbers, words)`, for result.json and for the lines of the report.
        progress: `(line of metrics.jsonl) -> words` beside the progress bar.
    """

    name: str
    validate: Callable[[Any, np.ndarray], float]
    evaluate: Callable[[Any, np.ndarray], tuple[dict[str, Any], str]]
    progress: Callable[[dict[str, Any]], str]


def of_bounds(vae: models.VAE, num_samples: int) -> Measure:
    """ELBO of at most 1,000 validation images, always with the same key; test ELBO, log p(x) and active units.

    Args:
        vae: the model.
        num_samples: K of the test log p(x).
    """

    def validate(params, images: np.ndarray) -> float:
        if not finite(params):  # numpyro would refuse to make the distribution, and not say why
            return math.nan
        result = evaluation.elbo(vae, params, jax.random.key(EVALUATION_KEY), images[:1000], num_samples=1)
        return float(result.estimate.mean())

    def evaluate(params, images: np.ndarray) -> tuple[dict[str, Any], str]:
        key = jax.random.key(EVALUATION_KEY)
        with tqdm(total=len(images), desc="test log p(x)", unit=" examples", leave=False, disable=None) as bar:
            report = evaluation.report(vae, params, key, images, num_samples, progress=bar.update)
        named = evaluation.numbers(report)
        renamed = {
            "test_elbo": named.pop("elbo"),
            "test_log_likelihood": named.pop("log_likelihood"),
            "num_test_examples": named.pop("num_examples"),
        }
        lines = evaluation.in_words(report).splitlines()
        return renamed | named, "\n".join(f"  {line}" for line in ("test " + lines[0], *lines[1:]))

    return Measure("validation_elbo", validate, evaluate, lambda row: f"bound {row['bound']:.2f} nats")


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
