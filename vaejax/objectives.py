"""Objectives: pure closures `(params, key, x, *, step=None) -> (value, info)`, to be maximised, in nats per example.

The public face of three rooms: `bounds` on log p(x), `cures` for what goes wrong with them, and `schedules` of their
weights. Whatever is maximised, `info.elbo` is the plain evidence lower bound.
"""

from vaejax.bounds import (
    KL_FORMS,
    Objective,
    ObjectiveInfo,
    Weight,
    effective_sample_size,
    make_elbo,
    make_iwae,
    make_linear_elbo,
    make_renyi,
)
from vaejax.cures import make_free_bits, make_info_vae, make_optimal_std_elbo, with_optimal_std
from vaejax.schedules import cyclical, linear_warmup

__all__ = [
    "KL_FORMS",
    "Objective",
    "ObjectiveInfo",
    "Weight",
    "cyclical",
    "effective_sample_size",
    "linear_warmup",
    "make_elbo",
    "make_free_bits",
    "make_info_vae",
    "make_iwae",
    "make_linear_elbo",
    "make_optimal_std_elbo",
    "make_renyi",
    "with_optimal_std",
]
