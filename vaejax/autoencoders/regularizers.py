"""Regularizers of linear autoencoders that find the principal axes, where the plain loss finds only their span.

The squared error of a linear autoencoder does not change when the latents are multiplied by an invertible matrix and
the decoder by its inverse. Each of these takes that freedom away, or a part of it (Bao, Lucas, Sachdeva & Grosse 2020,
"Regularized linear autoencoders recover the principal components, eventually").
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks
from vaejax.distributions import Params
from vaejax.models import networks

Corruption = Callable[[Key[Array, ""], Array], Array]
"""What damages data before it is encoded, `(key, x) -> x` of the same shape."""
Penalty = Callable[[Params, Array], Array]
"""A price on parameters or latents, `(params, z) -> scalar`, which is subtracted from the objective."""


def gaussian_noise(std: float | Float[Array, ""]) -> Corruption:
    """Corruption by independent normal noise, x + std * e with e ~ N(0, I).

    Args:
        std: in the units of x, at least 0; it may be traced, so that each run of a population can have its own.

    Returns:
        `(key, x) -> x~`, of the shape of x.

    Raises:
        ValueError: if std is below 0 or no number.

    >>> gaussian_noise(0.1)(jax.random.key(0), jnp.zeros((2, 3))).shape
    (2, 3)
    """
    checks.check_number("the std of gaussian_noise", std, least=0)
    return _corruption(lambda key, x: x + std * jax.random.normal(key, x.shape, x.dtype))


def masking_noise(probability: float) -> Corruption:
    """Corruption that sets each number of x to 0 with the given probability.

    Args:
        probability: of a number to be set to 0, at least 0 and below 1.

    Returns:
        `(key, x) -> x~`, of the shape of x.

    Raises:
        ValueError: if the probability is out of range.

    >>> float(masking_noise(0.5)(jax.random.key(0), jnp.ones((100, 100))).mean().round(1))
    0.5
    """
    checks.check_number("the probability of masking_noise", probability, least=0, below=1)
    return _corruption(lambda key, x: jnp.where(jax.random.bernoulli(key, probability, x.shape), 0, x))


def nested_dropout(probabilities: ArrayLike | Sequence[float]) -> Corruption:
    """Corruption of latents that keeps the first b units and sets the others to 0, with b drawn anew for each example.

    Units of lower index are kept more often, so they learn what reconstructs most: for a linear model with squared
    error the j-th unit finds the j-th principal component.

    Args:
        probabilities: of b = 1, ..., latent_dim, concrete. (latent_dim,)

    Returns:
        `(key, z) -> z~` for the `corrupt_code` of `make_reconstruction`, of the shape of z, (*batch, latent_dim).

    Raises:
        ValueError: if they are no probabilities; when it is called, if there is not one for each number of a latent.

    >>> nested_dropout([0.5, 0.5])(jax.random.key(0), jnp.ones((5, 2)))[:, 0].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]

    Source: Rippel, Gelbart & Adams 2014, "Learning ordered representations with nested dropout".
    """
    probabilities = np.asarray(checks.as_array(probabilities, "probabilities"), np.float64)
    if probabilities.ndim != 1 or not (probabilities >= 0).all() or not np.isclose(probabilities.sum(), 1):
        raise ValueError(
            "nested_dropout expects the probabilities of keeping 1, 2, ..., latent_dim units, which sum to 1; got "
            f"{probabilities}"
        )
    # P(b >= j), the chance of the j-th unit to be kept: unit j is kept where a uniform number lies below it.
    kept = 1 - np.concatenate([[0.0], np.cumsum(probabilities)[:-1]])

    def corrupt(key: Key[Array, ""], z: Array) -> Array:
        advice = "nested_dropout needs one probability for each number of a latent"
        checks.check_shape("latents", z.shape, ("*batch", len(kept)), advice)
        uniform = jnp.broadcast_to(jax.random.uniform(key, (*z.shape[:-1], 1), z.dtype), z.shape)
        return jnp.where(uniform < jnp.broadcast_to(jnp.asarray(kept, z.dtype), z.shape), z, 0)

    return _corruption(corrupt)


def uniform_l2(weight: float) -> Penalty:
    """The penalty weight * (|A|^2 + |B|^2), with A and B the kernels of a linear encoder and decoder.

    With squared error it determines the decoder's kernel up to a rotation of the latents: training finds the principal
    subspace, but not its axes.

    Args:
        weight: in the units of the error per squared unit of a kernel, at least 0.

    Returns:
        `(params, z) -> ()`, for the `penalties` of `make_reconstruction`.

    Raises:
        ValueError: if the weight is below 0; when it is called, if encoder or decoder are not linear.

    >>> from vaejax.autoencoders import linear_autoencoder
    >>> params = linear_autoencoder((5,), latent_dim=2).init(jax.random.key(0))
    >>> bool(uniform_l2(0.1)(params, jnp.ones((7, 2))) > 0)
    True

    Source: Kunin, Bloom, Goeva & Seed 2019, "Loss landscapes of regularized linear autoencoders".
    """
    checks.check_number("weight", weight, least=0)
    return _l2(np.asarray(weight, np.float64))


def nonuniform_l2(weights: ArrayLike | Sequence[float]) -> Penalty:
    """The penalty sum_j weights_j (|column j of A|^2 + |row j of B|^2): each unit of the latents has its own weight.

    With weights that rise, all below the variances explained, the j-th unit finds the j-th principal component.

    Args:
        weights: one for each unit, at least 0. (latent_dim,)

    Returns:
        `(params, z) -> ()`, for the `penalties` of `make_reconstruction`.

    Raises:
        ValueError: if a weight is below 0; when it is called, if there is not one for each unit, or encoder or decoder
            are not linear.

    >>> from vaejax.autoencoders import linear_autoencoder
    >>> params = linear_autoencoder((5,), latent_dim=2).init(jax.random.key(0))
    >>> bool(nonuniform_l2([0.1, 0.2])(params, jnp.ones((7, 2))) > 0)
    True

    Source: Bao et al. 2020.
    """
    weights = np.asarray(checks.as_array(weights, "weights"), np.float64)
    if weights.ndim != 1 or not ((weights >= 0) & (weights < np.inf)).all():
        raise ValueError(
            f"nonuniform_l2 expects one weight of at least 0 for each unit of the latents, (latent_dim,); got {weights}"
        )
    return _l2(weights)


def rotation_augmentation(weight: float = 1.0) -> Penalty:
    """A penalty of value 0 whose gradient rotates the latents of a linear autoencoder until they are uncorrelated.

    With S the covariance of the latents and R = (lower(S) - upper(S)) / 2 of its triangles, gradient ascent moves the
    kernels by weight * (A R, - R B). That is an infinitesimal rotation of the latents, which does not change the
    reconstructions and moves variance to units of lower index. Together with `uniform_l2`, which leaves only a rotation
    free, it finds the principal components, in order.

    Args:
        weight: factor of the rotation, at least 0.

    Returns:
        `(params, z) -> ()`, for the `penalties` of `make_reconstruction`; its value is 0.

    Raises:
        ValueError: if the weight is below 0; when it is called, if encoder or decoder are not linear.

    >>> from vaejax.autoencoders import linear_autoencoder
    >>> params = linear_autoencoder((5,), latent_dim=2).init(jax.random.key(0))
    >>> float(rotation_augmentation()(params, jnp.array([[0.0, 1.0], [1.0, 3.0]])))
    0.0

    Source: Bao et al. 2020, section 5.
    """
    checks.check_number("weight", weight, least=0)

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


def _corruption(corrupt: Corruption) -> Corruption:
    """The corruption, of a key that is one and an array that is one."""

    def checked(key: Key[Array, ""], x: Array) -> Array:
        checks.check_key(key)
        return corrupt(key, jnp.asarray(checks.as_array(x)))

    return checked


def _l2(weights: np.ndarray) -> Penalty:
    """The penalty with one weight for all units, (), or one for each, (latent_dim,)."""

    def penalty(params: Params, z: Array) -> Array:
        encoder, decoder = _kernels(params)
        if weights.ndim:
            advice = "nonuniform_l2 needs one weight for each unit"
            checks.check_shape("latents", z.shape, ("*batch", len(weights)), advice)
        squares = (encoder**2).sum(axis=0) + (decoder**2).sum(axis=1)
        return (jnp.broadcast_to(jnp.asarray(weights, squares.dtype), squares.shape) * squares).sum()

    return penalty


def _kernels(params: Params) -> tuple[Array, Array]:
    """Of a linear encoder (data size, latent_dim) and decoder (latent_dim, data size)."""
    return networks.linear_kernel(params["encoder"]["network"]), networks.linear_kernel(params["decoder"]["network"])
