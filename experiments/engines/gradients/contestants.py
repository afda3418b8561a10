"""Who is compared: for each kind of latents, its estimators, and the one that all ratios refer to."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from engines.gradients.training import Gradient
from vaejax import estimators, models, objectives

Setting = tuple[str, int]  # name of an estimator, and K

TEMPERATURE = 0.5  # of the estimators that soften a sample


class Contestant(NamedTuple):
    """An estimator of the gradient of a bound."""

    label: str
    bound: str
    estimator: estimators.Estimator
    make_objective: Callable[..., objectives.Objective]

    def gradient(self, vae: models.VAE, num_samples: int) -> Gradient:
        """With K samples."""
        return Gradient(self.estimator, self.make_objective(vae, self.estimator, num_samples))


class Field(NamedTuple):
    """What is compared with what.

    Attributes:
        contestants: by name.
        unit: whose noise and seconds are 1 in all ratios.
        unit_words: the same for a reader.
        references: of each bound, the name of an unbiased estimator, whose mean the others' is compared with.
        trained: which train a model.
    """

    contestants: dict[str, Contestant]
    unit: Setting
    unit_words: str
    references: dict[str, str]
    trained: tuple[Setting, ...]


def field_of(latents: str) -> Field:
    """The field of Gaussian, Bernoulli or categorical latents."""
    return of_gaussians() if latents == "gaussian" else of_categories(latents)


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


def of_gaussians() -> Field:
    """Reparameterization, and what does without it."""
    elbo, iwae = objectives.make_elbo, objectives.make_iwae
    sampled = functools.partial(elbo, kl="sampled")
    contestants = {
        "pathwise": Contestant("pathwise", "elbo", estimators.pathwise(), elbo),
        **of_reinforce(),
        "measure_valued": Contestant("measure-valued", "elbo", estimators.measure_valued(), elbo),
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
    references = {"elbo": "pathwise", "iwae": "iwae_pathwise"}
    return Field(contestants, ("pathwise", 1), "one reparameterized sample", references, trained)


def of_categories(latents: str) -> Field:
    """REINFORCE and its descendants; the last three are biased."""
    elbo, iwae = objectives.make_elbo, objectives.make_iwae
    reinforce = of_reinforce()
    contestants = {
        "leave_one_out": reinforce.pop("leave_one_out"),  # the unit comes first
        **reinforce,
        "rebar": Contestant("REBAR", "elbo", estimators.rebar(), elbo),
        "relax": Contestant("RELAX", "elbo", estimators.relax(), elbo),
    }
    if latents == "bernoulli":
        contestants |= {
            "muprop": Contestant("MuProp", "elbo", estimators.muprop(), elbo),
            "disarm": Contestant("DisARM", "elbo", estimators.disarm(), elbo),
            "arms": Contestant("ARMS", "elbo", estimators.arms(), elbo),
            "double_control_variates": Contestant(
                "double control variates", "elbo", estimators.double_control_variates(), elbo
            ),
            "rodeo": Contestant("RODEO", "elbo", estimators.rodeo(), elbo),
        }
    contestants |= {
        "vimco": Contestant("VIMCO", "iwae", estimators.vimco(), iwae),
        "ovis": Contestant("OVIS", "iwae", estimators.ovis(), iwae),
        "gumbel_softmax": Contestant("Gumbel-softmax, biased", "elbo", estimators.gumbel_softmax(TEMPERATURE), elbo),
        "straight_through": Contestant("straight-through, biased", "elbo", estimators.straight_through(), elbo),
        "reinmax": Contestant("ReinMax, biased", "elbo", estimators.reinmax(), elbo),
    }
    trained = tuple((name, 2) for name, contestant in contestants.items() if contestant.bound == "elbo")
    words = "two samples with leave-one-out"
    return Field(contestants, ("leave_one_out", 2), words, {"elbo": "leave_one_out", "iwae": "vimco"}, trained)
