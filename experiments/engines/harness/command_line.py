"""What the command lines share: the options that name the data, and the way they end. Nothing here waits for JAX."""

import contextlib
import dataclasses
import difflib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from typing import Any, Literal

INSTALL = 'python -m pip install -e ".[experiments]", in the clone'
EXTRAS = ("jax", "matplotlib", "tqdm", "tyro", "vaejax")  # what that command installs

MOST_EFFORT = 1000  # so that numbers of steps are such as JAX counts

# Options that say where things are, and not what the numbers are.
NOT_COMPARED = ("data_dir", "manual_dir", "download", "runs_dir", "name", "resume")


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

    @property
    def where(self) -> dict[str, Any]:
        """Where the images are, as the arguments of `data.load`."""
        return {"data_dir": self.data_dir, "manual_dir": self.manual_dir, "download": self.download}


@dataclasses.dataclass(frozen=True)
class BinarizedDataOptions(DataOptions):
    """Those of a model of black and white pixels."""

    binarization: Literal["dynamic", "threshold", "none", "levels", "dequantized"] = "dynamic"
    """Grey pixels become 0 or 1, drawn anew for each batch or by comparison with 0.5; stay as they are; become whole
    numbers from 0 to 255; or get noise of one such level, which leaves them inside (0, 1)."""


def flag(name: str) -> str:
    """An option as on the command line."""
    return "--" + name.replace("_", "-")


def spelt(value: Any) -> str:
    """An option's value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def to_resume(options: Any, name: str) -> list[str]:
    """The words of a command line that resume the run of that name, from a dataclass of the options it was given."""
    words = ["--resume", "--name", options.name or name]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in ("resume", "name"):
            values = value if isinstance(value, tuple) else (value,)
            words += [flag(field.name), *(() if value is True else map(str, values))]
    return words


def compared(options: Any, ignored: Collection[str] = ()) -> dict[str, Any]:
    """Those of a dataclass of options that decide the numbers: all but `NOT_COMPARED` and what a command adds to it."""
    return {name: value for name, value in vars(options).items() if name not in (*NOT_COMPARED, *ignored)}


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


def check_installed(package: str) -> None:
    """Refuse, before anything slow, where a package is missing that is imported only afterwards.

    Raises:
        ModuleNotFoundError: as the import would.
    """
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)


@contextlib.contextmanager
def errors_in_one_line(interrupted: str = "interrupted") -> Iterator[None]:
    """Around a command: a mistake of the user ends in one line and exit code 2, Ctrl-C in `interrupted` and 130."""
    # Lines at once also into a file or a pipe, so that a log shows how far a run is; and "±" in every locale.
    sys.stdout.reconfigure(line_buffering=True, encoding="utf-8")
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        advice = f": install it with {INSTALL}" if package in EXTRAS else ""
        print(f"error: {error}{advice}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "initialize backend" not in str(error):
            raise
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split())
        advice = "name one that this machine has, such as cpu, or leave the variable out"
        print(f"error: JAX_PLATFORMS={chosen}: {reason}; {advice}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)


def compile_quickly() -> None:
    """Let XLA optimize less: before JAX is imported, and where compilation takes most of the time."""
    add_xla_flag("--xla_backend_optimization_level=1")


def add_xla_flag(flag: str) -> None:
    """Put a flag into `XLA_FLAGS` if XLA knows it and the variable's others.

    XLA ends a process that gives it a flag it does not know, without a word from Python: so a process of its own is
    asked first, and where it ends badly everything stays as it is.
    """
    flags = f"{flag} {os.environ.get('XLA_FLAGS', '')}".strip()
    ask = "from jaxlib import xla_client; xla_client.CompileOptions().executable_build_options.debug_options"
    known = subprocess.run([sys.executable, "-c", ask], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True)
    if known.returncode == 0:
        os.environ["XLA_FLAGS"] = flags
