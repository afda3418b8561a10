"""Objectives: pure closures `(params, key, x, *, step=None) -> (value, info)`, to be maximised, in nats per example."""

from vaejax.estimators import effective_sample_size
from vaejax.objectives.bounds import (
    KL_FORMS,
    make_bound,
    make_elbo,
    make_iwae,
    make_linear_elbo,
    make_renyi,
)
from vaejax.objectives.cures import (
    make_free_bits,
    make_info_vae,
    make_optimal_std_elbo,
    with_optimal_std,
)
from vaejax.objectives.objective import (
    Objective,
    ObjectiveInfo,
)
from vaejax.objectives.weights import (
    Weight,
    cyclical,
    linear_warmup,
)

__all__ = [
    "KL_FORMS",
    "Objective",
    "ObjectiveInfo",
    "Weight",
    "cyclical",
    "effective_sample_size",
    "linear_warmup",
    "make_bound",
    "make_elbo",
    "make_free_bits",
    "make_info_vae",
    "make_iwae",
    "make_linear_elbo",
    "make_optimal_std_elbo",
    "make_renyi",
    "with_optimal_std",
]
