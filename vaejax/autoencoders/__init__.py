"""Autoencoders, PCA, and their cousin without a density."""

from vaejax.autoencoders import adversarial
from vaejax.autoencoders.errors import (
    ErrorFunction,
    cross_entropy,
    negative_log_likelihood,
    squared_error,
)
from vaejax.autoencoders.principal_components import (
    PCA,
    axis_alignment,
    equivalent_examples,
    pca,
    subspace_distance,
)
from vaejax.autoencoders.quantization import (
    QuantizationInfo,
    make_vector_quantization,
    with_codebook,
)
from vaejax.autoencoders.reconstruction import (
    ReconstructionInfo,
    conv_autoencoder,
    denoising_score,
    linear_autoencoder,
    make_reconstruction,
    mlp_autoencoder,
)
from vaejax.autoencoders.regularizers import (
    Corruption,
    Penalty,
    gaussian_noise,
    masking_noise,
    nested_dropout,
    nonuniform_l2,
    rotation_augmentation,
    uniform_l2,
)

__all__ = [
    "PCA",
    "Corruption",
    "ErrorFunction",
    "Penalty",
    "QuantizationInfo",
    "ReconstructionInfo",
    "adversarial",
    "axis_alignment",
    "conv_autoencoder",
    "cross_entropy",
    "denoising_score",
    "equivalent_examples",
    "gaussian_noise",
    "linear_autoencoder",
    "make_reconstruction",
    "make_vector_quantization",
    "masking_noise",
    "mlp_autoencoder",
    "negative_log_likelihood",
    "nested_dropout",
    "nonuniform_l2",
    "pca",
    "rotation_augmentation",
    "squared_error",
    "subspace_distance",
    "uniform_l2",
    "with_codebook",
]
