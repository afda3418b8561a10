"""The data that the options of a command line name."""

from collections.abc import Callable
from typing import Any

from engines.harness import command_line
from vaejax import data, streams


def load(options: command_line.DataOptions, split: str) -> data.Dataset:
    """One split of the dataset, in memory.

    Raises:
        FileNotFoundError: if it is not prepared, with the options that help.
        ValueError: if it is unknown.
    """
    return _found(data.load, options, split)


def open_source(options: command_line.DataOptions, split: str) -> streams.Source:
    """One split of the dataset, on disk.

    Raises:
        FileNotFoundError: if it is not prepared, with the options that help.
        ValueError: if it is unknown.
    """
    return _found(streams.open_source, options, split)


def _found(open_set: Callable, options: command_line.DataOptions, split: str) -> Any:
    where = {"data_dir": options.data_dir, "manual_dir": options.manual_dir, "download": options.download}
    try:
        return open_set(options.dataset, split, **where)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Here these are the options --manual-dir and --download") from error


EVALUATION_KEY = 20_131_220  # of every run: the test binarization and the samples of log p(x) are the same for all
