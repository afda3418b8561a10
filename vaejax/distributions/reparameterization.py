"""Which distributions can be reparameterized, by which route, and whose support moves with its parameters.

Kingma & Welling (2014, section 2.4) name three routes from noise to a sample: 10 families by their inverse CDF, 7 by
location and scale, 6 by composition. Logistic stands on two lists, which leaves 22 families, all in `FAMILIES`; the
elliptical one has two entries there, normal and Student's t.

No route gives the gradient in a gamma's shape: the lectures' sum of exponentials needs it to be an integer. There
`jax.random` draws by rejection and differentiates the CDF, dz = -(dF / dshape) / q(z) dshape, which is an *implicit*
reparameterization (Figurnov et al. 2018). Every family that is composed of gammas inherits it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike

from vaejax import checks
from vaejax.distributions.edges import Beta, Dirichlet, Gamma, Weibull
from vaejax.distributions.families import Erlang, F, Rayleigh, Triangular


def check_fixed_support(q: dist.Distribution) -> None:
    """Refuse a q whose support moves with its parameters: the score function is biased there.

    The score function takes a derivative inside an integral. Where a bound of the integral moves with the parameter,
    and the density does not vanish there, Leibniz' rule has one more term, and no sample inside the support shows it:

        d/db int_a^b f(z) q(z; b) dz = E_q[f(z) d/db log q(z; b)] + f(b) q(b; b)

    A bound counts as a parameter where it is a JAX array, traced or not, for nobody can tell what it was computed from;
    a Python or NumPy number is fixed, and so is an integer, which has no gradient. `Uniform`, `LogUniform` and `Delta`
    are refused whatever their bounds are, since they have no other parameters. `Triangular` and `Levy`, whose densities
    vanish at their bounds, are let through, and so is a user's family that declares no support.

    Args:
        q: the distribution that is sampled.

    Raises:
        ValueError: if the support moves, or may move; it names q and an estimator that can serve it.

    >>> check_fixed_support(dist.TruncatedNormal(jnp.zeros(3), 1.0, low=0.0))
    """
    checks.check_distribution(q)
    if _may_move(q):
        while isinstance(q, _WRAPPERS):
            q = q.base_dist
        constants = "; or, where the bounds are constants and others are learned, pass them as Python or NumPy numbers"
        raise ValueError(
            "the score function needs a support that does not move with the parameters; the bounds of "
            f"q = {type(q).__name__} may, and the gradient that comes from them would be missing. Use "
            f"estimators.pathwise(){'' if isinstance(q, _ONLY_BOUNDS) else constants}"
        )


_WRAPPERS = dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution

_ONLY_BOUNDS = dist.Uniform | dist.LogUniform | dist.Delta


def _may_move(q: Any) -> bool:
    if isinstance(q, _WRAPPERS):
        return _may_move(q.base_dist)
    if isinstance(q, dist.MixtureGeneral):
        return any(_may_move(component) for component in q.component_distributions)
    if isinstance(q, Triangular | dist.Levy):
        return False
    if isinstance(q, _ONLY_BOUNDS):
        return True
    if type(q).support is dist.TransformedDistribution.support:
        # This support is what the last transform makes of its own domain, the whole line unless its author said
        # otherwise: a Beta under an affine transform would pass for unbounded.
        return _may_move(q.base_dist) or (bool(_bounds(q.base_dist.support)) and _has_parameters(q.transforms))
    return _has_parameters(_bounds(q.support))


def _bounds(support: Any) -> list[ArrayLike]:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return [getattr(support, name) for name in ("lower_bound", "upper_bound") if hasattr(support, name)]


def _has_parameters(tree: Any) -> bool:
    return any(isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(tree))


class Family(NamedTuple):
    """What is known about a family as a posterior.

    Attributes:
        route: "inverse CDF", "location-scale" or "composition"; with a comma where it stands on two lists.
        constructor: takes the parameters by name and returns the distribution.
        params: an example of them.
        implicit: the parameters whose gradient is an implicit reparameterization; the others' is explicit.
        moving: the parameters that move the support.
        note: what a user should know besides.

    >>> FAMILIES["Gaussian"].make({"loc": jnp.zeros(3), "scale": 1.0}).batch_shape
    (3,)
    """

    route: str
    constructor: Callable[..., dist.Distribution]
    params: dict[str, Any]
    implicit: tuple[str, ...] = ()
    moving: tuple[str, ...] = ()
    note: str = ""

    def make(self, params: dict[str, Any]) -> dist.Distribution:
        """The distribution with these parameters; it is the `make_distribution` of an expectation."""
        return self.constructor(**params)


def _elliptical_normal(loc: ArrayLike, scale_tril: ArrayLike) -> dist.Distribution:
    # numpyro's sampler reads the whole matrix and its density the lower triangle: gradients agree for a triangle only.
    return dist.MultivariateNormal(loc, scale_tril=jnp.tril(scale_tril))


def _elliptical_student_t(df: ArrayLike, loc: ArrayLike, scale_tril: ArrayLike) -> dist.Distribution:
    return dist.MultivariateStudentT(df, loc, jnp.tril(scale_tril))


_HEAVY = "no {}: the integrand must grow slowly, or be bounded"

_LOGARITHMS = "below a shape of 0.08 z underflows to 0: the score function, which knows its logarithm, is right there"

_ROUNDED = (
    "below a concentration of {} float32 rounds more than one sample in 1000 onto the edge: the score function and a "
    "KL in closed form are right there, log q(z) at the samples (a sampled KL, importance weights) is NaN"
)

_ELLIPSE = {"loc": np.array([0.3, -0.5]), "scale_tril": np.array([[0.8, 0.0], [0.6, 1.1]])}

FAMILIES: dict[str, Family] = {
    "Exponential": Family("inverse CDF", dist.Exponential, {"rate": 1.5}),
    "Cauchy": Family("inverse CDF", dist.Cauchy, {"loc": 0.3, "scale": 0.8}, note=_HEAVY.format("mean")),
    "Logistic": Family("inverse CDF, location-scale", dist.Logistic, {"loc": 0.3, "scale": 0.8}),
    "Rayleigh": Family("inverse CDF", Rayleigh, {"scale": 1.3}),
    "Pareto": Family("inverse CDF", dist.Pareto, {"scale": 0.7, "alpha": 2.5}, moving=("scale",)),
    "Weibull": Family("inverse CDF", Weibull, {"scale": 1.2, "concentration": 1.7}),
    "Reciprocal": Family("inverse CDF", dist.LogUniform, {"low": 0.4, "high": 3.0}, moving=("low", "high")),
    "Gompertz": Family("inverse CDF", dist.Gompertz, {"concentration": 0.7, "rate": 1.2}),
    "Gumbel": Family("inverse CDF", dist.Gumbel, {"loc": 0.3, "scale": 0.8}),
    "Erlang": Family(
        "inverse CDF", functools.partial(Erlang, 3), {"rate": 2.0}, note="the shape is an integer, without a gradient"
    ),
    "Laplace": Family("location-scale", dist.Laplace, {"loc": 0.3, "scale": 0.8}),
    "Elliptical, normal": Family("location-scale", _elliptical_normal, _ELLIPSE),
    "Elliptical, Student's t": Family(
        "location-scale", _elliptical_student_t, {"df": 3.0, **_ELLIPSE}, implicit=("df",)
    ),
    "Student's t": Family(
        "location-scale",
        dist.StudentT,
        {"df": 1.5, "loc": 0.3, "scale": 0.8},
        implicit=("df",),
        note=_HEAVY.format("variance at df <= 2, no mean at df <= 1"),
    ),
    "Uniform": Family("location-scale", dist.Uniform, {"low": -0.6, "high": 1.5}, moving=("low", "high")),
    "Triangular": Family(
        "location-scale",
        Triangular,
        {"low": -0.6, "peak": 0.4, "high": 1.5},
        moving=("low", "high"),
        note="its density vanishes at its bounds: the score function is unbiased there, with infinite variance",
    ),
    "Gaussian": Family("location-scale", dist.Normal, {"loc": 0.3, "scale": 0.8}),
    "Log-Normal": Family("composition", dist.LogNormal, {"loc": -0.2, "scale": 0.7}),
    "Gamma": Family(
        "composition", Gamma, {"concentration": 2.5, "rate": 2.0}, implicit=("concentration",), note=_LOGARITHMS
    ),
    "Dirichlet": Family(
        "composition",
        Dirichlet,
        {"concentration": np.array([1.5, 2.5, 3.0])},
        implicit=("concentration",),
        note=_ROUNDED.format("0.08"),
    ),
    "Beta": Family(
        "composition",
        Beta,
        {"concentration1": 1.5, "concentration0": 2.5},
        implicit=("concentration1", "concentration0"),
        note=_ROUNDED.format("0.43 (the second) or 0.08 (the first)"),
    ),
    "Chi-squared": Family("composition", dist.Chi2, {"df": 3.0}, implicit=("df",)),
    "F": Family("composition", F, {"df1": 3.0, "df2": 5.0}, implicit=("df1", "df2")),
}
"""The 22 families of the three routes, by name; the elliptical one stands here twice."""
