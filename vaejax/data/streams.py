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
from jaxtyping import Array, Float

from vaejax import checks, devices
from vaejax.data import sets, tfds


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
        """One example, an array; several threads call this."""
        ...


class Stream(NamedTuple):
    """Batches without end, each epoch in an order of its own.

    Attributes:
        batches: Grain's, this process's part of batch t at index t: (batch_size / processes, *data_shape).
        batch_size: examples in a batch, of all processes together.
        num_examples: in the source.

    >>> make_stream(np.arange(10.0), batch_size=4, seed=0).num_examples
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
        The images as bytes, which `as_numbers` scales.

    Raises:
        ValueError: for an embedded set, which memory always holds, or "train+validation"; and as `data.load`.
        FileNotFoundError: as `data.load`.
        ModuleNotFoundError: as `data.load`.
    """
    if name in sets.names() or split not in ("train", "validation", "test"):
        raise ValueError(
            f"expected a TFDS image set and its split 'train', 'validation' or 'test'; got {name!r} and {split!r}: "
            "data.load reads it into memory"
        )
    where = {"data_dir": data_dir, "manual_dir": manual_dir, "download": download}
    return tfds.open_source(name, split, **where, others=sets.names())


def as_numbers(name: str, images: Array) -> Float[Array, "..."]:
    """Bytes of a set as the numbers in [0, 1] of `data.load`, to rounding; on the device, in a step's `prepare`.

    Args:
        name: of the set.
        images: of an unsigned integer dtype.

    Returns:
        Their values divided by the largest of the dtype; of a set of zeros and ones, the values.

    >>> as_numbers("mnist", jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    return images.astype(jnp.float32) / (1 if name in sets.TWO_VALUED else np.iinfo(images.dtype).max)


def make_stream(source: Source, batch_size: int, seed: int) -> Stream:
    """Shuffled batches of a source, without end; on several hosts, each reads its own part of each batch.

    Each epoch is a fresh permutation, not the one of `training.fit`; a batch may hold the end of one and the beginning
    of the next.

    Args:
        source: the examples.
        batch_size: examples in a batch, of all processes together.
        seed: of the order.

    Returns:
        The stream.

    Raises:
        ValueError: if there are no examples, or the batch does not divide by the number of processes.

    >>> stream = make_stream(np.arange(10.0), batch_size=4, seed=0)
    >>> sorted(np.concatenate([stream.batches[t] for t in range(5)]).tolist()) == sorted(2 * list(range(10)))
    True
    """
    import grain

    checks.check_count("batch_size", batch_size)
    number, hosts, mine = len(source), jax.process_count(), jax.process_index()
    checks.check_count("the number of examples", number)
    checks.check_divides("batch_size", batch_size, hosts, "processes")

    # Not Grain's own shuffle: the numbers that it puts beside each other are correlated, and 500 steps on binarized
    # MNIST ended up to 4 nats lower than in a random order.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(number)

    def example(place: int) -> Any:
        epoch, place = divmod(int(place), number)
        return source[int(order(epoch)[place])]

    examples = grain.MapDataset.range(2**62)[mine::hosts].map(example)
    return Stream(examples.batch(batch_size // hosts), batch_size, number)


def read(stream: Stream, start: int, num_steps: int, *, mesh: Mesh | None = None, ahead: int = 2) -> Iterator[Array]:
    """The batches from step `start` on, `num_steps` at a time, for `training.fit_batches`.

    Args:
        stream: of `make_stream`.
        start: the first step.
        num_steps: batches in one array, (num_steps, batch_size, *data_shape).
        mesh: on which each batch is spread along `devices.BATCH`; by default the default device holds it all.
        ahead: arrays that are read while the device computes; memory holds these, and those in use.

    Returns:
        An endless iterator of arrays (num_steps, batch_size, *data_shape), on the device or devices.

    Raises:
        ValueError: if a number is not an integer or too small, or the devices of the mesh do not divide the batch.

    >>> stream = make_stream(np.arange(10.0), batch_size=4, seed=0)
    >>> next(read(stream, 0, 3)).shape
    (3, 4)
    """
    import grain

    checks.check_counts(num_steps=num_steps, ahead=ahead)
    checks.check_count("start", start, least=0)
    if mesh is not None:
        checks.check_divides("batch_size", stream.batch_size, mesh.shape[devices.BATCH], "devices of the mesh")
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    layout = None if mesh is None else NamedSharding(mesh, PartitionSpec(None, devices.BATCH))
    waiting = None  # on its way to the device while the one before it is in use
    for chunk in stream.batches[start:].batch(num_steps).to_iter_dataset(options):
        moved = jnp.asarray(chunk) if layout is None else jax.make_array_from_process_local_data(layout, chunk)
        if waiting is not None:
            yield waiting
        waiting = moved
