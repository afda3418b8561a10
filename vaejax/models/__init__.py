"""Latent-variable models as tuples of pure functions, and the networks in them."""

from vaejax.checks import check_floating, checked_data
from vaejax.models import networks, sequences
from vaejax.models.inputs import (
    check_data,
    sample_data,
    with_batch_axis,
)
from vaejax.models.linear import linear_decoder, linear_vae
from vaejax.models.vae import (
    LATENTS,
    VAE,
    conv_vae,
    make_vae,
    mlp_vae,
    with_output_bias,
)

__all__ = [
    "LATENTS",
    "VAE",
    "check_data",
    "check_floating",
    "checked_data",
    "conv_vae",
    "linear_decoder",
    "linear_vae",
    "make_vae",
    "mlp_vae",
    "networks",
    "sample_data",
    "sequences",
    "with_batch_axis",
    "with_output_bias",
]
