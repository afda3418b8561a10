"""The one builder of objectives, and the record that they return."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, estimators
from vaejax.distributions import Params
from vaejax.estimators import EstimateFunction, Estimator, Reduction, effective_sample_size
from vaejax.models import VAE
from vaejax.objectives.weights import Weight, check_weight, weight_at


class ObjectiveInfo(NamedTuple):
    """What an objective reports beside its value. No gradient flows through it.

    Attributes:
        bound: the value: what is maximised, mean over the batch, nats per example. ().
        elbo: plain ELBO, whatever the weights; reconstruction - kl. ().
        reconstruction: E_q log p(x|z), nats per example. ().
        kl: KL(q(z|x) || p(z)) in the form that was asked for, nats per example. ().
        per_example: the bound of each example; its ELBO where what is maximised is not a mean over examples, as with
            free bits or a discrepancy. (*batch,)
        ess: effective sample size of the K importance weights, from 1 to K. (*batch,)
        log_w: log p(x, z_k) - log q(z_k|x). (K, *batch)
    """

    bound: Float[Array, ""]
    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]
    kl: Float[Array, ""]
    per_example: Float[Array, " *batch"]
    ess: Float[Array, " *batch"]
    log_w: Float[Array, "K *batch"]


@runtime_checkable
class Objective(Protocol):
    """What every objective is."""

    def __call__(
        self, params: Params, key: Key[Array, ""], x: ArrayLike, *, step: ArrayLike | None = None
    ) -> tuple[Float[Array, ""], Any]:
        """The value to maximise, and what is worth knowing about it: of a bound, an `ObjectiveInfo`."""
        ...


def make_objective(
    vae: VAE,
    estimator: Estimator | EstimateFunction | None,
    num_samples: int,
    kl_form: str,
    beta: Weight,
    chunk_size: int | None,
    reduce: Reduction,
) -> Objective:
    estimator = estimators.pathwise() if estimator is None else estimators.as_estimator(estimator)
    checks.check_count("num_samples", num_samples)
    if chunk_size is not None:
        checks.check_count("chunk_size", chunk_size)
    if estimator.detaches_q and kl_form != "sampled":
        raise ValueError(
            f"this estimator drops the score of q from the sampled KL, and there is none in kl={kl_form!r}: expected "
            "kl='sampled'; or use pathwise(), which is what it would be"
        )
    check_weight("beta", beta)

    def objective(params: Params, key: Key[Array, ""], x: ArrayLike, *, step: ArrayLike | None = None):
        weight = weight_at("beta", beta, step)
        q = vae.encode(params, x)
        prior = vae.prior(params)
        x = jnp.asarray(x)

        @estimators.Broadcasting
        def integrand(z, q):
            reconstruction = distributions.data_log_prob(vae.decode(params, z), distributions.like_samples(q, z, x))
            log_prior = distributions.log_prob(prior, z)
            log_q = distributions.log_prob(q, z)
            if kl_form == "analytic":
                kl = jnp.broadcast_to(distributions.kl_divergence(q, prior), log_q.shape)
            elif kl_form == "sampled":
                kl = log_q - log_prior
            else:
                kl = -jnp.broadcast_to(distributions.entropy(q), log_q.shape) - log_prior
            return reconstruction - weight * kl, (reconstruction, kl, reconstruction + log_prior - log_q)

        baseline = estimators.baseline_values(estimator, params, x, q.batch_shape)
        bound, terms = estimator(key, q, integrand, num_samples, reduce, baseline, chunk_size)
        value = bound.mean()
        reconstruction, kl, log_w = lax.stop_gradient(terms)
        info = ObjectiveInfo(
            bound=lax.stop_gradient(value),
            elbo=(reconstruction - kl).mean(),
            reconstruction=reconstruction.mean(),
            kl=kl.mean(),
            per_example=lax.stop_gradient(bound),
            ess=effective_sample_size(log_w),
            log_w=log_w,
        )
        return value, info

    return objective


def make_penalized(
    vae: VAE,
    estimator: Estimator | EstimateFunction | None,
    num_samples: int,
    beta: Weight,
    chunk_size: int | None,
    kl_penalty: Any,
    further: tuple[Weight, Any] | None = None,
) -> Objective:
    """E_q[log p(x|z)] - beta (`kl_penalty`, or the KL itself) - weight penalty, the penalties those of a batch."""
    estimator = estimators.pathwise() if estimator is None else estimators.as_estimator(estimator)
    checks.check_count("num_samples", num_samples)
    check_weight("beta", beta)
    if estimator.detaches_q:
        raise ValueError(
            "this estimator drops the score of q from the sampled KL, and here the KL is in closed form: use "
            "pathwise(), which is what it would be"
        )
    reduce = estimators.mean_reduction()

    def objective(params: Params, key: Key[Array, ""], x: ArrayLike, *, step: ArrayLike | None = None):
        sample_key, penalty_key = jax.random.split(key)
        weight = weight_at("beta", beta, step)
        q, prior = vae.encode(params, x), vae.prior(params)
        x = jnp.asarray(x)
        kl = distributions.kl_divergence(q, prior)

        @estimators.Broadcasting
        def integrand(z, q):
            reconstruction = distributions.data_log_prob(vae.decode(params, z), distributions.like_samples(q, z, x))
            log_w = reconstruction + distributions.log_prob(prior, z) - distributions.log_prob(q, z)
            return reconstruction, (reconstruction, log_w)

        baseline = estimators.baseline_values(estimator, params, x, q.batch_shape)
        bound, terms = estimator(sample_key, q, integrand, num_samples, reduce, baseline, chunk_size)
        reconstruction, log_w = lax.stop_gradient(terms)
        cost = kl.mean() if kl_penalty is None else kl_penalty(params, penalty_key, q, prior)
        value = bound.mean() - weight * cost
        if further is not None:
            more, penalty = further
            value = value - weight_at("mmd_weight", more, step) * penalty(params, penalty_key, q, prior)
        info = ObjectiveInfo(
            bound=value,
            elbo=reconstruction.mean() - kl.mean(),
            reconstruction=reconstruction.mean(),
            kl=kl.mean(),
            per_example=reconstruction.mean(axis=0) - kl,
            ess=effective_sample_size(log_w),
            log_w=log_w,
        )
        return value, lax.stop_gradient(info)

    return objective
