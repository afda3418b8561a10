"""Expectation-maximization: exact for the linear-Gaussian model, by gradients for every other."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from vaejax import checks, distributions, models, objectives, training
from vaejax.distributions import Params
from vaejax.evaluation import linear_log_likelihood
from vaejax.models import VAE, linear_decoder
from vaejax.objectives import Objective
from vaejax.training import TrainState, TrainStep


class EMInfo(NamedTuple):
    """What one round of exact EM reports, in nats per example.

    Attributes:
        bound: the ELBO after the E-step, where it touches log p(x). ()
        elbo: the same. ()
        reconstruction: its part E_q log p(x|z). ()
        kl: its part KL(q(z|x) || p(z)). ()
        elbo_before: the ELBO before the E-step, with the q that was there. ()
        log_likelihood: log p(x) before and after the E-step, which does not move it. ()
        elbo_after: the ELBO after the M-step, with the q of the E-step. ()
    """

    bound: Float[Array, ""]
    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]
    kl: Float[Array, ""]
    elbo_before: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    elbo_after: Float[Array, ""]


class GroupInfo(NamedTuple):
    """What one round of variational EM reports: what the objective did in the last of each kind of steps.

    Attributes:
        bound: the value in the last M-step. ()
        elbo: plain ELBO there. ()
        reconstruction: its part. ()
        kl: its part. ()
        bound_before: the value in the first E-step. ()
    """

    bound: Float[Array, ""]
    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]
    kl: Float[Array, ""]
    bound_before: Float[Array, ""]


def em(vae: VAE, params: Params, x: ArrayLike, num_steps: int) -> tuple[Params, EMInfo]:
    """Exact EM of a linear VAE on all of x: log p(x) never falls.

    Args:
        vae: a `models.linear_vae` with one learned std, as its default has.
        params: where to start.
        x: data, (n, *data_shape).
        num_steps: rounds of one E-step and one M-step.

    Returns:
        The parameters, with an encoder that is the exact posterior before the last M-step, and what each round reports,
        (num_steps,). To be had in double precision if wanted: EM itself is not stochastic.

    Raises:
        ValueError: if num_steps is not a positive integer, the model is not linear and Gaussian, or x is refused by
            `models.check_data`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=1)
    >>> x = jax.random.normal(jax.random.key(0), (50, 3)) * jnp.array([[3.0, 1.0, 1.0]])
    >>> params, history = em(vae, vae.init(jax.random.key(1)), x, num_steps=20)
    >>> bool(history.log_likelihood[-1] > history.log_likelihood[0])
    True

    Source: Rubin & Thayer 1982; Tipping & Bishop 1999, appendix B; as ascent of one bound, Neal & Hinton 1998.
    """
    checks.check_count("num_steps", num_steps)
    models.check_data(vae, params, x)
    step = make_em_step(vae)
    state = training.init_state(params, optax.identity())
    return _run_em(step, num_steps, state, jnp.asarray(x))


def make_em_step(vae: VAE) -> TrainStep:
    """One round of exact EM on the batch, as a train step: with `training.fit` and the whole set as the batch.

    The E-step first turns the code so that the rows of W are orthogonal, which changes no p(x) and makes the exact
    posterior a Gaussian of independent units, as q is; then it sets the encoder to that posterior. The M-step sets W, b
    and s to where the ELBO is greatest. On a batch that is not the whole set a round may lower log p(x) of the set.

    Args:
        vae: a `models.linear_vae` with one learned std, as its default has.

    Returns:
        `(state, key, batch) -> (state, info)` with an `EMInfo`; the key is not used, nor the optimizer's state.

    Raises:
        ValueError: when it is called, if the model is not linear and Gaussian with one learned std.
    """
    closed_form = objectives.make_linear_elbo(vae)

    def step(state: TrainState, key: Key[Array, ""], batch: ArrayLike) -> tuple[TrainState, EMInfo]:
        x = jnp.asarray(batch)
        before, _ = closed_form(state.params, key, x, step=state.step)
        params = with_exact_posterior(vae, state.params)
        touching, info = closed_form(params, key, x, step=state.step)
        exact = linear_log_likelihood(vae, params, x).mean()
        params = with_best_decoder(vae, params, x)
        after, _ = closed_form(params, key, x, step=state.step)
        report = EMInfo(touching, touching, info.reconstruction, info.kl, before, exact, after)
        return state._replace(params=params, step=state.step + 1), lax.stop_gradient(report)

    return step


def with_exact_posterior(vae: VAE, params: Params) -> Params:
    """The E-step of a linear VAE: the same p(x), with q(z|x) = p(z|x).

    The code is turned, so that the posterior's covariance is diagonal; the decoder's kernel has orthogonal rows then,
    by falling length.

    Raises:
        ValueError: if the model is not linear and Gaussian with one learned std.
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
    """The M-step of a linear VAE: W, b and s of greatest ELBO for the q(z|x) that is there.

    Raises:
        ValueError: if the model is not linear and Gaussian with one learned std.
    """
    raw = _shared(params)
    q = vae.encode(params, x)
    means, variances = jnp.asarray(q.mean), jnp.asarray(q.variance)
    rows = x.reshape(len(x), -1)
    # Regression of x on the code, whose spread within an example adds to that between examples.
    centred_codes, centred = means - means.mean(axis=0, keepdims=True), rows - rows.mean(axis=0, keepdims=True)
    second_moment = centred_codes.T @ centred_codes + jnp.diag(variances.sum(axis=0))
    kernel = jax.scipy.linalg.solve(second_moment, centred_codes.T @ centred, assume_a="pos")
    offset = rows.mean(axis=0) - means.mean(axis=0) @ kernel
    residual = ((centred - centred_codes @ kernel) ** 2).sum() + (variances.sum(axis=0) * (kernel**2).sum(axis=1)).sum()
    log_std = 0.5 * jnp.log(jnp.maximum(residual / rows.size, jnp.finfo(rows.dtype).tiny))
    return {**params, "decoder": _decoder(kernel, offset, distributions.unbounded_log_std(log_std).astype(raw.dtype))}


