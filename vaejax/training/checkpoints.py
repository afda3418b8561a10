"""Checkpoints of a run: saved whole or not at all, verified byte by byte before they are read, refused with a reason.

Orbax writes and reads the arrays. What it leaves to its users stands here and in `seals`: digests (it restores a
flipped byte as a silently different value), the comparison with the run that asks, and a failure that says what is
still good. On disk::

    <directory>/00000100/        the state of step 100
        state/                   Orbax's files; the leaves are numbered, as it mixes up {"a.b": x} and {"a": {"b": x}}
        manifest.json            format, config, path, dtype and shape of each leaf, size and SHA-256 of each file
        manifest.sha256          of manifest.json, as `sha256sum -c` reads it
    <directory>/00000100.old/    step 100 while it is being replaced: valid as long as 00000100 is not there
    <directory>/.tmp-*           left by a save that was killed: ignored, and swept by the next one

One run writes to a directory at a time: `save` sweeps every temporary folder that it finds there. The processes of a
run on several hosts save together, each a part of the arrays, into one directory that all of them see; the first one
does the rest.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax import devices
from vaejax.training import orbax_io, seals
from vaejax.training.seals import CheckpointError

_STATE = "state"


def save(directory: str | os.PathLike, state: Any, *, config: Mapping[str, Any], keep: int = 2) -> pathlib.Path:
    """Write the checkpoint of `state.step`, then delete all but the newest `keep`.

    All processes of a run on several hosts call it, with the same state.

    The folder gets its name by one rename, after its content has reached the disk: a process killed at any moment
    leaves the last good checkpoint. One of the same step is replaced. For the milliseconds that it takes, whatever the
    process writes to stdout and stderr is swallowed, other threads' lines included.

    Args:
        directory: of one run; made if absent.
        state: a pytree of arrays with an integer scalar attribute `step`, such as `training.TrainState`.
        config: what defines the run, as far as JSON can hold it; `restore` compares it.
        keep: how many stay: this one and, of the others, those with the highest steps.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: The state, `config` or `keep` cannot be saved, or writing failed: the message says why (a full
            disk, say) and which earlier checkpoint is still good.

    >>> import collections, tempfile
    >>> State = collections.namedtuple("State", "params step")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(folder, State({"w": jnp.ones(3)}, jnp.int32(7)), config={"latent_dim": 2})
    ...     path.name, steps(folder)
    ('00000007', [7])
    """
    step, leaves, config = _step(state), _leaves(state), seals.as_json(config)
    if keep < 1:
        raise CheckpointError(f"expected to keep 1 checkpoint or more, got keep={keep}: one is needed to resume")
    together = jax.process_count() > 1
    data = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves.values()]
    arrays = {f"{i:05d}": leaf if together else np.asarray(leaf) for i, leaf in enumerate(data)}
    manifest = {
        "config": config,
        "leaves": {path: _describe(leaf) for path, leaf in leaves.items()},
        "key_impls": {path: str(jax.random.key_impl(leaf)) for path, leaf in leaves.items() if _is_key(leaf)},
    }
    directory = pathlib.Path(directory).absolute()
    final, aside = directory / f"{step:08d}", directory / f"{step:08d}.old"
    temporary = directory / f".tmp-{step}-{'together' if together else os.getpid()}"
    first = jax.process_index() == 0
    try:
        if first:
            directory.mkdir(parents=True, exist_ok=True)
            _sweep(directory)
            temporary.mkdir()
        devices.meet(f"folder of step {step}")
        orbax_io.call("save", temporary / _STATE, {name: array for name, array in arrays.items() if array.size})
        devices.meet(f"arrays of step {step}")
        if first:
            seals.seal_up(temporary, manifest)
            if final.exists():
                os.replace(final, aside)  # no folder can be renamed over another: until the next line, .old is read
            os.replace(temporary, final)
            seals.fsync(directory)
            others = [directory / f"{other:08d}" for other in steps(directory) if other != step]
            for folder in (aside, *others[: max(0, len(others) - keep + 1)]):
                _remove(folder)
        devices.meet(f"checkpoint of step {step}")
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        good = _last_good(directory)
        megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
        raise CheckpointError(
            f"expected to save step {step} ({megabytes:.3g} MB) in {directory}, but {_reason(error)}. "
            + (f"The checkpoint of step {good} is still good. " if good is not None else "There is no earlier one. ")
            + "Nothing half-written was left: put the cause right, or take another directory, and save again."
        ) from error
    return final


def restore(directory: str | os.PathLike, like: Any, *, config: Mapping[str, Any], step: int | None = None) -> Any:
    """Read a checkpoint bit for bit, after comparing it with this run and verifying every byte.

    Args:
        directory: where `save` wrote.
        like: a pytree of the saved structure, of arrays or of `jax.ShapeDtypeStruct`s (`jax.eval_shape` of what builds
            the state). Each leaf is placed as the one here: on its sharding if it is committed to one, else uncommitted
            on the default device; as numpy if it is numpy.
        config: of this run; equals the saved one after a round trip through JSON, where tuples are lists.
        step: which checkpoint; by default the newest complete one.

    Returns:
        The state, with the tree types of `like`.

    Raises:
        CheckpointError: There is none; it is incomplete; its configuration, paths, shapes or dtypes are not this run's
            (each difference is named); or a file is damaged, missing or extra: the message names it and the newest
            checkpoint that verifies. Orbax opens nothing before all of this has passed.

    >>> import collections, tempfile
    >>> State = collections.namedtuple("State", "params step")
    >>> state = State({"w": jnp.ones(3)}, jnp.int32(7))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(folder, state, config={"latent_dim": 2})
    ...     restore(folder, state, config={"latent_dim": 2})
    State(params={'w': Array([1., 1., 1.], dtype=float32)}, step=Array(7, dtype=int32))
    """
    directory = pathlib.Path(directory).absolute()
    folder, leaves, config = _choose(directory, step), _leaves(like), seals.as_json(config)
    manifest: dict[str, Any] = {}
    if not (damage := seals.broken_seal(folder)):
        manifest = seals.read_manifest(folder)
        mine = {path: _describe(leaf) for path, leaf in leaves.items()}
        seals.compare(folder, "configuration", config, manifest["config"], "take the checkpoint's values")
        seals.compare(folder, "state", mine, manifest["leaves"], "build model and optimizer as it was built there")
        damage = seals.damaged_file(folder, manifest)
    if damage:
        good = _last_good(directory)
        advice = f"pass step={good}, the newest that verifies, or delete {folder}" if good is not None else "start anew"
        raise CheckpointError(f"expected {folder} as it was saved, but {damage}. Nothing was read: {advice}")
    data = [jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for leaf in leaves.values()]
    wanted = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in zip(leaves, data, strict=True) if leaf.size}
    index = {path: f"{i:05d}" for i, path in enumerate(manifest["leaves"])}
    try:
        arrays = orbax_io.call("load", folder / _STATE, {index[path]: array for path, array in wanted.items()})
    except Exception as error:
        raise CheckpointError(
            f"{folder} is as it was saved, but Orbax cannot read it: {_reason(error)}. Use the version that wrote it"
        ) from error
    impls = manifest["key_impls"]
    values = [_place(path, arrays.get(index[path]), leaf, impls.get(path)) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def steps(directory: str | os.PathLike) -> list[int]:
    """List the steps of the complete checkpoints, those with digests; `restore` verifies them.

    Args:
        directory: where `save` wrote, or will.

    Returns:
        The steps, ascending; an empty list where there are none.

    >>> steps("a directory that is not there")
    []
    """
    return sorted(step for step, folder in _folders(pathlib.Path(directory)).items() if seals.is_sealed(folder))


def _step(state: Any) -> int:
    step: Any = getattr(state, "step", None)
    if np.ndim(step) != 0 or not np.issubdtype(np.asarray(step).dtype, np.integer) or step < 0:
        raise CheckpointError(f"expected a state with an integer scalar `step` of 0 or more, got step={step!r}")
    return int(step)


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys)
        leaf = jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex) else leaf
        dtype = getattr(leaf, "dtype", None)
        numeric = dtype is not None and (_is_key(leaf) or dtype == np.bool_ or jnp.issubdtype(dtype, jnp.number))
        if not numeric or path in leaves:
            raise CheckpointError(
                f"expected arrays of numbers or keys, each at a path of its own, got {path}: {leaf!r}"
            )
        leaves[path] = leaf
    return leaves


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _place(path: str, array: np.ndarray | None, like: Any, key_impl: str | None) -> Any:
    if array is None:  # empty: Orbax does not take these
        array = np.zeros(like.shape, like.dtype)
    if isinstance(like, np.ndarray | np.generic):
        return array
    value = array if key_impl is None else jax.random.wrap_key_data(jnp.asarray(array), impl=key_impl)
    # A jitted step moves an uncommitted array to where its other arguments are, and refuses to move a committed one.
    value = jax.device_put(value, like.sharding if getattr(like, "committed", True) else None)
    if value.dtype != like.dtype:
        raise CheckpointError(f"expected {like.dtype} for {path}, JAX made it {value.dtype}: set jax_enable_x64")
    return value


def _folders(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    folders = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:  # NNNNNNNN comes before NNNNNNNN.old
        if match := re.fullmatch(r"(\d{8,})(\.old)?", path.name):
            folders.setdefault(int(match[1]), path)
    return folders


def _choose(directory: pathlib.Path, step: int | None) -> pathlib.Path:
    complete, folders = steps(directory), _folders(directory)
    folder = folders.get(max(complete, default=-1) if step is None else step)
    if folder is not None and seals.is_sealed(folder):
        return folder
    if folder is not None:
        found = (
            f"it incomplete, without {seals.MANIFEST} or {seals.SEAL}: nothing vouches for its values. "
            f"Delete {folder} and take one of the steps {complete}"
        )
    elif step is None:
        found = "none: check the path, or start a new run there"
    else:
        found = f"steps {complete}: pass one of these"
    which = "" if step is None else f"of step {step} "
    raise CheckpointError(f"expected a checkpoint {which}in {directory}, found {found}")


def _last_good(directory: pathlib.Path) -> int | None:
    folders = _folders(directory)
    return next((step for step in reversed(steps(directory)) if seals.verifies(folders[step])), None)


def _remove(folder: pathlib.Path) -> None:
    if folder.exists():  # renamed first: half a checkpoint must not stand under a good name
        doomed = folder.with_name(f".tmp-{folder.name}")
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sweep(directory: pathlib.Path) -> None:
    for path in directory.glob(".tmp-*"):
        shutil.rmtree(path)
    for aside in directory.glob("[0-9]" * 8 + "*.old"):
        if aside.with_suffix("").exists():
            _remove(aside)
        else:  # killed between the two renames of a replacement
            os.replace(aside, aside.with_suffix(""))


def _reason(error: BaseException) -> str:
    said = [line.strip() for line in (*str(error).splitlines(), *getattr(error, "__notes__", [])) if line.strip()]
    full = any(why in line for line in said for why in ("No space left", "File too large", "quota exceeded"))
    return f"{'the disk or a quota is full: ' if full else ''}{said[0] if said else type(error).__name__}"
