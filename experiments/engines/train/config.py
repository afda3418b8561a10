"""Train a variational autoencoder, evaluate it and draw what it has learned: `python experiments/train.py --help`."""

import argparse
import dataclasses
import math
from typing import Literal

import tyro

from engines.harness import command_line


@dataclasses.dataclass(frozen=True)
class Config(command_line.BinarizedDataOptions):
    """Options of a run. Every one of them is written to config.json."""

    dataset: str = "digits"
    """digits, two_gaussians, spiral, linear_gaussian (embedded), or any TFDS image set such as mnist."""
    model: Literal["mlp", "conv", "linear"] = "mlp"
    """Networks of encoder and decoder."""
    latent_dim: int = 2
    """Numbers in one code."""
    hidden_sizes: tuple[int, ...] = ()
    """Hidden units (mlp, by default 200 200), or channels and then dense units (conv, by default 32 64 256)."""
    activation: Literal["tanh", "relu", "gelu", "elu", "softplus", "sigmoid"] = "tanh"
    """After each hidden layer."""
    likelihood: Literal["bernoulli", "gaussian", "gaussian_shared_std", "gaussian_fixed_std"] = "bernoulli"
    """p(x|z): Bernoulli, or Gaussian with a learned std per pixel, one learned std, or --likelihood-std. Of an
    autoencoder only its mean counts: bernoulli keeps it within 0 and 1 by a sigmoid, the others do not."""
    likelihood_std: float = 1.0
    """The std of gaussian_fixed_std."""
    posterior: Literal["gaussian", "bernoulli", "categorical", "point"] = "gaussian"
    """q(z|x), and with it the prior; bernoulli and categorical have no reparameterization, point is no density."""
    num_categories: int = 10
    """Of each number in a categorical code."""
    objective: Literal["elbo", "iwae", "renyi", "free_bits", "info_vae", "optimal_std", "reconstruction"] = "elbo"
    """Evidence lower bound; importance-weighted or Renyi bound (--alpha); with --free-bits, with an MMD term
    (--mmd-weight) or with the best std of a Gaussian likelihood; or an autoencoder's reconstruction."""
    alpha: float = 0.5
    """Of --objective renyi: 0 is the importance-weighted bound, 1 the ELBO."""
    free_bits: float = 0.1
    """Of --objective free_bits: nats of the KL of each latent that cost nothing."""
    mmd_weight: float = 100.0
    """Of --objective info_vae."""
    error: Literal["squared_error", "cross_entropy", "negative_log_likelihood"] = "squared_error"
    """Of --objective reconstruction."""
    corruption: Literal["none", "gaussian", "masking"] = "none"
    """Of the input of --objective reconstruction, which makes it a denoising autoencoder."""
    corruption_level: float = 0.5
    """Std of the gaussian one, probability of the masking one."""
    estimator: Literal[
        "pathwise",
        "sticking_the_landing",
        "doubly_reparameterized",
        "score_function",
        "vimco",
        "measure_valued",
        "enumerate_support",
    ] = "pathwise"
    """Of the gradient: reparameterized (the first three), REINFORCE, or at points of its own choosing."""
    baseline: Literal["none", "leave_one_out", "moving_average", "nvil"] = "none"
    """Of the score function; leave-one-out needs --num-samples 2 or more."""
    inference: Literal["amortized", "aggressive", "em"] = "amortized"
    """How encoder and decoder take turns: together; the encoder to convergence before each step of the decoder, while
    that raises the mutual information; or EM, exact for a linear model with one learned std, else one gradient step of
    the encoder and then one of the decoder."""
    max_encoder_steps: int = 10
    """Of --inference aggressive, for each step of the decoder."""
    kl: Literal["analytic", "sampled", "entropy"] = "analytic"
    """Form of the ELBO. The importance-weighted bound always samples it."""
    num_samples: int = 1
    """K, samples of z for each example in training."""
    chunk_size: int = 0
    """How many of them are evaluated at once, which sets the memory; 0: all."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic; parameters, gradients and densities are in float32 anyway."""
    beta: tuple[float, ...] = (1.0,)
    """Weight of the KL; of several each is trained."""
    kl_warmup_steps: int = 0
    """Steps over which that weight rises from 0, linearly."""
    kl_cycle_steps: int = 0
    """Steps of one cycle of warm-up: the weight rises from 0 over the first half, again and again."""
    batch_size: int = 100
    """Examples in a batch."""
    num_steps: int = 6000
    """Steps at the most."""
    stream: bool = False
    """Read the training images from disk batch by batch, where memory does not hold them."""
    patience: int = 0
    """Stop where the last this many reports have not raised the best validation ELBO by --tolerance; 0: never."""
    tolerance: float = 0.05
    """For --patience, in nats per example."""
    learning_rate: tuple[float, ...] = (2e-3,)
    """At the start; of several each is trained."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Constant, or down to 0 at the last step."""
    learning_rate_warmup_steps: int = 0
    """Steps over which it first rises from 0, linearly."""
    optimizer: Literal["adam", "adagrad", "rmsprop", "sgd"] = "adam"
    """From optax, with its defaults."""
    seed: int = 0
    """Of parameters, order and noise."""
    seeds: int = 1
    """Runs of each kind, with this seed and those after it. Several runs, of seeds, weights or rates, are trained in
    one program, and their numbers come with a standard error over seeds."""
    group_size: int = 0
    """Of several runs, how many go side by side; 0: as many as pay on this machine and fit into a gigabyte."""
    devices: int = 1
    """Over how many devices each batch is spread; of several runs, the runs."""
    distributed: bool = False
    """This is one of several processes, each started by the same command, on hosts that JAX finds by itself on Slurm,
    Kubernetes, Open MPI and TPU pods; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    eval_samples: int = 1000
    """K of the test log p(x)."""
    checkpoint_seconds: float = 10.0
    """A checkpoint at the first report after this long; 0: at every report."""
    runs_dir: str = "runs"
    """Where runs are kept."""
    name: str | None = None
    """Folder of this run in runs_dir; by default the dataset's name, with a number if it is taken."""
    resume: bool = False
    """Go on from the last checkpoint of the run of that name (by default the newest of this dataset)."""


