"""How the gradient of an expectation under q is estimated: a strategy, passed as a value.

Every estimator is a function of one signature, `monte_carlo.EstimateFunction`: the value of its bound is the same for
all estimators that draw the same samples, and its `jax.grad` is the estimate. To that end the terms that only exist
for their gradient are added as `value + (s - stop_gradient(s))`: the bracket is an exact zero, so the value keeps every
digit.

In the equations below f is what stands inside the expectation, params are the parameters of q(z) and of f(z), and
"grad f(z)" is the derivative of f in its parameters at fixed z.
"""

import logging

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from vaejax import distributions, reparameterization
from vaejax.baselines import BASELINES, Baseline
from vaejax.chosen_points import enumerate_support, measure_valued
from vaejax.expectations import ControlVariate, delta_method, expectation, per_sample_gradients
from vaejax.monte_carlo import (
    Estimate,
    EstimateFunction,
    Estimator,
    Integrand,
    Reduction,
    as_estimator,
    bounds_with_replaced,
    log_mean_exp_reduction,
    mean_reduction,
    over_draws,
    over_samples,
    with_baseline,
    with_gradient_of,
)

__all__ = [
    "ControlVariate",
    "Estimate",
    "EstimateFunction",
    "Estimator",
    "Integrand",
    "Reduction",
    "as_estimator",
    "delta_method",
    "doubly_reparameterized",
    "enumerate_support",
    "expectation",
    "log_mean_exp_reduction",
    "mean_reduction",
    "measure_valued",
    "over_samples",
    "pathwise",
    "per_sample_gradients",
    "score_function",
    "sticking_the_landing",
    "vimco",
    "with_baseline",
]

_LOG = logging.getLogger(__name__)
_REINFORCE = "estimators.score_function(baseline='leave_one_out') with num_samples >= 2, or enumerate_support()"


def pathwise() -> Estimator:
    """Reparameterized gradient: z = g(eps, params), and the gradient flows through g.

        grad E_q[f(z)] = E_eps[grad f(g(eps, params))]

    Serves every q whose samples are a differentiable function of its parameters (`q.has_rsample`), and needs f
    differentiable in z.

    Returns:
        An estimator. Called with a q that cannot be reparameterized it raises a ValueError that names one that can.

    Source: Kingma & Welling 2014, "Auto-encoding variational Bayes", section 2.4.
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_reparameterized("pathwise()", q, _REINFORCE)
        log_w, terms = over_draws(q.rsample, lambda z: integrand(z, q), integrand, key, num_samples, chunk_size)
        return Estimate(reduce.bound(log_w), terms)

    return Estimator(estimate)


def sticking_the_landing() -> Estimator:
    """Pathwise gradient without the score of q, whose mean is zero: the gradient of log q(z) flows through z alone.

        grad E_q[f(z) - log q(z)] = E_eps[grad (f(z) - log q_detached(z))],  z = g(eps, params)

    At the exact posterior f - log q is the same number for every z, and so the gradient of the encoder is zero for each
    sample. It needs the KL sampled: in closed form nothing is left to drop. For a bound that is not linear in the
    log-weights the dropped term has a mean, so of the importance-weighted bound with K > 1 this is a *biased* estimate
    (Tucker et al. 2019), of which a warning is logged: `doubly_reparameterized` is the unbiased one.

    Returns:
        An estimator. Called with a q that cannot be reparameterized it raises a ValueError that names one that can.

    Source: Roeder, Wu & Duvenaud 2017, "Sticking the landing".
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_reparameterized("sticking_the_landing()", q, _REINFORCE)
        if num_samples > 1 and not reduce.linear:
            _LOG.warning(
                "sticking_the_landing() is biased for the importance-weighted bound of K = %d > 1 samples; "
                "estimators.doubly_reparameterized() is its unbiased form",
                num_samples,
            )
        detached = lax.stop_gradient(q)
        log_w, terms = over_draws(q.rsample, lambda z: integrand(z, detached), integrand, key, num_samples, chunk_size)
        return Estimate(reduce.bound(log_w), terms)

    return Estimator(estimate, detaches_q=True)


def doubly_reparameterized() -> Estimator:
    """Pathwise gradient of a bound of K samples in which the score of q is reparameterized a second time.

        grad bound(l_1, ..., l_K) = E_eps[sum_k (b_k - b_kk) dl_k/dz_k grad z_k + b_k grad l_k(z_k)]

    with b_k and b_kk the first and second derivatives of the bound in l_k, and the gradient of l_k at fixed z without
    that of log q. For the importance-weighted bound b_k - b_kk is the square of the normalized weight, for the ELBO
    1 / K, where this is `sticking_the_landing`. Where the weights have enough moments, the signal-to-noise ratio of the
    encoder's gradient grows with K, while that of `pathwise` falls; under posteriors that are too narrow, as the ELBO
    trains them, it need not.

    Returns:
        An estimator. Called with a q that cannot be reparameterized it raises a ValueError that names one that can.

    Source: Tucker, Lawson, Gu & Maddison 2019, "Doubly reparameterized gradient estimators for Monte Carlo objectives".
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_reparameterized("doubly_reparameterized()", q, "estimators.vimco()")
        detached = lax.stop_gradient(q)

        def sample_term(z):
            # The examples of a batch do not see each other, so that one pull-back gives the derivative of each.
            log_w, pull_back, terms = jax.vjp(lambda z: integrand(z, detached), lax.stop_gradient(z), has_aux=True)
            (slope,) = pull_back(jnp.ones_like(log_w))
            path = (lax.stop_gradient(slope) * z).reshape(*log_w.shape, -1).sum(axis=-1)
            return log_w, terms, path

        log_w, terms, path = over_draws(q.rsample, sample_term, integrand, key, num_samples, chunk_size)
        weights = lax.stop_gradient(reduce.path_weights(log_w))
        return Estimate(with_gradient_of(reduce.bound(log_w), (weights * path).sum(axis=0)), terms)

    return Estimator(estimate, detaches_q=True)


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


def _check_reparameterized(name: str, q: dist.Distribution, instead: str) -> None:
    if not q.has_rsample:
        raise ValueError(
            f"{name} needs samples that are a differentiable function of q's parameters; q = "
            f"{distributions.name_of(q)} has none. Use {instead}"
        )


def _check_others(name: str, num_samples: int, instead: str) -> None:
    if num_samples < 2:
        raise ValueError(
            f"{name} needs num_samples >= 2, for there is no other sample; got {num_samples}. Raise num_samples, or "
            f"use {instead}"
        )
