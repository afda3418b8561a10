"""Distributions: heads of networks, densities that refuse bad data, families and their samples, two-sample tests."""

from vaejax.distributions import families, reparameterization, two_sample
from vaejax.distributions.closed_forms import (
    entropy,
    kl_divergence,
    kl_per_unit,
)
from vaejax.distributions.densities import (
    center,
    check_has_density,
    check_support,
    data_log_prob,
    in_support,
    like_samples,
    log_prob,
    name_of,
    rsample,
    sample,
)
from vaejax.distributions.edges import (
    stable,
)
from vaejax.distributions.families import (
    Erlang,
    F,
    Rayleigh,
    Triangular,
)
from vaejax.distributions.heads import (
    LOG_STD_BOUND,
    Head,
    Params,
    bernoulli,
    bounded_log_std,
    categorical,
    gaussian,
    gaussian_fixed_std,
    gaussian_shared_std,
    point,
    standard_normal,
    unbounded_log_std,
)
from vaejax.distributions.held_samples import (
    Told,
    held_log_prob,
    held_sample,
    own_log_prob,
    sample_with_log_prob,
)
from vaejax.distributions.likelihoods.bits import (
    BernoulliLogits,
)
from vaejax.distributions.likelihoods.counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    negative_binomial,
    poisson,
    zero_inflated_negative_binomial,
)
from vaejax.distributions.likelihoods.pixels import (
    CategoricalPixels,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    OpenBeta,
    beta,
    categorical_pixels,
    continuous_bernoulli,
    discretized_logistic_mixture,
)
from vaejax.distributions.named_heads import (
    LIKELIHOODS,
    POSTERIORS,
    likelihood_head,
    posterior_head,
)
from vaejax.distributions.simplex import (
    Weights,
    is_relaxed,
    relaxed,
)
from vaejax.distributions.structured.codebooks import (
    Quantized,
    as_quantized,
    perplexity,
    scalar_codes,
    scalar_quantized,
    vector_quantized,
)
from vaejax.distributions.structured.couplings import CouplingFlow
from vaejax.distributions.structured.flows import (
    AutoregressiveFlow,
    autoregressive_flow,
    full_covariance,
)
from vaejax.distributions.structured.layers import Layers, log_prob_per_unit
from vaejax.distributions.structured.named_parts import (
    Parts,
    side_by_side,
)
from vaejax.distributions.wrappers import family_of, mask_of, without_wrappers

__all__ = [
    "LIKELIHOODS",
    "LOG_STD_BOUND",
    "POSTERIORS",
    "AutoregressiveFlow",
    "BernoulliLogits",
    "CategoricalPixels",
    "ContinuousBernoulli",
    "CouplingFlow",
    "DiscretizedLogisticMixture",
    "Erlang",
    "F",
    "Head",
    "Layers",
    "NegativeBinomial",
    "OpenBeta",
    "Params",
    "Parts",
    "Poisson",
    "Quantized",
    "Rayleigh",
    "Told",
    "Triangular",
    "Weights",
    "ZeroInflatedNegativeBinomial",
    "as_quantized",
    "autoregressive_flow",
    "bernoulli",
    "beta",
    "bounded_log_std",
    "categorical",
    "categorical_pixels",
    "center",
    "check_has_density",
    "check_support",
    "continuous_bernoulli",
    "data_log_prob",
    "discretized_logistic_mixture",
    "entropy",
    "families",
    "family_of",
    "full_covariance",
    "gaussian",
    "gaussian_fixed_std",
    "gaussian_shared_std",
    "held_log_prob",
    "held_sample",
    "in_support",
    "is_relaxed",
    "kl_divergence",
    "kl_per_unit",
    "like_samples",
    "likelihood_head",
    "log_prob",
    "log_prob_per_unit",
    "mask_of",
    "name_of",
    "negative_binomial",
    "own_log_prob",
    "perplexity",
    "point",
    "poisson",
    "posterior_head",
    "relaxed",
    "reparameterization",
    "rsample",
    "sample",
    "sample_with_log_prob",
    "scalar_codes",
    "scalar_quantized",
    "side_by_side",
    "stable",
    "standard_normal",
    "two_sample",
    "unbounded_log_std",
    "vector_quantized",
    "without_wrappers",
    "zero_inflated_negative_binomial",
]
