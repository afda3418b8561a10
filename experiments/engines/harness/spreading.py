"""What the command lines do about several devices and several hosts, and about programs compiled before."""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vaejax import devices


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs for the next command, in the user's cache folder or where JAX's variables say."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "vaejax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def join_other_processes() -> None:
    """Become one of the processes of a run on several hosts.

    JAX finds the others by itself on Slurm, Kubernetes, Open MPI and TPU pods. Elsewhere three variables name them.

    Raises:
        ValueError: if neither says who they are.
    """
    number, mine = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=None if number is None else int(number), process_id=None if mine is None else int(mine)
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: JAX knows no cluster here ({error}). Set JAX_COORDINATOR_ADDRESS=host:port of the first "
            "process, JAX_NUM_PROCESSES and, in each process, its JAX_PROCESS_ID, counted from 0"
        ) from error


def chosen_mesh(num_devices: int, distributed: bool, axis: str, number: int, options: str) -> jax.sharding.Mesh | None:
    """The mesh over whose devices examples or runs are spread; None for a single device.

    Args:
        num_devices: of this process; 1 stands for all devices of all processes where the run is distributed.
        distributed: whether this is one of several processes.
        axis: of the mesh, `devices.BATCH` or `devices.RUNS`.
        number: of what is spread.
        options: which say that number, in words.

    Raises:
        ValueError: if there are too few devices, or the number is not divisible by theirs.
    """
    if num_devices == 1 and not distributed:
        return None
    found = jax.devices()
    wanted = num_devices if num_devices > 1 else len(found)
    if wanted > len(found):
        raise ValueError(
            f"--devices {wanted}: JAX sees {len(found)}, {found[0].platform}. The cores of a CPU count as so many "
            f"devices under JAX_NUM_CPU_DEVICES={wanted}"
        )
    if number % wanted:
        raise ValueError(f"{options} must be divisible by the {wanted} devices; got {number}")
    return devices.make_mesh(axis, found[:wanted])


def placed(mesh: jax.sharding.Mesh | None, tree: Any) -> Any:
    """The arrays on every device of the mesh."""
    return tree if mesh is None else devices.replicate(mesh, tree)


def compiled(mesh: jax.sharding.Mesh | None, function: Callable, *arguments: Any) -> tuple[Any, float]:
    """The program of `function` on the mesh, and the seconds of its compilation.

    The program gives the buffers of its first argument to its first result.
    """
    start = time.perf_counter()
    if mesh is None:
        program = jax.jit(function, donate_argnums=0).lower(*arguments).compile()
    else:
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        with jax.set_mesh(mesh):
            program = jax.jit(function, donate_argnums=0, out_shardings=everywhere).lower(*arguments).compile()
    return program, time.perf_counter() - start


def local(tree: Any) -> Any:
    """The arrays as this process has them, for what each process does by itself."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf)), tree)


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def agreed(number: int | None) -> int | None:
    """The largest number that a process has, such as the signal that told one of them to stop."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number or 0)))) or None


@contextlib.contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Only the first process prints."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
