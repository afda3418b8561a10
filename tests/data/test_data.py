import collections
import gzip
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaejax import data, models, objectives, training
from vaejax.data import tfds

MNIST_FILES = [f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
SPLITS = ("train", "validation", "test")


def idx(path):
    """Reads an IDX file: four bytes of type and rank, the big-endian shape, the bytes."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">u4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def multiset(images, labels=None):
    """The images, and the label of each, without their order."""
    labels = np.zeros(len(images)) if labels is None else labels
    return collections.Counter((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def as_bytes(images):
    return np.rint(images * 255).astype(np.uint8)


def z_scores(sample_mean, expected, standard_error):
    return np.abs(np.asarray(sample_mean) - expected) / standard_error


# Embedded sets


def test_importing_is_light():
    code = "import sys, vaejax.data; print({'tensorflow_datasets', 'tensorflow', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("name", data.names())
def test_embedded_sets_are_float32_arrays_that_do_not_change(name):
    for split in SPLITS:
        first, again = data.load(name, split), data.load(name, split)
        assert first.images.dtype == np.float32
        assert isinstance(first.images, np.ndarray)
        np.testing.assert_array_equal(first.images, again.images)
        assert (first.name, first.split) == (name, split)
        assert first.description
        if first.labels is not None:
            assert first.labels.dtype == np.int32
            assert first.labels.shape == (len(first.images),)


@pytest.mark.parametrize("name", data.names())
def test_train_plus_validation_is_both_in_this_order(name):
    train, validation, both = (data.load(name, split) for split in ("train", "validation", "train+validation"))
    np.testing.assert_array_equal(both.images, np.concatenate([train.images, validation.images]))
    if both.labels is not None:
        np.testing.assert_array_equal(both.labels, np.concatenate([train.labels, validation.labels]))


def test_digits_are_split_by_index_and_every_split_has_every_class():
    from sklearn.datasets import load_digits

    raw = load_digits()
    index = np.arange(1797)
    expected = {"train": index % 7 < 5, "validation": index % 7 == 5, "test": index % 7 == 6}
    for split, chosen in expected.items():
        digits = data.load("digits", split)
        np.testing.assert_array_equal(digits.images * 16, raw.images[chosen])
        np.testing.assert_array_equal(digits.labels, raw.target[chosen])
        # Balanced sampling would give a tenth to each class; none has less than half of that.
        assert np.bincount(digits.labels, minlength=10).min() > len(digits.labels) / 20
    assert [int(chosen.sum()) for chosen in expected.values()] == [1285, 256, 256]
    assert data.load("digits").images.max() == 1.0


@pytest.mark.parametrize("name", ["two_gaussians", "spiral", "linear_gaussian"])
def test_synthetic_splits_are_independent_draws_of_stated_sizes(name):
    parts = [data.load(name, split).images for split in SPLITS]
    assert [len(part) for part in parts] == [10_000, 2_000, 2_000]
    assert len(np.unique(np.concatenate(parts), axis=0)) == 14_000


@pytest.mark.parametrize("sampler", [data.two_gaussians, data.spiral, data.linear_gaussian])
def test_samplers_are_pure_and_stay_float32_in_double_precision(sampler, x64):
    key = jax.random.key(3)
    points, labels = sampler(jax.random.clone(key), 50)
    jitted, _ = jax.jit(sampler, static_argnums=1)(key, 50)
    assert points.dtype == jitted.dtype == jnp.float32
    assert labels is None or labels.dtype == jnp.int32
    np.testing.assert_allclose(points, jitted, rtol=1e-6, atol=1e-6)


def test_two_gaussians_has_the_stated_means_and_std():
    n = 40_000
    points, labels = data.two_gaussians(jax.random.key(1), n, mean=1.5, std=0.3)
    assert z_scores(jnp.mean(labels == 1), 0.5, 0.5 / n**0.5) < 5
    for component, center in enumerate([(-1.5, 0.0), (1.5, 0.0)]):
        own = np.asarray(points)[np.asarray(labels) == component]
        standard_error = 0.3 / len(own) ** 0.5
        assert standard_error < 0.003
        assert np.all(z_scores(own.mean(0), center, standard_error) < 5)
        # The variance of a sample variance is 2 std^4 / n, that of a sample covariance std^4 / n.
        covariance_errors = 0.3**2 * np.array([[2.0, 1.0], [1.0, 2.0]]) ** 0.5 / len(own) ** 0.5
        assert np.all(z_scores(np.cov(own.T), 0.3**2 * np.eye(2), covariance_errors) < 5)


def test_spiral_has_the_stated_moments():
    n, turns, std = 40_000, 1.5, 0.1
    points = np.asarray(data.spiral(jax.random.key(2), n, turns=turns, std=std)[0])
    radius = np.sqrt((np.arange(1_000_000) + 0.5) / 1_000_000)  # midpoints of the uniform distribution of radius^2
    curve = np.stack([radius * np.cos(2 * np.pi * turns * radius), radius * np.sin(2 * np.pi * turns * radius)])
    standard_errors = points.std(0) / n**0.5
    assert np.all(standard_errors < 0.01)
    assert np.all(z_scores(points.mean(0), curve.mean(1), standard_errors) < 5)
    squares = (points**2).sum(1)
    assert z_scores(squares.mean(), 0.5 + 2 * std**2, squares.std() / n**0.5) < 5
    exact = data.spiral(jax.random.key(2), 1000, turns=turns, std=0.0)[0]
    r = jnp.linalg.norm(exact, axis=1)
    on_curve = jnp.stack([r * jnp.cos(2 * jnp.pi * turns * r), r * jnp.sin(2 * jnp.pi * turns * r)], axis=1)
    np.testing.assert_allclose(exact, on_curve, atol=1e-5)


def test_linear_gaussian_has_its_exact_marginal():
    x = np.asarray(data.load("linear_gaussian").images, np.float64)
    weights, bias, std = (np.asarray(value, np.float64) for value in data.linear_gaussian_parameters())
    n = len(x)
    covariance = weights @ weights.T + std**2 * np.eye(8)
    variances = np.diag(covariance)
    assert np.all(z_scores(x.mean(0), bias, np.sqrt(variances / n)) < 5)
    # A sample covariance of normal vectors has the variance (c_ij^2 + c_ii c_jj) / n.
    standard_errors = np.sqrt((covariance**2 + np.outer(variances, variances)) / n)
    assert np.linalg.norm(standard_errors) < 0.1 * np.linalg.norm(covariance)
    assert np.all(z_scores(np.cov(x.T), covariance, standard_errors) < 5)
    # With the true parameters -2 log p(x) is chi-squared up to a constant: mean 8 a point, variance 16.
    distances = np.einsum("ni,ij,nj->n", x - bias, np.linalg.inv(covariance), x - bias)
    assert z_scores(distances.mean(), 8, np.sqrt(16 / n)) < 5


def test_linear_gaussian_takes_other_parameters():
    parameters = data.linear_gaussian_parameters(jax.random.key(5), data_dim=3, latent_dim=1, std=0.0)
    x, _ = data.linear_gaussian(jax.random.key(6), 4, parameters)
    assert x.shape == (4, 3)
    directions = (x - parameters.bias[None, :]) / parameters.weights[None, :, 0]
    np.testing.assert_allclose(directions, jnp.broadcast_to(directions[:, :1], (4, 3)), rtol=1e-4)


# Binarization


def test_dynamic_binarization_has_the_pixel_as_its_mean():
    n, pixels = 40_000, np.array([0.0, 1 / 255, 0.1, 0.3, 0.5, 0.9, 1.0], np.float32)
    drawn = np.asarray(data.binarize_dynamic(jax.random.key(0), np.broadcast_to(pixels, (n, 7))))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    inner = slice(1, -1)
    standard_errors = np.sqrt(pixels * (1 - pixels) / n)[inner]
    assert standard_errors.max() < 0.003
    assert np.all(z_scores(drawn.mean(0)[inner], pixels[inner], standard_errors) < 5)
    assert drawn[:, 0].max() == 0.0
    assert drawn[:, -1].min() == 1.0


def test_dynamic_binarization_in_16_bits_is_not_coarse():
    n, pixel = 200_000, jnp.bfloat16(1 / 255)
    drawn = data.binarize_dynamic(jax.random.key(1), jnp.full((n,), pixel))
    probability = float(pixel)
    mean = np.asarray(drawn, np.float64).mean()
    assert z_scores(mean, probability, (probability * (1 - probability) / n) ** 0.5) < 5


def test_pixels_that_share_a_random_word_are_independent():
    n, probabilities = 200_000, np.array([0.3, 0.6, 0.5], np.float32)
    drawn = np.asarray(data.binarize_dynamic(jax.random.key(2), np.broadcast_to(probabilities, (n, 3))), np.float64)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        both = float(probabilities[first]) * float(probabilities[second])
        assert z_scores((drawn[:, first] * drawn[:, second]).mean(), both, (both * (1 - both) / n) ** 0.5) < 5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_binarizations_keep_the_dtype_and_the_shape(dtype, x64):
    images = jnp.full((2, 3, 4), 0.6, dtype)
    for binarize in (data.binarize_dynamic, data.binarize_threshold):
        drawn = binarize(jax.random.key(0), images)
        assert drawn.dtype == images.dtype
        assert drawn.shape == images.shape


def test_dynamic_binarization_depends_on_the_key_alone():
    images = jnp.full((100, 5), 0.5)
    first = data.binarize_dynamic(jax.random.key(7), images)
    np.testing.assert_array_equal(first, data.binarize_dynamic(jax.random.key(7), images))
    np.testing.assert_array_equal(first, jax.jit(data.binarize_dynamic)(jax.random.key(7), images))
    assert jnp.mean(first == data.binarize_dynamic(jax.random.key(8), images)) < 0.7


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_threshold_is_exact(pixels):
    drawn = data.binarize_threshold(jax.random.key(0), np.array(pixels, np.float32))
    assert drawn.tolist() == [float(pixel > 0.5) for pixel in pixels]


def test_binarizations_by_name():
    assert set(data.BINARIZATIONS) == {"dynamic", "threshold", "none", "levels", "dequantized"}
    assert data.binarization("dynamic") is data.binarize_dynamic
    assert data.binarization("threshold") is data.binarize_threshold
    assert data.binarization("none") is None
    with pytest.raises(ValueError, match="'threshold', 'none', 'levels' or 'dequantized'; got 'static'"):
        data.binarization("static")


def test_levels_and_their_noise():
    """Every 8-bit image there and back; noise of one level stays within it, and is uniform."""
    bytes_ = np.arange(256, dtype=np.uint8)
    images = jnp.asarray(bytes_, jnp.float32) / 255
    np.testing.assert_array_equal(data.to_levels(None, images), bytes_)
    noisy = data.dequantize(jax.random.key(0), jnp.tile(images, (1000, 1)))
    np.testing.assert_array_equal(np.floor(256 * noisy), np.tile(bytes_, (1000, 1)))
    assert 0 < noisy.min()
    assert noisy.max() < 1
    rest = 256 * np.asarray(noisy, np.float64) - bytes_
    assert abs(rest.mean() - 0.5) < 4 * np.sqrt(1 / 12 / rest.size)
    np.testing.assert_allclose(rest.var(), 1 / 12, rtol=0.02)


def test_bytes_survive_half_precision():
    levels = data.to_levels(None, jnp.asarray(np.arange(256) / 255, jnp.bfloat16))
    assert levels.dtype == jnp.bfloat16
    assert abs(np.asarray(levels, np.float32) - np.arange(256)).max() <= 1  # as near as grey values of 8 bits stand
    assert data.dequantize(jax.random.key(0), jnp.ones(9, jnp.bfloat16)).max() < 1


BINARIZATIONS = [data.binarize_dynamic, data.binarize_threshold, data.to_levels, data.dequantize]


@pytest.mark.parametrize("binarize", BINARIZATIONS)
def test_binarizations_refuse_what_are_no_probabilities(binarize):
    key = jax.random.key(0)
    images = np.full((4, 3), 0.5, np.float32)
    images[2, 1], images[3, 0] = 255.0, np.nan
    with pytest.raises(ValueError, match=r"in \[0, 1\].*got 2 NaN or outside values of 12.*255.0 at index \(2, 1\)"):
        binarize(key, images)
    with pytest.raises(ValueError, match=r"first -0.5 at index \(0,\).*scale grey values"):
        binarize(key, jnp.array([-0.5]))
    with pytest.raises(ValueError, match=r"first nan at index \(1,\)"):
        binarize(key, jnp.array([0.5, jnp.nan]))
    with pytest.raises(ValueError, match=r"floating dtype; got uint8. Scale to \[0, 1\].* / 255"):
        binarize(key, np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="got int32"):  # known from the dtype, so under jit too
        jax.jit(binarize)(key, jnp.zeros((2, 2), jnp.int32))


# Under jit values are unknown, so that what cannot be refused must not become a number that looks right.
HIDDEN = np.array([[0.5, 255.0, -0.5, np.nan], [1.01, -np.inf, 1.0, 0.0]], np.float32)


@pytest.mark.parametrize("binarize", BINARIZATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_no_probability_comes_out_of_jit_as_nan_pixel_by_pixel(binarize, dtype):
    seen = np.asarray(jax.jit(binarize)(jax.random.key(0), jnp.asarray(HIDDEN, dtype)), np.float32)
    assert np.isnan(seen).tolist() == [[False, True, True, True], [True, True, False, False]]
    assert (seen[1, 2:] > 0.5).tolist() == [True, False]
    shown = jnp.asarray(np.where(np.isnan(seen), 0.5, HIDDEN), dtype)
    expected = np.asarray(binarize(jax.random.key(0), shown), np.float32)  # what stands beside them draws as ever
    np.testing.assert_array_equal(seen[~np.isnan(seen)], expected[~np.isnan(seen)])


@pytest.mark.parametrize("prepare", [data.binarize_dynamic, data.binarize_threshold, "augmented"])
@pytest.mark.parametrize("scale", [lambda x: 255 * x, lambda x: 2 * x - 1, lambda x: x.at[1, 2, 3].set(jnp.nan)])
def test_data_of_another_scale_make_the_objective_nan(prepare, scale):
    if prepare == "augmented":
        prepare = lambda key, x: data.binarize_threshold(key, data.augmentation.random_affine()(key, x))  # noqa: E731
    vae = models.mlp_vae((4, 5), 2, (3,))
    step = training.make_train_step(objectives.make_elbo(vae), optax.sgd(0.1), prepare)
    state = training.init_state(vae.init(jax.random.key(0)), optax.sgd(0.1))
    images = jax.random.uniform(jax.random.key(1), (3, 4, 5))
    run = jax.jit(lambda x: step(state, jax.random.key(2), x)[1].elbo)
    assert np.isfinite(run(images))
    assert np.isnan(run(scale(images)))


# Errors


def test_check_finite_counts_and_locates():
    images = np.zeros((5, 2, 2), np.float32)
    data.check_finite(images)
    images[1, 0, 1], images[4, 1, 1] = np.inf, np.nan
    with pytest.raises(
        ValueError, match=r"finite pixels, got 2 NaN or infinite values of 20.*inf at index \(1, 0, 1\)"
    ):
        data.check_finite(images, "pixels")
    with pytest.raises(ValueError, match=r"finite images, got 2 "):
        data.check_finite(jnp.asarray(images))
    jax.jit(lambda x: data.check_finite(x))(images)


@pytest.mark.parametrize("sampler", [data.two_gaussians, data.spiral, data.linear_gaussian])
@pytest.mark.parametrize("num_examples", [0, -1])
def test_samplers_refuse_to_draw_nothing(sampler, num_examples):
    with pytest.raises(ValueError, match=f"num_examples must be an integer of at least 1; got {num_examples}"):
        sampler(jax.random.key(0), num_examples)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_unknown_split(name):
    with pytest.raises(
        ValueError, match=r"split must be 'train', 'validation', 'test' or 'train\+validation'; got 'valid'"
    ):
        data.load(name, "valid")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "'digits'"),
        ("minst", "'mnist'"),
        ("MNIST", "'mnist'"),
        ("cifar-10", "'cifar10'"),
        ("spirals", "'spiral'"),
        ("qqqqqqqq", "no name is near it"),
        ("huggingface:mnist", "'mnist'|no name is near"),
    ],
)
def test_unknown_set_names_the_near_ones(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.load(name)
    assert f"got {name!r}" in str(caught.value)
    assert "list_builders" in str(caught.value)


@pytest.mark.parametrize("name", ["glue", "imdb_reviews", "caltech101"])
def test_sets_without_images_of_one_shape(name, tmp_path):
    with pytest.raises(ValueError, match=rf"one image feature of a fixed shape, got '{name}' with features .*label"):
        data.load(name, data_dir=tmp_path)


def test_unprepared_set_names_its_files_and_where_to_put_them(tmp_path):
    unprepared = tmp_path / "data"
    manual_dir = tmp_path / "manual"

    def message(**options):
        with pytest.raises(FileNotFoundError) as caught:
            data.load("mnist", data_dir=unprepared, **options)
        assert all(file in str(caught.value) for file in MNIST_FILES)
        assert "download=True" in str(caught.value)
        assert str(unprepared / "mnist") in str(caught.value)
        return str(caught.value)

    assert "manual_dir is not given" in message()
    assert f"manual_dir={str(manual_dir)!r} is no folder" in message(manual_dir=manual_dir)
    manual_dir.mkdir()
    for file in MNIST_FILES[1:]:
        (manual_dir / file).touch()
    assert f"lacks {MNIST_FILES[0]}: put" in message(manual_dir=manual_dir)
    assert not unprepared.exists()


# TFDS sets, prepared from the original files


@pytest.mark.slow
def test_wrong_file_is_refused(tmp_path, shared_data):
    pytest.importorskip("tensorflow")
    with pytest.raises(Exception, match="wrong checksum"):  # fashion_mnist's files bear the names of mnist's
        data.load("mnist", data_dir=tmp_path, manual_dir=shared_data / "fashion_mnist")
    assert not (tmp_path / "mnist" / "3.0.1").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "train_mean", "test_mean"), [("mnist", 33.3184, 33.7912), ("fashion_mnist", 72.9404, 73.1466)]
)
def test_idx_sets_are_the_original_images(name, train_mean, test_mean, prepared_tfds, shared_data):
    for split, prefix, mean, size in [
        ("train+validation", "train", train_mean, 60000),
        ("test", "t10k", test_mean, 10000),
    ]:
        loaded = data.load(name, split, data_dir=prepared_tfds)
        raw_images = idx(shared_data / name / f"{prefix}-images-idx3-ubyte.gz")
        raw_labels = idx(shared_data / name / f"{prefix}-labels-idx1-ubyte.gz")
        assert loaded.images.shape == (size, 28, 28)
        assert loaded.images.dtype == np.float32
        assert loaded.labels.dtype == np.int32
        assert loaded.images.max() == 1.0
        assert loaded.images.min() == 0.0
        assert abs(loaded.images.mean(dtype=np.float64) * 255 - mean) < 1e-4
        np.testing.assert_array_equal(np.bincount(loaded.labels), np.bincount(raw_labels))
        assert multiset(as_bytes(loaded.images), loaded.labels) == multiset(raw_images, raw_labels)
        np.testing.assert_array_equal(loaded.images[:100], as_bytes(loaded.images[:100]).astype(np.float32) / 255)


@pytest.mark.slow
def test_validation_is_the_last_sixth_of_tfds_train(prepared_tfds):
    train, validation, both = (data.load("mnist", s, data_dir=prepared_tfds) for s in (*SPLITS[:2], "train+validation"))
    assert len(train.images) == 50000
    np.testing.assert_array_equal(train.images, both.images[:50000])
    np.testing.assert_array_equal(validation.images, both.images[50000:])
    np.testing.assert_array_equal(validation.labels, both.labels[50000:])
    assert "TFDS mnist/3.0.1, train[50000:60000], in the order of TFDS" in validation.description
    assert "train[0:50000] and train[50000:60000]" in both.description


@pytest.mark.slow
def test_binarized_mnist_is_the_fixed_binarization(prepared_tfds, shared_data):
    with np.load(shared_data / "binarized_mnist" / "binarized_mnist_larochelle.npz") as packed:
        for split, part, size, mean in [
            ("train", "train", 50000, 0.130562),
            ("validation", "valid", 10000, 0.131127),
            ("test", "test", 10000, 0.132512),
        ]:
            loaded = data.load("binarized_mnist", split, data_dir=prepared_tfds)
            assert loaded.images.shape == (size, 28, 28)
            assert loaded.images.dtype == np.float32
            assert loaded.labels is None
            assert set(np.unique(loaded.images)) == {0.0, 1.0}
            assert abs(loaded.images.mean(dtype=np.float64) - mean) < 1e-6
            raw = np.unpackbits(packed[part], axis=1, count=784)
            assert multiset(loaded.images.astype(np.uint8)) == multiset(raw)


@pytest.mark.exhaustive
def test_cache_is_used_and_a_damaged_one_is_replaced(prepared_tfds):
    fresh = data.load("mnist", "validation", data_dir=prepared_tfds)
    (cache,) = prepared_tfds.glob("mnist/*/vaejax_train_50000_60000.npz")
    sound = cache.read_bytes()
    marked = np.zeros((10000, 28, 28), np.uint8)
    np.savez(cache, images=marked, labels=fresh.labels)
    assert data.load("mnist", "validation", data_dir=prepared_tfds).images.max() == 0.0

    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 1
    for damaged in (b"", sound[:1000], bytes(flipped)):
        cache.write_bytes(damaged)
        again = data.load("mnist", "validation", data_dir=prepared_tfds)
        np.testing.assert_array_equal(again.images, fresh.images)
        np.testing.assert_array_equal(again.labels, fresh.labels)
        assert cache.stat().st_size == len(sound)


@pytest.mark.slow
def test_cache_that_cannot_be_written_is_done_without(prepared_tfds):
    fresh = data.load("mnist", "test", data_dir=prepared_tfds)
    (cache,) = prepared_tfds.glob("mnist/*/vaejax_test_0_10000.npz")
    cache.unlink()
    cache.mkdir()  # root may write into any folder, but not over one
    again = data.load("mnist", "test", data_dir=prepared_tfds)
    cache.rmdir()
    np.testing.assert_array_equal(again.images, fresh.images)
    assert not list(cache.parent.glob("vaejax_test*"))


@pytest.mark.slow
def test_reading_needs_no_tensorflow_and_preparing_says_so(prepared_tfds, shared_data, tmp_path):
    code = """
import pathlib, sys

class Hidden:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, attribute):
        return getattr(self.finder, attribute)

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] == "tensorflow" else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Hidden, sys.meta_path)
from vaejax import data

