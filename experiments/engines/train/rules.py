"""Which options of `train.py` go together: each rule is a row, and the rows of one kind are refused in one wording."""

import itertools
import math
from typing import Any

from engines.harness.command_line import flag, spelt

TEMPERED = ("rebar", "relax", "gumbel_softmax")
NETWORKS = ("mlp", "conv", "hierarchical")

# An option, and the option that has to be given with it, with its values.
BELONGS = (
    ("baseline", "estimator", ("score_function",)),
    ("temperature", "estimator", TEMPERED),
    ("error", "objective", ("reconstruction",)),
    ("corruption", "objective", ("reconstruction",)),
    ("num_categories", "posterior", ("categorical",)),
    ("likelihood_std", "likelihood", ("gaussian_fixed_std",)),
    ("precision", "model", NETWORKS),
    ("prior", "model", NETWORKS),
    ("prior_components", "prior", ("mixture", "vamp")),
    ("prior_layers", "prior", ("flow",)),
    ("upper_latent_dims", "model", ("hierarchical", "conv")),
    ("upper_hidden_sizes", "model", ("hierarchical", "conv")),
    ("weight_decay", "optimizer", ("adam",)),
    ("alpha", "objective", ("renyi",)),
    ("free_bits", "objective", ("free_bits",)),
    ("mmd_weight", "objective", ("info_vae",)),
    ("max_encoder_steps", "inference", ("aggressive",)),
    ("hidden_sizes", "model", NETWORKS),
    ("activation", "model", NETWORKS),
    ("condition_on", "model", NETWORKS),
    ("missing", "model", NETWORKS),
)

SAMPLES = ("num_samples", "chunk_size")
WEIGHTS = ("beta", "kl_warmup_steps", "kl_cycle_steps")
GRADIENT = ("estimator", "baseline", "temperature", "kl")
RATES = ("learning_rate", "learning_rate_schedule", "learning_rate_warmup_steps", "optimizer", "weight_decay")
UPDATES = ("max_gradient_norm", "accumulate_steps")

SAMPLED = ("elbo", "iwae", "renyi")  # objectives that may sample the KL
BOUNDS = ("elbo", "iwae", "renyi", "free_bits", "info_vae")
CONTINUOUS = ("gaussian", "full_covariance", "flow")  # posteriors of real numbers
DENSITIES = ("gaussian", "full_covariance", "flow", "bernoulli", "categorical")  # posteriors that have one


# What each binarization makes of grey pixels, and the likelihoods that take it.
LEVELS = ("categorical_pixels", "discretized_logistic_mixture")
LEVELS += ("poisson", "negative_binomial", "zero_inflated_negative_binomial")

# Numbers that memory can hold, 4 GB of them, and samples of z behind one log p(x).
LARGEST, MOST_SAMPLES = 2**30, 10**7

# Of what, in words; when; and the options that it does not look at.
NO_EFFECT = (
    (
        "--objective reconstruction",
        lambda o: o.objective == "reconstruction",
        (*GRADIENT, *SAMPLES, *WEIGHTS, "validation_samples"),
    ),
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
        ("objective", *GRADIENT, *SAMPLES, *WEIGHTS, *RATES, *UPDATES),
    ),
    ("--distributed (it takes all devices of all processes)", lambda o: o.distributed, ("devices",)),
    ("several runs (they end together)", lambda o: o.num_runs > 1, ("patience",)),
    ("a single run", lambda o: o.num_runs == 1, ("group_size",)),
    ("several runs (each draws its parameters)", lambda o: o.num_runs > 1, ("start_from",)),
)

# What, in words; when; and the option that it needs, with its values.
NEEDS = (
    ("--posterior point", lambda o: o.posterior == "point", "objective", ("reconstruction",)),
    ("--objective reconstruction", lambda o: o.objective == "reconstruction", "posterior", ("point",)),
    ("--objective reconstruction", lambda o: o.objective == "reconstruction", "inference", ("amortized",)),
    ("--objective optimal_std", lambda o: o.objective == "optimal_std", "likelihood", ("gaussian_shared_std",)),
    ("--model linear", lambda o: o.model == "linear", "posterior", ("gaussian", "point")),
    ("a z of several layers", lambda o: bool(o.upper_latent_dims), "posterior", ("gaussian", "bernoulli")),
    ("--prior {prior}", lambda o: o.prior in ("mixture", "flow"), "posterior", CONTINUOUS),
    ("--prior vamp", lambda o: o.prior == "vamp", "posterior", (*CONTINUOUS, "bernoulli")),
    ("--posterior full_covariance", lambda o: o.posterior == "full_covariance", "objective", (*SAMPLED, "info_vae")),
    ("--prior vamp", lambda o: o.prior == "vamp", "condition_on", ("nothing",)),
    ("--prior {prior}", lambda o: o.has_sampled_kl and o.prior != "standard", "objective", SAMPLED),
    ("--model {model} with --posterior {posterior}", lambda o: o.has_sampled_kl, "objective", SAMPLED),
    (
        "the ELBO of --model {model} with --prior {prior} and --posterior {posterior}",
        lambda o: o.has_sampled_kl and o.objective == "elbo",
        "kl",
        ("sampled",),
    ),
    ("--likelihood {likelihood}", lambda o: o.likelihood in LEVELS, "binarization", ("levels",)),
    ("--likelihood beta", lambda o: o.likelihood == "beta", "binarization", ("dequantized",)),
    ("--binarization levels", lambda o: o.binarization == "levels", "likelihood", LEVELS),
    ("--likelihood {likelihood}", lambda o: o.likelihood in LEVELS, "objective", BOUNDS),
    ("--averages {averages}", lambda o: o.averages > 0, "inference", ("amortized",)),
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
    ("--stream", lambda o: o.stream, "condition_on", ("nothing",)),
    ("--condition-on label", lambda o: o.condition_on == "label", "inference", ("amortized",)),
    (
        "--condition-on label",
        lambda o: o.condition_on == "label",
        "posterior",
        DENSITIES,
    ),
    ("--missing {missing}", lambda o: o.missing > 0, "inference", ("amortized",)),
    ("--missing {missing}", lambda o: o.missing > 0, "posterior", DENSITIES),
    (
        "--missing {missing}",
        lambda o: o.missing > 0,
        "objective",
        BOUNDS,
    ),
    ("a program of several runs", lambda o: o.num_runs > 1, "inference", ("amortized",)),
)

