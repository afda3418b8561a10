"""What a long task shows while it lasts."""

import io
import os
import sys

import pytest


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def progress(experiments, monkeypatch):
    from engines.harness import progress

    clock = iter(range(0, 10_000, 10))  # every look at the clock is ten seconds after the one before
    monkeypatch.setattr(progress, "clock", lambda: float(next(clock)))
    return progress


def lines_of(progress, monkeypatch, updates, **options):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Progress("training", 100, **options) as bar:
        for number in updates:
            bar.update(number, "bound -23.15 nats")
    return stream.getvalue().splitlines()


def test_a_log_gets_a_line_for_each_tenth(progress, monkeypatch):
    lines = lines_of(progress, monkeypatch, [1] * 100)
    assert len(lines) == 10
    assert lines[4] == "training  50%  50/100 steps, 16:40 left, bound -23.15 nats"
    assert lines[-1] == "training 100%  100/100 steps, bound -23.15 nats"
    assert not any("\r" in line for line in lines)


def test_a_resumed_task_goes_on_from_where_it_was(progress, monkeypatch):
    lines = lines_of(progress, monkeypatch, [10, 10], done=80)
    assert [line[:13] for line in lines] == ["training  90%", "training 100%"]


def test_a_quick_task_says_nothing_in_a_log(progress, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e6)
    assert lines_of(progress, monkeypatch, [50, 50]) == []


def test_the_time_left_does_not_count_what_comes_before_the_first_update(progress, monkeypatch):
    clock = iter([0.0] + [5000.0 + second for second in range(100) for _ in range(2)])  # 5,000 seconds of compilation
    monkeypatch.setattr(progress, "clock", lambda: next(clock))
    lines = lines_of(progress, monkeypatch, [1] * 20)
    assert [line[:40] for line in lines] == [
        "training  10%  10/100 steps, 01:30 left,",
        "training  20%  20/100 steps, 01:20 left,",
    ]


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_of_80_columns_shows_bound_and_speed(progress, monkeypatch, columns):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "terminal_size", lambda: os.terminal_size((columns, 24)))
    with progress.Progress("training", 6000) as bar:
        for _ in range(3):
            bar.update(600, "bound -23.15 nats, 53,208 examples/s")
            bar.bar.refresh()
    shown = stream.getvalue().split("\r")
    assert all(len(line.rstrip()) <= min(columns, 100) for line in shown)
    assert any("bound -23.15 nats, 53,208 examples/s" in line for line in shown)
