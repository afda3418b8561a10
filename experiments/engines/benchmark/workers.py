"""A process for each system of `benchmark.py`, so that none is charged for the threads and memory of another."""

import logging
import math
import multiprocessing
import resource
import time
from typing import Any

import numpy as np

from engines.benchmark.work import Work, images_of, weights_of

AGREEMENT = 0.003  # the relative difference of two systems' values that is allowed beside their standard errors


class Worker:
    """A system in a process of its own."""

    def __init__(self, name: str, work: Work):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, work), daemon=True)
        self.process.start()
        theirs.close()
        self.seconds_to_start = 0.0

    def ask(self, *words: Any) -> Any:
        """The answer to one command.

        Raises:
            RuntimeError: if the process failed, with what it said.
        """
        self.pipe.send(words)
        try:
            kind, answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process of {words} ended with code {self.process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(answer)
        return answer if kind == "answer" else None

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()


def maker(name: str) -> Any:
    """What makes a system. Its libraries are imported here, so that a worker imports no others."""
    if name == "vaejax":
        from engines.benchmark.systems_jax import MAKE
    elif name.startswith("torch"):
        from engines.benchmark.systems_torch import MAKE
    else:
        from engines.benchmark.systems_flax import MAKE
    return MAKE[name]


def serve(pipe: Any, name: str, work: Work) -> None:
    """What a worker's process does: build the system, then answer commands."""
    # The models are not trained, so warnings about their importance weights would not help.
    logging.getLogger("vaejax").setLevel(logging.ERROR)
    system: Any = None
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            start = time.perf_counter()
            if command == "start":
                system = maker(name)(work, *weights_of(work), images_of(work))
                pipe.send(("answer", time.perf_counter() - start))
            elif command == "value":
                pipe.send(("answer", system.value()))
            elif command == "layers":
                pipe.send(("answer", system.layers()))
            elif command in ("advance", "compile"):
                getattr(system, command)(*arguments)
                pipe.send(("answer", time.perf_counter() - start))
            else:
                pipe.send(("answer", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        except (NotImplementedError, ModuleNotFoundError) as error:
            pipe.send(("missing", None if command != "start" else print(f"{work.name}: no {name}: {error}")))
        except Exception as error:
            pipe.send(("error", f"{work.name} by {name}: {type(error).__name__}: {error}"))


def started(work: Work, systems: tuple[str, ...]) -> dict[str, Worker]:
    """The workers of all systems that are installed and can do the work."""
    workers = {}
    for name in systems:
        worker = Worker(name, work)
        if worker.ask("start") is None:
            worker.stop()
        else:
            workers[name] = worker
    return workers


def check_agreement(work: Work, workers: dict[str, Worker]) -> None:
    """Refuse to time systems that do not compute the same.

    Raises:
        RuntimeError: with the two numbers.
    """
    values = {name: worker.ask("value") for name, worker in workers.items()}
    first, (expected, error) = next(iter(values.items()))
    for name, (value, own) in values.items():
        # The variance of 1,000 gradients is known to a few percent only, and log p(x) from one set of samples.
        room = {"train": 0.0, "likelihood": 0.01, "moments": 0.05}[work.kind] * abs(expected)
        room += AGREEMENT * abs(expected) + 4 * math.hypot(np.nan_to_num(own), np.nan_to_num(error))
        if not abs(value - expected) <= room:
            raise RuntimeError(f"{work.name}: {name} gives {value:.6g} where {first} gives {expected:.6g}: not timed")
