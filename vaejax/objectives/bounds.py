"""Bounds on log p(x) as objectives: the ELBO in its forms, the importance-weighted and the Renyi bound.

An objective chooses the integrand and how samples are reduced, and nothing else: the estimator, handed in, decides what
`jax.grad` of the value means. Whatever is maximised, `info.elbo` is the plain ELBO.
"""

import math
from typing import Any, Literal

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, distributions, estimators, models
from vaejax.distributions import Params
from vaejax.estimators import EstimateFunction, Estimator, Reduction
from vaejax.models import VAE, Batch, networks
from vaejax.objectives.objective import (
    Call,
    Objective,
    Parts,
    build_objective,
    log_densities,
    objective_info,
    objective_of,
)
from vaejax.objectives.weights import Weight, weighted

KL_FORMS = ("analytic", "sampled", "entropy")
"""How `make_elbo` may take the KL: in closed form, sampled, or by the entropy of q."""


def make_bound(
    vae: VAE,
    reduction: Reduction,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 1,
    kl: Literal["analytic", "sampled", "entropy"] = "sampled",
    beta: Weight = 1.0,
    chunk_size: int | None = None,
) -> Objective:
    """The bound that a reduction makes of the log-weights of K samples; all bounds of this file that sample are this.

        reduction.bound(l_1, ..., l_K),  l_k = log p(x|z_k) - beta kl_k,  z_k ~ q(z|x)

    with kl_k = log q(z_k|x) - log p(z_k) where `kl` is "sampled"; the KL itself where it is "analytic"; and -log p(z_k)
    less the entropy of q where it is "entropy".

    Args:
        vae: the model.
        reduction: how the log-weights (K, *batch) become a bound (*batch,), such as
            `estimators.log_mean_exp_reduction()` or an `estimators.Reduction` of your own.
        estimator: how the gradient is estimated; by default `estimators.pathwise()`.
        num_samples: K, samples of z for each example. A bound must be reported with its K.
        kl: the form of the KL. With a reduction that is not linear, only "sampled" gives importance weights: with the
            other two the value is no bound on log p(x).
        beta: weight of the KL, a number or a function of the step.
        chunk_size: as in `make_elbo`.

    Returns:
        An objective, as `make_elbo` does.

    Raises:
        ValueError: as `make_elbo`.

    >>> import jax
    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> largest = estimators.mean_reduction()._replace(bound=lambda log_w: log_w.max(axis=0), linear=False)
    >>> objective = make_bound(vae, largest, num_samples=8)
    >>> value, info = objective(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> bool(value > info.elbo)
    True
    """
    checks.check_choice("kl", kl, KL_FORMS)
    checks.check_kind("reduction", reduction, Reduction, "an estimators.Reduction, such as estimators.mean_reduction()")

    def parts_of(call: Call) -> Parts:
        @estimators.Broadcasting
        def integrand(z: Any, q: Any):
            reconstruction, log_prior, log_q = log_densities(call, z, q)
            if kl == "analytic":
                penalty = jnp.broadcast_to(distributions.kl_divergence(call.q, call.prior), log_q.shape)
            elif kl == "sampled":
                penalty = log_q - log_prior
            else:
                penalty = -jnp.broadcast_to(distributions.entropy(call.q), log_q.shape) - log_prior
            return reconstruction - weighted(call.weight, penalty), (
                reconstruction,
                penalty,
                reconstruction + log_prior - log_q,
            )

        def finish(bound: Array, terms: tuple[Array, Array, Array]):
            reconstruction, penalty, log_w = terms
            value = bound.mean()
            return value, objective_info(value, bound, reconstruction - penalty, reconstruction, penalty, log_w)

        return integrand, finish

    return build_objective(
        vae,
        reduction,
        estimator,
        num_samples,
        beta,
        chunk_size,
        parts_of,
        closed_form_kl=kl != "sampled",
        is_mean=True,
    )


