"""One program over many devices: the axes of an ambient mesh say what is spread over them, and JAX does the rest.

The caller makes a mesh and sets it; parameters and data are replicated on it, and intermediate arrays are spread where
the mesh has an axis of that name:

* `BATCH`: the examples of a training batch, and those that an evaluation does at once;
* `SAMPLES`: the K Monte Carlo samples of each example;
* `RUNS`: the runs of a population.

Random numbers do not depend on it: with JAX's partitionable threefry each device draws its part of the same numbers.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vaejax import checks

BATCH = "batch"
"""The axis of a mesh that spreads the examples of a batch."""

SAMPLES = "samples"
"""The axis of a mesh that spreads the K samples."""

RUNS = "runs"
"""The axis of a mesh that spreads the runs of a population."""


def make_mesh(axis: str = BATCH, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, for `with jax.set_mesh(mesh):` around all that is to run on it.

    Args:
        axis: what is spread; `BATCH`, `SAMPLES` or `RUNS`.
        devices: by default all of them, those of other hosts too.

    Returns:
        The mesh.

    Raises:
        ValueError: if the axis is unknown, or there is no device.

    >>> make_mesh(devices=jax.devices()[:1]).axis_names
    ('batch',)
    """
    checks.check_choice("axis", axis, (BATCH, SAMPLES, RUNS))
    devices = jax.devices() if devices is None else list(devices)
    checks.check_count("the number of devices", len(devices))
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def size(axis: str) -> int:
    """Over how many devices the ambient mesh spreads an axis; 1 where there is no such axis, or no mesh.

    >>> size(BATCH)
    1
    """
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


def spread(axis: str, tree: Any) -> Any:
    """The arrays with their first axis spread over the devices of that axis of the ambient mesh, or unchanged.

    Args:
        axis: of the mesh.
        tree: of arrays.

    Returns:
        The same numbers.

    Raises:
        ValueError: if an array does not divide into as many parts.

    >>> spread(BATCH, jax.numpy.arange(3)).tolist()
    [0, 1, 2]
    """
    number = size(axis)
    if number == 1:
        return tree
    for leaf in jax.tree.leaves(tree):
        parts, advice = f"devices of the mesh's axis {axis!r}", "take another length, or fewer devices"
        checks.check_divides("the length", leaf.shape[0], number, parts, advice)
    return lax.with_sharding_constraint(tree, PartitionSpec(axis))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The arrays on every device of a mesh, other hosts' devices too.

    Args:
        mesh: of `make_mesh`.
        tree: of arrays; every process passes the same numbers.

    Returns:
        The same numbers.

    >>> replicate(make_mesh(), jax.numpy.arange(3)).is_fully_replicated
    True
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def meet(where: str) -> None:
    """Wait until every process of the run is here; in a run of one process, do nothing.

    Args:
        where: the same words in all of them.

    >>> meet("end of training")
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils  # here, so that importing vaejax stays quick

        multihost_utils.sync_global_devices(where)
