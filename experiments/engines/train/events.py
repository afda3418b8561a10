"""The metrics of a run as TensorBoard reads them."""

import contextlib
import importlib.util
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Record = Callable[[Mapping[str, Any]], None]


def check_installed(wanted: bool) -> None:
    """Refuse --tensorboard where nothing can write its files.

    Raises:
        ValueError: with the command that installs it.
    """
    if wanted and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError('--tensorboard needs tensorboardX: python -m pip install -e ".[tensorboard]", in the clone')


@contextlib.contextmanager
def recorder(wanted: bool, folder: pathlib.Path, step: int) -> Iterator[Record]:
    """What writes a line of metrics.jsonl into `folder / "tensorboard"`, or nothing if that is not wanted.

    Args:
        wanted: whether it is.
        folder: of the run.
        step: from which the run continues; later steps that stand there already are not shown.
    """
    if not wanted:
        yield lambda row: None
        return
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    # Not its SummaryWriter, whose thread has not yet written all when a signal ends the run.
    (folder / "tensorboard").mkdir(exist_ok=True)
    writer = EventsWriter(str(folder / "tensorboard" / "events"))
    writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def record(row: Mapping[str, Any]) -> None:
        curves = []
        for name, value in row.items():
            tags = [f"{name}/{run}" for run in range(len(value))] if isinstance(value, list) else [name]
            curves += [(tag, number) for tag, number in zip(tags, np.atleast_1d(value), strict=True) if name != "step"]
        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in curves]
        writer.write_event(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))
        writer.flush()

    try:
        yield record
    finally:
        writer.close()
