"""What is done with q besides one gradient step: inference for each example, EM, aggressive training of the encoder.

The public face of five rooms: `posteriors`, `chains`, `divergences`, `em` and `lagging`.
"""

from vaejax.chains import PosteriorSample, sample_posterior
from vaejax.divergences import GridGaussian, fit_gaussian_on_grid
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
