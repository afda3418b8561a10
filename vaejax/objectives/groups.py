"""Bounds of groups of samples, between the ELBO and the importance-weighted bound: MIWAE, PIWAE and CIWAE.

More samples make the importance-weighted bound tighter and the encoder's pathwise gradient noisier, relative to its
size. These give the encoder a looser bound to follow.
"""

from typing import Any

import jax
from jax import lax
from jaxtyping import Array, ArrayLike, Key

from vaejax import checks, estimators
from vaejax.distributions import Params
from vaejax.estimators import EstimateFunction, Estimator, monte_carlo
from vaejax.models import VAE, Batch
from vaejax.objectives.bounds import make_bound, make_iwae
from vaejax.objectives.objective import Objective, objective_of, per_example
from vaejax.objectives.weights import Weight

# What the encoder's bound trains: q(z|x), and the baseline that goes with it.
_OF_ENCODER = ("encoder", "baseline")


def make_miwae(
    vae: VAE,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 64,
    num_groups: int = 8,
    *,
    beta: Weight = 1.0,
    chunk_size: int | None = None,
) -> Objective:
    """The mean of M importance-weighted bounds of K / M samples each (MIWAE).

        (1/M) sum_m log (1/L) sum_l w_{m, l},  K = M L

    With one group it is `make_iwae`, with as many groups as samples the ELBO with the sampled KL.

    Args:
        vae: the model.
        estimator: how its gradient is estimated; by default `estimators.pathwise()`.
        num_samples: K, samples of z for each example, of all groups together.
        num_groups: M, which divides K. A bound must be reported with its K and M: the paper's MIWAE(M, L) draws M L.
        beta: weight of the KL, a number or a function of the step.
        chunk_size: as in `make_elbo`.

    Returns:
        An objective, as `make_elbo` does.

    Raises:
        ValueError: as `make_elbo`; and if the groups do not divide the samples.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, key, x = vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3))
    >>> miwae, info = make_miwae(vae, num_samples=8, num_groups=2)(params, key, x)
    >>> bool(info.elbo < miwae < make_iwae(vae, num_samples=8)(params, jax.random.clone(key), x)[0])
    True

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better".
    """
    _check_groups(num_samples, num_groups)
    reduction = estimators.grouped_reduction(num_groups)
    return make_bound(vae, reduction, estimator, num_samples, "sampled", beta, chunk_size)


def make_ciwae(
    vae: VAE,
    elbo_weight: float,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 50,
    *,
    beta: Weight = 1.0,
    chunk_size: int | None = None,
) -> Objective:
    """A convex combination of the ELBO and the importance-weighted bound of the same samples (CIWAE).

        elbo_weight (1/K) sum_k log w_k + (1 - elbo_weight) log (1/K) sum_k w_k

    Args:
        vae: the model.
        elbo_weight: the paper's beta, from 0, where it is `make_iwae`, to 1, where it is the ELBO.
        estimator: how its gradient is estimated; by default `estimators.pathwise()`.
        num_samples: K. A bound must be reported with its K.
        beta: weight of the KL, a number or a function of the step; not the paper's beta.
        chunk_size: as in `make_elbo`.

    Returns:
        An objective, as `make_elbo` does.

    Raises:
        ValueError: as `make_elbo`; and if elbo_weight is not a number from 0 to 1.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, key, x = vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3))
    >>> ciwae, info = make_ciwae(vae, 0.05, num_samples=8)(params, key, x)
    >>> bool(info.elbo < ciwae < make_iwae(vae, num_samples=8)(params, jax.random.clone(key), x)[0])
    True

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better".
    """
    checks.check_number("elbo_weight", elbo_weight, least=0, most=1, advice="it is the ELBO's share")
    mean, whole = estimators.mean_reduction(), estimators.log_mean_exp_reduction()
    reduction = estimators.combined_reduction(mean, whole, elbo_weight)
    return make_bound(vae, reduction, estimator, num_samples, "sampled", beta, chunk_size)


def make_piwae(
    vae: VAE,
    estimator: Estimator | EstimateFunction | None = None,
    num_samples: int = 64,
    num_groups: int = 8,
    *,
    beta: Weight = 1.0,
    chunk_size: int | None = None,
) -> Objective:
    """Two bounds of the same samples: the encoder follows MIWAE, all else the importance-weighted bound (PIWAE).

    The value is the importance-weighted bound of all K samples. *Its gradient is not that of one number*: the encoder's
    is that of `make_miwae`, the others' that of `make_iwae`. Both are evaluated, and a compiled program shares what
    they have in common.

    Args:
        vae: the model, whose encoder's parameters are `params["encoder"]`.
        estimator: how both gradients are estimated; by default `estimators.pathwise()`.
        num_samples: K, samples of z for each example, of all groups together.
        num_groups: M, which divides K.
        beta: weight of the KL, a number or a function of the step.
        chunk_size: as in `make_elbo`.

    Returns:
        An objective, as `make_elbo` does.

    Raises:
        ValueError: as `make_miwae`.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> vae = models.mlp_vae(data_shape=(3,), latent_dim=2, hidden_sizes=(5,))
    >>> params, key, x = vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3))
    >>> value, info = make_piwae(vae, num_samples=8, num_groups=2)(params, key, x)
    >>> bool(value == make_iwae(vae, num_samples=8)(params, jax.random.clone(key), x)[0])
    True

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better".
    """
    options: dict[str, Any] = {"beta": beta, "chunk_size": chunk_size}
    of_encoder = per_example(make_miwae(vae, estimator, num_samples, num_groups, **options))
    of_others = per_example(make_iwae(vae, estimator, num_samples, **options))

    def bounds(params: Params, key: Key[Array, ""], x: Batch | ArrayLike, *, step: ArrayLike | None = None):
        def held(is_held: bool) -> Params:
            """The parameters, those of the encoder or the others without gradient."""
            return {
                name: lax.stop_gradient(part) if (name in _OF_ENCODER) == is_held else part
                for name, part in params.items()
            }

        bound, info = of_others(held(True), key, x, step=step)
        surrogate, _ = of_encoder(held(False), jax.random.clone(key), x, step=step)
        bound = monte_carlo.with_gradient_of(bound, surrogate)
        return bound, (bound.mean(), info)

    return objective_of(bounds, is_mean=True)


def _check_groups(num_samples: int, num_groups: int) -> None:
    checks.check_counts(num_samples=num_samples, num_groups=num_groups)
    checks.check_divides("num_samples", num_samples, num_groups, "groups")
