"""Orbax, called so that it neither floods the terminal nor hangs when interrupted."""

import contextlib
import functools
import gc
import logging
import os
import pathlib
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any


def call(function: str, *arguments: Any) -> Any:
    """Call a function of Orbax, with stdout and stderr swallowed; their last line is added to an error as a note.

    When a write fails, its threads flood stderr: from Python, from C++, and through absl's log.

    Args:
        function: the name of one of `orbax.checkpoint.v1`, such as "save".
        arguments: of that function.

    Returns:
        What the function returns.

    Raises:
        Whatever the function does, with its note.
    """
    root, threads = logging.getLogger(), set(threading.enumerate())
    with _held_signals(), contextlib.ExitStack() as stack:
        if not root.handlers:  # absl would call logging.basicConfig, and so change the whole program's log for good
            root.addHandler(null := logging.NullHandler())
            stack.callback(root.removeHandler, null)
        from orbax.checkpoint import v1 as ocp  # here, so that importing vaejax stays quick

        sink = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        handler = logging.StreamHandler(sink)
        for logger in (logging.getLogger("absl"), logging.getLogger("asyncio")):
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
            stack.callback(setattr, logger, "propagate", logger.propagate)
            logger.propagate = False
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed or None, in a daemon
                stream.flush()
            with contextlib.suppress(OSError):
                original = os.dup(descriptor)
                stack.callback(os.close, original)
                stack.callback(os.dup2, original, descriptor)
                os.dup2(sink.fileno(), descriptor)
        stack.enter_context(contextlib.redirect_stdout(sink))  # in a notebook and under pytest, not the descriptors
        stack.enter_context(contextlib.redirect_stderr(sink))
        afterwards = sys.unraisablehook
        stack.callback(lambda: setattr(sys, "unraisablehook", afterwards))
        sys.unraisablehook = functools.partial(_write_unraisable, sink)
        try:
            with ocp.Context():
                return getattr(ocp, function)(*arguments)
        except BaseException as error:
            if isinstance(error, Exception):
                afterwards = _without_late_callbacks(afterwards)
            for thread in set(threading.enumerate()) - threads:  # they continue writing, to stderr and to the folder
                threading.Thread.join(thread, timeout=1)  # Orbax's own join raises
            # Unfinished tasks complain when they are collected: let that be now, and not whenever the error is dropped.
            cause: BaseException | None = error
            while cause is not None:
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__cause__ or cause.__context__
            gc.collect()
            sink.seek(0)
            error.add_note("".join([line for line in sink if line.strip()][-1:]).strip())
            raise


@contextlib.contextmanager
def plain_name(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder under a name that TensorStore reads as it stands: it takes brackets and backslashes for syntax."""
    if not any(letter in str(folder) for letter in "[]\\"):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as elsewhere:
        link = pathlib.Path(elsewhere) / "link"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def has_arrays(folder: pathlib.Path) -> bool:
    """Whether the arrays of a save have arrived in its folder, and not what describes them alone."""
    return any(folder.rglob("manifest.ocdbt"))  # of the database that Orbax keeps arrays in


def _write_unraisable(sink: Any, unraisable: Any) -> None:
    """An error of TensorStore's late callbacks; one of them may still be at it when the sink is closed."""
    with contextlib.suppress(ValueError):
        traceback.print_exception(unraisable.exc_value, file=sink)


def _without_late_callbacks(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """The hook, but for TensorStore's own threads: long after a failed write they may still call a loop that is gone.

    Nothing tells when the last of them is done, so the hook stays.
    """
    if getattr(hook, "func", None) is _write_unless_late:
        return hook
    return functools.partial(_write_unless_late, hook)


def _write_unless_late(hook: Callable[[Any], None], unraisable: Any) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        hook(unraisable)


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Deliver Ctrl-C and SIGTERM at the end: before, Orbax's threads would wait for ever. A second Ctrl-C breaks in.

    Outside the main thread no handler runs, and none can be set.
    """
    held, previous = [], {}

    def hold(number: int, _: Any) -> None:
        if number in held:
            raise KeyboardInterrupt
        held.append(number)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:  # None: set by another language, cannot be put back
                    previous[number] = signal.signal(number, hold)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)
