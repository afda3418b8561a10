"""What the certificates are of: estimators, the latents that they serve, bounds and K."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """An estimator that serves a kind of latents, a bound and a K.

    Attributes:
        name: of the estimator.
        latents: gaussian, bernoulli or categorical.
        bound: elbo or iwae.
        num_samples: K.
        is_biased: whether it says so; such a one must fail.
    """

    name: str
    latents: str
    bound: str
    num_samples: int
    is_biased: bool = False

    @property
    def row(self) -> str:
        """Its name on the command line."""
        return "-".join((self.name.replace("_", "-"), self.latents, self.bound, str(self.num_samples)))


def _cases() -> tuple[Case, ...]:
    cases = []
    for name in ("pathwise", "sticking_the_landing", "doubly_reparameterized", "measure_valued", "score_function"):
        cases += [Case(name, "gaussian", "elbo", number) for number in (1, 3)]
    cases += [Case("leave_one_out", "gaussian", "elbo", number) for number in (2, 3)]
    for latents in ("bernoulli", "categorical"):
        cases.append(Case("enumerate_support", latents, "elbo", 1))
        for name in ("score_function", "moving_average", "nvil", "rebar", "relax"):
            cases += [Case(name, latents, "elbo", number) for number in (1, 3)]
        for name in ("leave_one_out", "arms"):
            cases += [Case(name, latents, "elbo", number) for number in (2, 3, 4)]
        cases += [Case("disarm", latents, "elbo", number) for number in (2, 4)]
        for name in ("leave_one_out", "vimco", "ovis", "disarm", "arms"):
            cases.append(Case(name, latents, "iwae", 2))
        cases += [Case(name, latents, "iwae", 3) for name in ("vimco", "ovis", "arms", "rebar")]
        cases += [
            Case(name, latents, "elbo", 2, is_biased=True) for name in ("gumbel_softmax", "straight_through", "reinmax")
        ]
    for name in ("muprop", "double_control_variates", "rodeo"):
        cases += [Case(name, "bernoulli", "elbo", number) for number in (2, 3, 4)]
    cases += [Case("muprop", "bernoulli", "iwae", 2)]
    return tuple(cases)


CASES = _cases()
