"""The seal of a checkpoint: what its folder says of itself, and whether that is still true.

`manifest.json` holds the format, the configuration of the run, dtype and shape of each leaf, and size and SHA-256 of
each file; `manifest.sha256` seals the manifest. `checkpoints` writes and reads what lies beside them.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

FORMAT = 1
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
_KIND = r"[a-z0-9_<>]+\[(\d+(, \d+)*)?\]"  # of a leaf: dtype and shape


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or must not be read: says what was expected, what was given, what to do."""


def seal_up(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, with the digests of all files of the folder, and the seal; return when all is on the disk."""
    whole = {"format": FORMAT, **manifest, "files": _digests(folder)}
    (folder / MANIFEST).write_text(json.dumps(whole, indent=1))
    (folder / SEAL).write_text(_seal(folder))
    for path in (*folder.rglob("*"), folder):
        fsync(path)


def is_sealed(folder: pathlib.Path) -> bool:
    """Whether a checkpoint was written to its end: both the manifest and the seal are there."""
    return (folder / MANIFEST).is_file() and (folder / SEAL).is_file()


def broken_seal(folder: pathlib.Path) -> str:
    """How the manifest and its seal disagree, in words; empty where they agree."""
    if (folder / SEAL).read_bytes() == _seal(folder).encode():
        return ""
    return f"{folder / MANIFEST} or {SEAL} beside it is damaged: they do not agree"


def damaged_file(folder: pathlib.Path, manifest: Mapping[str, Any]) -> str:
    """Which file is not the one that the manifest lists, and how, in words; empty where all are."""
    saved, found = manifest["files"], _digests(folder)
    for name in sorted(saved.keys() | found.keys()):
        if saved.get(name) != found.get(name):
            how = "is missing" if name not in found else "was not saved with it" if name not in saved else "is damaged"
            return f"{folder / name} {how}"
    return ""


def verifies(folder: pathlib.Path) -> bool:
    """Whether a sealed checkpoint is of this format and every byte of it is as it was saved."""
    with contextlib.suppress(CheckpointError, OSError):
        return not broken_seal(folder) and not damaged_file(folder, read_manifest(folder))
    return False


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a folder whose seal is not broken.

    Raises:
        CheckpointError: if it is of another format, or was changed and sealed anew so that it is none.
    """
    manifest = None
    with contextlib.suppress(ValueError):  # neither JSON nor text
        manifest = json.loads((folder / MANIFEST).read_text())
    form = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(form, int) and form != FORMAT:
        raise CheckpointError(f"expected {folder} in format {FORMAT}, found {form}: use its vaejax version")
    check_unchanged(folder, form == FORMAT and _is_whole(manifest))
    return manifest  # pyright: ignore[reportReturnType]


def check_unchanged(folder: pathlib.Path, holds: bool) -> None:
    """Refuse a manifest that `seal_up` cannot have written.

    Raises:
        CheckpointError: unless it `holds`.
    """
    if not holds:
        raise CheckpointError(
            f"expected {folder / MANIFEST} as it was saved, found it changed and sealed anew: nothing vouches for the "
            f"values. Delete {folder} and take another checkpoint"
        )


def shape(manifest: Mapping[str, Any], path: str) -> list[int]:
    """The shape of the array at a path."""
    return json.loads("[" + manifest["leaves"][path].partition("[")[2])


def blank(folder: pathlib.Path, manifest: Mapping[str, Any], path: str) -> np.ndarray:
    """An array of the shape and dtype of the one at a path; of its values nothing is said.

    Raises:
        CheckpointError: if there is none of that path, or it is of no dtype.
    """
    check_unchanged(folder, path in manifest["leaves"])
    try:
        return np.empty(shape(manifest, path), jnp.dtype(manifest["leaves"][path].partition("[")[0]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"expected an array at {path} of {folder}, found {error}") from error


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    tables = [manifest.get(name) for name in ("config", "leaves", "key_impls", "files")]
    empty = manifest.get("empty", [])  # absent from older ones
    if not all(isinstance(table, dict) for table in tables) or not isinstance(empty, list):
        return False
    _, leaves, impls, files = tables
    return (
        all(isinstance(path, str) for path in empty)
        and all(isinstance(said, str) and re.fullmatch(_KIND, said) for said in leaves.values())
        and all(impl in ("threefry2x32", "rbg", "unsafe_rbg") for impl in impls.values())
        and all(isinstance(said, list) and [*map(type, said)] == [int, str] for said in files.values())
    )


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration after a round trip through JSON: tuples are lists, and keys are strings.

    Raises:
        CheckpointError: if JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected a config that JSON can hold, got: {error}. Use numbers, strings, lists"
        ) from error


def compare(folder: pathlib.Path, what: str, expected: dict, found: dict, advice: str) -> None:
    """Refuse a checkpoint of another run.

    Args:
        folder: of the checkpoint.
        what: is compared, such as "configuration".
        expected: of this run, a tree of dicts that JSON can hold.
        found: of the checkpoint.
        advice: how to continue with the checkpoint's run.

    Raises:
        CheckpointError: with a line for each difference, the first 20 of them.
    """
    if lines := _differences(expected, found):
        more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise CheckpointError(
            f"{folder} holds another {what} than this run's:{''.join(lines[:20])}{more}\n"
            f"To continue with that run, {advice}; for this one, take another directory."
        )


def fsync(path: pathlib.Path) -> None:
    """Return when a file, or the list of names in a folder, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _differences(expected: dict, found: dict, prefix: str = "") -> list[str]:
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        mine, theirs = expected.get(name, ...), found.get(name, ...)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            lines += _differences(mine, theirs, f"{prefix}{name}.")
        elif mine != theirs and repr(mine) != repr(theirs):  # nan equals nan
            shown = ["absent" if value is ... else repr(value) for value in (mine, theirs)]
            lines.append(f"\n  {prefix}{name}: expected {shown[0]} (this run), found {shown[1]} (checkpoint)")
    return lines


def _digests(folder: pathlib.Path) -> dict[str, list]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    return {name: [path.stat().st_size, _digest(path)] for name, path in paths.items() if name not in (MANIFEST, SEAL)}


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _seal(folder: pathlib.Path) -> str:
    return f"{_digest(folder / MANIFEST)}  {MANIFEST}\n"  # as `sha256sum -c` reads it
