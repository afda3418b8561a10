"""What the command lines share: how they end, and the options of the data."""

import dataclasses
import importlib
import os
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


@pytest.mark.parametrize("missing", ["tyro", "tqdm", "matplotlib", "jax.numpy", "jax"])
def test_a_missing_package_is_one_line_that_says_how_to_install_it(missing, tmp_path):
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; sys.path.insert(0, sys.argv[1]); "
        f"sys.argv = ['train.py', '--num-steps', '1', '--runs-dir', {str(tmp_path / 'runs')!r}]; "
        "runpy.run_path('train.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(EXPERIMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXPERIMENTS)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert 'install it with python -m pip install -e ".[experiments]"' in done.stderr
    assert not (tmp_path / "runs").exists()


def test_training_does_not_wait_for_matplotlib():
    code = "import sys; from engines.train import population, run; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=EXPERIMENTS).returncode == 0


@pytest.mark.parametrize(
    "name", ["train", "compare_gradients", "pca_to_vae", "collapse", "benchmark", "plots", "reproduce"]
)
def test_each_command_has_its_help(name):
    command = [sys.executable, EXPERIMENTS / f"{name}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{name}.py" in done.stdout


def test_the_sign_of_a_standard_error_is_printed_in_every_locale():
    code = "from engines.harness import command_line\nwith command_line.errors_in_one_line(): print('±')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment, capture_output=True, cwd=EXPERIMENTS).stdout.decode() == "±\n"


def test_columns_are_as_wide_as_their_cells(experiments):
    from engines.harness import tables

    lines = [("system", "a second"), ("vaejax", "4,370")]
    assert tables.columns(lines) == "system  a second\nvaejax  4,370"
    assert tables.columns(lines, left=1, indent="  ") == "  system  a second\n  vaejax     4,370"
    assert tables.pipe_line(["p(x|z)", "1"]) == "| p(x\\|z) | 1 |"


def test_a_run_says_how_it_is_resumed(command_line):
    @dataclasses.dataclass(frozen=True)
    class Config(command_line.DataOptions):
        beta: tuple[float, ...] = (1.0,)
        stream: bool = False
        name: str | None = None
        resume: bool = False

    words = command_line.to_resume(Config(beta=(0.5, 2.0), stream=True, data_dir="a folder"), "digits-2")
    assert words == ["--resume", "--name", "digits-2", "--data-dir", "a folder", "--beta", "0.5", "2.0", "--stream"]
    assert command_line.to_resume(Config(resume=True, name="mine"), "mine") == ["--resume", "--name", "mine"]


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


@pytest.mark.parametrize(
    ("before", "after"), [("", "--xla_backend_optimization_level=1"), ("--xla_no=1", "--xla_no=1")]
)
def test_xla_gets_no_flag_that_it_does_not_know(command_line, before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before)
    command_line.compile_quickly()
    assert os.environ["XLA_FLAGS"] == after
