"""Variational autoencoders in JAX: objectives as pure closures, estimators as arguments, runs as one program."""

__version__ = "0.1.0"
