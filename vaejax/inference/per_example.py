"""The best q(z|x) of the family: fitted for each example, or one for all; and what the encoder's q falls short of it."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, evaluation, models, training
from vaejax.distributions import LOG_STD_BOUND, Params
from vaejax.estimators import monte_carlo
from vaejax.models import VAE


class FittedPosterior(NamedTuple):
    """Gaussians of independent units, one for each example, each fitted by itself.

    Attributes:
        q: the distribution, of batch shape (*batch,).
        elbo: of each example under its own q, by samples drawn after the fit, nats. (*batch,)
        standard_error: of the ELBO, over the samples. (*batch,)
        num_steps: of gradient ascent.
    """

    q: dist.Distribution
    elbo: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    num_steps: int


class InferenceGap(NamedTuple):
    """How far the ELBO is from log p(x), and why; means over examples with their standard errors, in nats.

    gap = approximation + amortization, for each example and so for the means.

    Attributes:
        gap: log p(x) - ELBO of the encoder's q.
        approximation: log p(x) - ELBO of the best q of the family: what Gaussians of independent units cannot do.
        amortization: the rest: what the encoder loses by serving all examples with one network.
        log_likelihood: mean of log p(x), by importance sampling from the best q.
        per_example: gap, approximation and amortization of each. (3, n)
    """

    gap: evaluation.Average
    approximation: evaluation.Average
    amortization: evaluation.Average
    log_likelihood: evaluation.Average
    per_example: Float[Array, "3 n"]


def fit_posterior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    *,
    num_steps: int = 1000,
    num_samples: int = 8,
    learning_rate: float = 0.05,
    start: dist.Distribution | None = None,
    eval_samples: int = 1000,
    batch_size: int = 100,
) -> FittedPosterior:
    """Variational inference as it was before amortization: for each example a Gaussian of its own, by gradient ascent.

    Adam ascends the ELBO of each example in the mean and log std of its q, with the reparameterized gradient that
    sticks the landing, whose noise dies out as q nears the posterior; the rate falls to 0 along a cosine.

    Args:
        vae: the model, with a continuous code and a normal prior's support.
        params: its parameters, which stay.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape).
        num_steps: of gradient ascent.
        num_samples: of z for each gradient.
        learning_rate: at the start.
        start: where to start, normal, of batch shape (*batch,) or (); by default the encoder's q. From several starts
            the best of several modes may be had.
        eval_samples: for the ELBO that is returned.
        batch_size: examples at once.

    Raises:
        ValueError: if a number is out of range, the code is discrete, `start` is of another shape or not normal, or x
            is refused by `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> fit_posterior(vae, params, jax.random.key(1), x, num_steps=100).q.batch_shape
    (7,)

    Source: Hoffman et al. 2013, "Stochastic variational inference"; Cremer, Li & Duvenaud 2018.
    """
    counts = {
        "num_steps": num_steps,
        "num_samples": num_samples,
        "eval_samples": eval_samples,
        "batch_size": batch_size,
    }
    for name, number in counts.items():
        checks.check_count(name, number)
    _check_rate(learning_rate)
    models.check_data(vae, params, x)
    x = jnp.asarray(x)
    check_continuous(vae, params)
    encoded = vae.encode(params, x)
    start = encoded if start is None else start
    if not isinstance(distributions.without_wrappers(start), dist.Normal):
        raise ValueError(f"expected a normal start, of independent units; got {distributions.name_of(start)}")
    if start.batch_shape not in ((), encoded.batch_shape) or start.event_shape != encoded.event_shape:
        raise ValueError(
            f"expected a start of batch shape {encoded.batch_shape} or () and event shape {encoded.event_shape}; got "
            f"{start.batch_shape} and {start.event_shape}"
        )
    shape = (*encoded.batch_shape, *encoded.event_shape)
    mean, std = (jnp.broadcast_to(jnp.asarray(part), shape) for part in (start.mean, jnp.sqrt(start.variance)))
    settings = (num_steps, num_samples, learning_rate, eval_samples, batch_size)
    mean, log_std, elbo, error = _fit(vae, settings, params, key, x, mean, jnp.log(std))
    q = dist.Normal(mean, jnp.exp(log_std)).to_event(1)
    return FittedPosterior(q, elbo, error, num_steps)


def fit_shared_posterior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    *,
    num_steps: int = 2000,
    batch_size: int = 100,
    learning_rate: float = 0.02,
    eval_samples: int = 100,
) -> FittedPosterior:
    """One Gaussian q(z) for all examples: what is lost if q is not conditioned on x.

    Args:
        vae: the model.
        params: its parameters, which stay.
        key: consumed.
        x: data, (n, *data_shape).
        num_steps: of gradient ascent, on one batch and one sample for each example each.
        batch_size: examples in a batch.
        learning_rate: at the start; it falls to 0 along a cosine.
        eval_samples: for the ELBO of each example.

    Returns:
        `q` of batch shape (), and the ELBO of each example under it.

    Raises:
        ValueError: as `fit_posterior`.
    """
    counts = {"num_steps": num_steps, "eval_samples": eval_samples, "batch_size": batch_size}
    for name, number in counts.items():
        checks.check_count(name, number)
    _check_rate(learning_rate)
    models.check_data(vae, params, x)
    check_continuous(vae, params)
    x = models.with_batch_axis(vae, params, x)
    settings = (num_steps, min(batch_size, len(x)), learning_rate, eval_samples)
    mean, log_std, elbo, error = _fit_shared(vae, settings, params, key, x)
    return FittedPosterior(dist.Normal(mean, jnp.exp(log_std)).to_event(1), elbo, error, num_steps)


def inference_gap(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: ArrayLike,
    *,
    num_steps: int = 1000,
    num_samples: int = 5000,
    batch_size: int = 100,
) -> InferenceGap:
    """The gap between log p(x) and the ELBO, split into what the family of q and what amortization costs.

    Log p(x) is importance-sampled from the best q, which is at least as good a proposal as the encoder's.

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), n >= 2.
        num_steps: of `fit_posterior`, which starts at the encoder's q.
        num_samples: K of log p(x), and samples of each ELBO.
        batch_size: examples at once.

    Raises:
        ValueError: as `fit_posterior`.

    Source: Cremer, Li & Duvenaud 2018, "Inference suboptimality in variational autoencoders".
    """
    checks.check_count("num_samples", num_samples)
    fit_key, elbo_key, likelihood_key = jax.random.split(key, 3)
    best = fit_posterior(vae, params, fit_key, x, num_steps=num_steps, eval_samples=num_samples, batch_size=batch_size)
    amortized = evaluation.elbo(vae, params, elbo_key, x, num_samples, batch_size=batch_size)
    likelihood = evaluation.log_likelihood_from(
        vae, params, likelihood_key, x, best.q, num_samples, batch_size=batch_size
    )
    parts = (
        (likelihood.estimate - amortized.estimate, likelihood.standard_error, amortized.standard_error),
        (likelihood.estimate - best.elbo, likelihood.standard_error, best.standard_error),
        (best.elbo - amortized.estimate, best.standard_error, amortized.standard_error),
    )
    gap, approximation, amortization = (
        evaluation.average(_Sampled(part, jnp.hypot(*errors))) for part, *errors in parts
    )
    per_example = jnp.stack([part for part, *_ in parts])
    return InferenceGap(gap, approximation, amortization, evaluation.average(likelihood), per_example)


class _Sampled(NamedTuple):
    estimate: Array
    standard_error: Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit(vae, settings, params, key, x, mean, log_std):
    num_steps, num_samples, learning_rate, eval_samples, batch_size = settings
    batch_shape, latent_shape = mean.shape[:-1], mean.shape[-1:]
    mean, log_std = mean.reshape(-1, *latent_shape), log_std.reshape(-1, *latent_shape)
    x = x.reshape(len(mean), *x.shape[len(batch_shape) :])
    prior = vae.prior(params)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def one_example(index_and_start):
        index, x, mean, log_std = index_and_start
        example_key = jax.random.fold_in(key, index)

        def log_w(free, detached, key):
            q, at_rest = (dist.Normal(m, jnp.exp(s)).to_event(1) for m, s in (free, detached))
            z = q.rsample(key)
            likelihood = distributions.data_log_prob(vae.decode(params, z), x)
            return likelihood + distributions.log_prob(prior, z) - distributions.log_prob(at_rest, z)

        def elbo(free, key):
            detached = lax.stop_gradient(free)
            return monte_carlo.over_samples(lambda key: log_w(free, detached, key), key, num_samples).mean()

        def step(carry, number):
            free, opt_state = carry
            step_key = jax.random.fold_in(example_key, number)
            (mean, log_std), opt_state, _ = training.ascend(
                lambda free: (elbo(free, step_key), None), optimizer, free, opt_state
            )
            return ((mean, jnp.clip(log_std, -LOG_STD_BOUND, LOG_STD_BOUND)), opt_state), None

        free = (mean, log_std)
        (free, _), _ = lax.scan(step, (free, optimizer.init(free)), jnp.arange(num_steps))
        final_key = jax.random.fold_in(example_key, num_steps)
        terms = monte_carlo.over_samples(lambda key: log_w(free, free, key), final_key, eval_samples, chunk_size=50)
        return *free, *_mean_and_error(terms)

    results = monte_carlo.over_examples(one_example, (jnp.arange(len(x)), x, mean, log_std), batch_size)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), results)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit_shared(vae, settings, params, key, x):
    num_steps, batch_size, learning_rate, eval_samples = settings
    prior = vae.prior(params)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    fit_key, eval_key = jax.random.split(key)

    def log_w(free, x, key):
        q = dist.Normal(free[0], jnp.exp(free[1])).to_event(1)
        z = q.rsample(key)
        likelihood = distributions.data_log_prob(vae.decode(params, z), x)
        return likelihood + distributions.log_prob(prior, z) - distributions.log_prob(q, z)

    def step(carry, number):
        free, opt_state = carry
        rows_key, noise_key = jax.random.split(jax.random.fold_in(fit_key, number))
        rows = jax.random.choice(rows_key, len(x), (batch_size,), replace=False)
        keys = jax.random.split(noise_key, batch_size)

        def elbo(free):
            return jax.vmap(lambda x, key: log_w(free, x, key))(x[rows], keys).mean(), None

        return training.ascend(elbo, optimizer, free, opt_state)[:2], None

    zeros = jnp.zeros(prior.event_shape, jnp.asarray(prior.mean).dtype)
    (free, _), _ = lax.scan(step, ((zeros, zeros), optimizer.init((zeros, zeros))), jnp.arange(num_steps))

    def evaluate(index_and_x):
        index, x = index_and_x
        key = jax.random.fold_in(eval_key, index)
        terms = monte_carlo.over_samples(lambda key: log_w(free, x, key), key, eval_samples, chunk_size=50)
        return _mean_and_error(terms)

    return (*free, *monte_carlo.over_examples(evaluate, (jnp.arange(len(x)), x), 100))


def _mean_and_error(terms: Float[Array, " n"]) -> tuple[Array, Array]:
    number = terms.shape[0]
    error = terms.std(ddof=1) / math.sqrt(number) if number > 1 else jnp.full_like(terms[0], math.nan)
    return terms.mean(), error


def _check_rate(learning_rate: float) -> None:
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a positive number; got {learning_rate!r}")


def check_continuous(vae: VAE, params: Params) -> None:
    """Refuse a discrete code.

    Raises:
        ValueError: if the prior is discrete.
    """
    prior = vae.prior(params)
    if prior.is_discrete:
        raise ValueError(
            f"expected a continuous code; got a discrete one, {distributions.name_of(prior)}: its posterior can be "
            "enumerated, or estimated by importance sampling"
        )
