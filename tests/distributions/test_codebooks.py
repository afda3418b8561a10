"""Quantized latents: nearest codes by brute force, the grid of levels by enumeration, gradients by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from vaejax import distributions, models

LEVELS = [(2,), (3,), (4,), (8, 5), (4, 2, 3), (7, 5, 5, 5)]


def codebook(codes):
    """Parameters of the head with these codes."""
    return {"codebook": {"codes": jnp.asarray(codes), "usage": jnp.full(len(codes), 1 / len(codes))}}


@pytest.mark.parametrize("center", [0.0, 100.0])
def test_the_code_is_the_nearest_one(x64, center):
    rng = np.random.default_rng(0)
    codes, outputs = center + rng.normal(size=(11, 3)), center + rng.normal(size=(50, 4, 3))
    q = distributions.vector_quantized(11, 3).apply(codebook(codes), jnp.asarray(outputs.reshape(50, 12)))
    expected = ((outputs[:, :, None] - codes) ** 2).sum(axis=-1).argmin(axis=-1)
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(q.indices, expected)
    np.testing.assert_array_equal(q.mean, codes[expected].reshape(50, 12))  # to the last bit
    np.testing.assert_allclose(q.distance, ((outputs - codes[expected]) ** 2).sum(axis=(1, 2)), rtol=1e-12)
    assert q.batch_shape == (50,)
    assert q.event_shape == (12,)


def test_of_equally_near_codes_the_first_is_taken():
    q = distributions.vector_quantized(3, 1).apply(codebook([[1.0], [-1.0], [1.0]]), jnp.array([0.0, 2.0]))
    assert q.indices.tolist() == [0, 0]


def test_the_gradient_passes_straight_through(x64):
    rng = np.random.default_rng(1)
    head, params = distributions.vector_quantized(5, 2), codebook(rng.normal(size=(5, 2)))
    outputs, weights = jnp.asarray(rng.normal(size=(3, 4))), rng.normal(size=(3, 4))
    function = lambda z: (weights * jnp.sin(z)).sum()  # noqa: E731
    of_codes, of_outputs = jax.grad(lambda params, z: function(head.apply(params, z).mean), (0, 1))(params, outputs)
    codes = np.asarray(head.apply(params, outputs).mean)
    np.testing.assert_allclose(of_outputs, weights * np.cos(codes), rtol=1e-12)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(of_codes))
    pull = jax.grad(lambda z: head.apply(params, z).distance.sum())(outputs)
    np.testing.assert_allclose(pull, 2 * (np.asarray(outputs) - codes), rtol=1e-12)


def test_a_codebook_starts_with_even_usage():
    params = distributions.vector_quantized(4, 3).init(jax.random.key(0), (6,))
    assert params["codebook"]["codes"].shape == (4, 3)
    np.testing.assert_array_equal(params["codebook"]["usage"], np.full(4, 0.25))


def outputs_of(codes, levels):
    """An output of the encoder that the bound maps to each code, by the inverse of its formula."""
    levels = np.asarray(levels)
    half, offset = (levels - 1) * 0.999 / 2, np.where(levels % 2 == 0, 0.5, 0.0)
    # The extreme levels lie half a margin outside of the bound's range.
    inside = np.clip((codes * (levels // 2) + offset) / half, -1 + 1e-6, 1 - 1e-6)
    return np.arctanh(inside) - np.tan(offset / half)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_codes_and_indices_are_a_bijection(x64, levels):
    codes = np.asarray(distributions.scalar_codes(levels))
    assert codes.shape == (math.prod(levels), len(levels))
    widths = [size // 2 for size in levels]
    grid = itertools.product(*[range(size) for size in levels[::-1]])  # the first number changes fastest
    rows = [[(place - width) / width for place, width in zip(row[::-1], widths, strict=True)] for row in grid]
    np.testing.assert_array_equal(codes, rows)
    q = distributions.scalar_quantized(levels).apply({}, jnp.asarray(outputs_of(codes, levels)))
    np.testing.assert_array_equal(q.indices[:, 0], np.arange(len(codes)))
    np.testing.assert_array_equal(q.mean, codes)
    assert q.num_codes == len(codes)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8, 16, 255, 256])
def test_a_bound_rounds_to_so_many_levels(size):
    z = jnp.concatenate([jnp.linspace(-9, 9, 20_001), jnp.array([-1e4, 1e4])])[:, None]
    q = distributions.scalar_quantized((size,)).apply({}, z)
    places = np.asarray(q.mean, np.float64).ravel() * (size // 2)
    lowest = -(size // 2)
    np.testing.assert_allclose(np.unique(places.round(3)), np.arange(lowest, lowest + size), atol=1e-3)
    assert (np.diff(places[:-2]) >= 0).all()
    assert q.indices[-2:, 0].tolist() == [0, size - 1]
    at_zero = distributions.scalar_quantized((size,)).apply({}, jnp.zeros(1))
    assert at_zero.mean.tolist() == [0.0]


@pytest.mark.parametrize("size", [2, 4, 5, 8])
def test_the_gradient_is_that_of_the_bound(x64, size):
    z = np.linspace(-2, 2, 41)
    gradient = jax.vmap(jax.grad(lambda z: distributions.scalar_quantized((size,)).apply({}, z[None]).mean[0]))(z)
    half, offset = (size - 1) * 0.999 / 2, 0.5 if size % 2 == 0 else 0.0
    expected = (1 - np.tanh(z + np.tan(offset / half)) ** 2) * half / (size // 2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("counts", "expected"), [([3, 3, 3, 3], 4.0), ([0, 7, 0], 1.0), ([1, 3], math.exp(stats.entropy([1, 3])))]
)
def test_perplexity_of_known_counts(counts, expected):
    np.testing.assert_allclose(distributions.perplexity(jnp.array(counts)), expected, rtol=1e-6)
    shares = jnp.array(counts, jnp.float32) / sum(counts)
    np.testing.assert_allclose(jax.jit(distributions.perplexity)(shares), expected, rtol=1e-6)


def test_outputs_that_are_nan_give_no_code():
    for head, params in (
        (distributions.vector_quantized(3, 1), codebook([[1.0], [2.0], [3.0]])),
        (distributions.scalar_quantized((5,)), {}),
    ):
        value = head.apply(params, jnp.array([jnp.nan, 0.5])).mean
        assert np.isnan(value).tolist() == [True, False]


def test_what_is_no_codebook_is_refused(no_type_hook):
    for make, words in (
        (lambda: distributions.vector_quantized(1, 2), "num_codes must be an integer of at least 2; got 1: with one"),
        (lambda: distributions.vector_quantized(4, 0), "code_dim must be an integer of at least 1; got 0"),
        (lambda: distributions.scalar_quantized((5, 1)), "each of levels must be an integer of at least 2; got 1"),
        (lambda: distributions.scalar_quantized(()), r"levels must be made of positive integers; got \(\)"),
        (lambda: distributions.scalar_quantized(5), "levels must be made of positive integers; got 5"),
        (lambda: distributions.scalar_codes((2,) * 31), "number of codes, must be .* and at most 2,147,483,647"),
        (lambda: models.vq_vae((3,), 1, 2), "num_codes must be an integer of at least 2; got 1"),
        (lambda: models.vq_vae((3,), 4, 0), "code_dim must be an integer of at least 1; got 0"),
        (lambda: models.vq_vae((3,), 4, 2, 0), "num_positions must be an integer of at least 1; got 0"),
        (lambda: models.fsq_vae((3,), (5, 1)), "each of levels must be an integer of at least 2; got 1"),
        (
            lambda: models.vq_vae((8, 8), 4, 2, channels=(4,), hidden_sizes=(5, 6)),
            r"with channels, hidden_sizes must hold one size, that of the dense layer; got \(5, 6\)",
        ),
        (
            lambda: models.mlp_vae((3,), 5, posterior=distributions.vector_quantized(4, 2)),
            "latent_dim must be divisible by the 2 numbers of a code; got 5: it is positions",
        ),
        (lambda: distributions.perplexity(jnp.zeros(3)), "counts of at least 0, of which one is above 0"),
        (lambda: distributions.perplexity(jnp.array([1.0, -1.0])), "counts of at least 0"),
        (lambda: distributions.perplexity(jnp.ones((2, 2))), r"counts of shape \(num_codes,\); got \(2, 2\)"),
        (
            lambda: distributions.as_quantized(dist.Normal(jnp.zeros(3), 1.0)),
            "a model with quantized latents, such as models.vq_vae or models.fsq_vae; got one with q = Normal",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make()
