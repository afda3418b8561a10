"""Latent-variable models as tuples of pure functions, and the networks in them."""

from vaejax.checks import check_floating, checked_data
from vaejax.models import networks, sequences
from vaejax.models.architectures import conv_vae, fsq_vae, mlp_vae, vq_vae, with_output_bias, with_pseudo_inputs
from vaejax.models.batches import Batch, given, numbers_of
from vaejax.models.functions import Functions, from_functions
from vaejax.models.hierarchical import hierarchical_vae, with_layers
from vaejax.models.inputs import (
    check_data,
    check_distributions,
    check_likelihood,
    check_params,
    sample_data,
    with_batch_axis,
)
from vaejax.models.linear import linear_decoder, linear_vae
from vaejax.models.networks import check_alone
from vaejax.models.priors import Prior, flow_prior, mixture_prior, vamp_prior
from vaejax.models.programs import compiled
from vaejax.models.vae import (
    LATENTS,
    VAE,
    make_vae,
)

__all__ = [
    "LATENTS",
    "VAE",
    "Batch",
    "Functions",
    "Prior",
    "check_alone",
    "check_data",
    "check_distributions",
    "check_floating",
    "check_likelihood",
    "check_params",
    "checked_data",
    "compiled",
    "conv_vae",
    "flow_prior",
    "from_functions",
    "fsq_vae",
    "given",
    "hierarchical_vae",
    "linear_decoder",
    "linear_vae",
    "make_vae",
    "mixture_prior",
    "mlp_vae",
    "networks",
    "numbers_of",
    "sample_data",
    "sequences",
    "vamp_prior",
    "vq_vae",
    "with_batch_axis",
    "with_layers",
    "with_output_bias",
    "with_pseudo_inputs",
]
