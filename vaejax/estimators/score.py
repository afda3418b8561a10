"""The score-function estimators: REINFORCE with its baselines, and VIMCO."""

import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from vaejax import checks, distributions
from vaejax.distributions import reparameterization
from vaejax.estimators.baselines import BASELINES, Baseline
from vaejax.estimators.monte_carlo import over_draws, with_gradient_of
from vaejax.estimators.reductions import bounds_with_replaced
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


def _check_others(num_samples: int, instead: str) -> None:
    advice = f"the baseline of each sample is made of the others; raise num_samples, or use {instead}"
    checks.check_count("num_samples", num_samples, 2, advice)
