"""The same work by vaejax and by what one would pick instead: `python experiments/benchmark.py --help`."""

import dataclasses
import math

import tyro

from engines.harness import command_line

WORK = ("aevb", "iwae", "conv", "score", "likelihood", "moments", "parts", "cost", "choices", "quality")
SYSTEMS = ("vaejax", "torch-eager", "torch-compile", "numpyro", "jax-loop")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a run. Every one of them is written to config.json."""

    work: tuple[str, ...] = WORK
    """What is done: aevb (one step of a 784-500-20 VAE, batch 100), iwae (784-200-200-50, K = 50, batch 20), conv
    (32x32x3 images, batch 100), score (as aevb by the score function, leave-one-out, K = 16), likelihood (log p(x) of
    images by 5,000 samples each), moments (1,000 gradients of aevb, their mean and variance), and quality (log p(x)
    against seconds of training on MNIST, which must be prepared, by vaejax and PyTorch); by vaejax alone parts
    (matrix products, pixels and Adam alone), cost (a step against K, batch size and latent dimension) and choices (what
    drawing pixels anew, populations, reading from disk and bfloat16 cost or save, and how long a start takes)."""
    systems: tuple[str, ...] = SYSTEMS
    """Who does it: vaejax; PyTorch as it is and compiled; NumPyro's SVI; a Python loop of jitted steps in JAX. Those
    that are not installed are left out, with a message."""
    devices: tuple[str, ...] = ()
    """Compile the work of vaejax for these accelerators, such as h100 and v5e:2x2, which need not be here, and run
    nothing: kernels, memory and least times of a step. Beside the work chosen: a population of 16, a mesh of four, and
    5,000 importance samples in chunks."""
    repeats: int = 7
    """Measurements of each, in turns."""
    seconds: float = 2.0
    """Approximate length of one measurement."""
    runs_dir: str = "runs"
    """Where runs are kept."""
    name: str | None = None
    """Folder of this run in runs_dir; by default benchmark, with a number if it is taken."""


def parse(args: list[str]) -> Config:
    """The configuration from the command line.

    Raises:
        ValueError: if an option is out of range, or a work, system or device is unknown.
    """
    config = tyro.cli(Config, description="vaejax and its peers at the same work, side by side.", args=args)
    chosen = {
        "work": command_line.chosen("work", config.work, WORK),
        "systems": command_line.chosen("systems", config.systems, SYSTEMS),
    }
    if config.repeats < 1:
        raise ValueError(f"--repeats must be at least 1; got {config.repeats}")
    if not 0 < config.seconds < math.inf:
        raise ValueError(f"--seconds must be a positive number; got {config.seconds}")
    if config.devices:
        from vaejax.devices import machine_of  # here, so that the processes of other systems do not import JAX

        for device in config.devices:
            machine_of(device)
    return dataclasses.replace(config, **chosen)
