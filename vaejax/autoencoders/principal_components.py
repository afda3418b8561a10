"""Principal component analysis and its probabilistic model in closed form, and how far learned axes are from them.

The decomposition runs in double precision on the host, whatever JAX's precision is: it is the exact answer that
gradient training is compared with.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from vaejax import checks, data, records


class PCA(NamedTuple):
    """Principal components of data, and the Gaussian p(x) = N(mean, W W^T + noise_variance I) of greatest likelihood.

    W has the columns sqrt(explained_variance_j - noise_variance) components_j (Tipping & Bishop 1999).

    Attributes:
        mean: (*data_shape,)
        components: orthonormal, by falling variance, each with the sign that makes its largest entry positive.
            (latent_dim, *data_shape)
        explained_variance: variance of the data along each component, divided by n as maximum likelihood asks.
            (latent_dim,)
        noise_variance: mean variance along the directions that are left out; 0 where there are none. ()

    >>> model = pca(jnp.array([[4.0, 1.0], [-2.0, 1.0], [1.0, 2.0], [1.0, 0.0]]), latent_dim=1)
    >>> round(float(model.explained_variance[0]), 3), round(float(model.noise_variance), 3)
    (4.5, 0.5)
    >>> near = model.decode(model.encode(jnp.array([3.0, 8.0])))  # on the line of the component
    >>> [round(float(number), 3) for number in near]
    [3.0, 1.0]
    """

    mean: Float[Array, "*data"]
    components: Float[Array, "latent_dim *data"]
    explained_variance: Float[Array, " latent_dim"]
    noise_variance: Float[Array, ""]

    __repr__ = records.short_repr

    def encode(self, x: ArrayLike) -> Float[Array, "*batch latent_dim"]:
        """Latents of x: its coordinates (x - mean) . components_j along the components.

        Args:
            x: data. (*batch, *data_shape)

        Returns:
            The latents. (*batch, latent_dim)

        Raises:
            ValueError: if the data are not of the shape or dtype that they must have.
        """
        return self._centred(x) @ self._flat_components().T

    def decode(self, z: ArrayLike) -> Float[Array, "..."]:
        """The point of the principal subspace with the latents z: mean + sum_j z_j components_j.

        Args:
            z: latents. (*batch, latent_dim)

        Returns:
            The points. (*batch, *data_shape)

        Raises:
            ValueError: if z has another number of coordinates.
        """
        z = jnp.asarray(z)
        checks.check_shape("latents", z.shape, ("*batch", len(self.explained_variance)))
        centred = (z @ self._flat_components()).reshape(*z.shape[:-1], *self.mean.shape)
        return centred + jnp.broadcast_to(self.mean, centred.shape)

    def log_likelihood(self, x: ArrayLike) -> Float[Array, " *batch"]:
        """Exact log p(x) = log N(x; mean, W W^T + noise_variance I) of probabilistic PCA.

        Args:
            x: data. (*batch, *data_shape)

        Returns:
            The log-likelihood of each example, in nats. (*batch,)

        Raises:
            ValueError: if the data are not of the right shape or dtype, or p has no density, because the data have no
                variance outside the components.
        """
        latent_dim, data_dim = len(self.explained_variance), self.mean.size
        if latent_dim < data_dim and not isinstance(self.noise_variance, Tracer) and self.noise_variance == 0:
            raise ValueError(
                f"expected data with variance outside their {latent_dim} components; there is none, so that p(x) has "
                "no density: choose a smaller latent_dim"
            )
        z = self.encode(x)
        # The residual itself and not |x|^2 - |z|^2, whose digits cancel.
        residual = self._centred(x) - z @ self._flat_components()
        log_determinant = jnp.log(self.explained_variance).sum()
        distance = (z**2 / jnp.broadcast_to(self.explained_variance, z.shape)).sum(axis=-1)
        if latent_dim < data_dim:
            log_determinant += (data_dim - latent_dim) * jnp.log(self.noise_variance)
            distance += (residual**2).sum(axis=-1) / self.noise_variance
        return -0.5 * (distance + log_determinant + data_dim * math.log(2 * math.pi))

    def _flat_components(self) -> Float[Array, "latent_dim size"]:
        return self.components.reshape(len(self.explained_variance), -1)

    def _centred(self, x: ArrayLike) -> Float[Array, "*batch size"]:
        x = checks.checked_data(x, self.mean.shape)
        return (x - jnp.broadcast_to(self.mean, x.shape)).reshape(*x.shape[: x.ndim - self.mean.ndim], -1)


def pca(x: ArrayLike, latent_dim: int) -> PCA:
    """Principal components of x by a full singular value decomposition, and the maximum-likelihood probabilistic PCA.

    Args:
        x: concrete data. (n, *data_shape)
        latent_dim: number of components, at most the number of directions in which the data vary.

    Returns:
        The components and variances, with the methods `encode`, `decode` and `log_likelihood`: a pytree of arrays in
        JAX's precision, rounded from a decomposition in double precision.

    Raises:
        ValueError: if latent_dim is not a positive integer, or the data vary in fewer directions (too few examples, too
            few numbers in each, or numbers that are the same in all); if the data are traced, not floats or not finite.

    >>> x = jax.random.normal(jax.random.key(0), (100, 3)) * jnp.array([[3.0, 2.0, 1.0]])
    >>> model = pca(x, latent_dim=2)
    >>> model.components.shape, model.log_likelihood(x).shape
    ((2, 3), (100,))

    Source: Tipping & Bishop 1999, "Probabilistic principal component analysis".
    """
    data_shape, rows = _checked(x)
    num_examples, data_dim = rows.shape
    checks.check_count("latent_dim", latent_dim)
    mean = rows.mean(axis=0)
    variances, directions = _spectrum(rows - mean)
    rank = int((variances > 0).sum())
    if latent_dim > rank:
        num_constant = int((np.ptp(rows, axis=0) == 0).sum())
        raise ValueError(
            f"latent_dim must be at most {rank}, the number of directions in which these data vary; got {latent_dim}. "
            f"There are {num_examples} examples, which vary in at most {num_examples - 1}, of {data_dim} numbers "
            f"(pixels), {num_constant} of them the same in all examples: choose a smaller latent_dim or other data"
        )
    components = directions[:latent_dim]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(latent_dim), largest])[:, None]
    return PCA(
        mean=_rounded(mean.reshape(data_shape)),
        components=_rounded(components.reshape(latent_dim, *data_shape)),
        explained_variance=_rounded(variances[:latent_dim]),
        noise_variance=_rounded(variances[latent_dim:].mean() if latent_dim < data_dim else 0.0),
    )


def equivalent_examples(x: ArrayLike) -> Float[Array, "m *data"]:
    """At most d + 1 points with the same mean and covariance as the n examples x of d numbers.

    A linear model with squared error or a Gaussian likelihood depends on the data only by these: its mean loss is the
    same over both sets, for all parameters. So full-batch training costs no more than a small batch.

    Args:
        x: concrete data, d numbers in an example. (n, *data_shape)

    Returns:
        x itself where n is at most d + 1; else d + 1 points, (d + 1, *data_shape), which do not look like data.

    Raises:
        ValueError: if the data are traced, not floats or not finite.

    >>> equivalent_examples(jax.random.normal(jax.random.key(0), (100, 3))).shape
    (4, 3)
    """
    data_shape, rows = _checked(x)
    num_examples, data_dim = rows.shape
    if num_examples <= data_dim + 1:
        return jnp.asarray(x)
    mean = rows.mean(axis=0)
    # With orthonormal columns, each of which sums to zero, the product has the Gram matrix of `spread` and no mean.
    variances, directions = _spectrum(rows - mean)
    spread = np.sqrt((data_dim + 1) * variances)[:, None] * directions
    points = scipy.linalg.helmert(data_dim + 1).T @ spread + mean
    return _rounded(points.reshape(data_dim + 1, *data_shape))


def subspace_distance(axes: ArrayLike, components: ArrayLike) -> Float[Array, ""]:
    """Distance of two subspaces, 1 - tr(P_a P_c) / k, with P the projections on the spans of k axes and k components.

    Args:
        axes: linearly independent, of any length, such as the kernel of a linear decoder.
            (k, *data_shape) or (k, data size)
        components: likewise; those of `pca`.

    Returns:
        A number between 0, where the spans are equal, and 1, where they are orthogonal. ()

    Raises:
        ValueError: if their numbers or sizes differ.

    >>> axes = jnp.array([[1.0, 1.0, 0.0], [1.0, -2.0, 0.0]])
    >>> abs(float(subspace_distance(axes, jnp.eye(3)[:2]))) < 1e-6
    True

    Source: Bao, Lucas, Sachdeva & Grosse 2020, "Regularized linear autoencoders recover the principal components,
    eventually".
    """
    first, second = (jnp.linalg.qr(flat.T).Q for flat in _axes(axes, components))
    return 1 - ((first.T @ second) ** 2).sum() / first.shape[1]


def axis_alignment(axes: ArrayLike, components: ArrayLike) -> Float[Array, ""]:
    """How far components are from axes: the mean over the components of 1 - cos^2 of the angle to the nearest axis.

    Args:
        axes: of any length but 0, such as the kernel of a linear decoder. (k, *data_shape) or (k, data size)
        components: orthogonal, likewise; those of `pca`.

    Returns:
        A number between 0, where each component is along an axis, and 1. ()

    Raises:
        ValueError: if their numbers or sizes differ, or a concrete axis has no length.

    >>> float(axis_alignment(jnp.array([[0.0, -2.0], [3.0, 0.0]]), jnp.eye(2)))
    0.0

    Source: Bao et al. 2020.
    """
    for flat in _axes(axes, components):
        if not isinstance(flat, Tracer) and not (flat != 0).any(axis=1).all():
            raise ValueError("expected axes of some length; got one that is zero, and has no direction")
    units, targets = (flat / jnp.linalg.norm(flat, axis=1, keepdims=True) for flat in _axes(axes, components))
    return 1 - ((targets @ units.T) ** 2).max(axis=1).mean()


def _axes(axes: ArrayLike, components: ArrayLike) -> tuple[Array, Array]:
    first, second = jnp.asarray(checks.as_array(axes, "axes")), jnp.asarray(checks.as_array(components, "components"))
    if first.ndim < 2 or second.ndim < 2 or len(first) != len(second) or first.size != second.size:
        raise ValueError(
            "expected as many axes as components, of one size, (k, *data_shape) or (k, data size); got "
            f"{first.shape} and {second.shape}"
        )
    return first.reshape(len(first), -1), second.reshape(len(second), -1)


def _checked(x: ArrayLike) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape of an example, and the examples as rows in double precision."""
    if isinstance(x, Tracer):
        raise ValueError(
            "expected concrete data, since the decomposition runs on the host; got a traced array: "
            "call this outside jit, vmap and grad"
        )
    if isinstance(x, data.Dataset):
        raise ValueError("expected an array of examples; got a Dataset: pass its .images")
    checks.check_floating(x)
    checks.check_finite(x, "data")
    array = np.asarray(x, np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"expected examples of shape (n, *data_shape); got {array.shape}")
    return array.shape[1:], array.reshape(len(array), -1)


def _spectrum(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (d,) along orthonormal directions (d, d), falling; zeros are exact. For n < d, the n directions."""
    num_examples, data_dim = centred.shape
    if num_examples <= data_dim:
        _, singular_values, directions = scipy.linalg.svd(centred, full_matrices=False)
        variances = np.zeros(data_dim)
        variances[: len(singular_values)] = singular_values**2 / num_examples
    else:  # the covariance holds the same answer, and of 60,000 images it takes a fifth of the time
        variances, columns = scipy.linalg.eigh(centred.T @ centred / num_examples)
        variances, directions = variances[::-1].copy(), columns.T[::-1]
    rounding = variances[0] * max(centred.shape) * np.finfo(np.float64).eps
    variances[variances <= rounding] = 0
    return variances, directions


def _rounded(array: ArrayLike) -> Array:
    return jnp.asarray(array, dtype=jax.dtypes.canonicalize_dtype(np.float64))
