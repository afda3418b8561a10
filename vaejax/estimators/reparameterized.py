"""The estimators that reparameterize: pathwise, sticking the landing, doubly reparameterized.

Every estimator is a function of one signature, `estimators.EstimateFunction`: the value of its bound is the same for
all estimators that draw the same samples, and its `jax.grad` is the estimate.

In the equations f is what stands inside the expectation, "grad" is the derivative in the parameters of q(z) and f(z),
and "grad f(z)" that of f at fixed z.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike

from vaejax import distributions
from vaejax.estimators.detaching import detached
from vaejax.estimators.monte_carlo import over_draws, with_gradient_of
from vaejax.estimators.reductions import Reduction
from vaejax.estimators.signature import Estimate, Estimator, is_enumerable, refuse_q

_LOG = logging.getLogger(__name__)


def pathwise() -> Estimator:
    """Reparameterized gradient: z = g(eps, params), and the gradient flows through g.

        grad E_q[f(z)] = E_eps[grad f(g(eps, params))]

    Serves every q whose samples are a differentiable function of its parameters (`q.has_rsample`), and needs f
    differentiable in z. A q with a method `rsample_with_log_prob(key) -> (z, log_q)` is asked for both in one pass.

    Returns:
        An estimator, unbiased, for every form of the KL.

    Raises:
        ValueError: when the estimator is called, if q cannot be reparameterized; it names one that can serve q.

    >>> from vaejax import estimators
    >>> square = estimators.expectation(pathwise(), lambda mean: dist.Normal(mean, 1.0), lambda mean, z: z**2, 1000)
    >>> grad, info = jax.grad(square, has_aux=True)(3.0, jax.random.key(0))  # of 1 + mean^2: 6
    >>> 5.7 < float(grad) < 6.3
    True

    Source: Kingma & Welling 2014, "Auto-encoding variational Bayes", section 2.4.
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_reparameterized("pathwise()", q)
        if hasattr(q, "rsample_with_log_prob"):

            def told(drawn):
                return integrand(drawn[0], distributions.Told(q, drawn[1]))

            log_w, terms = over_draws(q.rsample_with_log_prob, told, integrand, key, num_samples, chunk_size)
            return Estimate(reduce.bound(log_w), terms)
        draw = functools.partial(distributions.rsample, q)
        log_w, terms = over_draws(draw, lambda z: integrand(z, q), integrand, key, num_samples, chunk_size)
        return Estimate(reduce.bound(log_w), terms)

    return Estimator(estimate)


