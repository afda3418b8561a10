"""The one builder of objectives, and the record that they return."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, estimators, models, records
from vaejax.distributions import Params
from vaejax.estimators import EstimateFunction, Estimator, Integrand, Reduction, effective_sample_size
from vaejax.models import VAE, Batch
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

    >>> parts, each = jnp.array([-128.0, -92.0, -80.0, 12.0]), jnp.array([-126.0, -130.0])  # of two examples, beta = 4
    >>> info = ObjectiveInfo(*parts, per_example=each, ess=jnp.ones(2), log_w=jnp.array([[-90.0, -94.0]]))
    >>> bool(info.elbo == info.reconstruction - info.kl), bool(info.bound == info.reconstruction - 4 * info.kl)
    (True, True)
    >>> bool(info.bound == info.per_example.mean()), bool(info.elbo == info.log_w.mean())
    (True, True)
    """

    bound: Float[Array, ""]
    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]
    kl: Float[Array, ""]
    per_example: Float[Array, " *batch"]
    ess: Float[Array, " *batch"]
    log_w: Float[Array, "K *batch"]

    __repr__ = records.short_repr


@runtime_checkable
class Objective(Protocol):
    """A pure function of parameters, key and data: a number to maximise, and what is worth knowing about it.

    The `make_*` functions of this room return one, and a function of your own with this signature is one. Its
    `jax.grad(..., has_aux=True)` is the gradient estimator that it was made with.

    >>> import jax
    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> elbo = objectives.make_elbo(vae)
    >>> isinstance(elbo, Objective)
    True
    >>> value, info = elbo(vae.init(jax.random.key(0)), jax.random.key(1), jax.numpy.ones((7, 3)))
    >>> value.shape, info.per_example.shape
    ((), (7,))
    """

    def __call__(
        self, params: Params, key: Key[Array, ""], x: Batch | ArrayLike, *, step: ArrayLike | None = None
    ) -> tuple[Float[Array, ""], Any]:
        """Evaluate the objective.

        Args:
            params: the model's, a dict with "encoder", "decoder" and "prior"; "baseline" too where one is trained.
            key: consumed; the samples of z are drawn with it.
            x: data, (*batch, *data_shape), or a `models.Batch`.
            step: of the training, from 0, for weights that are schedules; `training.make_train_step` passes it.

        Returns:
            The value to maximise, a scalar in nats per example; and the info, of a bound an `ObjectiveInfo`.

        Raises:
            ValueError: if the data are not the model's, or a weight is a schedule and no step is given.
        """
        ...


class Call(NamedTuple):
    """What one call of an objective computes with.

    Attributes:
        model: given what the batch carries beside x; see `models.given`.
        params: as they were given.
        key: for what `finish` draws; None unless the objective was built with `finish_draws`.
        x: data, (*batch, *data_shape), zeros for what was not observed.
        step: as it was given.
        weight: of the KL at this step.
        q: the posterior of x.
        prior: of the latents.
    """

    model: VAE
    params: Params
    key: Key[Array, ""] | None
    x: Array
    step: ArrayLike | None
    weight: ArrayLike
    q: dist.Distribution
    prior: dist.Distribution


Parts = tuple[Integrand, Callable[[Array, Any], tuple[Array, ObjectiveInfo]]]

PerExample = Callable[..., tuple[Array, Any]]


def build_objective(
    vae: VAE,
    reduction: Reduction,
    estimator: Estimator | EstimateFunction | None,
    num_samples: int,
    beta: Weight,
    chunk_size: int | None,
    parts_of: Callable[[Call], Parts],
    *,
    closed_form_kl: bool,
    finish_draws: bool = False,
    is_mean: bool = False,
) -> Objective:
    """The objective that estimates a bound from K samples of z and finishes it; every one that samples is built here.

    Args:
        vae: the model.
        reduction: how the log-weights of the samples become a bound.
        estimator: how the gradient is estimated; None: `estimators.pathwise()`.
        num_samples: K.
        beta: weight of the KL, a number or a function of the step.
        chunk_size: how many of the K samples are evaluated at once.
        parts_of: `call -> (integrand, finish)`, what differs between objectives. The integrand is as in
            `estimators.EstimateFunction`: it takes q from its argument, whose gradient the estimator may have stopped.
            `finish` makes the value and the info of the bound (*batch,) and the integrand's terms (K, *batch).
        closed_form_kl: whether the KL is not one of the samples; then estimators that detach q are refused.
        finish_draws: whether `finish` draws too; then the key is split, and one half is `call.key`.
        is_mean: whether the value is the mean of the bounds, which `per_example` then can give.

    Raises:
        ValueError: if a number is out of range, or the estimator drops the score of q from a KL that is not sampled.
    """
    checks.check_given(vae=vae, num_samples=num_samples)
    estimator = estimators.pathwise() if estimator is None else estimators.as_estimator(estimator)
    if chunk_size is not None:
        checks.check_count("chunk_size", chunk_size)
    check_weight("beta", beta)
    reduction = estimators.without_gradient_of_nothing(reduction)
    if estimator.detaches_q and closed_form_kl:
        raise ValueError(
            "this estimator drops the score of q from the sampled KL, and here the KL is in closed form: use "
            "pathwise(), which is what it would be, or kl='sampled' where the objective has that option"
        )

    def bounds(params: Params, key: Key[Array, ""], x: Batch | ArrayLike, *, step: ArrayLike | None = None):
        sample_key, own_key = jax.random.split(key) if finish_draws else (key, None)
        weight = weight_at("beta", beta, step)
        model, x = models.given(vae, x)
        x = checks.as_array(x)
        q, prior = model.encode(params, x), model.prior(params)
        models.check_distributions(x, q, prior)
        call = Call(model, params, own_key, jnp.asarray(x), step, weight, q, prior)
        integrand, finish = parts_of(call)
        detach = lambda: model.encode(lax.stop_gradient(params), x)  # noqa: E731
        integrand = estimators.with_detached(integrand, detach, 0.0 if closed_form_kl else weight)
        baseline = estimators.baseline_values(estimator, params, call.x, q.batch_shape)
        bound, terms = estimator(sample_key, q, integrand, num_samples, reduction, baseline, chunk_size)
        return bound, finish(bound, terms)

    return objective_of(bounds, is_mean=is_mean)