def make_elbo(
    vae: VAE,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 1,
    *,
    kl: Literal["analytic", "sampled", "entropy"] = "analytic",
    beta: Weight = 1.0,
    chunk_size: int | None = None,
) -> Objective:
    """Evidence lower bound (ELBO) of log p(x), averaged over K samples.

        E_q[log p(x|z)] - beta KL(q(z|x) || p(z))

    Three forms of the same bound, equal in expectation: the KL in closed form (the L^B of Kingma & Welling 2014), the
    KL as the mean of log q(z) - log p(z) over the samples (their L^A), and E_q[log p(x, z)] plus the entropy of q in
    closed form.

    Args:
        vae: the model.
        estimator: how its gradient is estimated; by default `estimators.pathwise()`.
        num_samples: K, samples of z for each example.
        kl: "analytic", "sampled" or "entropy".
        beta: weight of the KL, a number or a function of the step (an optax schedule). The value is a bound on log p(x)
            where beta is at least 1.
        chunk_size: how many of the K samples are evaluated at once, which sets the memory; None: all of them. See
            `monte_carlo.over_samples`.

    Returns:
        `(params, key, x, *, step=None) -> (value, info)`. x has shape (*batch, *data_shape); the value is the mean over
        the batch, in nats per example. Under `jit`, an example outside the likelihood's support makes it NaN.

    Raises:
        ValueError: if an option is unknown or a number out of range. The objective, when called, if the data are not
            the model's, the batch is empty, beta is a schedule and no step is given, q has no closed form where one is
            needed, the parameters of a trained baseline are missing, or the estimator cannot serve q or K.

    >>> import jax
    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> elbo = make_elbo(vae, estimators.score_function(baseline="leave_one_out"), num_samples=4)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> grads, info = jax.grad(elbo, has_aux=True)(params, jax.random.key(1), x)
    >>> info.per_example.shape, info.log_w.shape
    ((7,), (4, 7))

    Source: Kingma & Welling 2014; for beta, Higgins et al. 2017.
    """
    return make_bound(vae, estimators.mean_reduction(), estimator, num_samples, kl, beta, chunk_size)


def make_iwae(
    vae: VAE,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 50,
    *,
    beta: Weight = 1.0,
    chunk_size: int | None = None,
) -> Objective:
    """Importance-weighted bound on log p(x), from K samples z_k of q.

        log (1/K) sum_k w_k,  w_k = p(x|z_k) (p(z_k) / q(z_k|x))^beta

    With K = 1 it is the ELBO with the sampled KL; it rises with K towards log p(x).

    Args:
        vae: the model.
        estimator: how its gradient is estimated; by default `estimators.pathwise()`.
        num_samples: K. A bound must be reported with its K.
        beta: weight of the KL, a number or a function of the step.
        chunk_size: as in `make_elbo`.

    Returns:
        An objective, as `make_elbo` does.

    Raises:
        ValueError: as `make_elbo`.

    >>> import jax
    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> value, info = make_iwae(vae, num_samples=8)(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> bool(value >= info.elbo)
    True

    Source: Burda, Grosse & Salakhutdinov 2015, "Importance weighted autoencoders".
    """
    return make_bound(vae, estimators.log_mean_exp_reduction(), estimator, num_samples, "sampled", beta, chunk_size)


