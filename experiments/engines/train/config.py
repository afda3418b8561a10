"""Train a variational autoencoder, evaluate it and draw what it has learned: `python experiments/train.py --help`."""

import argparse
import dataclasses
from typing import Annotated, Any, Literal

import tyro

from engines.harness import command_line
from engines.train import rules
from engines.train.options import Data, Files, Machine, Model, Objective, Training

GROUPS = (Data, Model, Objective, Training, Machine, Files)  # of the options, as --help shows them


@dataclasses.dataclass(frozen=True)
class Config(Files, Machine, Training, Objective, Model, Data):
    """Options of a run. Every one of them is written to config.json."""

    @property
    def num_runs(self) -> int:
        """How many runs are asked for."""
        return self.seeds * len(self.beta) * len(self.learning_rate)

    @property
    def num_latents(self) -> int:
        """Numbers in z, of all its layers."""
        return self.latent_dim + sum(self.upper_latent_dims)

    @property
    def has_sampled_kl(self) -> bool:
        """Whether the KL of q(z|x) and p(z) has no closed form."""
        return self.prior != "standard" or bool(self.upper_latent_dims) or self.posterior == "flow"

    @property
    def is_exact_em(self) -> bool:
        """Whether each step is a round of EM in closed form."""
        return self.inference == "em" and self.model == "linear" and self.likelihood == "gaussian_shared_std"

    @property
    def compared(self) -> dict[str, Any]:
        """The options that decide the numbers, which a checkpoint must share with the run that resumes it."""
        added = {name: getattr(Config, name) for name in ADDED}
        named = command_line.compared(self, NOT_COMPARED)
        spelt = command_line.spelt  # a tuple in config.json is a list
        return {name: value for name, value in named.items() if name not in added or spelt(value) != spelt(added[name])}


# Options that are younger than the first checkpoints, which lack them.
ADDED = (
    "temperature",
    "condition_on",
    "missing",
    "upper_latent_dims",
    "upper_hidden_sizes",
    "prior",
    "prior_components",
)
ADDED += ("prior_layers", "validation_samples", "max_gradient_norm", "weight_decay", "accumulate_steps", "averages")
ADDED += ("start_from",)

HIDDEN_SIZES = {"mlp": (200, 200), "hierarchical": (200, 200), "conv": (32, 64, 256), "linear": ()}

# Options that say where and how a run is computed and not what its numbers are, beside `command_line.NOT_COMPARED`.
NOT_COMPARED = ("group_size", "devices", "distributed", "eval_samples", "checkpoint_seconds", "tensorboard")

LONG: dict[str, Any] = {
    "latent_dim": 40,
    "hidden_sizes": (300, 300),
    "activation": "gated",
    "prior": "flow",
    "objective": "iwae",
    "num_samples": 5,
    "kl_warmup_steps": 5_000,
    "learning_rate": (1.5e-3,),
    "learning_rate_warmup_steps": 1_000,
    "averages": 0.999,
    "eval_samples": 5_000,
}

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
    # The next two take an hour or more on two cores: a learned prior, five samples, averaged parameters; on images that
    # are binarized once weight decay too, for the networks learn them by heart.
    "binarized_mnist_flow_prior": Config(dataset="binarized_mnist", num_steps=90_000, weight_decay=0.02, **LONG),
    "mnist_two_layers": Config(
        dataset="mnist",
        model="hierarchical",
        upper_latent_dims=(40,),
        upper_hidden_sizes=(300, 300),
        num_steps=65_000,
        **LONG,
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


DESCRIPTION = """Train a VAE, evaluate log p(x) of test data and draw what it has learned. To begin with:
  python experiments/train.py                                     half a minute
  python experiments/train.py --latent-dim 10 --seeds 3           a minute, with errors over seeds
  python experiments/train.py --preset binarized_mnist_quick      a minute, once MNIST is there
"""


def parse(args: list[str]) -> Config:
    """The configuration from the command line: a preset's, changed by whatever option is given.

    Raises:
        ValueError: if options do not go together.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=sorted(PRESETS), default="digits")
    chosen, rest = first.parse_known_args([word.replace("full-covariance", "full_covariance") for word in args])
    config = options_given(chosen.preset, rest)
    if not config.hidden_sizes:
        config = dataclasses.replace(config, hidden_sizes=HIDDEN_SIZES[config.model])
    if config.model == "hierarchical" and not config.upper_latent_dims:
        config = dataclasses.replace(config, upper_latent_dims=(max(1, config.latent_dim // 2),))
    if config.upper_latent_dims and not config.upper_hidden_sizes:
        between = config.hidden_sizes[-1:] if config.model == "conv" else config.hidden_sizes
        config = dataclasses.replace(config, upper_hidden_sizes=tuple(max(1, size // 2) for size in between))
    if config.objective == "reconstruction" and config.posterior == "gaussian":
        config = dataclasses.replace(config, posterior="point")
    rules.check(config, Config())
    return config


def options_given(preset: str, args: list[str]) -> Config:
    """A preset's options, but for those that the command line gives. Its help has a group for each of `GROUPS`."""
    defaults = vars(PRESETS[preset])
    words = "The options of a preset, for those that are not given: what they are stands below, as their defaults."
    named = Annotated[Literal[tuple(sorted(PRESETS))], tyro.conf.arg(help=words)]
    fields: list[tuple[str, Any, Any]] = [("preset", named, preset)]
    for group in GROUPS:
        own = {field.name: defaults[field.name] for field in dataclasses.fields(group)}
        fields.append((group.__name__.lower(), group, group(**own)))
    form = dataclasses.make_dataclass("Options", fields, frozen=True)
    given = tyro.cli(form, description=DESCRIPTION, config=(tyro.conf.OmitArgPrefixes,), args=args)
    return Config(**{name: value for field in fields[1:] for name, value in vars(getattr(given, field[0])).items()})


def in_words(config: Config) -> str:
    """What is going to be trained."""
    model = "an autoencoder" if config.posterior == "point" else "a VAE"
    several = f", {config.num_runs:,} runs in one program" if config.num_runs > 1 else ""
    return f"{model} on {config.dataset}{several}"
