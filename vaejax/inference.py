"""What is done with q besides one gradient step: inference for each example, EM, aggressive training of the encoder.

The public face of three rooms: `posteriors`, `em` and `lagging`.
"""

from vaejax.em import (
    EMInfo,
    GroupInfo,
    GroupStates,
    em,
    init_groups,
    make_em_step,
    make_variational_em_step,
    with_best_decoder,
    with_exact_posterior,
)
from vaejax.lagging import LaggingInfo, LaggingStates, init_lagging, make_aggressive_train_step
from vaejax.posteriors import (
    FittedPosterior,
    GridGaussian,
    InferenceGap,
    PosteriorSample,
    fit_gaussian_on_grid,
    fit_posterior,
    fit_shared_posterior,
    inference_gap,
    sample_posterior,
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
