"""From PCA to the VAE, each beside its exact answer: `python experiments/pca_to_vae.py --help`."""

import dataclasses
import math

import tyro

from engines.harness import command_line

PARTS = (
    "pca",
    "linear",
    "linear_vae",
    "deep",
    "denoising",
    "score",
    "bottleneck",
    "difference",
    "generator",
    "game",
)


@dataclasses.dataclass(frozen=True)
class Config(command_line.DataOptions):
    """Options of a run. Every one of them is written to config.json."""

    parts: tuple[str, ...] = PARTS
    """Which parts to run: pca (and its probabilistic model), linear (autoencoders and their regularizers), linear_vae,
    deep (and logistic PCA, VAE: equally many latents), denoising, score (of a mixture, by denoising), bottleneck
    (two Gaussians through one latent), difference (what sets autoencoder and VAE apart), generator (the limit of a
    decoder without noise), game (a generative adversarial network)."""
    effort: float = 1.0
    """Factor of every number of training steps; below 1 the numbers are not those of the README. Compilation stays."""
    seed: int = 0
    """Of parameters, order and noise."""
    faces: str | None = None
    """An npz file with `images` (n, height, width) of faces, 0 to 255 or 0 to 1, for the eigenfaces of the part pca."""
    runs_dir: str = "runs"
    """Where runs are kept."""
    name: str | None = None
    """Folder of this run in runs_dir; by default family-DATASET, with a number if it is taken."""
    resume: bool = False
    """Continue the run of that name (by default the newest of this dataset): parts that are done stay as they are."""


def parse(args: list[str]) -> Config:
    """The configuration from the command line.

    Raises:
        ValueError: if an option is out of range or a part is unknown.
    """
    config = tyro.cli(Config, description="From PCA to the VAE: the autoencoder family side by side.", args=args)
    parts = command_line.chosen("parts", config.parts, PARTS)
    if not 0 < config.effort < math.inf:
        raise ValueError(f"--effort must be a positive number; got {config.effort}")
    if config.effort > command_line.MOST_EFFORT:
        raise ValueError(f"--effort must be at most {command_line.MOST_EFFORT:,}; got {config.effort}")
    if not 0 <= config.seed < 2**31:
        raise ValueError(f"--seed must be from 0 to 2^31 - 1; got {config.seed}")
    return dataclasses.replace(config, parts=parts)
