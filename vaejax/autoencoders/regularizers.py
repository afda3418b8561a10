"""Regularizers of linear autoencoders that find the principal axes, where the plain loss finds only their span.

The squared error of a linear autoencoder does not change when the code is multiplied by any invertible matrix and the
decoder by its inverse. Each of these takes that freedom away, or a part of it (Bao, Lucas, Sachdeva & Grosse 2020,
"Regularized linear autoencoders recover the principal components, eventually"). Public as names of `autoencoders`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax.distributions import Params
from vaejax.models import networks

Corruption = Callable[[Key[Array, ""], Array], Array]
Penalty = Callable[[Params, Array], Array]


def gaussian_noise(std: float | Float[Array, ""]) -> Corruption:
    """Corruption by independent normal noise, `(key, x) -> x + std * noise`.

    Args:
        std: in the units of x, at least 0; it may be traced, so that a population can have one each.

    Raises:
        ValueError: if std is below 0 or no number.

    >>> gaussian_noise(0.1)(jax.random.key(0), jnp.zeros((2, 3))).shape
    (2, 3)
    """
    if not isinstance(std, Tracer) and not (_is_number(std) and 0 <= std < np.inf):
        raise ValueError(f"the std of gaussian_noise must be a number of at least 0; got {std!r}")
    return lambda key, x: x + std * jax.random.normal(key, x.shape, x.dtype)


def masking_noise(probability: float) -> Corruption:
    """Corruption that sets each number of x to 0 with the given probability, `(key, x) -> x`.

    Args:
        probability: of a number to be lost, at least 0 and below 1.

    Raises:
        ValueError: if the probability is out of range.

    >>> float(masking_noise(0.5)(jax.random.key(0), jnp.ones((100, 100))).mean().round(1))
    0.5
    """
    if not (_is_number(probability) and 0 <= probability < 1):
        raise ValueError(f"the probability of masking_noise must be at least 0 and below 1; got {probability!r}")
    return lambda key, x: jnp.where(jax.random.bernoulli(key, probability, x.shape), 0, x)


def _is_number(value: ArrayLike) -> bool:
    return np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number)


def nested_dropout(probabilities: ArrayLike | Sequence[float]) -> Corruption:
    """Corruption of codes that keeps the first b units and drops the others, with b drawn anew for each example.

    Units of lower index are kept more often, so that they take what reconstructs most: for a linear model with squared
    error the j-th unit finds the j-th principal component.

    Args:
        probabilities: of b = 1, ..., latent_dim; (latent_dim,), concrete.

    Raises:
        ValueError: if they are no probabilities; when it is called, if their number is not the code's.

    >>> nested_dropout([0.5, 0.5])(jax.random.key(0), jnp.ones((5, 2)))[:, 0].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]

    Source: Rippel, Gelbart & Adams 2014, "Learning ordered representations with nested dropout".
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 1 or not (probabilities >= 0).all() or not np.isclose(probabilities.sum(), 1):
        raise ValueError(
            "nested_dropout expects the probabilities of keeping 1, 2, ..., latent_dim units, which sum to 1; got "
            f"{probabilities}"
        )
    # P(b >= j), the chance of the j-th unit to be kept: unit j is kept where a uniform number lies below it.
    kept = 1 - np.concatenate([[0.0], np.cumsum(probabilities)[:-1]])

    def corrupt(key: Key[Array, ""], z: Array) -> Array:
        if z.shape[-1] != len(kept):
            raise ValueError(
                f"nested_dropout was made for codes of {len(kept)} numbers; got {z.shape[-1]}: give one probability "
                "for each"
            )
        uniform = jnp.broadcast_to(jax.random.uniform(key, (*z.shape[:-1], 1), z.dtype), z.shape)
        return jnp.where(uniform < jnp.broadcast_to(jnp.asarray(kept, z.dtype), z.shape), z, 0)

    return corrupt


def uniform_l2(weight: float) -> Penalty:
    """The penalty weight * (|A|^2 + |B|^2), with A and B the kernels of a linear encoder and decoder.

    For a linear autoencoder with squared error it leaves the decoder's kernel free up to a rotation of the code: the
    principal subspace is found, and not its axes (Kunin, Bloom, Goeva & Seed 2019).

    Raises:
        ValueError: if the weight is below 0; when it is called, if encoder or decoder are not linear.
    """
    return _l2(np.asarray(weight, np.float64))


def nonuniform_l2(weights: ArrayLike | Sequence[float]) -> Penalty:
    """The penalty sum_j weights_j (|column j of A|^2 + |row j of B|^2): unit j of the code has a penalty of its own.

    With weights that rise, all below the variances explained, the j-th unit finds the j-th principal component.

    Args:
        weights: one for each unit of the code, (latent_dim,).

    Raises:
        ValueError: if a weight is below 0; when it is called, if their number is not the code's, or encoder or decoder
            are not linear.

    Source: Bao et al. 2020.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1:
        raise ValueError(f"nonuniform_l2 expects one weight for each unit, (latent_dim,); got shape {weights.shape}")
    return _l2(weights)


def rotation_augmentation(weight: float = 1.0) -> Penalty:
    """No penalty, value 0, but a gradient that turns the code of a linear autoencoder until its units are uncorrelated.

    With S the covariance of the codes and R = (lower(S) - upper(S)) / 2 of its triangles, gradient ascent moves the
    kernels by weight * (A R, - R B). That is an infinitesimal rotation of the code, which leaves the reconstructions
    alone and moves variance to units of lower index. Beside `uniform_l2`, which leaves nothing but a rotation free, it
    finds the principal components, in order.

    Args:
        weight: factor of the rotation.

    Raises:
        ValueError: if the weight is below 0; when it is called, if encoder or decoder are not linear.

    Source: Bao et al. 2020, section 5.
    """
    _check_weights(np.asarray(weight))

    def penalty(params: Params, z: Array) -> Array:
        encoder, decoder = _kernels(params)
        flat = z.reshape(-1, z.shape[-1])
        covariance = jnp.cov(flat, rowvar=False, bias=True).reshape(flat.shape[1], flat.shape[1])
        turn = lax.stop_gradient((jnp.tril(covariance) - jnp.triu(covariance)) / 2)
        along = (encoder * lax.stop_gradient(encoder @ turn)).sum()
        against = (decoder * lax.stop_gradient(turn @ decoder)).sum()
        surrogate = weight * (against - along)
        return surrogate - lax.stop_gradient(surrogate)

    return penalty


def _l2(weights: np.ndarray) -> Penalty:
    _check_weights(weights)

    def penalty(params: Params, z: Array) -> Array:
        encoder, decoder = _kernels(params)
        if weights.ndim and len(weights) != z.shape[-1]:
            raise ValueError(
                f"nonuniform_l2 was given {len(weights)} weights; the code has {z.shape[-1]} units: give one for each"
            )
        squares = (encoder**2).sum(axis=0) + (decoder**2).sum(axis=1)
        return (jnp.broadcast_to(jnp.asarray(weights, squares.dtype), squares.shape) * squares).sum()

    return penalty


def _check_weights(weights: np.ndarray) -> None:
    if not ((weights >= 0) & (weights < np.inf)).all():
        raise ValueError(f"weights must be numbers of at least 0; got {weights}")


def _kernels(params: Params) -> tuple[Array, Array]:
    """Of a linear encoder (data size, latent_dim) and decoder (latent_dim, data size)."""
    return networks.linear_kernel(params["encoder"]["network"]), networks.linear_kernel(params["decoder"]["network"])