# Options, the numbers that they may be, and the same in words. Of several numbers each is looked at.
NUMBERS = (
    (
        (
            *("batch_size", "num_steps", "eval_samples", "latent_dim", "num_samples", "max_encoder_steps", "devices"),
            *("prior_components", "prior_layers", "accumulate_steps", "validation_samples"),
        ),
        lambda number: number >= 1,
        "at least 1",
    ),
    (
        (
            *("patience", "tolerance", "kl_warmup_steps", "kl_cycle_steps", "checkpoint_seconds", "seed", "group_size"),
            *("chunk_size", "learning_rate_warmup_steps", "free_bits", "mmd_weight", "max_gradient_norm"),
            *("weight_decay",),
        ),
        lambda number: 0 <= number < math.inf,
        "at least 0",
    ),
    (("hidden_sizes", "upper_latent_dims", "upper_hidden_sizes"), lambda number: number >= 1, "positive integers"),
    (("averages",), lambda number: 0 <= number < 1, "at least 0 and below 1"),
    (
        (
            *("num_steps", "kl_warmup_steps", "kl_cycle_steps", "learning_rate_warmup_steps", "seed", "patience"),
            *("latent_dim", "hidden_sizes", "num_samples", "chunk_size", "num_categories", "batch_size"),
            *("max_encoder_steps", "devices", "group_size", "prior_components", "prior_layers", "accumulate_steps"),
            *("upper_latent_dims", "upper_hidden_sizes", "validation_samples"),
        ),
        lambda number: number < 2**31,
        "below 2^31",
    ),
    (("eval_samples",), lambda number: number <= MOST_SAMPLES, f"at most {MOST_SAMPLES:,}"),
    (("num_categories",), lambda number: number >= 2, "at least 2"),
    (("missing",), lambda number: 0 <= number < 1, "at least 0 and below 1"),
    (
        (
            *("beta", "learning_rate", "likelihood_std", "free_bits", "alpha", "mmd_weight", "corruption_level"),
            *("tolerance", "max_gradient_norm", "weight_decay", "averages"),
        ),
        lambda number: not math.isfinite(number) or in_single_precision(number),
        "0, or from 1.2e-38 to 3.4e38 in size, as numbers in single precision are",
    ),
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
    (
        "accumulate_steps",
        lambda o: o.accumulate_steps > o.num_steps,
        "at most --num-steps, {num_steps}",
    ),
    (
        "prior_layers",
        lambda o: o.prior == "flow" and (o.upper_latent_dims or (o.latent_dim,))[-1] < 2,
        "left out, and --prior another, for a z of one number: a flow moves one half of z by the other",
    ),
    ("beta", lambda o: not each_once(o.beta), "one or more numbers, each once"),
    ("learning_rate", lambda o: not each_once(o.learning_rate), "one or more numbers, each once"),
    ("stream", lambda o: o.stream and o.missing > 0, "left out beside --missing, whose images are in memory"),
    (
        "stream",
        lambda o: o.stream and o.prior == "vamp",
        "left out beside --prior vamp, whose images are in memory",
    ),
    ("stream", lambda o: o.stream and o.num_runs > 1, "left out of several runs, whose images are in memory"),
    (
        "chunk_size",
        lambda o: o.chunk_size and o.chunk_size >= o.num_samples,
        "below --num-samples, {num_samples}, to have an effect",
    ),
    (
        "latent_dim",
        lambda o: num_weights(o) > LARGEST,
        f"smaller, or --hidden-sizes: these layers have more than {LARGEST:,} weights (4 GB)",
    ),
    (
        "num_samples",
        lambda o: num_activations(o) > LARGEST,
        f"smaller, or --batch-size, or --chunk-size given: a layer of a step has more than {LARGEST:,} numbers (4 GB)",
    ),
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


def num_weights(options: Any) -> int:
    """Weights between the layers that the options name; those of the data come on top."""
    sizes = (*options.hidden_sizes, num_latents(options))
    return sum(before * after for before, after in itertools.pairwise(sizes))


def num_activations(options: Any) -> int:
    """Numbers in the widest layer of a decoder, of all samples that a step evaluates at once."""
    samples = min(options.num_samples, options.chunk_size or options.num_samples)
    dense = options.hidden_sizes if options.model == "mlp" else options.hidden_sizes[-1:]
    return samples * options.batch_size * max(num_latents(options), *dense, 1)


def num_latents(options: Any) -> int:
    """Numbers that the encoder says of one sample of z."""
    return options.latent_dim * (options.num_categories if options.posterior == "categorical" else 1)


def in_single_precision(number: float) -> bool:
    """Whether a number is neither infinite nor rounded to 0, or nearly so, in single precision."""
    return number == 0 or 2.0**-126 <= abs(number) < 2.0**128


def either(values: tuple[str, ...]) -> str:
    """Some words as a choice: a, b or c."""
    *most, last = values
    return f"{', '.join(most)} or {last}" if most else last


def each_once(numbers: tuple[float, ...]) -> bool:
    """Whether there are numbers, none of them twice."""
    return 0 < len(numbers) == len(set(numbers))
