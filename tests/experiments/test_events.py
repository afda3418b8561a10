"""Metrics as TensorBoard reads them, read back from the bytes of its files."""

import struct

import pytest

pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")


def scalars(folder):
    """`{name: {step: value}}` of the event files in a folder: of records of length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_a_line_of_metrics_is_a_step_of_curves(experiments, tmp_path):
    from engines.train import events

    with events.recorder(True, tmp_path, 0) as record:
        record({"step": 60, "bound": -30.5, "validation_elbo": -31.25})
        assert scalars(tmp_path) == {"bound": {60: -30.5}, "validation_elbo": {60: -31.25}}  # at once
        record({"step": 120, "bound": -28.5, "validation_elbo": -29.25})
    assert scalars(tmp_path) == {"bound": {60: -30.5, 120: -28.5}, "validation_elbo": {60: -31.25, 120: -29.25}}


def test_each_of_several_runs_has_its_curve(experiments, tmp_path):
    from engines.train import events

    with events.recorder(True, tmp_path, 0) as record:
        record({"step": 6, "seconds": 2.5, "bound": [-30.5, -28.25]})
    assert scalars(tmp_path) == {"seconds": {6: 2.5}, "bound/0": {6: -30.5}, "bound/1": {6: -28.25}}


def test_nothing_is_written_unasked(experiments, tmp_path):
    from engines.train import events

    with events.recorder(False, tmp_path, 0) as record:
        record({"step": 6, "bound": -30.5})
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(experiments, monkeypatch):
    from engines.train import events

    monkeypatch.setattr(events.importlib.util, "find_spec", lambda name: None)
    events.check_installed(False)
    with pytest.raises(ValueError, match=r"--tensorboard needs tensorboardX: .*\[tensorboard\]"):
        events.check_installed(True)