def make_renyi(
    vae: VAE,
    alpha: float,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 50,
    *,
    chunk_size: int | None = None,
) -> Objective:
    """Variational Renyi bound: the log of a power mean of the K importance weights.

        1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha),  w_k = p(x, z_k) / q(z_k|x),  z_k ~ q(z|x)

    At alpha = 0 it is the importance-weighted bound, at alpha = 1 the ELBO; the larger alpha, the lower the value. With
    alpha below 0 the value lies above the importance-weighted bound, and in the limit K -> infinity above log p(x), so
    it is no bound. At alpha = -inf it is the largest of the K log-weights, at inf the smallest.

    Args:
        vae: the model.
        alpha: the order, a number or -inf or inf; 1 gives the ELBO with the sampled KL.
        estimator: how its gradient is estimated; by default `estimators.pathwise()`.
        num_samples: K. A bound must be reported with its K.
        chunk_size: as in `make_elbo`.

    Returns:
        An objective, as `make_elbo` does.

    Raises:
        ValueError: as `make_elbo`; and if alpha is not a number.

    >>> import jax
    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, key, x = vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3))
    >>> half, iwae = make_renyi(vae, 0.5, num_samples=8), make_iwae(vae, num_samples=8)
    >>> bool(half(params, jax.random.clone(key), x)[0] < iwae(params, key, x)[0])
    True

    Source: Li & Turner 2016, "Renyi divergence variational inference".
    """
    return make_bound(vae, estimators.renyi_reduction(alpha), estimator, num_samples, chunk_size=chunk_size)


def make_linear_elbo(vae: VAE) -> Objective:
    """Evidence lower bound of a linear VAE with Gaussian likelihood in closed form: no sample is drawn.

        E_q log p(x|z) = log N(x; W m + b, s^2 I) - sum_j std_j^2 |W_j|^2 / (2 s^2),  q = N(m, diag(std^2))

    Args:
        vae: a `models.linear_vae` with a standard deviation s that does not depend on z, as its default has.

    Returns:
        An objective, as `make_elbo` does, whose key is not used; `info.ess` is 1, and `info.log_w` the bound itself.

    Raises:
        ValueError: when it is called, if the decoder is not linear or the likelihood another, or the data are not the
            model's.

    >>> import jax
    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> value, info = make_linear_elbo(vae)(vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> info.per_example.shape
    (7,)

    Source: Lucas, Tucker, Grosse & Norouzi 2019, "Don't blame the ELBO!".
    """
    checks.check_model(vae)

    def bounds(params: Params, key: Key[Array, ""], x: Batch | ArrayLike, *, step: ArrayLike | None = None):
        del key, step
        model, x = models.given(vae, x)
        x = checks.as_array(x)
        q, prior = model.encode(params, x), model.prior(params)
        models.check_distributions(x, q, prior)
        kl = distributions.kl_divergence(q, prior)
        p = model.decode(params, q.mean)
        kernel: Any = networks.linear_kernel(params["decoder"]["network"])
        normal: Any = distributions.family_of(p)
        if kernel.shape[0] != math.prod(q.event_shape):
            raise ValueError(
                "the closed form needs latents that the decoder sees as they are; got q = "
                f"{distributions.name_of(q)}, which it sees one-hot. Use make_elbo, which draws samples"
            )
        if not isinstance(normal, dist.Normal) or kernel.shape[1] != math.prod(p.event_shape):
            raise ValueError(
                "the closed form needs a Gaussian likelihood whose std does not depend on z: expected likelihood="
                "'gaussian_shared_std' or 'gaussian_fixed_std'; got one that needs "
                f"{kernel.shape[1] // math.prod(p.event_shape)} outputs of the decoder for each number of the data, or "
                f"{distributions.name_of(p)}. Use make_elbo, which draws samples"
            )
        spread = (jnp.asarray(q.variance) @ kernel**2).reshape(*q.batch_shape, *p.event_shape)
        mask = distributions.mask_of(p)
        spread = spread if mask is None else jnp.where(mask, spread, 0)
        axes = tuple(range(-len(p.event_shape), 0))
        reconstruction = distributions.data_log_prob(p, jnp.asarray(x)) - 0.5 * (
            spread / jnp.asarray(normal.scale) ** 2
        ).sum(axes)
        elbo = reconstruction - kl
        value = elbo.mean()
        return elbo, (value, objective_info(value, elbo, elbo, reconstruction, kl, elbo[None]))

    return objective_of(bounds, is_mean=True)