def sticking_the_landing() -> Estimator:
    """Pathwise gradient without the score of q, whose mean is zero: the gradient of log q(z) flows through z alone.

        grad E_q[f(z) - log q(z)] = E_eps[grad (f(z) - log q_detached(z))],  z = g(eps, params)

    At the exact posterior f - log q is the same number for every z, and so the gradient of the encoder is zero for each
    sample. It needs kl="sampled", because a KL in closed form has no score to drop. For a bound that is not linear in
    the log-weights the mean of the dropped term is not zero: for the importance-weighted bound with K > 1 this estimate
    is *biased* (Tucker et al. 2019), which is logged as a warning. `doubly_reparameterized` is the unbiased one.

    Returns:
        An estimator, unbiased for the ELBO.

    Raises:
        ValueError: when the estimator is called, if q cannot be reparameterized; it names one that can serve q.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> elbo = objectives.make_elbo(vae, sticking_the_landing(), kl="sampled")
    >>> grads, info = jax.grad(elbo, has_aux=True)(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))

    Source: Roeder, Wu & Duvenaud 2017, "Sticking the landing".
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_reparameterized("sticking_the_landing()", q)
        if num_samples > 1 and not reduce.linear:
            _LOG.warning(
                "sticking_the_landing() is biased for the importance-weighted bound of K = %d > 1 samples; "
                "estimators.doubly_reparameterized() is its unbiased form",
                num_samples,
            )
        without_score = detached(q, integrand)
        log_w, terms = over_draws(
            q.rsample, lambda z: integrand(z, without_score), integrand, key, num_samples, chunk_size
        )
        return Estimate(reduce.bound(log_w), terms)

    return Estimator(estimate, detaches_q=True)


def doubly_reparameterized() -> Estimator:
    """Pathwise gradient of a bound of K samples, with the score of q reparameterized a second time.

        grad bound(l_1, ..., l_K) = E_eps[sum_k (b_k - c b_kk) dl_k/dz_k grad z_k + b_k grad l_k(z_k)]

    with b_k and b_kk the first and second derivatives of the bound in l_k, and with the gradient of l_k at fixed z
    taken without that of log q, which stands in l_k with the weight -c. c is the weight of the KL: 1 in a bound on
    log p(x), less while it is warmed up. For the importance-weighted bound b_k - b_kk is the square of the normalized
    weight. For the ELBO b_kk is 0, and this is `sticking_the_landing`. Where the weights have enough moments, the
    signal-to-noise ratio of the encoder's gradient grows with K, while that of `pathwise` falls. Under a posterior that
    is too narrow, as the ELBO trains it, it may not grow. It needs kl="sampled".

    Returns:
        An estimator, unbiased.

    Raises:
        ValueError: when the estimator is called, if q cannot be reparameterized; it names one that can serve q.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> iwae = objectives.make_iwae(vae, doubly_reparameterized(), num_samples=8)
    >>> grads, info = jax.grad(iwae, has_aux=True)(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))

    Source: Tucker, Lawson, Gu & Maddison 2019, "Doubly reparameterized gradient estimators for Monte Carlo objectives".
    """

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        _check_reparameterized("doubly_reparameterized()", q, "vimco()")
        without_score = detached(q, integrand)

        def sample_term(z):
            # The examples of a batch do not see each other, so that one pull-back gives the derivative of each.
            log_w, pull_back, terms = jax.vjp(lambda z: integrand(z, without_score), lax.stop_gradient(z), has_aux=True)
            (slope,) = pull_back(jnp.ones_like(log_w))
            # The path of a sample of weight zero counts for nothing, and its slope may be no number.
            possible = ~jnp.isneginf(log_w).reshape(*log_w.shape, *[1] * (z.ndim - log_w.ndim))
            path = (lax.stop_gradient(jnp.where(possible, slope, 0)) * z).reshape(*log_w.shape, -1).sum(axis=-1)
            return log_w, terms, path

        log_w, terms, path = over_draws(
            functools.partial(distributions.rsample, q), sample_term, integrand, key, num_samples, chunk_size
        )
        bound = reduce.bound(log_w)
        weights = _path_weights(reduce, log_w, getattr(integrand, "log_q_weight", 1.0))
        weights = lax.stop_gradient(jnp.where(jnp.isneginf(bound)[None], 0, weights))
        return Estimate(with_gradient_of(bound, (weights * path).sum(axis=0)), terms)

    return Estimator(estimate, detaches_q=True)


def _path_weights(reduce: Reduction, log_w: Array, c: ArrayLike) -> Array:
    """b_k - c b_kk, of `Reduction.path_weights` b_k - b_kk."""
    weights = reduce.path_weights(log_w)
    if reduce.linear or (isinstance(c, int | float) and c == 1):
        return weights
    slopes = jax.grad(lambda log_w: reduce.bound(log_w).sum())(log_w)
    return (1 - c) * slopes + c * weights


def _check_reparameterized(name: str, q: dist.Distribution, instead: str = "") -> None:
    if q.has_rsample:
        return
    if not instead:
        instead = "score_function(baseline='leave_one_out') with num_samples >= 2"
        instead += ", or enumerate_support()" if is_enumerable(q) else ""
    refuse_q(name, "distributions whose samples are a differentiable function of their parameters", q, instead)
