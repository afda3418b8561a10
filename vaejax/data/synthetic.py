"""Samplers of synthetic sets with known parameters: pure functions of a key and a number of examples."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vaejax import checks, records


class LinearGaussian(NamedTuple):
    """The model x = weights z + bias + std * noise, with z and the noise standard normal.

    So x ~ N(bias, weights weights^T + std^2 I): log p(x) is known exactly.

    Attributes:
        weights: `(data_dim, latent_dim)`.
        bias: `(data_dim,)`.
        std: scalar.

    >>> linear_gaussian_parameters().bias.shape
    (8,)
    """

    weights: Array
    bias: Array
    std: Array

    __repr__ = records.short_repr


def two_gaussians(
    key: Key[Array, ""], num_examples: int, *, mean: float = 2.0, std: float = 0.5
) -> tuple[Float[Array, "n 2"], Int[Array, " n"]]:
    """Draws from (N(-m, std^2 I) + N(m, std^2 I)) / 2 in the plane, where m = (mean, 0).

    >>> points, labels = two_gaussians(jax.random.key(0), 100)
    >>> points.shape, labels.shape
    ((100, 2), (100,))

    Args:
        key: consumed.
        num_examples: how many points.
        mean: distance of the two centres from the origin.
        std: of each component, along each axis.

    Returns:
        The points, float32, and their components, 0 (left) or 1 (right).

    Raises:
        ValueError: if num_examples is not a positive integer, the key is none, or a number is not finite.
    """
    checks.check_key(key)
    checks.check_count("num_examples", num_examples)
    checks.check_number("mean", mean)
    checks.check_number("std", std, least=0)
    key_labels, key_noise = jax.random.split(key)
    labels = jax.random.bernoulli(key_labels, 0.5, (num_examples,)).astype(jnp.int32)
    noise = jax.random.normal(key_noise, (num_examples, 2), jnp.float32)
    means = jnp.array([[-mean, 0.0], [mean, 0.0]], jnp.float32)
    return means[labels] + std * noise, labels


def spiral(
    key: Key[Array, ""], num_examples: int, *, turns: float = 1.5, std: float = 0.02
) -> tuple[Float[Array, "n 2"], None]:
    """Draws r (cos(a), sin(a)) + std * noise in the plane, with a = 2 pi turns r and r^2 uniform on [0, 1].

    >>> points, _ = spiral(jax.random.key(0), 100)
    >>> points.shape
    (100, 2)

    Args:
        key: consumed.
        num_examples: how many points.
        turns: of the spiral around the origin.
        std: of the noise along each axis.

    Returns:
        The points, float32, and None: they have no classes.

    Raises:
        ValueError: if num_examples is not a positive integer, the key is none, or a number is not finite.
    """
    checks.check_key(key)
    checks.check_count("num_examples", num_examples)
    checks.check_number("turns", turns)
    checks.check_number("std", std, least=0)
    key_radius, key_noise = jax.random.split(key)
    radius = jnp.sqrt(jax.random.uniform(key_radius, (num_examples,), jnp.float32))
    angle = 2 * math.pi * turns * radius
    noise = jax.random.normal(key_noise, (num_examples, 2), jnp.float32)
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1) + std * noise, None


def linear_gaussian_parameters(
    key: Key[Array, ""] | None = None, *, data_dim: int = 8, latent_dim: int = 2, std: float = 0.5
) -> LinearGaussian:
    """Draws the weights and the bias of a linear-Gaussian model, all standard normal.

    Without a key it is the model of the embedded set `linear_gaussian`, that of `jax.random.key(1)`.

    >>> linear_gaussian_parameters().weights.shape
    (8, 2)

    Args:
        key: consumed.
        data_dim: numbers in one example.
        latent_dim: latents of one example.
        std: of the noise.

    Returns:
        The parameters, float32.

    Raises:
        ValueError: if a size is not a positive integer, the key is none, or std is not finite or below 0.
    """
    if key is not None:
        checks.check_key(key)
    checks.check_counts(data_dim=data_dim, latent_dim=latent_dim)
    checks.check_number("std", std, least=0)
    key_weights, key_bias = jax.random.split(jax.random.key(1) if key is None else key)
    return LinearGaussian(
        weights=jax.random.normal(key_weights, (data_dim, latent_dim), jnp.float32),
        bias=jax.random.normal(key_bias, (data_dim,), jnp.float32),
        std=jnp.float32(std),
    )


def linear_gaussian(
    key: Key[Array, ""], num_examples: int, parameters: LinearGaussian | None = None
) -> tuple[Float[Array, "n data"], None]:
    """Draws x = weights z + bias + std * noise; `linear_gaussian_parameters()` where no parameters are given.

    >>> x, _ = linear_gaussian(jax.random.key(0), 100)
    >>> x.shape
    (100, 8)

    Args:
        key: consumed.
        num_examples: how many.
        parameters: of the model.

    Returns:
        The examples, float32, and None: they have no classes.

    Raises:
        ValueError: if num_examples is not a positive integer, or the key is none.
    """
    checks.check_key(key)
    checks.check_count("num_examples", num_examples)
    if parameters is not None and not isinstance(parameters, LinearGaussian):
        given = checks.describe(parameters)
        raise ValueError(f"parameters must be those of linear_gaussian_parameters, or None; got {given}")
    weights, bias, std = linear_gaussian_parameters() if parameters is None else parameters
    key_latent, key_noise = jax.random.split(key)
    z = jax.random.normal(key_latent, (num_examples, weights.shape[1]), jnp.float32)
    noise = jax.random.normal(key_noise, (num_examples, weights.shape[0]), jnp.float32)
    return z @ weights.T + bias[None, :] + std * noise, None
