"""Quantized latents: each position of a latent is the nearest code of a learned codebook, or a point of a fixed grid.

Both are heads for `posterior=` of a model. Their q(z|x) is a point, so that it has no density and no bound on log p(x);
`autoencoders.make_vector_quantization` trains it. The latent of an example holds the codes of its positions one after
another: latent_dim = number of positions * numbers of a code.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks
from vaejax.distributions.densities import name_of
from vaejax.distributions.heads import Head, Params, no_params
from vaejax.distributions.wrappers import without_wrappers


class Quantized(dist.Delta):
    """All probability at the codes that an encoder's outputs were quantized to.

    Its mean is the codes. The heads give them the outputs' gradient (straight-through), which is biased.

    Args:
        outputs: of the encoder, with their gradient. (*batch, positions, code_dim)
        codes: that they became, with the gradient that the outputs get in their place. Of that shape.
        indices: of the codes, below num_codes. (*batch, positions)
        num_codes: in the codebook.
        is_learned: whether the codebook has parameters.

    >>> q = Quantized(jnp.array([[0.2, 0.9]]), jnp.array([[0.0, 1.0]]), jnp.array([3]), num_codes=4, is_learned=True)
    >>> q.mean.tolist(), q.event_shape, round(float(q.distance), 2)
    ([0.0, 1.0], (2,), 0.05)

    Source: van den Oord, Vinyals & Kavukcuoglu 2017, "Neural discrete representation learning".
    """

    pytree_data_fields = ("outputs", "indices")
    pytree_aux_fields = ("num_codes", "is_learned")
    trained_by = "autoencoders.make_vector_quantization"  # for the message of `check_has_density`

    def __init__(self, outputs: Array, codes: Array, indices: Array, num_codes: int, is_learned: bool):
        self.outputs, self.indices = outputs, indices
        self.num_codes, self.is_learned = num_codes, is_learned
        value = codes.reshape(*codes.shape[:-2], -1)
        super().__init__(value, jnp.zeros(value.shape[:-1], value.dtype), event_dim=1)

    @property
    def distance(self) -> Array:
        """|output - code|^2 summed over an example, (*batch,); its gradient draws the encoder to the codes."""
        codes = lax.stop_gradient(jnp.asarray(self.v)).reshape(self.outputs.shape)
        return ((self.outputs - codes) ** 2).sum(axis=(-2, -1))


def vector_quantized(num_codes: int, code_dim: int) -> Head:
    """The nearest code, by Euclidean distance, of a learned codebook: the posterior of a VQ-VAE.

    The codebook stands in the head's own parameters, {"codebook": {"codes": (num_codes, code_dim), "usage":
    (num_codes,)}}: the codes start as draws of a standard normal, the usage of each, its share of all positions, at
    1 / num_codes. No gradient of a reconstruction reaches it: `autoencoders.make_vector_quantization` moves it.

    Args:
        num_codes: in the codebook.
        code_dim: numbers of a code; latent_dim must be a multiple of it.

    Returns:
        A head for `posterior=`.

    Raises:
        ValueError: if num_codes is below 2 or code_dim below 1; when a model is made or called, if latent_dim is no
            multiple of code_dim.

    >>> head = vector_quantized(4, 2)
    >>> params = {"codebook": {"codes": jnp.eye(4, 2), "usage": jnp.full(4, 0.25)}}
    >>> q = head.apply(params, jnp.array([[0.9, 0.2, 0.1, 0.8]]))
    >>> q.indices.tolist(), q.mean.tolist()
    ([[0, 1]], [[1.0, 0.0, 0.0, 1.0]])

    Source: van den Oord et al. 2017.
    """
    checks.check_count("num_codes", num_codes, 2, "with one code a latent says nothing")
    checks.check_count("code_dim", code_dim)

    def init(key: Key[Array, ""], event_shape: tuple[int, ...]) -> Params:
        _num_positions(event_shape, code_dim)
        codes = jax.random.normal(key, (num_codes, code_dim), jnp.float32)
        return {"codebook": {"codes": codes, "usage": jnp.full(num_codes, 1 / num_codes, codes.dtype)}}

    def apply(params: Params, values: Float[Array, "*batch latent"]) -> Quantized:
        outputs = values.reshape(*values.shape[:-1], _num_positions(values.shape, code_dim), code_dim)
        codes = lax.stop_gradient(params["codebook"]["codes"]).astype(outputs.dtype)
        # |z - e|^2 less |z|^2, halved. An accelerator's quick product would mistake the nearest of near codes.
        products = jnp.matmul(lax.stop_gradient(outputs), codes.T, precision=lax.Precision.HIGHEST)
        halves = jnp.broadcast_to(0.5 * (codes**2).sum(axis=1), products.shape)
        indices = (halves - products).argmin(axis=-1)
        return Quantized(outputs, _straight_through(codes[indices], outputs), indices, num_codes, is_learned=True)

    return Head(_one_output(code_dim), init, apply)


def scalar_quantized(levels: Sequence[int]) -> Head:
    """Each number of a code, bounded and rounded to one of a few levels: finite scalar quantization (FSQ).

        code_i = round(bound_i(z_i)) / floor(levels_i / 2),  in [-1, 1]

    The codebook is the grid of all levels; there is nothing to learn, and no code dies. With an even number of levels
    the bound is shifted, so that an output of 0 lies near the code 0, and the lowest level has no opposite.

    Args:
        levels: of each number of a code, at least 2; the paper advises 5 and more. (code_dim,)

    Returns:
        A head for `posterior=`, of codes with len(levels) numbers and prod(levels) indices. The gradient is that of
        the bound; latent_dim must be a multiple of len(levels).

    Raises:
        ValueError: if there is no level, one is below 2, or their product is no index; when a model is made or called,
            if latent_dim is no multiple of len(levels).

    >>> q = scalar_quantized((3, 2)).apply({}, jnp.array([9.0, -9.0, -9.0, 9.0]))
    >>> q.mean.tolist(), q.indices.tolist()
    ([1.0, -1.0, -1.0, 0.0], [2, 3])

    Source: Mentzer, Minnen, Agustsson & Tschannen 2023, "Finite scalar quantization: VQ-VAE made simple", appendix A.
    """
    sizes = _checked_levels(levels)
    num_codes, code_dim = math.prod(sizes.tolist()), len(sizes)
    steps = np.cumprod([1, *sizes[:-1]])

    def apply(params: Params, values: Float[Array, "*batch latent"]) -> Quantized:
        outputs = values.reshape(*values.shape[:-1], _num_positions(values.shape, code_dim), code_dim)
        bounded = _bounded(outputs, sizes)
        places, width = jnp.round(bounded), _along_last(sizes // 2, outputs)
        digits = lax.stop_gradient(places + width).astype(jnp.int32)
        indices = (digits * jnp.broadcast_to(jnp.asarray(steps, jnp.int32), digits.shape)).sum(axis=-1)
        codes = _straight_through(places, bounded) / width
        return Quantized(outputs, codes, indices, num_codes, is_learned=False)

    return Head(_one_output(code_dim), no_params, apply)


def scalar_codes(levels: Sequence[int]) -> Float[Array, "codes code_dim"]:
    """All codes of `scalar_quantized`, in the order of their indices, as the codes of a learned codebook are.

    Args:
        levels: as in `scalar_quantized`.

    Returns:
        (prod(levels), len(levels)), in [-1, 1].

    Raises:
        ValueError: as `scalar_quantized`.

    >>> scalar_codes((3, 2)).tolist()
    [[-1.0, -1.0], [0.0, -1.0], [1.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    """
    sizes = _checked_levels(levels)
    places = np.indices(sizes[::-1]).reshape(len(sizes), -1)[::-1].T
    return jnp.asarray((places - sizes // 2) / (sizes // 2), jnp.result_type(float))


def as_quantized(q: dist.Distribution) -> Quantized:
    """The quantized latents of a posterior, with their indices.

    Args:
        q: what `encode` of a model with the posterior `vector_quantized` or `scalar_quantized` returns.

    Raises:
        ValueError: if q is anything else.

    >>> from vaejax import models
    >>> vae = models.fsq_vae((3,), levels=(5, 5), num_positions=4)
    >>> as_quantized(vae.encode(vae.init(jax.random.key(0)), jnp.ones((7, 3)))).indices.shape
    (7, 4)
    """
    base = without_wrappers(q)
    if not isinstance(base, Quantized):
        raise ValueError(
            "expected a model with quantized latents, such as models.vq_vae or models.fsq_vae; got one with q = "
            f"{name_of(q)}"
        )
    return base


def perplexity(counts: ArrayLike) -> Float[Array, ""]:
    """The perplexity exp(-sum_k p_k log p_k) of how often each code is used: so many, used evenly, are worth as much.

    Args:
        counts: or shares, at least 0 and not all 0. (num_codes,)

    Returns:
        From 1, where one code is used, to num_codes; NaN for traced counts that are all 0. ()

    Raises:
        ValueError: if they are concrete and no counts, or not on one axis.

    >>> f"{perplexity(jnp.array([5, 5, 0])):.4f}"
    '2.0000'
    """
    counts = jnp.asarray(checks.as_array(counts, "counts"))
    checks.check_shape("counts", counts.shape, ("num_codes",))
    if not isinstance(counts, Tracer):
        values = np.asarray(counts, np.float64)
        if not ((values >= 0) & (values < np.inf)).all() or not values.sum() > 0:
            raise ValueError(f"expected counts of at least 0, of which one is above 0; got {checks.describe(counts)}")
    floating = jnp.issubdtype(counts.dtype, jnp.floating)
    counts = counts.astype(checks.wide_dtype(counts.dtype) if floating else jnp.result_type(float))
    return jnp.exp(jax.scipy.special.entr(counts / counts.sum()).sum())


def _checked_levels(levels: Any) -> np.ndarray:
    sizes = checks.checked_shape("levels", levels, "one number of levels for each number of a code")
    for size in sizes:
        checks.check_count("each of levels", size, 2, "a number with one level says nothing")
    checks.check_count("the product of levels, the number of codes,", math.prod(sizes))
    return np.asarray(sizes, np.int64)


def _num_positions(event_shape: tuple[int, ...], code_dim: int) -> int:
    checks.check_divides("latent_dim", event_shape[-1], code_dim, "numbers of a code", "it is positions * code_dim")
    return event_shape[-1] // code_dim


def _one_output(code_dim: int) -> Callable[[tuple[int, ...]], int]:
    """What the head asks of the network, one number for each of the latent, where this can be cut into codes."""

    def num_outputs(event_shape: tuple[int, ...]) -> int:
        _num_positions(event_shape, code_dim)
        return 1

    return num_outputs


def _straight_through(codes: Array, outputs: Array) -> Array:
    """The codes, to the last bit, with the gradient of the outputs; NaN where these are."""
    return lax.stop_gradient(codes) + (outputs - lax.stop_gradient(outputs))


def _bounded(z: Array, sizes: np.ndarray, margin: float = 1e-3) -> Array:
    """Within less than half of the lowest and highest level, so that rounding gives exactly `sizes` levels."""
    half = (sizes - 1) * (1 - margin) / 2
    offset = np.where(sizes % 2 == 0, 0.5, 0.0)
    # As in the paper: the tangent, which is within 0.1 % of the inverse of tanh from 4 levels on, is finite for 2 too.
    half, offset, shift = (_along_last(row, z) for row in (half, offset, np.tan(offset / half)))
    return jnp.tanh(z + shift) * half - offset


def _along_last(row: np.ndarray, like: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(row, like.dtype), like.shape)
