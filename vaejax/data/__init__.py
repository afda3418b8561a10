"""Datasets by name, made or read, in memory or as a stream; binarization; augmentation."""

from vaejax.checks import check_finite
from vaejax.data import augmentation, streams
from vaejax.data.sets import (
    BINARIZATIONS,
    Dataset,
    binarization,
    binarize_dynamic,
    binarize_threshold,
    dequantize,
    load,
    names,
    to_levels,
)
from vaejax.data.synthetic import (
    LinearGaussian,
    linear_gaussian,
    linear_gaussian_parameters,
    spiral,
    two_gaussians,
)

__all__ = [
    "BINARIZATIONS",
    "Dataset",
    "LinearGaussian",
    "augmentation",
    "binarization",
    "binarize_dynamic",
    "binarize_threshold",
    "check_finite",
    "dequantize",
    "linear_gaussian",
    "linear_gaussian_parameters",
    "load",
    "names",
    "spiral",
    "streams",
    "to_levels",
    "two_gaussians",
]
