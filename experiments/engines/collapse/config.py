"""Posterior collapse seen and cured, EM, and what inference costs: `python experiments/collapse.py --help`."""

import dataclasses
import math

import tyro

from engines.harness import command_line

PARTS = ("trap", "text", "weights", "gaps", "em")

CURES = ("plain", "lambda", "warm-up", "cyclical", "free bits", "aggressive")


@dataclasses.dataclass(frozen=True)
class Config(command_line.DataOptions):
    """Options of a run. Every one of them is written to config.json."""

    dataset: str = "digits"
    """Of the parts trap, weights and gaps: digits (embedded), binarized_mnist, or any TFDS image set of grey images."""
    parts: tuple[str, ...] = PARTS
    """Which parts to run: trap (a relu network that ignores its latents from the first steps on), text (LSTMs on
    sequences of a known generator), weights (log p(x) against the weight of the KL), gaps (the costs of the family of q
    and of amortization), em (exact EM beside gradients, on a linear model)."""
    cures: tuple[str, ...] = CURES
    """Of the parts trap and text: plain (none), lambda (a KL of half the weight), warm-up, cyclical, free-bits,
    aggressive."""
    seeds: int = 3
    """Runs of each model."""
    effort: float = 1.0
    """Factor of every number of training steps; below 1 the numbers are not those of the README. Compilation stays."""
    runs_dir: str = "runs"
    """Where runs are kept."""
    name: str | None = None
    """Folder of this run in runs_dir; by default collapse-DATASET, with a number if it is taken."""
    resume: bool = False
    """Continue the run of that name (by default the newest of this dataset): parts that are done stay as they are."""


def parse(args: list[str]) -> Config:
    """The configuration from the command line.

    Raises:
        ValueError: if an option is out of range, or a part or cure is unknown.
    """
    config = tyro.cli(Config, description="Posterior collapse, its cures, and what inference costs.", args=args)
    cures = tuple(name.replace("free-bits", "free bits") for name in config.cures)
    chosen = {
        "parts": command_line.chosen("parts", config.parts, PARTS),
        "cures": command_line.chosen("cures", cures, CURES),
    }
    if not 0 < config.effort < math.inf:
        raise ValueError(f"--effort must be a positive number; got {config.effort}")
    if config.effort > command_line.MOST_EFFORT:
        raise ValueError(f"--effort must be at most {command_line.MOST_EFFORT:,}; got {config.effort}")
    if not 1 <= config.seeds <= 1000:
        raise ValueError(f"--seeds must be from 1 to 1000; got {config.seeds}")
    return dataclasses.replace(config, **chosen)
