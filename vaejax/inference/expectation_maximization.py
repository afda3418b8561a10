"""Exact expectation-maximization of the linear-Gaussian model."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, evaluation, objectives, records, training
from vaejax.distributions import Params
from vaejax.models import VAE, Batch, linear_decoder
from vaejax.training import TrainState, TrainStep


class EMInfo(NamedTuple):
    """What one round of exact EM reports, in nats per example.

    Attributes:
        bound: the ELBO after the E-step, where it equals log p(x). ()
        elbo: the same number. ()
        reconstruction: its part E_q log p(x|z). ()
        kl: its part KL(q(z|x) || p(z)). ()
        elbo_before: the ELBO before the E-step, with the q of the last round. ()
        log_likelihood: log p(x), which the E-step does not change. ()
        elbo_after: the ELBO after the M-step, with the q of the E-step. ()

    >>> info = EMInfo(*jnp.array([-90.0, -90.0, -80.0, 10.0, -93.0, -90.0, -89.0]))
    >>> float(info.elbo - info.elbo_before), float(info.elbo_after - info.elbo)  # what the E-step and the M-step gained
    (3.0, 1.0)
    >>> bool(info.elbo == info.log_likelihood)  # the E-step closes the gap
    True
    """

    bound: Float[Array, ""]
    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]
    kl: Float[Array, ""]
    elbo_before: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    elbo_after: Float[Array, ""]

    __repr__ = records.short_repr


def em(vae: VAE, params: Params, x: Batch | ArrayLike, num_steps: int) -> tuple[Params, EMInfo]:
    """Exact EM of a linear VAE on all of x, in which log p(x) never falls.

    Each round sets q(z|x) to the exact posterior, and then the decoder to where E_q[log p(x, z)] is greatest.

    Args:
        vae: a `models.linear_vae` with one learned std, as its default has.
        params: where to start.
        x: data, (n, *data_shape), all of them observed and without context.
        num_steps: rounds of one E-step and one M-step.

    Returns:
        The parameters, whose encoder is the exact posterior before the last M-step, and what each round reports,
        (num_steps,). Both are float64 if the parameters and x are.

    Raises:
        ValueError: if num_steps is not a positive integer, the model is not linear and Gaussian with one learned std,
            or `models.check_data` refuses x.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=1)
    >>> x = jax.random.normal(jax.random.key(0), (50, 3)) * jnp.array([[3.0, 1.0, 1.0]])
    >>> params, history = em(vae, vae.init(jax.random.key(1)), x, num_steps=20)
    >>> bool(history.log_likelihood[-1] > history.log_likelihood[0])
    True

    Source: Rubin & Thayer 1982; Tipping & Bishop 1999, appendix B; as ascent of one bound, Neal & Hinton 1998.
    """
    x = evaluation.checked_examples(vae, params, _complete(x), num_steps=num_steps)
    return _run_em(make_em_step(vae), num_steps, training.init_state(params, optax.identity()), x)


def make_em_step(vae: VAE) -> TrainStep:
    """One round of exact EM as a train step, for `training.fit` with the whole set as the batch.

    The E-step is `with_exact_posterior`, the M-step `with_best_decoder`. On a batch that is not the whole set a round
    may lower log p(x) of the set.

    Args:
        vae: a `models.linear_vae` with one learned std, as its default has.

    Returns:
        `(state, key, batch) -> (state, info)` with an `EMInfo`; neither the key nor the optimizer's state is used.

    Raises:
        ValueError: when the step is called, if the model is not linear and Gaussian with one learned std.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=1)
    >>> state = training.init_state(vae.init(jax.random.key(0)), optax.identity())
    >>> state, info = make_em_step(vae)(state, jax.random.key(1), jnp.eye(3))
    >>> bool(info.elbo_before <= info.elbo <= info.elbo_after)
    True
    """
    closed_form = objectives.make_linear_elbo(vae)

    def step(state: TrainState, key: Key[Array, ""], batch: Batch | ArrayLike) -> tuple[TrainState, EMInfo]:
        training.check_step(state, key)
        checks.check_floating(_complete(batch))
        x = jnp.asarray(_complete(batch))
        before, _ = closed_form(state.params, key, x, step=state.step)
        params = with_exact_posterior(vae, state.params)
        touching, info = closed_form(params, key, x, step=state.step)
        exact = evaluation.linear_log_likelihood(vae, params, x).mean()
        params = with_best_decoder(vae, params, x)
        after, _ = closed_form(params, key, x, step=state.step)
        report = EMInfo(touching, touching, info.reconstruction, info.kl, before, exact, after)
        return state._replace(params=params, step=state.step + 1), lax.stop_gradient(report)

    return step


def with_exact_posterior(vae: VAE, params: Params) -> Params:
    """The E-step of a linear VAE: parameters of the same p(x), with q(z|x) = p(z|x).

    The posterior's precision is I + W W^T / s^2. The latent is rotated first, so that the rows of W are orthogonal, in
    order of falling length. This does not change p(x), and it makes the posterior a Gaussian of independent units, as q
    is.

    Args:
        vae: a `models.linear_vae` with one learned std.
        params: its parameters.

    Returns:
        The parameters, of the same shapes.

    Raises:
        ValueError: if the model is not linear and Gaussian with one learned std.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jnp.ones((1, 3))
    >>> exact = with_exact_posterior(vae, params)
    >>> log_p = evaluation.linear_log_likelihood(vae, params, x)
    >>> bool(jnp.allclose(evaluation.elbo(vae, exact, jax.random.key(1), x).estimate, log_p, atol=1e-4))
    True
    """
    kernel, offset, std = linear_decoder(vae, params)
    raw = _shared(params)
    squares, turn = jnp.linalg.eigh(kernel @ kernel.T)
    kernel = turn[:, ::-1].T @ kernel
    variance = std[0] ** 2
    precision = 1 + jnp.maximum(squares[::-1], 0) / variance
    encoder = kernel.T / variance / precision[None]
    head = distributions.unbounded_log_std(-0.5 * jnp.log(precision)).astype(raw.dtype)
    return {
        **params,
        "encoder": {
            "network": {"layer_0": {"kernel": encoder, "bias": -(offset @ encoder)}},
            "head": {"log_std": head},
        },
        "decoder": _decoder(kernel, offset, raw),
    }


def with_best_decoder(vae: VAE, params: Params, x: Array) -> Params:
    """The M-step of a linear VAE: the W, b and s of greatest ELBO for the encoder's q(z|x).

    Args:
        vae: a `models.linear_vae` with one learned std.
        params: its parameters.
        x: data, (n, *data_shape).

    Returns:
        The parameters, with the same encoder.

    Raises:
        ValueError: if the model is not linear and Gaussian with one learned std.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> params, x = vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (50, 3))
    >>> better = with_best_decoder(vae, params, x)
    >>> before, after = (evaluation.elbo(vae, p, jax.random.key(2), x).estimate.mean() for p in (params, better))
    >>> bool(after > before)
    True
    """
    checks.check_given(vae=vae, params=params)
    x = checks.as_array(x)
    raw = _shared(params)
    q = vae.encode(params, x)
    means, variances = jnp.asarray(q.mean), jnp.asarray(q.variance)
    rows = x.reshape(len(x), -1)
    # Regression of x on the latent, whose variance within an example adds to its variance between examples.
    centred_means, centred = means - means.mean(axis=0, keepdims=True), rows - rows.mean(axis=0, keepdims=True)
    second_moment = centred_means.T @ centred_means + jnp.diag(variances.sum(axis=0))
    kernel = jax.scipy.linalg.solve(second_moment, centred_means.T @ centred, assume_a="pos")
    offset = rows.mean(axis=0) - means.mean(axis=0) @ kernel
    residual = ((centred - centred_means @ kernel) ** 2).sum() + (variances.sum(axis=0) * (kernel**2).sum(axis=1)).sum()
    log_std = 0.5 * jnp.log(jnp.maximum(residual / rows.size, jnp.finfo(rows.dtype).tiny))
    return {**params, "decoder": _decoder(kernel, offset, distributions.unbounded_log_std(log_std).astype(raw.dtype))}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_em(step: TrainStep, num_steps: int, state: TrainState, x: Array) -> tuple[Params, EMInfo]:
    key = jax.random.key(0)  # no round uses it

    def body(state, _):
        return step(state, key, x)

    state, history = lax.scan(body, state, length=num_steps)
    return state.params, history


def _complete(x: Batch | ArrayLike) -> Any:
    """The data of a batch that carries nothing else."""
    if not isinstance(x, Batch):
        return x
    if x.context is not None or x.mask is not None:
        raise ValueError(
            "exact EM needs all numbers observed and no context; got a batch with "
            + ("a context" if x.mask is None else "a mask")
            + ": train by objectives.make_elbo, or make_variational_em_step"
        )
    return x.x


def _shared(params: Params) -> Array:
    """The decoder's one raw log std.

    Raises:
        ValueError: if it has none, or several.
    """
    raw = params["decoder"]["head"].get("log_std")
    if raw is None or raw.shape != ():
        raise ValueError(
            "exact EM needs one learned std, likelihood='gaussian_shared_std'; got "
            + ("a decoder without" if raw is None else f"{raw.size} of them")
        )
    return raw


def _decoder(kernel: Array, offset: Array, raw: Array) -> Params:
    return {"network": {"layer_0": {"kernel": kernel, "bias": offset}}, "head": {"log_std": raw}}
