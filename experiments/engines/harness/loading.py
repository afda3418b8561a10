"""The data that the options of a command line name."""

from collections.abc import Callable
from typing import Any

from vaejax import data
from vaejax.data import streams

EVALUATION_KEY = 20_131_220  # of every run: the test binarization and the samples of log p(x) are the same for all


def load(dataset: str, split: str, where: dict[str, Any]) -> data.Dataset:
    """One split of a dataset, in memory.

    Args:
        dataset: its name.
        split: of it, such as "test".
        where: `command_line.DataOptions.where`.

    Raises:
        FileNotFoundError: if it is not prepared, with the options that help.
        ValueError: if it is unknown.
    """
    return _found(data.load, dataset, split, where)


def open_source(dataset: str, split: str, where: dict[str, Any]) -> streams.Source:
    """`load`, but what it returns stays on disk and is read example by example."""
    return _found(streams.open_source, dataset, split, where)


def _found(open_set: Callable, dataset: str, split: str, where: dict[str, Any]) -> Any:
    try:
        return open_set(dataset, split, **where)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Here these are the options --manual-dir and --download") from error
