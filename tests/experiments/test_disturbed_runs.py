"""Runs that share a folder, or lose it: one clear line, and what is there continues bit for bit.

Signals, SIGKILL several times in a row and a full disk are in `test_experiments.py`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import EXPERIMENTS

pytestmark = pytest.mark.slow

OPTIONS = ("--hidden-sizes", "8", "--num-steps", "2000", "--eval-samples", "10", "--checkpoint-seconds", "0")
TIMES = {"train_seconds", "compile_seconds", "examples_per_second", "seconds"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The environment of the commands: few optimizations, and compiled programs are kept."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    return {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **kept,
    }


def command(folder, *options):
    names = ("--runs-dir", folder.parent, "--name", folder.name)
    return [sys.executable, EXPERIMENTS / "train.py", *OPTIONS, *names, *options]


def reports(folder):
    """The complete lines of metrics.jsonl, without times."""
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "metrics.jsonl").read_text().splitlines(True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    return []


@contextlib.contextmanager
def paused(folder, env):
    """A run that stands still after some reports."""
    with subprocess.Popen(
        command(folder), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 120
        while len(reports(folder)) < 5:
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.003)
        run.send_signal(signal.SIGSTOP)
        try:
            yield run
        finally:
            run.send_signal(signal.SIGCONT)


def refused(folder, env, *options):
    done = subprocess.run(command(folder, *options), env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_second_process_is_refused_and_harms_nothing(quick, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    subprocess.run(command(whole), env=quick, check=True, capture_output=True)
    with paused(shared, quick) as run:
        before = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}
        assert "another one that runs writes into it" in refused(shared, quick, "--resume")
        assert "exists: continue with it by --resume" in refused(shared, quick)
        assert {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()} == before
        run.send_signal(signal.SIGKILL)
    subprocess.run(command(shared, "--resume"), env=quick, check=True, capture_output=True)
    assert reports(shared) == reports(whole)


def test_a_folder_that_is_removed_ends_the_run_in_one_line(quick, tmp_path):
    folder = tmp_path / "run"
    with paused(folder, quick) as run:
        shutil.rmtree(folder)
        run.send_signal(signal.SIGCONT)
        error = run.stderr.read()
    assert run.returncode == 2, error
    lines = [
        line for line in error.replace("\r", "\n").splitlines() if not line.startswith("training") and line.strip()
    ]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert f"{folder} was removed or moved while the run wrote into it" in lines[0]
    assert not (folder / "result.json").exists()
