"""What the tests of the command lines share: where they are, what a refusal must look like, what a picture is."""

import importlib
import pathlib
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"


def main_of(name):
    """The `main` of a command; the fixture `experiments` makes it importable."""
    return importlib.import_module(name).main


def refusal(main, monkeypatch, capsys, *options):
    """The one line of standard error with which a command refuses its options, with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, options)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    return error


def is_picture(path, smallest=100):
    """Whether a file is a picture of more than `smallest` pixels in each direction, with something on its axes.

    That is something coloured, or grey in more places than frames, ticks and words are.
    """
    import matplotlib.image

    pixels = matplotlib.image.imread(path)[..., :3]
    coloured = (pixels.max(axis=-1) - pixels.min(axis=-1) > 0.2).sum()
    dark = (pixels.max(axis=-1) < 0.9).mean()
    return min(pixels.shape[:2]) > smallest and (coloured > 50 or dark > 0.1)
