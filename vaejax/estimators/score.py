"""The score-function estimators: REINFORCE with its baselines, VIMCO, and OVIS."""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from vaejax import checks, distributions
from vaejax.distributions import reparameterization
from vaejax.estimators.baselines import BASELINES, Baseline
from vaejax.estimators.monte_carlo import over_draws, over_samples_with_noise, with_gradient_of
from vaejax.estimators.reductions import bounds_with_replaced, mean_reduction, rewards
from vaejax.estimators.signature import Estimate, Estimator, Integrand


def score_function(baseline: str | Baseline | None = None) -> Estimator:
    """Score-function gradient, or REINFORCE: the samples are held fixed and their log-probability is reweighted.

        grad E_q[f(z)] = E_q[(f(z) - b) grad log q(z) + grad f(z)]

    Serves discrete and continuous q and needs no derivative of f in z, but has a large variance. Where the bound of K
    samples is not a sum over them, as the importance-weighted one is not, the reward of each sample is the whole bound.
    The support of q must not move with the parameters, because gradient and integral are interchanged.

    Args:
        baseline: b, which must not depend on the sample: None; "leave_one_out", the bound of the other K - 1 samples,
            which needs K >= 2 (Mnih & Rezende 2016; Kool et al. 2019); "moving_average" or "nvil" or a
            `baselines.Baseline`, trained along with parameters in `params["baseline"]` (see `with_baseline`).

    Returns:
        An estimator, unbiased, for every form of the KL. An array (*batch,) that the estimator is called with as its
        `baseline` is subtracted from the reward, except with "leave_one_out"; it gets the gradient of half its squared
        distance to the bound.

    Raises:
        ValueError: if the baseline is unknown. When the estimator is called, if the support of q moves with its
            parameters, or K = 1 with "leave_one_out".

    >>> import jax
    >>> from vaejax import estimators
    >>> reinforce = score_function(baseline="leave_one_out")
    >>> f = lambda logit, z: 4.0 * z.astype(float)
    >>> mean_of = estimators.expectation(reinforce, distributions.BernoulliLogits, f, num_samples=1000)
    >>> grad, info = jax.grad(mean_of, has_aux=True)(0.0, jax.random.key(0))  # of 4 sigmoid(logit): 1
    >>> 0.9 < float(grad) < 1.1
    True

    Source: Williams 1992, "Simple statistical gradient-following algorithms"; Mohamed et al. 2020, "Monte Carlo
    gradient estimation in machine learning", section 4.
    """
    trained = baseline if isinstance(baseline, Baseline) else None
    if trained is None:
        checks.check_choice("baseline", baseline, (None, "leave_one_out", *BASELINES), "a baselines.Baseline")
        trained = BASELINES[baseline]() if baseline in BASELINES else None
    leave_one_out = baseline == "leave_one_out"

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        if leave_one_out:
            _check_others(num_samples, "score_function() or pathwise()")
        log_w, terms, log_q = _scored_samples(key, q, integrand, num_samples, chunk_size)
        bound = reduce.bound(log_w)
        nothing = jnp.isneginf(bound)
        if leave_one_out:
            reward = rewards(bound, reduce.leave_one_out(log_w))
        elif baseline is None:
            reward = jnp.where(nothing[None], 0, reduce.credit(log_w))
        else:
            reward = jnp.where(nothing[None], 0, reduce.credit(log_w - baseline[None]))
            gap = jnp.where(nothing, 0, lax.stop_gradient(bound) - baseline)
            bound = with_gradient_of(bound, -0.5 * gap**2)
        return Estimate(with_gradient_of(bound, (lax.stop_gradient(reward) * log_q).sum(axis=0)), terms)

    return Estimator(estimate, trained, fewest_samples=2 if leave_one_out else 1)