HIDDEN_SIZES = {"mlp": (200, 200), "conv": (32, 64, 256), "linear": ()}

# Options that only one objective looks at.
OWNED = {"renyi": ("alpha",), "free_bits": ("free_bits",), "info_vae": ("mmd_weight",), "optimal_std": ()}

# Options of gradients, which exact EM does without.
EXACT_EM_IGNORES = (
    *(
        "objective",
        "estimator",
        "baseline",
        "kl",
        "num_samples",
        "chunk_size",
        "beta",
        "kl_warmup_steps",
        "kl_cycle_steps",
    ),
    *("learning_rate", "learning_rate_schedule", "learning_rate_warmup_steps", "optimizer"),
)

# What an option says about where things are and not about the numbers that come out.
NOT_COMPARED = (
    "group_size",
    "devices",
    "distributed",
    "data_dir",
    "manual_dir",
    "download",
    "eval_samples",
    "checkpoint_seconds",
    "runs_dir",
    "name",
    "resume",
)

PRESETS = {
    "digits": Config(),
    # Test log p(x) above -92.0 nats on the fixed binarization of MNIST; the warm-up keeps more units active.
    "binarized_mnist": Config(
        dataset="binarized_mnist",
        binarization="none",
        latent_dim=50,
        hidden_sizes=(200, 200),
        objective="iwae",
        num_samples=2,
        kl_warmup_steps=5_000,
        num_steps=30_000,
    ),
    # As well as a published run of 49 seconds on a GPU, -96.716, in a quarter of a minute on two cores. Sizes and rates
    # were chosen on validation images.
    "binarized_mnist_quick": Config(
        dataset="binarized_mnist",
        binarization="none",
        latent_dim=40,
        hidden_sizes=(300,),
        activation="gelu",
        learning_rate=(5e-3,),
        learning_rate_schedule="linear",
        learning_rate_warmup_steps=500,
        num_steps=4_000,
    ),
    # Algorithm 1 of Kingma & Welling 2014: M = 100, L = 1, Adagrad, until convergence: until ten reports of 1,000 steps
    # each have raised the best validation ELBO by less than 0.3 nats. Their SGVB estimator A is --kl sampled, their B
    # --kl analytic; the other optimizer that they name is --optimizer sgd --learning-rate 0.01.
    "aevb": Config(
        dataset="mnist",
        latent_dim=20,
        hidden_sizes=(500,),
        batch_size=100,
        num_samples=1,
        optimizer="adagrad",
        learning_rate=(0.03,),
        learning_rate_schedule="constant",
        num_steps=200_000,
        patience=10,
        tolerance=0.3,
    ),
}


