"""From the options of `train.py` to its exit code: one run or several, on this process or on many."""

from engines.harness import spreading
from engines.train import events, population
from engines.train import run as single
from engines.train.config import Config


def run(config: Config) -> int:
    """Train, evaluate, draw and report. Returns the exit code: 0, or 128 + the signal that stopped it."""
    events.check_installed(config.tensorboard)
    spreading.keep_compiled_programs()
    if config.distributed:
        spreading.join_other_processes()
    with spreading.quiet_unless_first():
        return population.run(config) if config.num_runs > 1 else single.run(config)
