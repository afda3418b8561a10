"""Heads by name: the likelihoods and posteriors that a model or a command asks for by a word."""

from collections.abc import Callable

from vaejax import checks
from vaejax.distributions.heads import (
    Head,
    bernoulli,
    categorical,
    gaussian,
    gaussian_fixed_std,
    gaussian_shared_std,
    point,
)
from vaejax.distributions.likelihoods.counts import negative_binomial, poisson, zero_inflated_negative_binomial
from vaejax.distributions.likelihoods.pixels import (
    beta,
    categorical_pixels,
    continuous_bernoulli,
    discretized_logistic_mixture,
)
from vaejax.distributions.structured.flows import autoregressive_flow, full_covariance

LIKELIHOODS: dict[str, Callable[[], Head]] = {
    "bernoulli": bernoulli,
    "gaussian": gaussian,
    "gaussian_shared_std": gaussian_shared_std,
    "gaussian_fixed_std": gaussian_fixed_std,
    "continuous_bernoulli": continuous_bernoulli,
    "beta": beta,
    "discretized_logistic_mixture": discretized_logistic_mixture,
    "categorical_pixels": categorical_pixels,
    "poisson": poisson,
    "negative_binomial": negative_binomial,
    "zero_inflated_negative_binomial": zero_inflated_negative_binomial,
}
"""The likelihoods that a model takes by name, each a function that makes its `Head`."""


def likelihood_head(likelihood: str | Head) -> Head:
    """The head of a likelihood given by name, or the head itself.

    Args:
        likelihood: "bernoulli", "gaussian" (std per pixel from the network), "gaussian_shared_std" (one learned std),
            "gaussian_fixed_std" (std 1; for another pass `gaussian_fixed_std(std)`); for grey values in [0, 1]
            "continuous_bernoulli" and "beta"; for 8-bit pixels "discretized_logistic_mixture" (of 5 components; for
            another number pass `discretized_logistic_mixture(num_components)`) and "categorical_pixels"; for counts
            "poisson", "negative_binomial" and "zero_inflated_negative_binomial" (with a library size pass
            `negative_binomial(library=True)`); or a `Head`.

    Raises:
        ValueError: if the name is unknown.

    >>> likelihood_head("gaussian").num_outputs
    2
    """
    return _named_head("likelihood", likelihood, LIKELIHOODS)


POSTERIORS: dict[str, Callable[[], Head]] = {
    "gaussian": gaussian,
    "full_covariance": full_covariance,
    "flow": autoregressive_flow,
    "bernoulli": bernoulli,
    "categorical": categorical,
    "point": point,
}
"""The posteriors that a model takes by name, each a function that makes its `Head`."""


def posterior_head(posterior: str | Head) -> Head:
    """The head of a posterior given by name, or the head itself.

    Args:
        posterior: "gaussian" (diagonal covariance), "full_covariance", "flow" (two inverse autoregressive layers of 64
            hidden units; for others pass `autoregressive_flow(num_layers, hidden_size)`), "bernoulli", "categorical"
            (of 10 categories; for another number pass `categorical(num_categories)`), "point" (of an autoencoder), or a
            `Head`.

    Raises:
        ValueError: if the name is unknown.

    >>> posterior_head("categorical").num_categories
    10
    """
    return _named_head("posterior", posterior, POSTERIORS)


def _named_head(kind: str, given: str | Head, known: dict[str, Callable[[], Head]]) -> Head:
    if isinstance(given, Head):
        return given
    checks.check_choice(kind, given, known, otherwise="a distributions.Head")
    return known[given]()
