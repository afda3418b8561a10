"""Which options of `train.py` go together: each rule is a row, and the rows of one kind are refused in one wording."""

import math
from typing import Any

from engines.harness.command_line import flag, spelt

# An option, and the option that has to be given with it, with its values.
BELONGS = (
    ("baseline", "estimator", ("score_function",)),
    ("error", "objective", ("reconstruction",)),
    ("corruption", "objective", ("reconstruction",)),
    ("num_categories", "posterior", ("categorical",)),
    ("likelihood_std", "likelihood", ("gaussian_fixed_std",)),
    ("precision", "model", ("mlp", "conv")),
    ("alpha", "objective", ("renyi",)),
    ("free_bits", "objective", ("free_bits",)),
    ("mmd_weight", "objective", ("info_vae",)),
    ("max_encoder_steps", "inference", ("aggressive",)),
)

SAMPLES = ("num_samples", "chunk_size")
WEIGHTS = ("beta", "kl_warmup_steps", "kl_cycle_steps")
GRADIENT = ("estimator", "baseline", "kl")
RATES = ("learning_rate", "learning_rate_schedule", "learning_rate_warmup_steps", "optimizer")

# Of what, in words; when; and the options that it does not look at.
NO_EFFECT = (
    ("--objective reconstruction", lambda o: o.objective == "reconstruction", (*GRADIENT, *SAMPLES, *WEIGHTS)),
    (
        "--objective reconstruction without --corruption gaussian or masking",
        lambda o: o.objective == "reconstruction" and o.corruption == "none",
        ("corruption_level",),
    ),
    ("--objective renyi", lambda o: o.objective == "renyi", ("kl", *WEIGHTS)),
    ("--objective {objective}", lambda o: o.objective in ("free_bits", "info_vae"), ("kl",)),
    ("--objective optimal_std", lambda o: o.objective == "optimal_std", GRADIENT),
    (
        "the exact EM of a linear model",
        lambda o: o.is_exact_em,
        ("objective", *GRADIENT, *SAMPLES, *WEIGHTS, *RATES),
    ),
    ("--distributed (it takes all devices of all processes)", lambda o: o.distributed, ("devices",)),
    ("several runs (they end together)", lambda o: o.num_runs > 1, ("patience",)),
    ("a single run", lambda o: o.num_runs == 1, ("group_size",)),
)

# What, in words; when; and the option that it needs, with its values.
NEEDS = (
    ("--posterior point", lambda o: o.posterior == "point", "objective", ("reconstruction",)),
    ("--objective reconstruction", lambda o: o.objective == "reconstruction", "posterior", ("point",)),
    ("--objective reconstruction", lambda o: o.objective == "reconstruction", "inference", ("amortized",)),
    ("--objective optimal_std", lambda o: o.objective == "optimal_std", "likelihood", ("gaussian_shared_std",)),
    ("--model linear", lambda o: o.model == "linear", "posterior", ("gaussian", "point")),
    (
        "--estimator {estimator} of the ELBO",
        lambda o: o.objective == "elbo" and o.estimator in ("sticking_the_landing", "doubly_reparameterized"),
        "kl",
        ("sampled",),
    ),
    # The others have a KL in closed form, or of a kind of their own.
    (
        "--estimator sticking_the_landing",
        lambda o: o.estimator == "sticking_the_landing",
        "objective",
        ("elbo", "iwae", "renyi"),
    ),
    ("--stream", lambda o: o.stream, "inference", ("amortized",)),
    ("a program of several runs", lambda o: o.num_runs > 1, "inference", ("amortized",)),
)