prepared, fashion, empty = map(pathlib.Path, sys.argv[1:])
for cache in prepared.glob("mnist/*/vaejax_test*"):
    cache.unlink()
print(round(float(data.load("mnist", "test", data_dir=prepared).images.mean(dtype="float64")) * 255, 4))
try:
    data.load("fashion_mnist", data_dir=empty, manual_dir=fashion)
except ModuleNotFoundError as error:
    print(error)
"""
    arguments = [prepared_tfds, shared_data / "fashion_mnist", tmp_path]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    mean, message = done.stdout.strip().split("\n")
    assert mean == "33.7912"
    assert 'python -m pip install -e ".[prepare]"' in message
    assert "fashion_mnist" in message


# TFDS sets of other kinds, written by TFDS from a few made-up images


@pytest.fixture(scope="module")
def made_up_sets(tmp_path_factory):
    """A data_dir with colour sets of 60 images, number i all of byte i, that have train alone or lack a test split."""
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    class MadeUp(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(4, 5, 3)),
                "class": tfds.features.ClassLabel(num_classes=60),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), description="Flat."
            )

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples() for part in self.parts}

        def _generate_examples(self):
            for i in range(60):
                yield i, {"image": np.full((4, 5, 3), i, np.uint8), "class": i}

    class VaejaxTrainOnly(MadeUp):
        parts = ("train",)

    class VaejaxNoTest(MadeUp):
        parts = ("train", "validation")

    class VaejaxNoTrain(MadeUp):
        parts = ("test",)

    return tmp_path_factory.mktemp("made_up")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "slices"),
    [
        ("vaejax_train_only", (40, 10, 10), ("train[0:40]", "train[40:50]", "train[50:60]")),
        ("vaejax_no_test", (50, 60, 10), ("train[0:50]", "validation[0:60]", "train[50:60]")),
    ],
)
def test_missing_splits_are_carved_off_train(name, sizes, slices, made_up_sets):
    parts = [data.load(name, split, data_dir=made_up_sets, manual_dir=made_up_sets) for split in SPLITS]
    assert [part.images.shape for part in parts] == [(size, 4, 5, 3) for size in sizes]
    assert all(f", {where}," in part.description for part, where in zip(parts, slices, strict=True))
    for part in parts:
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels.astype(np.float32) / 255)
    of_train = np.concatenate([part.labels for part, where in zip(parts, slices, strict=True) if "train" in where])
    assert sorted(of_train) == list(range(60))


@pytest.mark.parametrize(
    "stored", [("train",), ("train", "test"), ("train", "validation"), ("train", "validation", "test")]
)
@pytest.mark.parametrize("size", [6, 7, 60, 1404])
def test_no_image_is_in_two_parts_and_none_is_lost(stored, size):
    splits = {split: types.SimpleNamespace(num_examples=size + i) for i, split in enumerate(stored)}
    builder = types.SimpleNamespace(info=types.SimpleNamespace(splits=splits), name="made up")
    rows = collections.Counter()
    for part in SPLITS:
        base, start, stop = tfds._slice(builder, part)
        rows.update((base, row) for row in range(start, stop))
        assert (
            (base == part, start, stop) == (True, 0, size + stored.index(part)) if part in stored[1:] else stop > start
        )
    assert set(rows.values()) == {1}
    assert len(rows) == sum(split.num_examples for split in splits.values())


@pytest.mark.slow
def test_set_without_train_split(made_up_sets):
    options = {"data_dir": made_up_sets, "manual_dir": made_up_sets}
    assert len(data.load("vaejax_no_train", "test", **options).images) == 60
    with pytest.raises(ValueError, match="expected a TFDS set with a train split, got 'vaejax_no_train' with test"):
        data.load("vaejax_no_train", "train", **options)
