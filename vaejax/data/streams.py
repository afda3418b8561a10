"""Batches of a set that memory does not hold, read from disk and put on the device while it computes.

Grain reads ahead in threads. Batch t of a stream is a function of t alone, so that the step in a checkpoint is the
position of the run, and a resumed run takes the same batches. Memory holds what is read ahead.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Float

from vaejax import checks, devices
from vaejax.data import sets, tfds
from vaejax.data.examples import as_numpy, check_example, examples_of


@runtime_checkable
class Source(Protocol):
    """Examples by number: an array, a memory map, what `open_source` returns, a source of Grain's.

    >>> isinstance(np.arange(10.0), Source)
    True
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Any:
        """One example, an array or a tree of arrays; several threads call this."""
        ...


class Stream(NamedTuple):
    """Batches without end, each epoch in an order of its own.

    Attributes:
        batches: Grain's, this process's part of batch t at index t: (batch_size / processes, *data_shape), or a tree of
            such arrays where an example is a tree.
        batch_size: examples in a batch, of all processes together.
        num_examples: in the source.

    >>> make_stream(np.arange(10), batch_size=4, seed=0).num_examples
    10
    """

    batches: Any
    batch_size: int
    num_examples: int


def open_source(
    name: str, split: str = "train", *, data_dir: Any = None, manual_dir: Any = None, download: bool = False
) -> Source:
    """One split of a TFDS image set, read from disk image by image; takes the arguments of `data.load`.

    Args:
        name: of the set, such as "mnist".
        split: "train", "validation" or "test".
        data_dir: as in `data.load`.
        manual_dir: as in `data.load`.
        download: as in `data.load`.

    Returns:
        The images as bytes, which `as_numbers` scales; where a set stores zeros and ones, 0 and 255.

    Raises:
        ValueError: for an embedded set, which memory always holds, or "train+validation"; and as `data.load`.
        FileNotFoundError: as `data.load`.
        ModuleNotFoundError: as `data.load`.
    """
    return _open(name, split, False, data_dir=data_dir, manual_dir=manual_dir, download=download)


def open_labelled_source(
    name: str, split: str = "train", *, data_dir: Any = None, manual_dir: Any = None, download: bool = False
) -> Source:
    """`open_source` with labels, as a conditional model needs them.

    Args:
        name: of the set, such as "mnist".
        split: "train", "validation" or "test".
        data_dir: as in `data.load`.
        manual_dir: as in `data.load`.
        download: as in `data.load`.

    Returns:
        Examples {"image": bytes, "label": int32}. The `prepare` of `training.make_train_step` makes of their batches
        what the objective takes, such as `models.Batch(as_numbers(batch["image"]), one_hot(batch["label"], 10))`.

    Raises:
        ValueError: as `open_source`, or if the set has no labels.
        FileNotFoundError: as `data.load`.
        ModuleNotFoundError: as `data.load`.
    """
    return _open(name, split, True, data_dir=data_dir, manual_dir=manual_dir, download=download)


def _open(name: str, split: str, labelled: bool, **where: Any) -> Source:
    sets.check_name(name)
    if name in sets.names() or split not in ("train", "validation", "test"):
        raise ValueError(
            f"expected a TFDS image set and its split 'train', 'validation' or 'test'; got {name!r} and {split!r}: "
            "data.load reads it into memory"
        )
    return tfds.open_source(name, split, **where, others=sets.names(), labelled=labelled)


