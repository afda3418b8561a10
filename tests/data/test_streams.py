import itertools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import EXPERIMENTS

from vaejax import data, devices, models, objectives, streams, training


def test_an_epoch_has_each_example_once_in_an_order_of_its_own():
    stream = streams.make_stream(np.arange(60), batch_size=20, seed=3)
    epochs = [np.concatenate([stream.batches[t] for t in range(3 * e, 3 * e + 3)]) for e in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(60))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], streams.make_stream(np.arange(60), 60, seed=4).batches[0])
    assert (stream.batch_size, stream.num_examples) == (20, 60)


def test_neighbours_in_an_epoch_are_not_correlated():
    stream = streams.make_stream(np.arange(20_000), batch_size=1000, seed=0)
    order = np.concatenate([stream.batches[t] for t in range(20)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / np.sqrt(20_000)


@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_batches_are_the_same_from_wherever_one_reads_on(num_steps):
    stream = streams.make_stream(np.arange(50), batch_size=8, seed=0)
    whole = np.concatenate(list(itertools.islice(streams.read(stream, 0, 15 // num_steps * num_steps), 1)))
    for start in (0, 7):
        pieces = list(itertools.islice(streams.read(stream, start, num_steps, ahead=1), 2))
        assert all(isinstance(piece, jax.Array) for piece in pieces)
        found = np.concatenate(pieces)
        np.testing.assert_array_equal(found[: len(whole) - start], whole[start : start + len(found)])


def test_training_on_a_stream_is_training_on_its_batches():
    vae = models.mlp_vae((3,), 2, (5,))
    images = np.asarray(jax.random.bernoulli(jax.random.key(0), 0.5, (40, 3)), np.float32)
    step = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-2))
    state = training.init_state(vae.init(jax.random.key(1)), optax.adam(1e-2))
    stream = streams.make_stream(images, batch_size=8, seed=0)
    key = jax.random.key(2)
    fit = jax.jit(lambda state, batches, stop: training.fit_batches(step, state, key, batches, stop=stop))
    streamed, bounds = state, []
    for chunk in itertools.islice(streams.read(stream, 0, 4), 3):
        streamed, history = fit(streamed, chunk, 10)
        bounds.append(history.bound)
    bounds = np.concatenate(bounds)
    assert np.isnan(bounds).tolist() == [False] * 10 + [True] * 2  # stopped before step 10
    for t in range(10):
        state, info = jax.jit(step)(state, jax.random.fold_in(key, t), jnp.asarray(stream.batches[t]))
        np.testing.assert_allclose(bounds[t], info.bound, rtol=1e-5)
    assert int(streamed.step) == 10
    np.testing.assert_allclose(*(jax.tree.leaves(each.params)[0] for each in (streamed, state)), rtol=1e-4, atol=1e-6)


def test_a_mesh_gets_each_batch_spread_over_it():
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    stream = streams.make_stream(np.arange(50), batch_size=8, seed=0)
    chunk = next(streams.read(stream, 2, 3, mesh=mesh))
    assert chunk.sharding.spec == jax.sharding.PartitionSpec(None, "batch")
    np.testing.assert_array_equal(chunk, next(streams.read(stream, 2, 3)))


def test_bad_input_is_refused(no_type_hook):
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1; got 0"):
        streams.make_stream(np.arange(5), 0, 0)
    with pytest.raises(ValueError, match="the number of examples must be an integer of at least 1; got 0"):
        streams.make_stream(np.arange(0), 4, 0)
    with pytest.raises(ValueError, match="start must be an integer of at least 0; got -1"):
        next(streams.read(streams.make_stream(np.arange(5), 4, 0), -1, 2))
    for name, split in (("digits", "train"), ("mnist", "train+validation")):
        with pytest.raises(ValueError, match=rf"expected a TFDS image set.*got {name!r} and {re.escape(repr(split))}"):
            streams.open_source(name, split)
    vae = models.mlp_vae((3,), 2, (5,))
    step = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-2))
    state = training.init_state(vae.init(jax.random.key(0)), optax.adam(1e-2))
    with pytest.raises(ValueError, match=r"batches on two axes.*got \[\(0, 4\)\]"):
        training.fit_batches(step, state, jax.random.key(1), jnp.ones((0, 4, 3)))


MEMORY = """
import itertools, resource, sys
import jax, numpy as np, optax
from vaejax import models, objectives, streams, training

class Endless:
    "A hundred thousand images of 12 kB, none of which is anywhere until it is asked for."
    def __len__(self):
        return 100_000
    def __getitem__(self, index):
        return np.full((64, 64, 3), index % 2, np.uint8)

vae = models.mlp_vae((64, 64, 3), 2, (4,))
step = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-3), lambda key, x: x.astype("float32"))
state = training.init_state(vae.init(jax.random.key(0)), optax.adam(1e-3))
fit = jax.jit(lambda state, batches: training.fit_batches(step, state, jax.random.key(1), batches)[0])
peaks = []
for chunk in itertools.islice(streams.read(streams.make_stream(Endless(), 32, 0), 0, 20), 100):
    state = jax.block_until_ready(fit(state, chunk))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(int(state.step), peaks[20], peaks[-1])
"""


@pytest.mark.exhaustive
def test_memory_is_flat_over_two_thousand_steps():
    """Of 790 MB of images that go by, of which 8 MB are read at once."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps, early, late = map(float, done.stdout.split())
    assert steps == 2000
    assert late < early + 30  # MiB


@pytest.mark.exhaustive
def test_a_set_on_disk_is_the_one_in_memory(prepared_tfds):
    for name in ("mnist", "binarized_mnist"):
        source = streams.open_source(name, "train", data_dir=prepared_tfds)
        images = data.load(name, "train", data_dir=prepared_tfds).images
        rows = np.arange(0, len(images), 5000)
        assert len(source) == len(images)
        assert source[0].dtype == np.uint8
        stacked = jnp.asarray(np.stack([source[i] for i in rows]))
        np.testing.assert_allclose(streams.as_numbers(stacked), images[rows], rtol=1e-6)


@pytest.mark.exhaustive
def test_a_resumed_run_sees_the_same_batches(prepared_tfds, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    line = [sys.executable, EXPERIMENTS / "train.py", "--stream", "--dataset", "mnist", "--data-dir", prepared_tfds]
    line += ["--hidden-sizes", "8", "--num-steps", "30", "--batch-size", "20", "--checkpoint-seconds", "0"]
    line += ["--eval-samples", "1", "--runs-dir", tmp_path, "--name", "run"]
    subprocess.run(line, check=True, capture_output=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    bounds = [json.loads(row)["bound"] for row in metrics.read_text().splitlines()]
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    subprocess.run(["rm", "-r", last], check=True)
    subprocess.run([*line, "--resume"], check=True, capture_output=True)
    assert [json.loads(row)["bound"] for row in metrics.read_text().splitlines()] == bounds
