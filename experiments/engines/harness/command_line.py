"""What the command lines share: the options that name the data, and the way they end. Nothing here waits for JAX."""

import contextlib
import dataclasses
import difflib
import os
import sys
from collections.abc import Iterator
from typing import Literal

INSTALL = 'python -m pip install -e ".[experiments]", run in the clone'
EXTRAS = ("jax", "matplotlib", "tqdm", "tyro", "vaejax")  # what that command installs


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which images, and where they are; a Config inherits them."""

    dataset: str = "digits"
    """digits (embedded), or any TFDS image set such as mnist."""
    data_dir: str | None = None
    """Where TFDS keeps prepared sets; by default ~/tensorflow_datasets."""
    manual_dir: str | None = None
    """A folder with the original files of the set, to prepare it from without a network."""
    download: bool = False
    """Let TFDS fetch the original files of a set that is not prepared."""


@dataclasses.dataclass(frozen=True)
class BinarizedDataOptions(DataOptions):
    """Those of a model of black and white pixels."""

    binarization: Literal["dynamic", "threshold", "none"] = "dynamic"
    """Pixels become 0 or 1: drawn anew for each batch, by comparison with 0.5, or not at all."""


def chosen(option: str, given: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The names that an option gave, each once and in the order in which they are known.

    Raises:
        ValueError: if there are none, or one is unknown.
    """
    if not given:
        raise ValueError(f"--{option} must name at least one of {', '.join(known)}; got none")
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.4)
            advice = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"--{option}: {name!r} is unknown; {advice}Known are {', '.join(known)}")
    return tuple(name for name in known if name in given)


@contextlib.contextmanager
def errors_in_one_line(interrupted: str = "interrupted") -> Iterator[None]:
    """Around a command: a mistake of the user ends in one line and exit code 2, Ctrl-C in `interrupted` and 130."""
    sys.stdout.reconfigure(line_buffering=True)  # also into a file or a pipe, so that a log shows how far a run is
    try:
        yield
    except ModuleNotFoundError as error:
        advice = f"; it comes with {INSTALL}" if error.name in EXTRAS else ""
        print(f"error: {error}{advice}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)


def compile_quickly() -> None:
    """Let XLA optimize less: before JAX is imported, and where compilation takes most of the time."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {flags}".strip()
