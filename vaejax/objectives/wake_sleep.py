"""Objectives whose gradient is their own and no estimator's choice: reweighted wake-sleep, the thermodynamic one.

Both hold the samples fixed, so that they serve discrete and continuous q, and neither needs a derivative of log p(x, z)
in z.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from vaejax import distributions, estimators
from vaejax.distributions import reparameterization
from vaejax.estimators import Estimate, EstimateFunction, Estimator, Integrand, monte_carlo
from vaejax.estimators.mixed_reductions import intervals
from vaejax.models import VAE
from vaejax.objectives.bounds import make_bound
from vaejax.objectives.objective import Objective

TEMPERATURES = (0.0, 0.025, 0.063, 0.158, 0.398)
"""Where `make_thermodynamic` evaluates: at 0, and then in equal steps of the logarithm from 0.025 to below 1."""


def make_wake_sleep(vae: VAE, num_samples: int = 50, *, chunk_size: int | None = None) -> Objective:
    """Reweighted wake-sleep with wake-phi: the decoder climbs the importance-weighted bound, q goes to its weights.

        decoder and prior: sum_k W_k grad log p(x, z_k),  encoder: sum_k W_k grad log q(z_k|x),  W = softmax of log w

    The value is the importance-weighted bound of K samples, and the gradient of decoder and prior is its own. *The
    encoder's is not*: it is an estimate, by the same weighted samples, of minus the gradient of KL(p(z|x) || q(z|x)),
    the KL in the other direction, which makes q cover the posterior. For finite K that estimate is biased, with a bias
    that falls as 1 / K; for K = 1 it is zero in expectation.

    Args:
        vae: the model; q may be discrete or continuous.
        num_samples: K, samples of z for each example, at least 2 to train an encoder.
        chunk_size: as in `make_elbo`.

    Returns:
        An objective, as `make_elbo` does.

    Raises:
        ValueError: as `make_elbo`; when it is called, if the support of q moves with its parameters.

    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,), posterior="bernoulli")
    >>> objective = make_wake_sleep(vae, num_samples=8)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> grads, info = jax.grad(objective, has_aux=True)(params, jax.random.key(1), x)
    >>> bool(info.bound >= info.elbo)
    True

    Source: Bornschein & Bengio 2015, "Reweighted wake-sleep"; Le et al. 2019, "Revisiting reweighted wake-sleep".
    """
    reduction = estimators.log_mean_exp_reduction()
    return make_bound(vae, reduction, _wake_phi(), num_samples, chunk_size=chunk_size)


def make_thermodynamic(
    vae: VAE,
    temperatures: Sequence[float] = TEMPERATURES,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 50,
    *,
    chunk_size: int | None = None,
) -> Objective:
    """The thermodynamic variational objective (TVO): a sum, from below, of an integral that is log p(x).

        log p(x) = int_0^1 E_t[log w] dt >= sum_j (t_{j+1} - t_j) E_{t_j}[log w],  w = p(x, z) / q(z|x)

    with E_t under the distribution proportional to q(z|x)^(1 - t) p(x, z)^t, estimated by the weights w^t of K samples
    of q. At one temperature, 0, it is the ELBO; at many it is nearly the importance-weighted bound of these samples.

    Args:
        vae: the model.
        temperatures: 0 = t_0 < t_1 < ... < 1; the last interval ends at 1.
        estimator: how the gradient is estimated. None: the paper's, of covariances under the weights, which holds the
            samples fixed and serves any q; for finite K it has a bias that falls as 1 / K. Any other estimator gives
            the gradient of the expected value, unbiased.
        num_samples: K. A bound must be reported with its K.
        chunk_size: as in `make_elbo`.

    Returns:
        An objective, as `make_elbo` does.

    Raises:
        ValueError: as `make_elbo`; and if the temperatures do not rise from 0 to below 1.

    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, key, x = vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3))
    >>> value, info = make_thermodynamic(vae, num_samples=8)(params, key, x)
    >>> bool(info.elbo < value < objectives.make_iwae(vae, num_samples=8)(params, jax.random.clone(key), x)[0])
    True

    Source: Masrani, Le & Wood 2019, "The thermodynamic variational objective".
    """
    reduction = estimators.thermodynamic_reduction(temperatures)
    estimator = _of_covariances(temperatures) if estimator is None else estimator
    return make_bound(vae, reduction, estimator, num_samples, chunk_size=chunk_size)


def _wake_phi() -> Estimator:
    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        without_score = estimators.detached(q, integrand)
        log_w, terms, log_q = _held(key, q, without_score, integrand, num_samples, chunk_size)
        bound = reduce.bound(log_w)
        nothing = jnp.isneginf(bound)[None]
        weights = jnp.where(nothing, 0, jax.nn.softmax(jnp.where(nothing, 0, log_w), axis=0))
        return _with_scores(bound, terms, weights, log_q)

    return Estimator(estimate, detaches_q=True)


def _of_covariances(temperatures: Sequence[float]) -> Estimator:
    """The gradient of sum_j width_j E_t[l] with t = t_j, of l = log w, by the weights w^t of samples held fixed.

        grad E_t[l] = E_t[grad l] + Cov_t(grad log p_t, l),  grad log p_t = (1 - t) grad log q + t grad log p(x, z)

    The derivative of the bound in the log-weights gives all of it but the covariance of l with the score of q.
    """
    levels, widths = intervals(temperatures)

    def covariances(log_w: Array) -> Array:
        total = jnp.zeros_like(log_w)
        for t, width in zip(levels, widths, strict=True):
            shares = jax.nn.softmax(t * log_w, axis=0)
            total += width * shares * (log_w - (shares * log_w).sum(axis=0, keepdims=True))
        return total

    def estimate(key, q, integrand, num_samples, reduce, baseline=None, chunk_size=None) -> Estimate:
        del baseline
        log_w, terms, log_q = _held(key, q, q, integrand, num_samples, chunk_size)
        bound = reduce.bound(log_w)
        nothing = jnp.isneginf(bound)[None]
        weights = jnp.where(nothing, 0, covariances(jnp.where(nothing, 0, log_w)))
        return _with_scores(bound, terms, weights, log_q)

    return Estimator(estimate)


def _held(key, q: dist.Distribution, of_integrand, integrand: Integrand, num_samples: int, chunk_size: int | None):
    """Log-weights, terms and log q of K samples that are held fixed, with the q that the integrand gets."""
    reparameterization.check_fixed_support(q)

    def term(held):
        z, drawn = held
        return *integrand(z, of_integrand), distributions.held_log_prob(q, z, drawn)

    return monte_carlo.over_draws(
        lambda key: distributions.held_sample(q, key), term, integrand, key, num_samples, chunk_size
    )


def _with_scores(bound: Array, terms: object, weights: Array, log_q: Array) -> Estimate:
    """The bound, with the gradient of the weighted log q added to its own."""
    return Estimate(monte_carlo.with_gradient_of(bound, (lax.stop_gradient(weights) * log_q).sum(axis=0)), terms)
