"""Variational autoencoders in JAX: objectives as pure closures, estimators as arguments, runs as one program.

>>> import jax
>>> from vaejax import estimators, models, objectives
>>> vae = models.mlp_vae(data_shape=(8, 8), latent_dim=2)
>>> elbo = objectives.make_elbo(vae, estimator=estimators.pathwise(), num_samples=8)
>>> value, info = elbo(vae.init(jax.random.key(0)), jax.random.key(1), jax.numpy.ones((5, 8, 8)))
>>> info.per_example.shape
(5,)
"""

import sys

from vaejax import (
    autoencoders,
    data,
    devices,
    distributions,
    estimators,
    evaluation,
    inference,
    laboratory,
    models,
    objectives,
    training,
)
from vaejax.autoencoders import adversarial
from vaejax.data import augmentation, streams
from vaejax.distributions import families, reparameterization, two_sample
from vaejax.estimators import baselines, monte_carlo
from vaejax.models import networks, sequences
from vaejax.training import checkpoints

__version__ = "0.1.0"

__all__ = [
    "adversarial",
    "augmentation",
    "autoencoders",
    "baselines",
    "checkpoints",
    "data",
    "devices",
    "distributions",
    "estimators",
    "evaluation",
    "families",
    "inference",
    "laboratory",
    "models",
    "monte_carlo",
    "networks",
    "objectives",
    "reparameterization",
    "sequences",
    "streams",
    "training",
    "two_sample",
]

# Modules that are in a room now can still be imported as in the first version: `from vaejax.families import F`.
_MOVED = (
    *(adversarial, augmentation, baselines, checkpoints, families, monte_carlo, networks, reparameterization),
    *(sequences, streams, two_sample),
)
sys.modules.update({f"vaejax.{module.__name__.rpartition('.')[2]}": module for module in _MOVED})
