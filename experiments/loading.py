"""The data that the options of a command line name."""

import command_line

from vaejax import data


def load(options: command_line.DataOptions, split: str) -> data.Dataset:
    """One split of the dataset.

    Raises:
        FileNotFoundError: if it is not prepared, with the options that help.
        ValueError: if it is unknown.
    """
    where = {"data_dir": options.data_dir, "manual_dir": options.manual_dir, "download": options.download}
    try:
        return data.load(options.dataset, split, **where)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Here these are the options --manual-dir and --download") from error