class GroupStates(NamedTuple):
    """The optimizer state of `make_variational_em_step`: one for each group of parameters."""

    encoder: Any
    others: Any


def init_groups(
    params: Params, encoder_optimizer: optax.GradientTransformation, decoder_optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step of `make_variational_em_step`."""
    encoder, others = split_groups(params)
    states = GroupStates(encoder_optimizer.init(encoder), decoder_optimizer.init(others))
    return TrainState(params, states, jnp.zeros((), jnp.int32))


def make_variational_em_step(
    objective: Objective,
    encoder_optimizer: optax.GradientTransformation,
    decoder_optimizer: optax.GradientTransformation,
    num_e_steps: int = 1,
    num_m_steps: int = 1,
) -> TrainStep:
    """Variational EM: gradient steps of the encoder alone, then of all else alone, up one and the same bound.

    Args:
        objective: what is maximised, such as `objectives.make_elbo(vae)`.
        encoder_optimizer: of `params["encoder"]`, in E-steps.
        decoder_optimizer: of the rest, in M-steps.
        num_e_steps: in each round, all on the same batch.
        num_m_steps: likewise.

    Returns:
        `(state, key, batch) -> (state, info)` with a `GroupInfo`; the state is one of `init_groups`.

    Raises:
        ValueError: if a number of steps is not a positive integer.

    Source: Neal & Hinton 1998, "A view of the EM algorithm that justifies incremental, sparse, and other variants".
    """
    checks.check_count("num_e_steps", num_e_steps)
    checks.check_count("num_m_steps", num_m_steps)

    def step(state: TrainState, key: Key[Array, ""], batch: Any) -> tuple[TrainState, GroupInfo]:
        (key,) = jax.random.split(key, 1)

        def climb(whole, optimizer, group, opt_state, numbers):
            """Steps of a group, which `whole` completes: the group, the optimizer's state, what each step reports."""

            def one(carry, number):
                step_key = jax.random.fold_in(key, number)
                group, opt_state, info = training.ascend(
                    lambda group: objective(whole(group), step_key, batch, step=state.step), optimizer, *carry
                )
                return (group, opt_state), info

            (group, opt_state), reports = lax.scan(one, (group, opt_state), numbers)
            return group, opt_state, reports

        states: Any = state.opt_state
        e_numbers, m_numbers = jnp.arange(num_e_steps), num_e_steps + jnp.arange(num_m_steps)
        encoder, others = split_groups(state.params)
        encoder, encoder_state, first = climb(
            lambda encoder: joined(encoder, others), encoder_optimizer, encoder, states.encoder, e_numbers
        )
        others, others_state, last = climb(
            lambda others: joined(encoder, others), decoder_optimizer, others, states.others, m_numbers
        )
        info = GroupInfo(last.bound[-1], last.elbo[-1], last.reconstruction[-1], last.kl[-1], first.bound[0])
        return TrainState(joined(encoder, others), GroupStates(encoder_state, others_state), state.step + 1), info

    return step


def split_groups(params: Params) -> tuple[Params, Params]:
    """The encoder's parameters, and all others."""
    return params["encoder"], {name: part for name, part in params.items() if name != "encoder"}


def joined(encoder: Params, others: Params) -> Params:
    """The parameters that `split_groups` took apart."""
    return {**others, "encoder": encoder}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_em(step: TrainStep, num_steps: int, state: TrainState, x: Array) -> tuple[Params, EMInfo]:
    key = jax.random.key(0)  # that no round uses

    def body(state, _):
        return step(state, key, x)

    state, history = lax.scan(body, state, length=num_steps)
    return state.params, history


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
