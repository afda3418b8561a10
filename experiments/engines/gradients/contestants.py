"""Who is compared: for each kind of latents, its estimators, and the one that all ratios refer to."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from engines.gradients.config import WITH_PATHWISE
from engines.gradients.training import Gradient
from vaejax import distributions, estimators, models, objectives

Setting = tuple[str, int]  # name of an estimator, and K

TEMPERATURE = 0.5  # of the estimators that soften a sample


class Contestant(NamedTuple):
    """An estimator of the gradient of a bound.

    Attributes:
        label: for a reader.
        bound: "elbo" or "iwae".
        estimator: of its gradient.
        make_objective: `(vae, estimator, K) -> objective`.
        decodings: latents decoded for one example and sample, at most; `laboratory.cost` counts them in the program.
    """

    label: str
    bound: str
    estimator: estimators.Estimator
    make_objective: Callable[..., objectives.Objective]
    decodings: int = 1

    def gradient(self, vae: models.VAE, num_samples: int) -> Gradient:
        """With K samples."""
        return Gradient(self.estimator, self.make_objective(vae, self.estimator, num_samples))


class Field(NamedTuple):
    """What is compared with what.

    Attributes:
        posterior: of the model.
        contestants: by name.
        unit: whose noise and seconds are 1 in all ratios.
        unit_words: the same for a reader.
        references: of each bound, the names of unbiased estimators; with the mean of the first that serves, that of the
            others is compared.
        trained: which train a model.
    """

    posterior: str | distributions.Head
    contestants: dict[str, Contestant]
    unit: Setting
    unit_words: str
    references: dict[str, tuple[str, ...]]
    trained: tuple[Setting, ...]


def field_of(latents: str, latent_dim: int) -> Field:
    """The field of so many Gaussian, Bernoulli, categorical or mixed latents."""
    if latents == "gaussian":
        return of_gaussians(latent_dim)
    return of_parts(latent_dim) if latents == "mixed" else of_categories(latents)


def of_reinforce() -> dict[str, Contestant]:
    """REINFORCE with each baseline."""
    labels = {
        None: "REINFORCE",
        "moving_average": "REINFORCE, moving average",
        "nvil": "REINFORCE, NVIL",
        "leave_one_out": "REINFORCE, leave-one-out",
    }
    return {
        baseline or "score_function": Contestant(
            label, "elbo", estimators.score_function(baseline), objectives.make_elbo
        )
        for baseline, label in labels.items()
    }


def of_gaussians(latent_dim: int) -> Field:
    """Reparameterization, and what does without it."""
    elbo, iwae = objectives.make_elbo, objectives.make_iwae
    sampled = functools.partial(elbo, kl="sampled")
    contestants = {
        "pathwise": Contestant("pathwise", "elbo", estimators.pathwise(), elbo),
        **of_reinforce(),
        "measure_valued": Contestant("measure-valued", "elbo", estimators.measure_valued(), elbo, 1 + 4 * latent_dim),
        "pathwise_sampled_kl": Contestant("pathwise, sampled KL", "elbo", estimators.pathwise(), sampled),
        "sticking_the_landing": Contestant("sticking the landing", "elbo", estimators.sticking_the_landing(), sampled),
        "iwae_pathwise": Contestant("pathwise", "iwae", estimators.pathwise(), iwae),
        "doubly_reparameterized": Contestant(
            "doubly reparameterized", "iwae", estimators.doubly_reparameterized(), iwae
        ),
        "vimco": Contestant("VIMCO", "iwae", estimators.vimco(), iwae),
    }
    trained = (
        *(("pathwise", 1), ("score_function", 1), ("score_function", 4), ("moving_average", 1), ("nvil", 1)),
        *(("leave_one_out", 4), ("measure_valued", 1)),
    )
    references = {"elbo": ("pathwise",), "iwae": ("iwae_pathwise",)}
    return Field("gaussian", contestants, ("pathwise", 1), "one reparameterized sample", references, trained)


def of_categories(latents: str) -> Field:
    """REINFORCE and its descendants; the last three are biased."""
    elbo = objectives.make_elbo
    reinforce = of_reinforce()
    contestants = {
        "leave_one_out": reinforce.pop("leave_one_out"),  # the unit comes first
        **reinforce,
        "rebar": Contestant("REBAR", "elbo", estimators.rebar(), elbo, 2),
        "relax": Contestant("RELAX", "elbo", estimators.relax(), elbo, 2),
    }
    if latents == "bernoulli":
        contestants |= {
            "muprop": Contestant("MuProp", "elbo", estimators.muprop(), elbo, 2),
            "disarm": Contestant("DisARM", "elbo", estimators.disarm(), elbo),
            "arms": Contestant("ARMS", "elbo", estimators.arms(), elbo),
            "double_control_variates": Contestant(
                "double control variates", "elbo", estimators.double_control_variates(), elbo
            ),
            "rodeo": Contestant("RODEO", "elbo", estimators.rodeo(), elbo),
        }
    contestants |= {
        **of_weights(),
        "gumbel_softmax": Contestant("Gumbel-softmax, biased", "elbo", estimators.gumbel_softmax(TEMPERATURE), elbo, 2),
        "straight_through": Contestant("straight-through, biased", "elbo", estimators.straight_through(), elbo, 2),
        "reinmax": Contestant("ReinMax, biased", "elbo", estimators.reinmax(), elbo, 2),
    }
    words = "two samples with leave-one-out"
    references = {"elbo": ("leave_one_out",), "iwae": ("vimco",)}
    return Field(latents, contestants, ("leave_one_out", 2), words, references, of_pairs(contestants))


def of_weights() -> dict[str, Contestant]:
    """REINFORCE for the importance-weighted bound."""
    return {
        "vimco": Contestant("VIMCO", "iwae", estimators.vimco(), objectives.make_iwae),
        "ovis": Contestant("OVIS", "iwae", estimators.ovis(), objectives.make_iwae),
    }


def of_pairs(contestants: dict[str, Contestant]) -> tuple[Setting, ...]:
    """All that serve the ELBO, with two samples."""
    return tuple((name, 2) for name, contestant in contestants.items() if contestant.bound == "elbo")


def of_parts(latent_dim: int) -> Field:
    """Bits beside real numbers: REINFORCE on all, and the estimators of bits with reparameterized numbers.

    ARMS is not among them, for each part draws as few samples as its estimator allows, and ARMS of two is DisARM.
    """
    num_bits = (latent_dim + 1) // 2
    posterior = distributions.side_by_side(
        bits=(num_bits, distributions.bernoulli()), numbers=(latent_dim - num_bits, distributions.gaussian())
    )
    num_states = 2 ** min(num_bits, 62)  # which is above every --max-decodings
    enumeration = Contestant(
        "enumeration", "elbo", estimators.enumerate_support(), objectives.make_elbo, decodings=num_states
    )
    of_bits = {"enumerate_support": enumeration, **of_categories("bernoulli").contestants}
    reinforce = of_reinforce()
    contestants = {
        "leave_one_out": reinforce.pop("leave_one_out"),
        **reinforce,
        **{both: with_pathwise(of_bits[name]) for name, both in WITH_PATHWISE.items()},
        **of_weights(),
    }
    references = {"elbo": (WITH_PATHWISE["enumerate_support"], "leave_one_out"), "iwae": ("vimco",)}
    words = "two samples with leave-one-out of all latents"
    return Field(posterior, contestants, ("leave_one_out", 2), words, references, of_pairs(contestants))


def with_pathwise(of_bits: Contestant) -> Contestant:
    """An estimator of bits, with reparameterization for the real numbers beside them."""
    both = estimators.by_part({"bits": of_bits.estimator, "numbers": estimators.pathwise()})
    return of_bits._replace(label=f"{of_bits.label}; pathwise", estimator=both)
