"""The best Gaussian q(z): fitted for each example, or one for all; and how far the encoder's q(z|x) is from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, evaluation, models, records, training
from vaejax.distributions import LOG_STD_BOUND, Params
from vaejax.estimators import monte_carlo
from vaejax.evaluation import representation
from vaejax.models import VAE, Batch
from vaejax.models.programs import compiled

DISCRETE = "enumerate their posterior, or estimate log p(x) by importance sampling"  # what to do instead


class FittedPosterior(NamedTuple):
    """Gaussians of independent units, one for each example or one for all.

    Attributes:
        q: the distribution, of batch shape (*batch,); of batch shape () if it is one for all.
        elbo: of each example under q, from samples that are drawn after the fit, in nats. (*batch,)
        standard_error: of the ELBO over the samples. (*batch,)
        num_steps: steps of gradient ascent.

    >>> fitted = FittedPosterior(dist.Normal(jnp.zeros((7, 2)), 1.0).to_event(1), -90 * jnp.ones(7), jnp.ones(7), 1000)
    >>> fitted.q.batch_shape, fitted.q.mean[3].tolist()  # a Gaussian for each of 7 examples; the mean of one of them
    ((7,), [0.0, 0.0])
    """

    q: dist.Distribution
    elbo: Float[Array, " *batch"]
    standard_error: Float[Array, " *batch"]
    num_steps: int

    __repr__ = records.short_repr


class InferenceGap(NamedTuple):
    """How far the ELBO is below log p(x), and why; means over examples with their standard errors, in nats.

    Attributes:
        gap: log p(x) - ELBO of the encoder's q; approximation + amortization, for each example and for the means.
        approximation: log p(x) - ELBO of the best q: the cost of a q that is a Gaussian of independent units.
        amortization: ELBO of the best q - ELBO of the encoder's q: the cost of one network for all examples.
        log_likelihood: mean of log p(x), by importance sampling from the best q.
        per_example: gap, approximation and amortization of each example. (3, n)

    >>> parts = (evaluation.Average(*jnp.array([nats, 0.1, 0.1])) for nats in (4.0, 1.0, 3.0, -90.0))
    >>> found = InferenceGap(*parts, per_example=jnp.array([[4.0, 4.0], [1.0, 1.0], [3.0, 3.0]]))
    >>> float(found.amortization.estimate / found.gap.estimate)  # the share of the gap that a better encoder can close
    0.75
    """

    gap: evaluation.Average
    approximation: evaluation.Average
    amortization: evaluation.Average
    log_likelihood: evaluation.Average
    per_example: Float[Array, "3 n"]

    __repr__ = records.short_repr


def fit_posterior(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    *,
    num_steps: int = 1000,
    num_samples: int = 8,
    learning_rate: float = 0.05,
    start: dist.Distribution | None = None,
    eval_samples: int = 1000,
    batch_size: int = 100,
) -> FittedPosterior:
    """Variational inference without an encoder: the Gaussian q(z) of highest ELBO for each example, by gradient ascent.

    For each example Adam maximises E_q[log p(x, z) - log q(z)] in the mean and log std of q. The gradient is the
    reparameterized one that sticks the landing, so its noise vanishes as q nears the posterior.

    Args:
        vae: the model, with continuous latents on the whole real line.
        params: its parameters, which are not changed.
        key: example i uses `fold_in(key, i)`.
        x: data, (*batch, *data_shape), or a `models.Batch`.
        num_steps: steps of gradient ascent.
        num_samples: samples of z for each gradient.
        learning_rate: at the start; it falls to 0 along a cosine.
        start: where to start, normal, of batch shape (*batch,) or (); by default the mean and variance of the encoder's
            q. Where the posterior has several modes, fits from several starts may find different ones.
        eval_samples: for the ELBO that is returned.
        batch_size: examples at once.

    Returns:
        The fitted q of each example, and the ELBO under it in nats.

    Raises:
        ValueError: if a number is out of range, the latents are discrete, `start` is of another shape or not normal, or
            `models.check_data` refuses x.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> fit_posterior(vae, params, jax.random.key(1), x, num_steps=100).q.batch_shape
    (7,)

    Source: Hoffman et al. 2013, "Stochastic variational inference"; Cremer, Li & Duvenaud 2018.
    """
    counts = {"num_samples": num_samples, "eval_samples": eval_samples, "batch_size": batch_size}
    x = _checked(vae, params, x, learning_rate, key=key, num_steps=num_steps, **counts)
    model, numbers = models.given(vae, x)
    encoded = model.encode(params, numbers)
    if start is None:
        if not representation.has_moments(vae, params, x):
            raise ValueError(f"expected a start, as q(z|x) has no known moments; got {distributions.name_of(encoded)}")
        start = encoded
    elif not isinstance(distributions.without_wrappers(start), dist.Normal):
        raise ValueError(f"expected a normal start, of independent units; got {distributions.name_of(start)}")
    check_start(start, encoded.event_shape, encoded.batch_shape, ())
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
    x: Batch | ArrayLike,
    *,
    num_steps: int = 2000,
    batch_size: int = 100,
    learning_rate: float = 0.02,
    eval_samples: int = 100,
) -> FittedPosterior:
    """One Gaussian q(z) for all examples, the one of highest mean ELBO: what is lost if q does not depend on x.

    Args:
        vae: the model.
        params: its parameters, which are not changed.
        key: consumed.
        x: data, (n, *data_shape), or a `models.Batch`.
        num_steps: steps of gradient ascent, each on one batch with one sample of z for each example.
        batch_size: examples in a batch.
        learning_rate: at the start; it falls to 0 along a cosine.
        eval_samples: for the ELBO of each example.

    Returns:
        `q` of batch shape (), and the ELBO of each example under it in nats, (n,).

    Raises:
        ValueError: as `fit_posterior`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((7, 3))
    >>> shared = fit_shared_posterior(vae, params, jax.random.key(1), x, num_steps=50)
    >>> shared.q.batch_shape, shared.elbo.shape
    ((), (7,))
    """
    counts = {"num_steps": num_steps, "eval_samples": eval_samples, "batch_size": batch_size}
    x = _checked(vae, params, x, learning_rate, least=1, key=key, **counts)
    settings = (num_steps, min(batch_size, evaluation.number_of(x)), learning_rate, eval_samples)
    mean, log_std, elbo, error = _fit_shared(vae, settings, params, key, x)
    return FittedPosterior(dist.Normal(mean, jnp.exp(log_std)).to_event(1), elbo, error, num_steps)


def inference_gap(
    vae: VAE,
    params: Params,
    key: Key[Array, ""],
    x: Batch | ArrayLike,
    *,
    num_steps: int = 1000,
    num_samples: int = 5000,
    batch_size: int = 100,
) -> InferenceGap:
    """The gap between log p(x) and the ELBO, split into the cost of q's family and the cost of amortization.

    The best q comes from `fit_posterior`. Log p(x) is importance-sampled from it, no worse a proposal than q(z|x).

    Args:
        vae: the model.
        params: its parameters.
        key: consumed.
        x: data, (n, *data_shape), n >= 2, or a `models.Batch`.
        num_steps: of `fit_posterior`, which starts at the encoder's q.
        num_samples: K of log p(x), and samples of each ELBO.
        batch_size: examples at once.

    Returns:
        The gap and its two parts in nats, averaged over examples and for each example.

    Raises:
        ValueError: as `fit_posterior`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.eye(3)
    >>> inference_gap(vae, params, jax.random.key(1), x, num_steps=50, num_samples=100).per_example.shape
    (3, 3)

    Source: Cremer, Li & Duvenaud 2018, "Inference suboptimality in variational autoencoders".
    """
    checks.check_given(vae=vae, params=params, key=key, num_samples=num_samples)
    fit_key, elbo_key, likelihood_key = jax.random.split(key, 3)
    best = fit_posterior(vae, params, fit_key, x, num_steps=num_steps, eval_samples=num_samples, batch_size=batch_size)
    amortized = evaluation.elbo(vae, params, elbo_key, x, num_samples, batch_size=batch_size)
    likelihood = evaluation.log_likelihood_from(
        vae, params, likelihood_key, x, best.q, num_samples, batch_size=batch_size
    )
    parts = (
        (
            likelihood.estimate - amortized.estimate,
            likelihood.bias,
            likelihood.standard_error,
            amortized.standard_error,
        ),
        (likelihood.estimate - best.elbo, likelihood.bias, likelihood.standard_error, best.standard_error),
        (best.elbo - amortized.estimate, None, best.standard_error, amortized.standard_error),
    )
    gap, approximation, amortization = (
        evaluation.average(_Sampled(part, jnp.hypot(*errors), bias)) for part, bias, *errors in parts
    )
    per_example = jnp.stack([part for part, *_ in parts])
    return InferenceGap(gap, approximation, amortization, evaluation.average(likelihood), per_example)


class _Sampled(NamedTuple):
    estimate: Array
    standard_error: Array
    bias: Array | None


@compiled(0, 1)
def _fit(vae, settings, params, key, x, mean, log_std):
    num_steps, num_samples, learning_rate, eval_samples, batch_size = settings
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def one_example(index, x, mean, log_std):
        example_key = jax.random.fold_in(key, index)
        model, x = models.given(vae, x)
        prior = model.prior(params)

        def log_w(free, detached, key):
            q, at_rest = (dist.Normal(m, jnp.exp(s)).to_event(1) for m, s in (free, detached))
            z = q.rsample(key)
            likelihood = distributions.data_log_prob(model.decode(params, z), x)
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
        return *free, *evaluation.mean_and_error(terms)

    return evaluation.over_batch(one_example, vae, params, x, batch_size, mean, log_std)


@compiled(0, 1)
def _fit_shared(vae, settings, params, key, x):
    num_steps, batch_size, learning_rate, eval_samples = settings
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    fit_key, eval_key = jax.random.split(key)

    def log_w(free, x, key):
        q = dist.Normal(free[0], jnp.exp(free[1])).to_event(1)
        z = q.rsample(key)
        model, x = models.given(vae, x)
        likelihood = distributions.data_log_prob(model.decode(params, z), x)
        return likelihood + distributions.log_prob(model.prior(params), z) - distributions.log_prob(q, z)

    def step(carry, number):
        free, opt_state = carry
        rows_key, noise_key = jax.random.split(jax.random.fold_in(fit_key, number))
        rows = jax.random.choice(rows_key, evaluation.number_of(x), (batch_size,), replace=False)
        keys = jax.random.split(noise_key, batch_size)
        batch = jax.tree.map(lambda leaf: leaf[rows], x)

        def elbo(free):
            return jax.vmap(lambda x, key: log_w(free, x, key))(batch, keys).mean(), None

        return training.ascend(elbo, optimizer, free, opt_state)[:2], None

    event_shape = evaluation.like_posterior(vae, params, x).event_shape
    zeros = jnp.zeros(event_shape, evaluation.latent_dtype(vae, params, x))
    (free, _), _ = lax.scan(step, ((zeros, zeros), optimizer.init((zeros, zeros))), jnp.arange(num_steps))

    def evaluate(index, x):
        key = jax.random.fold_in(eval_key, index)
        terms = monte_carlo.over_samples(lambda key: log_w(free, x, key), key, eval_samples, chunk_size=50)
        return evaluation.mean_and_error(terms)

    return *free, *evaluation.over_batch(evaluate, vae, params, x, 100)


def _checked(vae: VAE, params: Params, x: Batch | ArrayLike, learning_rate: float, least: int = 0, **given: Any) -> Any:
    checks.check_number("learning_rate", learning_rate, above=0)
    x = evaluation.checked_examples(vae, params, x, least, **given)
    evaluation.check_continuous(models.given(vae, x)[0], params, DISCRETE)
    return x


def check_start(start: dist.Distribution, event_shape: tuple[int, ...], *batch_shapes: tuple[int, ...]) -> None:
    """Refuse a start of another event shape, or of none of the batch shapes."""
    checks.check_kind("start", start, dist.Distribution, "a distribution of the latents")
    if start.event_shape != event_shape or start.batch_shape not in batch_shapes:
        raise ValueError(
            f"expected a start of batch shape {' or '.join(map(str, batch_shapes))} and event shape {event_shape}; got "
            f"{start.batch_shape} and {start.event_shape}"
        )