def vimco() -> Estimator:
    """Score-function gradient of a bound of K samples, where the other samples give each sample its baseline (VIMCO).

        grad E_q[bound(l)] = E_q[sum_k (bound(l) - b_k) grad log q(z_k) + grad bound(l)],  l = (l_1, ..., l_K)
        b_k = bound(l_1, ..., l_{k-1}, m_k, l_{k+1}, ..., l_K),  m_k the mean of the other K - 1 log-weights

    So the reward of sample k is how much its own log-weight l_k raises the bound above what an average one would. It
    serves discrete and continuous q, and needs K >= 2. Since l_k are logarithms, m_k is the geometric mean of the
    paper. Its arithmetic mean, where sample k is left out of the bound instead, is
    `score_function(baseline="leave_one_out")`. For the ELBO, which is linear, the two are the same.

    Returns:
        An estimator, unbiased, for every form of the KL.

    Raises:
        ValueError: when the estimator is called, if K = 1, or the support of q moves with its parameters.

    >>> import jax
    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,), posterior="bernoulli")
    >>> iwae = objectives.make_iwae(vae, vimco(), num_samples=8)
    >>> params, x = vae.init(jax.random.key(0)), jax.numpy.ones((7, 3))
    >>> grads, info = jax.grad(iwae, has_aux=True)(params, jax.random.key(1), x)

    Source: Mnih & Rezende 2016, "Variational inference for Monte Carlo objectives", section 2.5.
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_others(num_samples, "score_function()")
        log_w, terms, log_q = _scored_samples(key, q, integrand, num_samples, chunk_size)
        bound, others = reduce.bound(log_w), mean_reduction().leave_one_out(log_w)
        reward = rewards(bound, bounds_with_replaced(reduce, log_w, others))
        return Estimate(with_gradient_of(bound, (reward * log_q).sum(axis=0)), terms)

    return Estimator(estimate, fewest_samples=2)


def ovis(num_auxiliary: int | None = None) -> Estimator:
    """Score function of the importance-weighted bound, with the baselines that make its variance least (OVIS).

        grad = E[sum_k (log Z - v_k - c_k) grad log q(z_k)],  Z = 1/K sum_k w_k,  v_k = w_k / sum_j w_j

    The first two terms are the bound's own, the second by its dependence on log q. Of many samples log Z less the log
    of Z without w_k is about v_k, so that with c_k = log 1/K sum over j != k of w_j only about v_k^2 / 2 is left: the
    signal-to-noise ratio of the encoder's gradient grows with K, while that of `score_function` falls. Leave-one-out
    divides by K - 1 in the place of K, which leaves -1/K beside, the larger part.

    With auxiliary samples c_k is the mean over them of log Z - v_k with each in the place of z_k: the baseline of least
    variance to which the other is an approximation, where one weight is much larger than the others too.

    Args:
        num_auxiliary: how many samples beside the K are drawn and evaluated for c_k; None: none.

    Returns:
        An estimator, unbiased, for the importance-weighted bound; `detaches_q` is False, because v_k comes with the
        bound. It serves other bounds that are not linear without bias too.

    Raises:
        ValueError: if num_auxiliary is not a positive integer; when the estimator is called, if the bound is a mean,
            K = 1, or the support of q moves with its parameters.

    >>> import jax
    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,), posterior="bernoulli")
    >>> iwae = objectives.make_iwae(vae, ovis(), num_samples=8)
    >>> params, x = vae.init(jax.random.key(0)), jax.numpy.ones((7, 3))
    >>> grads, info = jax.grad(iwae, has_aux=True)(params, jax.random.key(1), x)

    Source: Lievin, Dittadi, Christensen & Winther 2020, "Optimal variance control of the score-function gradient
    estimator for importance-weighted bounds"; of its asymptotic form the one without bias, gamma = 0.
    """
    if num_auxiliary is not None:
        checks.check_count("num_auxiliary", num_auxiliary)

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_others(num_samples, "score_function()")
        if reduce.linear:
            raise ValueError(
                "ovis() serves the importance-weighted bound, make_iwae; got a mean over samples, as the ELBO is. Use "
                "score_function(baseline='leave_one_out')"
            )
        auxiliary_key = jax.random.clone(key)
        log_w, terms, log_q = _scored_samples(key, q, integrand, num_samples, chunk_size)
        bound = reduce.bound(log_w)
        if num_auxiliary is None:
            c = reduce.leave_one_out(log_w) + math.log1p(-1 / num_samples)
        else:
            auxiliary = _auxiliary_log_weights(auxiliary_key, q, integrand, num_auxiliary, chunk_size)
            placed = jnp.broadcast_to(auxiliary[None], (num_samples, *auxiliary.shape))
            bounds = bounds_with_replaced(reduce, lax.stop_gradient(log_w), placed)
            share = jnp.where(jnp.isneginf(placed), 0, jnp.exp(placed - bounds))  # where both are, none
            c = (bounds - share / num_samples).mean(axis=1)
        return Estimate(with_gradient_of(bound, (rewards(bound, c) * log_q).sum(axis=0)), terms)

    return Estimator(estimate, fewest_samples=2)


def _auxiliary_log_weights(
    key: Array, q: dist.Distribution, integrand: Integrand, num_auxiliary: int, chunk_size: int | None
) -> Array:
    """The log-weights of samples that share nothing with those of `key` itself, without gradient."""

    def sample_term(key: Array, noise_key: Array) -> Array:
        del key
        return integrand(distributions.held_sample(q, noise_key)[0], q)[0]

    return lax.stop_gradient(over_samples_with_noise(sample_term, key, num_auxiliary, chunk_size))


def _scored_samples(
    key: Array, q: dist.Distribution, integrand: Integrand, num_samples: int, chunk_size: int | None
) -> tuple[Array, object, Array]:
    """The log-weights (K, *batch), the terms and log q of K samples that are held fixed."""
    reparameterization.check_fixed_support(q)

    def draw(key):
        return distributions.held_sample(q, key)

    def sample_term(held):
        z, drawn = held
        return *integrand(z, q), distributions.held_log_prob(q, z, drawn)

    return over_draws(draw, sample_term, integrand, key, num_samples, chunk_size)


def _check_others(num_samples: int, instead: str) -> None:
    advice = f"the baseline of each sample is made of the others; raise num_samples, or use {instead}"
    checks.check_count("num_samples", num_samples, 2, advice)
