"""Log p(x) and the ELBO of each example by sampling, with error bars; and log p(x) without a latent, for comparison."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks
from vaejax.distributions import Params
from vaejax.evaluation import sampling
from vaejax.evaluation.estimates import Elbo, LogLikelihood
from vaejax.evaluation.examples import checked_examples, like_posterior
from vaejax.models import VAE, Batch, Functions


def log_likelihood(
    vae: VAE | Functions,
    params: Params | None,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    num_samples: int = 5000,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> LogLikelihood:
    """Importance-sampled log p(x) of each example, with the encoder's q(z|x) as the proposal.

    log p(x) = log E_q[p(x, z) / q(z|x)] is estimated by log (1/K) sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x): in
    expectation a lower bound. A warning is logged with the number of examples where the weights say that the estimate
    cannot be trusted (`is_trustworthy`); and where K is below 25, because then they cannot say.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape), or a `models.Batch`.
        num_samples: K, samples of z for each example.
        chunk_size: samples evaluated at once.
        batch_size: examples evaluated at once; memory grows with chunk_size * batch_size and with nothing else.

    Returns:
        Estimate in nats, standard error, effective sample size and Pareto index of each example. Compiled once for each
        shape of x.

    Raises:
        ValueError: if a number is not a positive integer, or `models.check_data` refuses x.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = log_likelihood(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)), num_samples=100)
    >>> result.estimate.shape, result.num_samples
    ((7,), 100)

    Source: Burda, Grosse & Salakhutdinov 2015, section 5; the standard error is the delta method's.
    """
    return sampling.log_likelihoods(sampling.ENCODER, vae, params, key, x, (num_samples,), chunk_size, batch_size)[0]


def log_likelihood_sweep(
    vae: VAE | Functions,
    params: Params | None,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    num_samples: Sequence[int] = (1, 10, 100, 1000, 5000),
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> tuple[LogLikelihood, ...]:
    """The importance-weighted bound for each K of a list, from one set of samples: how it rises to log p(x).

    For each K the samples of the largest K are cut into groups of K. The estimate is the mean of the groups' bounds,
    and its standard error comes from their scatter; where there is only one group, it is the delta method's. The bounds
    of two K share samples, so they are not independent.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`; the largest K has the numbers that `log_likelihood` has.
        x: data, (*batch, *data_shape), or a `models.Batch`.
        num_samples: the K.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Returns:
        One record for each K, in the order given; `ess` is the mean over the groups, `pareto_index` that of all
        samples. A warning is logged as by `log_likelihood`.

    Raises:
        ValueError: as `log_likelihood`; and if no K is given.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> from vaejax.evaluation import average
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> one, hundred = log_likelihood_sweep(vae, params, jax.random.key(1), x, (1, 100))
    >>> bool(average(one).estimate < average(hundred).estimate)
    True
    """
    if not isinstance(num_samples, Sequence) or isinstance(num_samples, str) or not len(num_samples):
        raise ValueError(
            "num_samples must be a list of one or more numbers of samples; got "
            f"{checks.describe(num_samples)}: for one number use log_likelihood"
        )
    return sampling.log_likelihoods(sampling.ENCODER, vae, params, key, x, tuple(num_samples), chunk_size, batch_size)


def log_likelihood_from_prior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    num_samples: int = 5000,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> LogLikelihood:
    """The naive log p(x) = log E_p(z)[p(x|z)] with samples of the prior, which needs no q(z|x) and far more samples.

    In the limit of many samples it agrees with `log_likelihood`. At any K that one can afford almost no latent from the
    prior explains x: the effective sample size is near 1, and the estimate is far below log p(x).

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape), or a `models.Batch`.
        num_samples: K.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Returns:
        As `log_likelihood`.

    Raises:
        ValueError: as `log_likelihood`.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> log_likelihood_from_prior(vae, params, jax.random.key(1), x, 100).estimate.shape
    (7,)
    """
    return sampling.log_likelihoods(sampling.PRIOR, vae, params, key, x, (num_samples,), chunk_size, batch_size)[0]


def log_likelihood_from(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    q: dist.Distribution,
    num_samples: int = 5000,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> LogLikelihood:
    """Importance-sampled log p(x) from a q of your own for each example, such as `inference.fit_posterior` finds.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape), or a `models.Batch`.
        q: any distribution of batch shape (*batch,) that can be sampled, such as a normal of full covariance or a
            mixture. Make its arrays of full shape, without `expand`.
        num_samples: K.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Returns:
        As `log_likelihood`.

    Raises:
        ValueError: as `log_likelihood`; and if q is of another shape, or cannot be cut into examples.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> wide = dist.Normal(jnp.zeros((7, 2)), 2.0 * jnp.ones((7, 2))).to_event(1)
    >>> log_likelihood_from(vae, params, jax.random.key(1), x, wide, 100).estimate.shape
    (7,)
    """
    checks.check_given(vae=vae, params=params)
    like = like_posterior(vae, params, x)
    own = sampling.leaves_of_examples(q, like.batch_shape, like.event_shape)
    proposal = sampling.own_proposal(jax.tree.structure(q), len(like.batch_shape))
    return sampling.log_likelihoods(proposal, vae, params, key, x, (num_samples,), chunk_size, batch_size, own=own)[0]


def elbo(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    num_samples: int = 100,
    *,
    chunk_size: int = 50,
    batch_size: int = 100,
) -> Elbo:
    """Evidence lower bound of each example, E_q[log p(x|z)] - KL(q(z|x) || p(z)), and its two parts.

    Args:
        vae: the model.
        params: its parameters.
        key: example i uses `fold_in(key, i)`; with the same key the samples are those of `log_likelihood`.
        x: data, (*batch, *data_shape), or a `models.Batch`.
        num_samples: K, samples of z for each example, over which also the KL is averaged.
        chunk_size: as in `log_likelihood`.
        batch_size: as in `log_likelihood`.

    Returns:
        The bound in nats, its standard error, reconstruction and KL of each example, (*batch,).

    Raises:
        ValueError: as `log_likelihood`.

    >>> import jax.numpy as jnp
    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> result = elbo(vae, vae.init(jax.random.key(0)), jax.random.key(1), jnp.ones((7, 3)))
    >>> bool(jnp.allclose(result.estimate, result.reconstruction - result.kl, atol=1e-4))
    True
    """
    checks.check_count("num_samples", num_samples)
    x = checked_examples(vae, params, x, key=key, chunk_size=chunk_size, batch_size=batch_size)
    first, last = sampling.sampled(
        sampling.ENCODER, vae, num_samples, chunk_size, batch_size, sampling.elbo_and_parts, params, key, x, None
    )
    return Elbo(*first, num_samples, *last)


def independent_log_likelihood(train: ArrayLike, x: ArrayLike) -> Float[Array, " n"]:
    """Log p(x) of binary data under independent Bernoullis, the best model without a latent; in nats per example.

    A VAE whose decoder ignores its latent ends here; one that is not above this number has learned nothing.

    Args:
        train: binary, (m, *data_shape), m >= 1; the Bernoullis' means are its means, kept 1e-4 away from 0 and 1.
        x: binary, (n, *data_shape).

    Returns:
        Log p(x) of each example of x, in nats, (n,).

    Raises:
        ValueError: if the data are not binary, or of different shapes.

    >>> import jax.numpy as jnp
    >>> independent_log_likelihood(jnp.array([[0.0], [1.0]]), jnp.ones((3, 1))).round(4)
    Array([-0.6931, -0.6931, -0.6931], dtype=float32)
    """
    train, x = (jnp.asarray(checks.as_array(data), jnp.result_type(float)) for data in (train, x))
    checks.check_count("the number of training examples", len(jnp.atleast_1d(train)))
    checks.check_shape("data", x.shape, ("n", *train.shape[1:]), "this is the shape of the training data")
    for data in (train, x):
        if not isinstance(data, Tracer):
            values, advice = np.asarray(data), "data.binarize_dynamic draws zeros and ones"
            checks.refuse_values(values, ~np.isin(values, (0, 1)), "expected binary data", "other", advice)
    means = jnp.clip(train.mean(axis=0, keepdims=True), 1e-4, 1 - 1e-4)
    terms = x * jnp.log(means) + (1 - x) * jnp.log1p(-means)
    return terms.reshape(len(x), -1).sum(axis=1)
