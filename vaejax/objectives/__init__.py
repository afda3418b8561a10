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
from vaejax.objectives.groups import (
    make_ciwae,
    make_miwae,
    make_piwae,
)
from vaejax.objectives.objective import (
    Objective,
    ObjectiveInfo,
    per_example,
)
from vaejax.objectives.wake_sleep import (
    TEMPERATURES,
    make_thermodynamic,
    make_wake_sleep,
)
from vaejax.objectives.weights import (
    Weight,
    cyclical,
    linear_warmup,
)

__all__ = [
    "KL_FORMS",
    "TEMPERATURES",
    "Objective",
    "ObjectiveInfo",
    "Weight",
    "cyclical",
    "effective_sample_size",
    "linear_warmup",
    "make_bound",
    "make_ciwae",
    "make_elbo",
    "make_free_bits",
    "make_info_vae",
    "make_iwae",
    "make_linear_elbo",
    "make_miwae",
    "make_optimal_std_elbo",
    "make_piwae",
    "make_renyi",
    "make_thermodynamic",
    "make_wake_sleep",
    "per_example",
    "with_optimal_std",
]
