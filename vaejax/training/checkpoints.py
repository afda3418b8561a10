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
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax import devices
from vaejax.distributions import Params
from vaejax.training import folders, orbax_io, parameters, seals
from vaejax.training.folders import steps as steps
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
    if isinstance(keep, bool) or not isinstance(keep, int | np.integer) or keep < 1:
        raise CheckpointError(f"expected to keep 1 checkpoint or more, got keep={keep!r}: one is needed to resume")
    together = jax.process_count() > 1
    data = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves.values()]
    arrays = {f"{i:05d}": leaf if together else np.asarray(leaf) for i, leaf in enumerate(data)}
    manifest = {
        "config": config,
        "leaves": {path: parameters.kind(leaf) for path, leaf in leaves.items()},
        "empty": _empty_dicts(state),
        "key_impls": {path: str(jax.random.key_impl(leaf)) for path, leaf in leaves.items() if _is_key(leaf)},
    }
    directory = folders.absolute(directory)
    final, aside = directory / f"{step:08d}", directory / f"{step:08d}.old"
    temporary = directory / f".tmp-{step}-{'together' if together else os.getpid()}"
    first = jax.process_index() == 0
    try:
        if first:
            directory.mkdir(parents=True, exist_ok=True)
            folders.sweep(directory)
            temporary.mkdir()
        devices.meet(f"folder of step {step}")
        with orbax_io.plain_name(temporary) as plain:
            orbax_io.call("save", plain / _STATE, {name: array for name, array in arrays.items() if array.size})
        devices.meet(f"arrays of step {step}")
        if first:
            if any(array.size for array in arrays.values()) and not orbax_io.has_arrays(temporary):
                raise OSError(f"the arrays did not arrive in {temporary}")  # before the seal vouches for them
            seals.seal_up(temporary, manifest)
            if final.exists():
                os.replace(final, aside)  # no folder can be renamed over another: until the next line, .old is read
            os.replace(temporary, final)
            seals.fsync(directory)
            others = [directory / f"{other:08d}" for other in steps(directory) if other != step]
            for folder in (aside, *others[: max(0, len(others) - keep + 1)]):
                folders.remove(folder)
        devices.meet(f"checkpoint of step {step}")
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        good = folders.last_good(directory)
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
            checkpoint that verifies. Orbax opens nothing before all of this has passed. Or the step inside is not the
            one of the folder's name. Where a later checkpoint is incomplete, a warning is logged.

    >>> import collections, tempfile
    >>> State = collections.namedtuple("State", "params step")
    >>> state = State({"w": jnp.ones(3)}, jnp.int32(7))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(folder, state, config={"latent_dim": 2})
    ...     restore(folder, state, config={"latent_dim": 2})
    State(params={'w': Array([1., 1., 1.], dtype=float32)}, step=Array(7, dtype=int32))
    """
    directory = folders.absolute(directory)
    folder, leaves, config = folders.choose(directory, step), _leaves(like), seals.as_json(config)

    def check(manifest: dict[str, Any]) -> None:
        mine = {path: parameters.kind(leaf) for path, leaf in leaves.items()}
        seals.compare(folder, "configuration", config, manifest["config"], "take the checkpoint's values")
        seals.compare(folder, "state", mine, manifest["leaves"], "build model and optimizer as it was built there")
        keys = {path for path, leaf in leaves.items() if _is_key(leaf)}
        seals.check_unchanged(folder, [*mine] == [*manifest["leaves"]] and keys == manifest["key_impls"].keys())

    manifest = _verified(directory, folder, check)
    data = [jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for leaf in leaves.values()]
    wanted = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in zip(leaves, data, strict=True)}
    arrays, impls = _load(folder, manifest, wanted), manifest["key_impls"]
    values = [_place(path, arrays[path], leaf, impls.get(path)) for path, leaf in leaves.items()]
    state = jax.tree.unflatten(jax.tree.structure(like), values)
    folders.check_step(folder, int(state.step))
    return state


def restore_params(directory: str | os.PathLike, *, step: int | None = None) -> Params:
    """Read the parameters alone, of any run: neither its model nor its optimizer or configuration is needed.

    Args:
        directory: where `save` wrote.
        step: which checkpoint; by default the newest complete one.

    Returns:
        The `params` of the state that was saved, as dicts of arrays on the default device.

    Raises:
        CheckpointError: as `restore`, where there is none, it is incomplete, damaged or of another step; and if the
            state has no `params`, or they are not dicts of arrays: `restore` reads those, into a `like`.

    >>> import collections, tempfile
    >>> State = collections.namedtuple("State", "params opt_state step")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(folder, State({"w": jnp.ones(3)}, (jnp.zeros(3),), jnp.int32(7)), config={})
    ...     restore_params(folder)
    {'w': Array([1., 1., 1.], dtype=float32)}
    """
    directory = folders.absolute(directory)
    folder = folders.choose(directory, step)
    manifest = _verified(directory, folder)
    mine = [path for path in manifest["leaves"] if path.startswith(".params")]
    names = {path: parameters.dict_names(path.removeprefix(".params")) for path in mine}
    if not mine or None in names.values() or names.keys() & manifest["key_impls"].keys():
        odd = next((path for path, keys in names.items() if keys is None), "none")
        raise CheckpointError(f"expected params that are dicts of arrays in {folder}, found {odd}: use restore")
    paths = (path for path in (".step", *names) if path in manifest["leaves"])
    arrays = _load(folder, manifest, {path: seals.blank(folder, manifest, path) for path in paths})
    if ".step" in arrays:
        folders.check_step(folder, int(arrays[".step"]))
    empty = (parameters.dict_names(path.removeprefix(".params")) for path in manifest.get("empty", []))
    items = [(keys, jnp.asarray(arrays[path])) for path, keys in names.items() if keys]
    return parameters.nested([*items, *((keys, {}) for keys in empty if keys)])


def _verified(
    directory: pathlib.Path, folder: pathlib.Path, check: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """The manifest of a checkpoint of which every byte is as it was saved; before the files are read, it is checked."""
    manifest: dict[str, Any] = {}
    if not (damage := seals.broken_seal(folder)):
        manifest = seals.read_manifest(folder)
        if check is not None:
            check(manifest)
        damage = seals.damaged_file(folder, manifest)
    if damage:
        good = folders.last_good(directory)
        advice = f"pass step={good}, the newest that verifies, or delete {folder}" if good is not None else "start anew"
        raise CheckpointError(f"expected {folder} as it was saved, but {damage}. Nothing was read: {advice}")
    return manifest


def _load(folder: pathlib.Path, manifest: dict[str, Any], wanted: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that stand at some paths; `wanted` are arrays of their shapes and dtypes. Empty ones Orbax skips."""
    stored = {f"{i:05d}": path for i, path in enumerate(manifest["leaves"]) if 0 not in seals.shape(manifest, path)}
    try:
        with orbax_io.plain_name(folder) as plain:  # `...` is Orbax's word for what is not wanted
            found = orbax_io.call("load", plain / _STATE, {i: wanted.get(path, ...) for i, path in stored.items()})
    except Exception as error:
        raise CheckpointError(
            f"{folder} is as it was saved, but Orbax cannot read it: {_reason(error)}. Use the version that wrote it"
        ) from error
    arrays = {path: found[i] for i, path in stored.items() if path in wanted}
    seals.check_unchanged(folder, all(array.shape == wanted[path].shape for path, array in arrays.items()))
    return wanted | arrays


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


