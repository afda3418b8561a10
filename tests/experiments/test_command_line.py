"""What the command lines share: how they end, and the options of the data."""

import dataclasses
import importlib
import subprocess
import sys

import pytest
from commands import EXPERIMENTS, refusal


@pytest.fixture(scope="module")
def command_line(experiments):
    from engines.harness import command_line

    return command_line


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError("no"), ModuleNotFoundError("no")])
def test_a_mistake_is_one_line(command_line, error, monkeypatch, capsys):
    def main():
        with command_line.errors_in_one_line():
            raise error

    assert refusal(main, monkeypatch, capsys) == "error: no\n"


def test_an_interruption_says_what_it_leaves(command_line, capsys):
    # Both, since an interruption that comes through would end the tests.
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped, command_line.errors_in_one_line("all is saved"):
        raise KeyboardInterrupt
    assert stopped.type is SystemExit
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nall is saved\n"


def test_a_bug_keeps_its_traceback_and_an_exit_code_its_number(command_line, capsys):
    with pytest.raises(TypeError, match="ours"), command_line.errors_in_one_line():
        raise TypeError("ours")
    with pytest.raises(SystemExit) as stopped, command_line.errors_in_one_line():
        sys.exit(143)
    assert stopped.value.code == 143
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["train", "gradients"])
def test_help_explains_every_option_also_the_inherited(experiments, name, capsys):
    command = importlib.import_module(f"engines.{name}.config")
    with pytest.raises(SystemExit) as stopped:
        command.parse(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    options = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(command.Config)]
    assert options[0] == "--dataset"
    assert all(f"{option} " in text or f"{option}, " in text for option in options)
    for words in ("Where TFDS keeps prepared sets", "original files of the set", "drawn anew for each batch"):
        assert words in " ".join(text.replace("│", " ").split())


def test_it_needs_the_standard_library_alone():
    code = (
        "import sys; before = set(sys.modules); import engines.harness.command_line; new = set(sys.modules) - before; "
    )
    code += "assert {name.split('.')[0] for name in new} <= {'engines', *sys.stdlib_module_names}, new"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=EXPERIMENTS)
