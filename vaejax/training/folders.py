"""Which checkpoints a directory holds, which of them is the one asked for, and how one leaves it."""

import logging
import os
import pathlib
import re
import shutil

from vaejax import checks
from vaejax.training import seals
from vaejax.training.seals import CheckpointError

_log = logging.getLogger(__name__)


def steps(directory: str | os.PathLike) -> list[int]:
    """List the steps of the complete checkpoints, those with digests; `restore` verifies them.

    Args:
        directory: where `save` wrote, or will.

    Returns:
        The steps, ascending; an empty list where there are none.

    >>> steps("a directory that is not there")
    []
    """
    return sorted(step for step, folder in of_steps(absolute(directory)).items() if seals.is_sealed(folder))


def absolute(directory: str | os.PathLike) -> pathlib.Path:
    """The directory from the root on, with `~` for the user's home as a shell has it."""
    return pathlib.Path(os.path.expanduser(directory)).absolute()


def of_steps(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """The folder of each step, complete or not."""
    folders = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:  # NNNNNNNN comes before NNNNNNNN.old
        if match := re.fullmatch(r"(\d{8,})(\.old)?", path.name):
            folders.setdefault(int(match[1]), path)
    return folders


def choose(directory: pathlib.Path, step: int | None) -> pathlib.Path:
    """The folder of a step, or of the newest complete one; a later one that is incomplete is told in the log.

    Raises:
        CheckpointError: if there is none, or that of the step is incomplete.
    """
    if step is not None:
        checks.check_count("step", step, least=0)
    complete, folders = steps(directory), of_steps(directory)
    newest = max(complete, default=-1)
    folder = folders.get(newest if step is None else step)
    if folder is not None and seals.is_sealed(folder):
        if step is None and (later := [str(path) for other, path in sorted(folders.items()) if other > newest]):
            _log.warning(
                "the checkpoint of step %d is taken, because later ones are incomplete, without %s or %s: %s",
                *(newest, seals.MANIFEST, seals.SEAL, ", ".join(later)),
            )
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


def check_step(folder: pathlib.Path, step: int) -> None:
    """Refuse a checkpoint of another step than its folder's name says.

    Raises:
        CheckpointError: with both steps.
    """
    named = int(folder.name.removesuffix(".old"))
    if step != named:
        raise CheckpointError(
            f"expected the checkpoint of step {named} in {folder}, found that of step {step}: the folder was renamed "
            "or swapped with another; give it back its name"
        )


def last_good(directory: pathlib.Path) -> int | None:
    """The newest step of which every byte verifies, or None."""
    folders = of_steps(directory)
    return next((step for step in reversed(steps(directory)) if seals.verifies(folders[step])), None)


def remove(folder: pathlib.Path) -> None:
    """Delete a checkpoint, if it is there."""
    if folder.exists():  # renamed first: half a checkpoint must not stand under a good name
        doomed = folder.with_name(f".tmp-{folder.name}")
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(directory: pathlib.Path) -> None:
    """Delete what killed saves left."""
    for path in directory.glob(".tmp-*"):
        shutil.rmtree(path)
    for aside in directory.glob("[0-9]" * 8 + "*.old"):
        if aside.with_suffix("").exists():
            remove(aside)
        else:  # killed between the two renames of a replacement
            os.replace(aside, aside.with_suffix(""))
