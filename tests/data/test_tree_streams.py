"""Streams of trees, with labels; and what is noticed of their examples before a compiled program hides it."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import data, devices, models, objectives, streams, training


class Batch(NamedTuple):
    """What a conditional model is trained on."""

    x: Any
    context: Any = None


class Labelled:
    """Dicts, as sources from disk give them: image i is full of i, and its label is i, a plain integer."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return {"image": np.full((2, 3), index, np.uint8), "label": index}


ROWS = np.arange(50)


@pytest.mark.parametrize("on_mesh", [False, True])
@pytest.mark.parametrize(
    "source",
    [Labelled(), {"image": np.broadcast_to(ROWS[:, None, None], (50, 2, 3)).astype(np.uint8), "label": ROWS}],
)
def test_dicts_come_as_dicts_of_arrays_with_their_labels(source, on_mesh, no_type_hook):
    mesh = devices.make_mesh(devices=jax.devices()[:1]) if on_mesh else None
    stream = streams.make_stream(source, np.int64(8), np.int32(0))
    assert stream.num_examples == 50
    chunk = next(streams.read(stream, np.int64(2), np.int64(3), mesh=mesh))
    assert chunk["image"].shape == (3, 8, 2, 3)
    assert chunk["image"].dtype == jnp.uint8
    assert chunk["label"].dtype == jnp.int32
    np.testing.assert_array_equal(chunk["image"][..., 0, 0], chunk["label"])
    of_arrays = next(streams.read(streams.make_stream(ROWS, 8, 0), 2, 3))  # the order is that of a stream of arrays
    np.testing.assert_array_equal(chunk["label"], of_arrays)


def test_a_named_tuple_keeps_its_form_and_its_empty_places():
    batch = next(streams.read(streams.make_stream(Batch(np.ones((9, 2), np.float32)), 3, 0), 0, 2))
    assert isinstance(batch, Batch)
    assert batch.x.shape == (2, 3, 2)
    assert batch.context is None


def test_a_model_is_trained_on_labelled_examples():
    vae = models.mlp_vae((5,), 2, (3,))

    def prepare(key, batch):
        return jnp.concatenate([streams.as_numbers(batch["image"]), jax.nn.one_hot(batch["label"], 2)], axis=-1)

    step = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-2), prepare)
    state = training.init_state(vae.init(jax.random.key(0)), optax.adam(1e-2))
    bits = np.random.default_rng(0).integers(0, 2, (40, 3))
    source = {"image": (255 * bits).astype(np.uint8), "label": bits[:, 0]}
    chunk = next(streams.read(streams.make_stream(source, 8, 0), 0, 4))
    _, history = training.fit_batches(step, state, jax.random.key(2), chunk)
    joined = np.concatenate([bits, np.eye(2)[bits[:, 0]]], axis=1).astype(np.float32)
    same = next(streams.read(streams.make_stream(joined, 8, 0), 0, 4))
    plain = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-2), lambda key, batch: batch)
    _, expected = training.fit_batches(plain, state, jax.random.key(2), same)
    np.testing.assert_allclose(history.elbo, expected.elbo, rtol=1e-5)


# What is noticed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_example_is_named_with_its_batch(bad):
    images = np.ones((40, 3), np.float32)
    images[17, 2] = bad
    stream = streams.make_stream({"x": images, "label": np.arange(40)}, 8, 5)
    order = np.random.default_rng((5, 0)).permutation(40)
    batch = int(np.argmax(order == 17)) // 8
    message = (
        rf"example 17, which is in batch {batch}, got 1 NaN or infinite value of 3, the first {bad} at index \(2,\)"
    )
    with pytest.raises(ValueError, match=message):
        list(itertools.islice(streams.read(stream, 0, 1), 5))
    before = list(itertools.islice(streams.read(stream, 0, 1, ahead=1), max(0, batch - 3)))
    assert len(before) == max(0, batch - 3)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (np.ones((5, 2)), "expected float32 data, because JAX runs in 32 bits; got float64"),
        ({"x": np.ones(5, np.float32), "y": np.ones(4)}, r"same number of examples.*got \[\(4,\), \(5,\)\]"),
        (None, "source must have a length and examples by number, as an array has; got None"),
        (3, "source must have a length and examples by number, as an array has; got 3"),
        (["a", "b"], "expected an example as an array of numbers; got 'a'"),
    ],
)
def test_what_is_no_source_of_numbers_is_refused(source, says, no_type_hook):
    with pytest.raises(ValueError, match=says):
        streams.make_stream(source, 2, 0)


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (np.ones(3, np.float32), r"the first is float32\[2\]; got float32\[3\] of example 3, which is in batch"),
        (np.ones(2, np.uint8), r"the first is float32\[2\]; got uint8\[2\] of example 3"),
        ({"x": np.ones(2, np.float32)}, r"the first is float32\[2\]; got \['x'\] float32\[2\] of example 3"),
    ],
)
def test_examples_that_are_not_alike_are_named(last, says):
    stream = streams.make_stream([np.ones(2, np.float32)] * 3 + [last], 4, 0)
    with pytest.raises(ValueError, match=says):
        next(streams.read(stream, 0, 1))


def test_a_label_that_32_bits_do_not_hold_is_refused():
    with pytest.raises(ValueError, match="integers that int32 holds, because JAX runs in 32 bits; got 4294967301"):
        streams.make_stream([2**32 + 5], 1, 0)


@pytest.mark.parametrize("seed", [-1, 1.5, True, None])
def test_a_seed_is_an_integer(seed, no_type_hook):
    with pytest.raises(ValueError, match=f"seed must be an integer of at least 0; got {seed}"):
        streams.make_stream(np.arange(5), 2, seed)


@pytest.mark.slow
def test_labels_from_disk_are_those_in_memory(prepared_tfds):
    source = streams.open_labelled_source("mnist", "test", data_dir=prepared_tfds)
    loaded = data.load("mnist", "test", data_dir=prepared_tfds)
    assert len(source) == len(loaded.labels)
    for row in range(0, len(source), 1000):
        assert source[row]["label"] == loaded.labels[row]
        np.testing.assert_allclose(streams.as_numbers(source[row]["image"]), loaded.images[row], rtol=1e-6)
    with pytest.raises(ValueError, match="expected a TFDS set with one label; got 'binarized_mnist'"):
        streams.open_labelled_source("binarized_mnist", data_dir=prepared_tfds)
