"""The score-function estimators: REINFORCE with its baselines, and VIMCO."""

import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from vaejax import distributions
from vaejax.distributions import reparameterization
from vaejax.estimators.baselines import BASELINES, Baseline
from vaejax.estimators.monte_carlo import over_draws, with_gradient_of
from vaejax.estimators.reductions import bounds_with_replaced
from vaejax.estimators.signature import Estimate, Estimator, Integrand


def score_function(baseline: str | Baseline | None = None) -> Estimator:
    """Score-function gradient, or REINFORCE: the samples are held fixed and their log-probability is reweighted.

        grad E_q[f(z)] = E_q[(f(z) - b) grad log q(z) + grad f(z)]

    Serves discrete and continuous q, needs no derivative of f in z, and pays with variance. A bound of K samples that
    does not split into a sum over them, such as the importance-weighted one, is credited whole to each sample. It
    assumes that gradient and integral can be interchanged, and so that the support of q does not move.

    Args:
        baseline: b, which must not depend on the sample: None; "leave_one_out", the bound of the other K - 1 samples,
            which needs K >= 2 (Mnih & Rezende 2016; Kool et al. 2019); "moving_average" or "nvil" or a
            `baselines.Baseline`, trained along with parameters in `params["baseline"]` (see `with_baseline`).

    Returns:
        An estimator. It raises a ValueError where the support of q moves with its parameters, and with leave-one-out
        and K = 1. A per-example array that is given to the estimator itself as `baseline` is subtracted from the
        reward, where leave-one-out is not asked for, and gets the gradient of half its squared distance to the bound.

    Raises:
        ValueError: if the baseline is unknown.

    Source: Williams 1992, "Simple statistical gradient-following algorithms"; Mohamed et al. 2020, "Monte Carlo
    gradient estimation in machine learning", section 4.
    """
    leave_one_out = baseline == "leave_one_out"
    if isinstance(baseline, str) and not leave_one_out:
        if baseline not in BASELINES:
            known = ", ".join(map(repr, ("leave_one_out", *BASELINES)))
            raise ValueError(f"baseline must be None, {known} or a baselines.Baseline; got {baseline!r}")
        baseline = BASELINES[baseline]()
    trained = baseline if isinstance(baseline, Baseline) else None

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        if leave_one_out:
            _check_others("a leave-one-out baseline", num_samples, "score_function() or pathwise()")
        log_w, terms, log_q = _scored_samples(key, q, integrand, num_samples, chunk_size)
        bound = reduce.bound(log_w)
        if leave_one_out:
            reward = bound[None] - reduce.leave_one_out(log_w)
        elif baseline is None:
            reward = reduce.credit(log_w)
        else:
            reward = reduce.credit(log_w - baseline[None])
            bound = with_gradient_of(bound, -0.5 * (lax.stop_gradient(bound) - baseline) ** 2)
        return Estimate(with_gradient_of(bound, (lax.stop_gradient(reward) * log_q).sum(axis=0)), terms)

    return Estimator(estimate, trained)


def vimco() -> Estimator:
    """Score function of a bound of K samples, each with the others as its baseline: in its place, their mean.

        grad bound(l_1, ..., l_K) = E_q[sum_k (bound(l) - bound(l with l_k = mean of the others)) grad log q(z_k)
                                        + grad bound(l(z))]

    The mean of the log-weights is the paper's geometric mean of the weights. `score_function(baseline="leave_one_out")`
    leaves the k-th out instead, which is the paper's arithmetic mean. For the ELBO the two are the same.

    Returns:
        An estimator. Called with K = 1 it raises a ValueError.

    Source: Mnih & Rezende 2016, "Variational inference for Monte Carlo objectives", section 2.5.
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_others("vimco()", num_samples, "score_function()")
        log_w, terms, log_q = _scored_samples(key, q, integrand, num_samples, chunk_size)
        others = (log_w.sum(axis=0, keepdims=True) - log_w) / (num_samples - 1)
        reward = reduce.bound(log_w)[None] - bounds_with_replaced(reduce, log_w, others)
        surrogate = (lax.stop_gradient(reward) * log_q).sum(axis=0)
        return Estimate(with_gradient_of(reduce.bound(log_w), surrogate), terms)

    return Estimator(estimate)


def _scored_samples(
    key: Array, q: dist.Distribution, integrand: Integrand, num_samples: int, chunk_size: int | None
) -> tuple[Array, object, Array]:
    """The log-weights (K, *batch), the terms and log q of K samples that are held fixed."""
    reparameterization.check_fixed_support(q)

    def draw(key):
        return lax.stop_gradient(distributions.sample(q, key))

    def sample_term(z):
        return *integrand(z, q), distributions.log_prob(q, z)

    return over_draws(draw, sample_term, integrand, key, num_samples, chunk_size)


def _check_others(name: str, num_samples: int, instead: str) -> None:
    if num_samples < 2:
        raise ValueError(
            f"{name} needs num_samples >= 2, for there is no other sample; got {num_samples}. Raise num_samples, or "
            f"use {instead}"
        )