def parse(args: list[str]) -> Config:
    """The configuration from the command line: a preset's, changed by whatever option is given."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=sorted(PRESETS), default="digits")
    chosen, rest = first.parse_known_args(args)
    presets = ", ".join(sorted(PRESETS))
    description = f"Train a VAE. First of all, --preset NAME takes the options of a preset ({presets}) for defaults."
    config = tyro.cli(Config, description=description, default=PRESETS[chosen.preset], args=rest)
    if not config.hidden_sizes:
        config = dataclasses.replace(config, hidden_sizes=HIDDEN_SIZES[config.model])
    if config.baseline != "none" and config.estimator != "score_function":
        raise ValueError(f"--baseline {config.baseline} belongs to --estimator score_function; got {config.estimator}")
    if config.estimator in ("sticking_the_landing", "doubly_reparameterized"):
        if config.objective == "elbo" and config.kl != "sampled":
            raise ValueError(f"--estimator {config.estimator} of the ELBO needs --kl sampled; got {config.kl}")
    if config.objective == "reconstruction" and config.posterior == "gaussian":
        config = dataclasses.replace(config, posterior="point")
    if (config.objective == "reconstruction") != (config.posterior == "point"):
        raise ValueError(
            f"--posterior point belongs to --objective reconstruction, and no other does; got --posterior "
            f"{config.posterior} and --objective {config.objective}"
        )
    if config.objective == "reconstruction":
        for name in ("estimator", "baseline", "kl", "num_samples", "beta", "kl_warmup_steps", "kl_cycle_steps"):
            if getattr(config, name) != getattr(Config, name):
                raise ValueError(f"--{name.replace('_', '-')} does not belong to --objective reconstruction")
        if config.corruption == "none" and config.corruption_level != Config.corruption_level:
            raise ValueError("--corruption-level belongs to --corruption gaussian or masking; got none")
    if config.objective != "reconstruction" and (config.corruption != "none" or config.error != "squared_error"):
        raise ValueError(f"--error and --corruption belong to --objective reconstruction; got {config.objective}")
    if config.posterior not in ("gaussian", "point") and config.model == "linear":
        raise ValueError(f"--model linear has a Gaussian posterior; got --posterior {config.posterior}")
    if config.num_categories != 10 and config.posterior != "categorical":
        raise ValueError(f"--num-categories belongs to --posterior categorical; got {config.posterior}")
    if config.likelihood_std != 1.0 and config.likelihood != "gaussian_fixed_std":
        raise ValueError(f"--likelihood-std belongs to --likelihood gaussian_fixed_std; got {config.likelihood}")
    if config.baseline == "leave_one_out" and config.num_samples < 2:
        raise ValueError(f"--baseline leave_one_out needs --num-samples 2 or more; got {config.num_samples}")
    if config.num_categories < 2:
        raise ValueError(f"--num-categories must be at least 2; got {config.num_categories}")
    if config.distributed and config.devices > 1:
        raise ValueError("--devices belongs to a run of one process; --distributed takes all devices of all of them")
    if config.stream and (is_population(config) or config.inference != "amortized"):
        raise ValueError("--stream belongs to a single run with --inference amortized")
    if config.chunk_size and config.objective == "reconstruction":
        raise ValueError("--chunk-size does not belong to --objective reconstruction")
    if config.precision != "float32" and config.model == "linear":
        raise ValueError(f"--precision belongs to --model mlp or conv; got {config.model}")
    for name in (
        "batch_size",
        "num_steps",
        "eval_samples",
        "latent_dim",
        "num_samples",
        "max_encoder_steps",
        "devices",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(config, name)}")
    for owner, options in OWNED.items():
        for name in options:
            if config.objective != owner and getattr(config, name) != getattr(Config, name):
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} belongs to --objective {owner}; got {config.objective}")
    for holds, words, names in (
        (config.objective == "renyi", "--objective renyi", ("beta", "kl_warmup_steps", "kl_cycle_steps", "kl")),
        (config.objective in ("free_bits", "info_vae"), f"--objective {config.objective}", ("kl",)),
        (config.objective == "optimal_std", "--objective optimal_std", ("kl", "estimator", "baseline")),
        (is_exact_em(config), "the exact EM of a linear model", EXACT_EM_IGNORES),
    ):
        for name in names if holds else ():
            if getattr(config, name) != getattr(Config, name):
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} has no effect on {words}: leave it out")
    if config.objective in OWNED and config.estimator == "sticking_the_landing" and config.objective != "renyi":
        raise ValueError(f"--estimator sticking_the_landing needs a sampled KL; {config.objective} has none")
    if config.objective == "optimal_std" and config.likelihood != "gaussian_shared_std":
        raise ValueError(f"--objective optimal_std needs --likelihood gaussian_shared_std; got {config.likelihood}")
    if config.kl_warmup_steps and config.kl_cycle_steps:
        raise ValueError("--kl-warmup-steps and --kl-cycle-steps are two schedules of one weight: give one of them")
    if config.inference != "amortized" and config.objective == "reconstruction":
        raise ValueError(f"--inference {config.inference} is of a VAE; --objective reconstruction has no q to infer")
    if config.max_encoder_steps != Config.max_encoder_steps and config.inference != "aggressive":
        raise ValueError(f"--max-encoder-steps belongs to --inference aggressive; got {config.inference}")
    for name in (
        *("patience", "tolerance", "kl_warmup_steps", "kl_cycle_steps", "checkpoint_seconds", "seed", "group_size"),
        *("chunk_size", "learning_rate_warmup_steps"),
        *("free_bits", "mmd_weight"),
    ):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0; got {getattr(config, name)}")
    for name in ("num_steps", "kl_warmup_steps", "kl_cycle_steps", "learning_rate_warmup_steps", "seed"):
        if getattr(config, name) >= 2**31:
            raise ValueError(f"--{name.replace('_', '-')} must be below 2^31; got {getattr(config, name)}")
    if config.learning_rate_warmup_steps >= config.num_steps:
        raise ValueError(
            f"--learning-rate-warmup-steps must be below --num-steps, {config.num_steps}; got "
            f"{config.learning_rate_warmup_steps}"
        )
    for name, numbers in (("beta", config.beta), ("learning-rate", config.learning_rate)):
        if not numbers or len(set(numbers)) < len(numbers):
            given = " ".join(map(str, numbers)) or "none"
            raise ValueError(f"--{name} must be one or more numbers, each once; got {given}")
    for number in config.beta:
        if not 0 <= number < math.inf:
            raise ValueError(f"--beta must be finite and at least 0; got {number}")
    for number in config.learning_rate:
        if not 0 < number < math.inf:
            raise ValueError(f"--learning-rate must be positive and finite; got {number}")
    if not 1 <= config.seeds <= 10_000:
        raise ValueError(f"--seeds must be from 1 to 10,000; got {config.seeds}")
    if is_population(config):
        if config.patience:
            raise ValueError("--patience belongs to a single run; got several, which end together")
        if config.inference != "amortized":
            raise ValueError(f"several runs in one program need --inference amortized; got {config.inference}")
    elif config.group_size:
        raise ValueError("--group-size belongs to several runs: give --seeds, or several --beta or --learning-rate")
    if config.model == "conv" and len(config.hidden_sizes) < 2:
        given = " ".join(map(str, config.hidden_sizes)) or "none"
        raise ValueError(
            "--model conv needs the channels of each convolution and then the dense units in --hidden-sizes, such as "
            f"32 64 256; got {given}"
        )
    return config


def is_exact_em(config: Config) -> bool:
    """Whether each step is a round of EM in closed form."""
    return config.inference == "em" and config.model == "linear" and config.likelihood == "gaussian_shared_std"


def is_population(config: Config) -> bool:
    """Whether several runs are asked for."""
    return number_of_runs(config) > 1


def number_of_runs(config: Config) -> int:
    """How many runs are asked for."""
    return config.seeds * len(config.beta) * len(config.learning_rate)


def in_words(config: Config) -> str:
    """What is going to be trained."""
    model = "an autoencoder" if config.posterior == "point" else "a VAE"
    several = f", {number_of_runs(config):,} runs in one program" if is_population(config) else ""
    return f"{model} on {config.dataset}{several}"