def _empty_dicts(tree: Any) -> list[str]:
    """Where a tree has dicts that hold nothing, such as the parameters of a fixed prior: no leaf tells of them."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, dict) and not node)
    return [jax.tree_util.keystr(keys) for keys, node in nodes if isinstance(node, dict)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _place(path: str, array: np.ndarray, like: Any, key_impl: str | None) -> Any:
    if isinstance(like, np.ndarray | np.generic):
        return array
    try:
        value = array if key_impl is None else jax.random.wrap_key_data(jnp.asarray(array), impl=key_impl)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected {like.dtype} for {path}, found a key of {key_impl}: {_reason(error)}"
        ) from error
    # A jitted step moves an uncommitted array to where its other arguments are, and refuses to move a committed one.
    value = jax.device_put(value, like.sharding if getattr(like, "committed", True) else None)
    if value.dtype != like.dtype:
        raise CheckpointError(f"expected {like.dtype} for {path}, JAX made it {value.dtype}: set jax_enable_x64")
    return value


def _reason(error: BaseException) -> str:
    said = [line.strip() for line in (*str(error).splitlines(), *getattr(error, "__notes__", [])) if line.strip()]
    full = any(why in line for line in said for why in ("No space left", "File too large", "quota exceeded"))
    return f"{'the disk or a quota is full: ' if full else ''}{said[0] if said else type(error).__name__}"
