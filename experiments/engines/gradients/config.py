"""Compare gradient estimators, their noise, cost and training: `python experiments/compare_gradients.py --help`."""

import dataclasses
import math
import pathlib
from typing import Literal

import tyro

from engines.harness import command_line

# By the kind of latents; the first are the unit of all ratios.
GAUSSIAN = (
    "pathwise",
    "score_function",
    "moving_average",
    "nvil",
    "leave_one_out",
    "measure_valued",
    "pathwise_sampled_kl",
    "sticking_the_landing",
    "iwae_pathwise",
    "doubly_reparameterized",
    "vimco",
)
CATEGORICAL = ("leave_one_out", "score_function", "moving_average", "nvil", "rebar", "relax")
WEIGHTED = ("vimco", "ovis")
BIASED = ("gumbel_softmax", "straight_through", "reinmax")
BERNOULLI = (*CATEGORICAL, "muprop", "disarm", "arms", "double_control_variates", "rodeo", *WEIGHTED, *BIASED)
# Of bits beside real numbers: REINFORCE on all of them, or reparameterized numbers and one of these on the bits.
ON_BITS = ("enumerate_support", *CATEGORICAL, "muprop", "disarm", "double_control_variates", "rodeo", *BIASED)
WITH_PATHWISE = {name: f"{name}_and_pathwise" for name in ON_BITS}
MIXED = (*CATEGORICAL[:4], *WITH_PATHWISE.values(), *WEIGHTED)
ESTIMATORS = {
    "gaussian": GAUSSIAN,
    "bernoulli": BERNOULLI,
    "categorical": (*CATEGORICAL, *WEIGHTED, *BIASED),
    "mixed": MIXED,
}


@dataclasses.dataclass(frozen=True)
class Config(command_line.BinarizedDataOptions):
    """Options of a comparison. Every one of them is written to config.json."""

    latents: Literal["gaussian", "bernoulli", "categorical", "mixed"] = "gaussian"
    """Of the model; mixed: one half bits, beside it real numbers, and each part has its own estimator. Discrete latents
    have no path, and where there are any, the unit of all ratios is REINFORCE with leave-one-out of two samples."""
    latent_dim: int = 0
    """Numbers in one latent; 0: 5 for digits, else 20."""
    hidden_sizes: tuple[int, ...] = ()
    """Hidden tanh units of encoder and decoder; by default 50 for digits, else 500."""
    estimators: tuple[str, ...] = ()
    """Which to compare, by name, by default all; the unit of all ratios is always among them."""
    num_samples: tuple[int, ...] = ()
    """Values of K, samples of z for each example, by default 1 4 16 64, of discrete latents 2 4 16; that of the unit is
    always among them."""
    num_repeats: int = 200
    """Gradients behind each variance."""
    comparison_batch_size: int = 50
    """Training images whose gradient is compared, the same ones at all moments."""
    max_decodings: int = 100
    """Leave out what decodes more latents than that for one example of one gradient."""
    timing_rounds: int = 30
    """Gradients timed for each estimator and K, all by turns."""
    num_steps: int = 2000
    """Of training: the moments are its start, its middle and its end."""
    batch_size: int = 100
    """Examples in a training batch."""
    learning_rate: float = 2e-3
    """Adam's."""
    num_seeds: int = 5
    """Training runs of each estimator, all in one vmap."""
    max_training_decodings: int = 32
    """As --max-decodings, for training. The unit of all ratios is always trained."""
    baseline_steps: int = 500
    """Steps for which trained baselines learn at each moment, while the model is frozen."""
    seed: int = 0
    """Of parameters, order and noise."""
    runs_dir: str = "runs"
    """Where runs are kept."""
    name: str | None = None
    """Folder of this run in runs_dir; by default gradients-DATASET, with a number if it is taken."""


def parse(args: list[str]) -> Config:
    """The configuration from the command line, with the defaults of its dataset.

    Raises:
        ValueError: if an option is out of range, an estimator is unknown or the folder is taken.
    """
    config = tyro.cli(
        Config, description="Compare gradient estimators: their noise, their cost, the training they make.", args=args
    )
    names = chosen_estimators(config.latents, config.estimators)
    least = {"num_repeats": 3, "latent_dim": 0}
    counts = ("comparison_batch_size", "max_decodings", "timing_rounds", "num_steps", "batch_size", "num_seeds")
    least |= dict.fromkeys((*counts, "max_training_decodings", "baseline_steps"), 1)
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise ValueError(f"{command_line.flag(name)} must be at least {smallest}; got {getattr(config, name)}")
        if getattr(config, name) >= 2**31:
            raise ValueError(f"{command_line.flag(name)} must be below 2^31; got {getattr(config, name)}")
    if not all(number >= 1 for number in config.num_samples):
        raise ValueError(f"--num-samples must be at least 1; got {' '.join(map(str, config.num_samples))}")
    if not all(1 <= number < 2**31 for number in (*config.num_samples, *config.hidden_sizes)):
        given = f"{' '.join(map(str, config.num_samples))} and {' '.join(map(str, config.hidden_sizes))}"
        raise ValueError(f"--num-samples and --hidden-sizes must be from 1 to 2^31 - 1; got {given}")
    for name in ("num_steps", "seed"):
        if not 0 <= getattr(config, name) < 2**31:
            raise ValueError(f"{command_line.flag(name)} must be from 0 to 2^31 - 1; got {getattr(config, name)}")
    if not 0 < config.learning_rate < math.inf:
        raise ValueError(f"--learning-rate must be a positive number; got {config.learning_rate}")
    if config.name is not None and (pathlib.Path(config.runs_dir) / config.name).exists():
        raise ValueError(f"the run {pathlib.Path(config.runs_dir) / config.name} exists: choose another --name")
    if config.latents == "mixed" and config.latent_dim == 1:
        raise ValueError("--latents mixed needs a --latent-dim of at least 2, a bit and a real number; got 1")
    small = config.dataset == "digits"
    fewest = 1 if config.latents == "gaussian" else 2
    numbers = config.num_samples or ((1, 4, 16, 64) if fewest == 1 else (2, 4, 16))
    config = dataclasses.replace(
        config,
        latent_dim=config.latent_dim or (5 if small else 20),
        hidden_sizes=config.hidden_sizes or ((50,) if small else (500,)),
        estimators=names,
        num_samples=tuple(sorted({fewest, *numbers})),
    )
    widest = max(config.hidden_sizes) * config.latent_dim
    if widest > 2**30:
        raise ValueError(
            "--latent-dim times the widest of --hidden-sizes must be at most 1,073,741,824 weights (4 GB); got "
            f"{widest:,}"
        )
    return config


def chosen_estimators(latents: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Those named, or all, and what they are compared with: the unit of all ratios, and an unbiased one of each bound.

    Raises:
        ValueError: if a name is unknown, or its estimator serves other latents.
    """
    known = ESTIMATORS[latents]
    for name in given:
        serves = [kind for kind, names in ESTIMATORS.items() if name in names]
        if serves and latents not in serves:
            raise ValueError(
                f"--estimators {name} serves --latents {' or '.join(serves)}; got --latents {latents}, which has "
                f"{', '.join(known)}"
            )
    names = (known[0], *(given or known))
    if latents == "gaussian" and {"doubly_reparameterized", "vimco"} & set(names):
        names = (*names, "iwae_pathwise")
    if "ovis" in names:
        names = (*names, "vimco")
    return command_line.chosen("estimators", names, known)