# Options, the numbers that they may be, and the same in words. Of several numbers each is looked at.
NUMBERS = (
    (
        ("batch_size", "num_steps", "eval_samples", "latent_dim", "num_samples", "max_encoder_steps", "devices"),
        lambda number: number >= 1,
        "at least 1",
    ),
    (
        (
            *("patience", "tolerance", "kl_warmup_steps", "kl_cycle_steps", "checkpoint_seconds", "seed", "group_size"),
            *("chunk_size", "learning_rate_warmup_steps", "free_bits", "mmd_weight"),
        ),
        lambda number: 0 <= number < math.inf,
        "at least 0",
    ),
    (
        ("num_steps", "kl_warmup_steps", "kl_cycle_steps", "learning_rate_warmup_steps", "seed"),
        lambda number: number < 2**31,
        "below 2^31",
    ),
    (("num_categories",), lambda number: number >= 2, "at least 2"),
    (("seeds",), lambda number: 1 <= number <= 10_000, "from 1 to 10,000"),
    (("beta",), lambda number: 0 <= number < math.inf, "finite and at least 0"),
    (("learning_rate",), lambda number: 0 < number < math.inf, "positive and finite"),
)

# An option, when its value is refused, and what it must be instead; options in braces stand for their values.
OTHERS = (
    (
        "num_samples",
        lambda o: o.baseline == "leave_one_out" and o.num_samples < 2,
        "2 or more for --baseline leave_one_out",
    ),
    (
        "learning_rate_warmup_steps",
        lambda o: o.learning_rate_warmup_steps >= o.num_steps,
        "below --num-steps, {num_steps}",
    ),
    (
        "kl_cycle_steps",
        lambda o: o.kl_warmup_steps and o.kl_cycle_steps,
        "left out beside --kl-warmup-steps, for these are two schedules of one weight",
    ),
    ("beta", lambda o: not each_once(o.beta), "one or more numbers, each once"),
    ("learning_rate", lambda o: not each_once(o.learning_rate), "one or more numbers, each once"),
    ("stream", lambda o: o.stream and o.num_runs > 1, "left out of several runs, whose images are in memory"),
    (
        "hidden_sizes",
        lambda o: o.model == "conv" and len(o.hidden_sizes) < 2,
        "the channels of each convolution and then the dense units for --model conv, such as 32 64 256",
    ),
)


def check(options: Any, defaults: Any) -> None:
    """Refuse options that do not go together.

    Args:
        options: with an attribute for each option, and `num_runs` and `is_exact_em`.
        defaults: the same, where no option is given.

    Raises:
        ValueError: naming the option, what was given, and what it needs.
    """

    def in_words(text: str) -> str:
        return text.format(**vars(options))

    def is_given(name: str) -> bool:
        return getattr(options, name) != getattr(defaults, name)

    for name, owner, values in BELONGS:
        given = getattr(options, owner)
        if is_given(name) and given not in values:
            raise ValueError(f"{flag(name)} belongs to {flag(owner)} {either(values)}; got {given}")
    for names, holds, words in NUMBERS:
        for name in names:
            given = getattr(options, name)
            for number in given if isinstance(given, tuple) else (given,):
                if not holds(number):
                    raise ValueError(f"{flag(name)} must be {words}; got {number}")
    for words, holds, names in NO_EFFECT:
        for name in filter(is_given, names if holds(options) else ()):
            given = spelt(getattr(options, name))
            raise ValueError(f"{flag(name)} has no effect on {in_words(words)}; got {given}: leave it out")
    for words, holds, name, values in NEEDS:
        given = getattr(options, name)
        if holds(options) and given not in values:
            raise ValueError(f"{in_words(words)} needs {flag(name)} {either(values)}; got {given}")
    for name, is_refused, words in OTHERS:
        if is_refused(options):
            given = spelt(getattr(options, name)) or "none"
            raise ValueError(f"{flag(name)} must be {in_words(words)}; got {given}")


def either(values: tuple[str, ...]) -> str:
    """Some words as a choice: a, b or c."""
    *most, last = values
    return f"{', '.join(most)} or {last}" if most else last


def each_once(numbers: tuple[float, ...]) -> bool:
    """Whether there are numbers, none of them twice."""
    return 0 < len(numbers) == len(set(numbers))
