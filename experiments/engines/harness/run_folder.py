"""What a run leaves behind in runs/<name>/, and how it is stopped in good order."""

import json
import os
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.harness import command_line

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

# What checkpoints, patterns of names or other systems read as something else than a letter.
NOT_IN_PATHS = "[]\\*?"


class GracefulStop:
    """Between `with` and its end, Ctrl-C and SIGTERM only leave a note in `signal`; a second one stops at once."""

    def __enter__(self) -> "GracefulStop":
        """Take over both signals."""
        self.signal: int | None = None
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        """Give them back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def choose_folder(runs_dir: str, name: str | None, dataset: str, resume: bool) -> pathlib.Path:
    """The folder of a run: of the name given, or a free one after the dataset; to resume, one that exists.

    Raises:
        ValueError: if the name is none of a folder, or taken and the run is not to be resumed, or there is nothing to
            resume.
    """
    _check_name("--runs-dir", str(runs_dir), NOT_IN_PATHS)
    runs = pathlib.Path(runs_dir).expanduser()
    if name is not None:
        _check_name("--name", name, NOT_IN_PATHS + "/~")
        if name.strip() in ("", ".", ".."):
            raise ValueError(f"--name must be the name of a folder in {runs_dir}; got {name!r}")
        folder = runs / name
        if folder.exists() and not resume:
            raise ValueError(f"the run {folder} exists: continue with it by --resume, or choose another --name")
        if not folder.exists() and resume:
            raise ValueError(f"expected the run {folder} to resume; it is not there: check --runs-dir and --name")
        return folder
    taken = [runs / dataset.replace("/", "_")]
    while taken[-1].exists():
        taken.append(runs / f"{taken[0].name}-{len(taken) + 1}")
    if not resume:
        return taken[-1]
    if len(taken) == 1:
        raise ValueError(f"expected a run of {dataset} in {runs} to resume; there is none: check --runs-dir and --name")
    return taken[-2]


_claimed: list[int] = []


def claim(folder: pathlib.Path) -> None:
    """Let no other process write into the folder until this one ends, or claims another one.

    Raises:
        ValueError: if a process that runs has claimed it.
    """
    if fcntl is None:
        return
    while _claimed:
        os.close(_claimed.pop())
    _claimed.append(os.open(folder, os.O_RDONLY))
    try:
        fcntl.flock(_claimed[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"expected {folder} for this process alone; another one that runs writes into it: wait until it ends, stop "
            "it, or choose another --name"
        ) from error
    except OSError:  # a file system without locks
        pass


def check_there(folder: pathlib.Path) -> None:
    """Refuse to write into a folder that was removed or moved in the course of the run; half of it would come back.

    Raises:
        FileNotFoundError: if its config.json, which a run writes first, is not there.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} was removed or moved while the run wrote into it: what it held is lost here")


def _check_name(option: str, name: str, refused: str) -> None:
    if any(letter in refused or not letter.isprintable() for letter in name):
        raise ValueError(f"{option} must be without {' '.join(refused)} and letters that cannot be seen; got {name!r}")


def check_same_options(folder: pathlib.Path, options: Mapping[str, Any]) -> None:
    """Refuse to continue with a run under other options than it was started with.

    Args:
        folder: of the run; one without config.json was killed before it was written, and anything may continue it.
        options: all that must be the same, such as `command_line.compared` gives.

    Raises:
        ValueError: naming each option and both values.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    there, here = read_object(path), json.loads(json.dumps(options))
    others = [
        f"{command_line.flag(name)} was {command_line.spelt(there.get(name))}, is {command_line.spelt(value)}"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if others:
        raise ValueError(
            f"expected the options that {folder} was started with; {'; '.join(others)}. Resume it with those of "
            f"{path}, or start another run under another --name"
        )


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object in a file of the run; anything else is refused in one line."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        values = error
    if not isinstance(values, dict):
        got = f"no JSON ({values})" if isinstance(values, ValueError) else json.dumps(values)[:40]
        raise ValueError(
            f"expected {path} to hold the options of the run, as it was started with; got {got}: put the file back as "
            "it was, or start anew under another --name"
        )
    return values


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(temporary, path)


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Write an .npz file whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metrics(folder: pathlib.Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, up to a step; a line that was cut off by a kill is left out.

    Raises:
        ValueError: if another line is no report, or the steps do not rise.
    """
    path = folder / "metrics.jsonl"
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
        if not _is_report(rows[-1]) or (len(rows) > 1 and rows[-1]["step"] <= rows[-2]["step"]):
            raise ValueError(
                f"expected line {number} of {path} to report a later step than the line before, in numbers; got "
                f"{line[:60]}: put the file back as it was, or start anew under another --name"
            )
    return [row for row in rows if last_step is None or row["step"] <= last_step]


def _is_report(row: Any) -> bool:
    """Whether these are numbers by name, or lists of them, as a report is; with its step."""
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    numbers = [number for value in row.values() for number in (value if isinstance(value, list) else [value])]
    return all(type(number) in (int, float) for number in numbers)


def rewrite_metrics(folder: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Replace metrics.jsonl, as a resumed run does with the lines that its checkpoint had not reached."""
    temporary = folder / ".tmp-metrics.jsonl"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, folder / "metrics.jsonl")


def append_metrics(folder: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Add one line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
