"""Gradients of discrete latents: unbiased by coupled samples and control variates, and biased by relaxations."""

from vaejax.estimators.discrete.biased import (
    gumbel_softmax,
    reinmax,
    straight_through,
)
from vaejax.estimators.discrete.control_variates import (
    double_control_variates,
    muprop,
    rodeo,
)
from vaejax.estimators.discrete.coupled import (
    arms,
    disarm,
)
from vaejax.estimators.discrete.relaxations import (
    rebar,
    relax,
)

__all__ = [
    "arms",
    "disarm",
    "double_control_variates",
    "gumbel_softmax",
    "muprop",
    "rebar",
    "reinmax",
    "relax",
    "rodeo",
    "straight_through",
]
