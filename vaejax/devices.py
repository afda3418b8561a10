"""One program over many devices: the axes of an ambient mesh say what is spread over them, and JAX does the rest.

A mesh is made and set by the caller; parameters and data are replicated on it, and what is under way is spread where
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

BATCH, SAMPLES, RUNS = "batch", "samples", "runs"


def make_mesh(axis: str = BATCH, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, for `with jax.set_mesh(mesh):` around all that is to run on it.

    Args:
        axis: what is spread; `BATCH`, `SAMPLES` or `RUNS`.
        devices: by default all of them, those of other hosts too.

    Raises:
        ValueError: if the axis is unknown, or there is no device.

    >>> make_mesh(devices=jax.devices()[:1]).axis_names
    ('batch',)
    """
    if axis not in (BATCH, SAMPLES, RUNS):
        raise ValueError(f"axis must be {BATCH!r}, {SAMPLES!r} or {RUNS!r}; got {axis!r}")
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("expected at least one device; got none")
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def size(axis: str) -> int:
    """Over how many devices the ambient mesh spreads an axis; 1 where there is no such axis, or no mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


def spread(axis: str, tree: Any) -> Any:
    """The arrays with their first axis spread over the devices of that axis of the ambient mesh, or unchanged.

    Raises:
        ValueError: if an array does not divide into as many parts.
    """
    number = size(axis)
    if number == 1:
        return tree
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[0] % number:
            raise ValueError(
                f"expected a length that is divisible by the {number} devices of the mesh's axis {axis!r}; got "
                f"{leaf.shape[0]}: take another length, or fewer devices"
            )
    return lax.with_sharding_constraint(tree, PartitionSpec(axis))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The arrays on every device of a mesh, also where some are other hosts': each passes the same numbers."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def meet(where: str) -> None:
    """Wait until every process of the run has come here; in a run of one process, do nothing.

    Args:
        where: the same words in all of them.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils  # here, so that importing vaejax stays quick

        multihost_utils.sync_global_devices(where)