def as_numbers(images: ArrayLike) -> Float[Array, "..."]:
    """Integers of an `open_source` as the numbers in [0, 1] of `data.load`, to rounding; on the device, in `prepare`.

    Args:
        images: of 8 or 16 bits without sign.

    Returns:
        Their values divided by the largest of the dtype, float32. A source gives 255 for the ones of a set of zeros and
        ones, so that this is right for every set.

    Raises:
        ValueError: if the dtype is another.

    >>> as_numbers(jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    checks.check_array(images, "images")
    images = jnp.asarray(images)
    if images.dtype not in (jnp.uint8, jnp.uint16):
        raise ValueError(
            f"expected images of dtype uint8 or uint16, as a source of bytes gives them; got {images.dtype}: "
            "floats need no scaling"
        )
    return images.astype(jnp.float32) / np.iinfo(images.dtype).max


def make_stream(source: Source, batch_size: int, seed: int) -> Stream:
    """Shuffled batches of a source, without end; on several hosts, each reads its own part of each batch.

    Each epoch is a fresh permutation, not the one of `training.fit`; a batch may hold the end of one and the beginning
    of the next.

    Args:
        source: the examples, all of the same shapes and dtypes; or a dict or NamedTuple of arrays, such as a
            `models.Batch`, with the examples on the first axis of each.
        batch_size: examples in a batch, of all processes together.
        seed: of the order, an integer of at least 0.

    Returns:
        The stream.

    Raises:
        ValueError: if there are no examples, the batch does not divide by the number of processes, or the first example
            is made of other than numbers, or of float64 while JAX runs in 32 bits. While it is read: if an example has
            another shape or dtype than the first, or holds NaN or infinities, with its number and its batch.

    >>> stream = make_stream({"x": np.arange(10), "label": np.arange(10) % 2}, batch_size=4, seed=0)
    >>> batches = [stream.batches[t] for t in range(5)]
    >>> sorted(np.concatenate([batch["x"] for batch in batches]).tolist()) == sorted(2 * list(range(10)))
    True
    >>> all((batch["x"] % 2 == batch["label"]).all() for batch in batches)
    True
    """
    import grain

    source = examples_of(source)
    checks.check_counts(batch_size=batch_size)
    checks.check_count("seed", seed, least=0)
    number, hosts, mine = len(source), jax.process_count(), jax.process_index()
    checks.check_count("the number of examples", number)
    checks.check_divides("batch_size", batch_size, hosts, "processes")
    first = as_numpy(source[0])
    if not jax.tree.leaves(first):
        raise ValueError(f"expected examples of arrays; got {checks.describe(first)} as the first")
    for leaf in jax.tree.leaves(first):
        if np.issubdtype(leaf.dtype, np.floating):
            checks.check_floating(leaf)

    # Not Grain's own shuffle: the numbers that it puts beside each other are correlated, and 500 steps on binarized
    # MNIST ended up to 4 nats lower than in a random order.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(number)

    def example(place: int) -> Any:
        epoch, row = divmod(int(place), number)
        index = int(order(epoch)[row])
        found = as_numpy(source[index])
        check_example(found, first, f"example {index}, which is in batch {int(place) // batch_size}")
        return found

    examples = grain.MapDataset.range(2**62)[mine::hosts].map(example)
    return Stream(examples.batch(batch_size // hosts), batch_size, number)


def read(stream: Stream, start: int, num_steps: int, *, mesh: Mesh | None = None, ahead: int = 2) -> Iterator[Any]:
    """The batches from step `start` on, `num_steps` at a time, for `training.fit_batches`.

    Args:
        stream: of `make_stream`.
        start: the first step.
        num_steps: batches in one array, (num_steps, batch_size, *data_shape).
        mesh: on which each batch is spread along `devices.BATCH`; by default the default device holds it all.
        ahead: arrays that are read while the device computes; memory holds these, and those in use.

    Returns:
        An endless iterator of arrays (num_steps, batch_size, *data_shape), on the device or devices; of trees of such
        arrays where an example is a tree.

    Raises:
        ValueError: if a number is not an integer or too small, or the devices of the mesh do not divide the batch; and,
            with the number of the example and of its batch, if one of those read is not like the first or not finite.

    >>> stream = make_stream(np.arange(10), batch_size=4, seed=0)
    >>> next(read(stream, 0, 3)).shape
    (3, 4)
    """
    import grain

    if not isinstance(stream, Stream):
        raise ValueError(f"stream must be one that make_stream makes; got {checks.describe(stream)}")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be one that devices.make_mesh makes, or None; got {checks.describe(mesh)}")
    checks.check_counts(num_steps=num_steps, ahead=ahead)
    checks.check_count("start", start, least=0)
    if mesh is not None:
        checks.check_divides("batch_size", stream.batch_size, mesh.shape[devices.BATCH], "devices of the mesh")
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    layout = None if mesh is None else NamedSharding(mesh, PartitionSpec(None, devices.BATCH))

    def place(array: np.ndarray) -> Array:
        return jnp.asarray(array) if layout is None else jax.make_array_from_process_local_data(layout, array)

    waiting = None  # on its way to the device while the one before it is in use
    for chunk in stream.batches[start:].batch(num_steps).to_iter_dataset(options):
        moved = jax.tree.map(place, chunk)
        if waiting is not None:
            yield waiting
        waiting = moved