def objective_of(bounds: PerExample, *, is_mean: bool) -> Objective:
    """The objective of what one call computes.

    Args:
        bounds: `(params, key, x, *, step) -> (bound (*batch,), (value, info))`.
        is_mean: whether the value is the mean of the bounds, which `per_example` then may give.
    """

    def objective(params: Params, key: Key[Array, ""], x: Batch | ArrayLike, *, step: ArrayLike | None = None):
        checks.check_given(params=params, key=key)
        return bounds(params, key, x, step=step)[1]

    def per_example(params: Params, key: Key[Array, ""], x: Batch | ArrayLike, *, step: ArrayLike | None = None):
        checks.check_given(params=params, key=key)
        bound, (_, info) = bounds(params, key, x, step=step)
        return bound, info

    if is_mean:
        objective.per_example = per_example  # pyright: ignore[reportFunctionMemberAccess]
    return objective


def per_example(objective: Objective) -> PerExample:
    """The bound of each example, with its gradient, of an objective whose value is their mean.

    For a loss that weights its examples. `info.per_example` has the same numbers without a gradient: a loss made of
    those would train nothing.

    Args:
        objective: that of a `make_*` function, jitted or not.

    Returns:
        `(params, key, x, *, step=None) -> (bounds, info)`, with bounds in nats, (*batch,).

    Raises:
        ValueError: if the value is not such a mean, as with free bits or a discrepancy, or the objective is your own.

    >>> import jax
    >>> from vaejax import models, objectives
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> bounds_of, weights = per_example(objectives.make_elbo(vae)), jnp.arange(7.0)
    >>> loss = lambda params, key, x: -(weights * bounds_of(params, key, x)[0]).sum()
    >>> grads = jax.grad(loss)(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> bool(jnp.abs(grads["decoder"]["network"]["layer_1"]["bias"]).max() > 0)
    True
    """
    bounds = getattr(objective, "per_example", None)
    if bounds is None:
        raise ValueError(
            "expected an objective whose value is the mean over examples, such as make_elbo, make_iwae or make_renyi "
            f"returns; got {checks.describe(objective)}: free bits and discrepancies "
            "penalize the whole batch, and of your own objective only you know the terms"
        )
    return bounds


def log_densities(
    call: Call, z: Array | distributions.Weights, q: dist.Distribution | distributions.Told
) -> tuple[Array, Array, Array]:
    """Log p(x|z), log p(z) and log q(z|x) of z, one sample of the batch or all K at once: each like its batch axes.

    Where q is relaxed, as an estimator makes it, z is too, and the prior must take it.
    """
    prior = distributions.relaxed(call.prior) if distributions.is_relaxed(q) else call.prior
    p, num_batch = call.model.decode(call.params, z), len(q.batch_shape)
    models.check_likelihood(p, z.shape[: z.ndim - len(q.event_shape)], call.x.shape[num_batch:])
    log_likelihood = distributions.data_log_prob(p, call.x)
    return log_likelihood, distributions.log_prob(prior, z), distributions.own_log_prob(q, z)


def objective_info(
    value: Array, per_example: Array, elbo: Array, reconstruction: Array, kl: Array, log_w: Array
) -> ObjectiveInfo:
    """The info of an objective, without gradient; elbo, reconstruction and kl, of any shapes, are averaged."""
    value, per_example, elbo, reconstruction, kl, log_w = lax.stop_gradient(
        (value, per_example, elbo, reconstruction, kl, log_w)
    )
    return ObjectiveInfo(
        bound=value,
        elbo=elbo.mean(),
        reconstruction=reconstruction.mean(),
        kl=kl.mean(),
        per_example=per_example,
        ess=effective_sample_size(log_w),
        log_w=log_w,
    )
