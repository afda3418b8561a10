import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vaejax import augmentation, data

affine = jax.jit(augmentation.affine)
SHAPES = pytest.mark.parametrize("shape", [(5, 4), (4, 5, 3)])


def some_images(shape, num=3):
    return np.random.default_rng(0).uniform(size=(num, *shape)).astype(np.float32)


def maps(num, matrix=((1.0, 0.0), (0.0, 1.0)), shift=(0.0, 0.0)):
    return np.tile(np.array(matrix, np.float32), (num, 1, 1)), np.tile(np.array(shift, np.float32), (num, 1))


@SHAPES
def test_affine_maps_are_scipys(shape, x64):
    rng = np.random.default_rng(1)
    images = some_images(shape).astype(np.float64)
    matrices, shifts = np.eye(2) + 0.5 * rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2))
    got = affine(images, matrices, shifts)
    centre = (np.array(shape[:2]) - 1) / 2
    for image, matrix, shift, mapped in zip(images, matrices, shifts, got, strict=True):
        offset = centre - matrix @ centre + shift
        for i in range(shape[2] if len(shape) == 3 else 1):
            channel, expected = (a.reshape(*shape[:2], -1)[..., i] for a in (image, np.asarray(mapped)))
            # Beyond the edge the image continues as zeros, also between its last pixel and the next one.
            exact = ndimage.affine_transform(channel, matrix, offset, order=1, mode="grid-constant")
            np.testing.assert_allclose(expected, exact, atol=1e-12)


@SHAPES
def test_whole_shifts_and_quarter_turns_only_move_pixels(shape):
    images = some_images(shape)
    moved = affine(images, *maps(3, shift=(1.0, -2.0)))
    expected = np.zeros_like(images)
    expected[:, :-1, 2:] = images[:, 1:, :-2]
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(affine(images, *maps(3)), images)
    square = np.pad(images, [(0, 0), (0, 5 - shape[0]), (0, 5 - shape[1])] + [(0, 0)] * (images.ndim - 3))
    turned = affine(square, *maps(3, matrix=((0.0, 1.0), (-1.0, 0.0))))
    np.testing.assert_array_equal(turned, np.rot90(square, axes=(1, 2)))


def test_no_strength_changes_nothing():
    images = some_images((6, 6))
    same = jax.jit(augmentation.random_affine(matrix_std=0.0, shift_std=0.0))(jax.random.key(0), images)
    np.testing.assert_array_equal(same, images)


def test_random_maps_have_the_moments_that_were_asked_for():
    # Of a ramp that rises by 1 a row, the middle pixel of 3 x 3 moves by the shift along the rows, the one beside it
    # by an entry of the matrix too. The ramp starts at 100, far from the zeros outside.
    num, matrix_std, shift_std = 4000, 0.04, 0.1
    ramp = np.broadcast_to(100 + np.arange(5, dtype=np.float32)[:, None], (num, 5, 5))
    seen = jax.jit(augmentation.random_affine(matrix_std, shift_std))(jax.random.key(1), ramp)
    shift = np.asarray(seen[:, 2, 2]) - 102
    entries = np.stack([np.asarray(seen[:, 3, 2]) - 103, np.asarray(seen[:, 2, 3]) - 102]) - shift
    for draws, std in ((shift, shift_std), (entries[0], matrix_std), (entries[1], matrix_std)):
        assert abs(draws.mean()) < 5 * std / num**0.5
        assert abs(draws.std() / std - 1) < 5 / (2 * num) ** 0.5
    correlations = np.corrcoef([shift, *entries])[np.triu_indices(3, 1)]
    assert (np.abs(correlations) < 5 / num**0.5).all()


def test_an_image_has_a_map_of_its_own_whatever_stands_beside_it():
    transform = jax.jit(augmentation.random_affine())
    images = np.repeat(some_images((6, 6), 1), 5, axis=0)
    seen, other = (transform(key, images) for key in jax.random.split(jax.random.key(2)))
    for first, second in ((seen[:-1], seen[1:]), (seen, other)):
        assert not np.isclose(first, second).all(axis=(1, 2)).any()
    np.testing.assert_allclose(transform(jax.random.split(jax.random.key(2))[0], images[:2]), seen[:2], rtol=1e-6)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.4, 2), (1.0, 5)])
def test_a_part_of_the_batch_is_changed(fraction, count):
    images = jnp.asarray(some_images((6, 6), 5))
    key = jax.random.key(4)
    seen = augmentation.partly(data.binarize_dynamic, fraction)(key, images)
    np.testing.assert_array_equal(seen[count:], images[count:])
    np.testing.assert_array_equal(seen[:count], data.binarize_dynamic(jax.random.clone(key), images[:count]))


def test_half_precision_is_kept_and_one_compilation_serves():
    images = some_images((6, 6))
    transform = jax.jit(chex.assert_max_traces(augmentation.random_affine(), 2))
    for key in jax.random.split(jax.random.key(5)):
        wide, half = transform(key, images), transform(key, jnp.asarray(images, jnp.bfloat16))
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(half.astype(jnp.float32), wide, atol=0.01)


@pytest.mark.parametrize("strength", [{"matrix_std": -0.1}, {"shift_std": float("nan")}])
def test_bad_strengths_are_refused(strength):
    with pytest.raises(ValueError, match=r"_std of random_affine must be a number of at least 0; got"):
        augmentation.random_affine(**strength)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_bad_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction of partly must be a number of at least 0 and at most 1; got"):
        augmentation.partly(augmentation.random_affine(), fraction)


def test_bad_images_are_refused(no_type_hook):
    transform, key = augmentation.random_affine(), jax.random.key(6)
    with pytest.raises(ValueError, match=r"expected images of shape \(n, height, width\) or .* got \(5, 36\)"):
        transform(key, jnp.ones((5, 36)))
    with pytest.raises(ValueError, match=r"floating dtype; got uint8"):
        transform(key, jnp.ones((5, 6, 6), jnp.uint8))
    with pytest.raises(ValueError, match=r"matrices of shape \(5, 2, 2\); got \(3, 2, 2\): give one for each image"):
        augmentation.affine(jnp.ones((5, 6, 6)), *maps(3))


def test_interpolation_makes_no_pixel_that_is_no_probability():
    images = jnp.ones((200, 9, 9)).at[::2, 3, 3].set(0.3)
    seen = jax.jit(augmentation.random_affine(0.1, 0.5))(jax.random.key(7), images)
    assert 0.0 <= float(seen.min()) <= float(seen.max()) <= 1.0
    assert float(jax.jit(augmentation.random_affine(0.1, 0.5))(jax.random.key(7), -255 * images).min()) == -255.0


def test_a_nan_is_not_moved_out_of_sight():
    images = jnp.asarray(some_images((6, 6))).at[1, 0, 0].set(jnp.nan)
    seen = affine(images, *maps(3, shift=(3.0, 3.0)))
    assert np.isnan(seen).all(axis=(1, 2)).tolist() == [False, True, False]
    assert np.isfinite(seen[::2]).all()
