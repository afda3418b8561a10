"""Inference without or besides an encoder: a q for each example, chains, EM, aggressive training of the encoder."""

from vaejax.inference.aggressive import (
    LaggingInfo,
    LaggingStates,
    init_lagging,
    make_aggressive_train_step,
)
from vaejax.inference.chains import (
    PosteriorSample,
    chain_draws,
    sample_posterior,
)
from vaejax.inference.divergences import (
    GridGaussian,
    fit_gaussian_on_grid,
)
from vaejax.inference.expectation_maximization import (
    EMInfo,
    em,
    make_em_step,
    with_best_decoder,
    with_exact_posterior,
)
from vaejax.inference.groups import (
    GroupInfo,
    GroupStates,
    init_groups,
    make_variational_em_step,
)
from vaejax.inference.per_example import (
    FittedPosterior,
    InferenceGap,
    fit_posterior,
    fit_shared_posterior,
    inference_gap,
)

__all__ = [
    "EMInfo",
    "FittedPosterior",
    "GridGaussian",
    "GroupInfo",
    "GroupStates",
    "InferenceGap",
    "LaggingInfo",
    "LaggingStates",
    "PosteriorSample",
    "chain_draws",
    "em",
    "fit_gaussian_on_grid",
    "fit_posterior",
    "fit_shared_posterior",
    "inference_gap",
    "init_groups",
    "init_lagging",
    "make_aggressive_train_step",
    "make_em_step",
    "make_variational_em_step",
    "sample_posterior",
    "with_best_decoder",
    "with_exact_posterior",
]
