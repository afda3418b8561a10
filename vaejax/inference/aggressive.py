"""Aggressive training of the encoder: its steps to convergence before each step of the decoder, while that helps.

Early in training the decoder moves and the posterior with it; an encoder that takes one step for each of the decoder's
lags behind, and the two settle where the code is ignored (He et al. 2019).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from vaejax import checks, evaluation, models, training
from vaejax.distributions import Params
from vaejax.inference import expectation_maximization
from vaejax.models import VAE
from vaejax.objectives import Objective
from vaejax.training import TrainState, TrainStep


class LaggingStates(NamedTuple):
    """The optimizer state of `make_aggressive_train_step`.

    Attributes:
        encoder: its optimizer's.
        others: the optimizer's of all else.
        aggressive: whether the encoder still runs ahead. ()
        best: highest mutual information on the validation data so far, nats. ()
        failures: checks in a row that have not raised it. ()
    """

    encoder: Any
    others: Any
    aggressive: Bool[Array, ""]
    best: Float[Array, ""]
    failures: Int[Array, ""]


class LaggingInfo(NamedTuple):
    """What an aggressive step reports.

    Attributes:
        bound: the value at the decoder's step. ()
        elbo: plain ELBO there. ()
        reconstruction: its part. ()
        kl: its part. ()
        encoder_steps: that the encoder took before. ()
        aggressive: 1 while it runs ahead, 0 once training is the usual one. ()
        mutual_information: of the validation data, at the last check, nats; NaN before the first. ()
    """

    bound: Float[Array, ""]
    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]
    kl: Float[Array, ""]
    encoder_steps: Float[Array, ""]
    aggressive: Float[Array, ""]
    mutual_information: Float[Array, ""]


def init_lagging(
    params: Params, encoder_optimizer: optax.GradientTransformation, decoder_optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step of `make_aggressive_train_step`."""
    encoder, others = expectation_maximization.split_groups(params)
    states = LaggingStates(
        encoder=encoder_optimizer.init(encoder),
        others=decoder_optimizer.init(others),
        aggressive=jnp.asarray(True),
        best=jnp.asarray(-jnp.inf, jnp.float32),
        failures=jnp.zeros((), jnp.int32),
    )
    return TrainState(params, states, jnp.zeros((), jnp.int32))


def make_aggressive_train_step(
    vae: VAE,
    objective: Objective,
    encoder_optimizer: optax.GradientTransformation,
    decoder_optimizer: optax.GradientTransformation,
    validation: ArrayLike,
    *,
    batch_size: int,
    max_encoder_steps: int = 50,
    window: int = 10,
    check_every: int = 500,
    patience: int = 1,
    prepare: Callable[[Key[Array, ""], Array], Array] | None = None,
) -> TrainStep:
    """One step of the decoder after as many of the encoder as it takes to converge, all in the compiled program.

    The encoder's steps see other examples each: the batch that the step is handed holds `max_encoder_steps + 1` batches
    of `batch_size`, of which the decoder's step sees the first. The encoder has converged when the mean value over
    `window` of its steps is not above that over the `window` before. Every `check_every` steps the mutual information
    of the validation data is measured, and once `patience` checks in a row have not raised it, training is the usual
    one for good: encoder and decoder take one step each, on the first batch.

    Args:
        vae: the model.
        objective: what is maximised, such as `objectives.make_elbo(vae)`.
        encoder_optimizer: of `params["encoder"]`.
        decoder_optimizer: of the rest.
        validation: data that no step trains on, (n, *data_shape), prepared; some hundreds are enough, and their mutual
            information is at most log n.
        batch_size: examples in a gradient. To `training.fit` goes batch_size * (max_encoder_steps + 1).
        max_encoder_steps: for each step of the decoder.
        window: encoder steps from one look at convergence to the next. The first two looks have nothing to compare or
            come too late where max_encoder_steps is at most twice as many: then all steps are always taken.
        check_every: steps from one look at the mutual information to the next.
        patience: looks in a row without a rise, after which the encoder no longer runs ahead.
        prepare: what is done to each batch of `batch_size` first, as in `training.make_train_step`.

    Returns:
        `(state, key, batch) -> (state, info)` with a `LaggingInfo`; the state is one of `init_lagging`.

    Raises:
        ValueError: if a number is not a positive integer, or `validation` is not the model's or less than two examples;
            when called, if the batch is of another size.

    Source: He, Spokoyny, Neubig & Berg-Kirkpatrick 2019, "Lagging inference networks and posterior collapse in
    variational autoencoders".
    """
    counts = {
        "batch_size": batch_size,
        "max_encoder_steps": max_encoder_steps,
        "window": window,
        "check_every": check_every,
        "patience": patience,
    }
    for name, number in counts.items():
        checks.check_count(name, number)
    params = jax.eval_shape(vae.init, jax.random.key(0))
    jax.eval_shape(vae.encode, params, validation)  # refuses data of another shape or kind
    validation = models.with_batch_axis(vae, params, validation)
    if len(validation) < 2:
        raise ValueError(f"expected at least two validation examples, for a mutual information; got {len(validation)}")

    def step(state: TrainState, key: Key[Array, ""], batch: ArrayLike) -> tuple[TrainState, LaggingInfo]:
        x = jnp.asarray(batch)
        if len(x) != batch_size * (max_encoder_steps + 1):
            raise ValueError(
                f"expected batch_size * (max_encoder_steps + 1) = {batch_size * (max_encoder_steps + 1)} examples, "
                f"of which each step of the encoder takes {batch_size}; got {len(x)}: pass that number to fit"
            )
        batches = x.reshape(max_encoder_steps + 1, batch_size, *x.shape[1:])
        check_key, key = jax.random.split(key)
        states: Any = state.opt_state

        def value(encoder, others, number):
            """Of the objective on batch `number`."""
            step_key = jax.random.fold_in(key, number)
            rows = batches[number]
            if prepare is not None:
                prepare_key, step_key = jax.random.split(step_key)
                rows = prepare(prepare_key, rows)
            return objective(expectation_maximization.joined(encoder, others), step_key, rows, step=state.step)

        encoder, others = expectation_maximization.split_groups(state.params)

        def raise_encoder(encoder, opt_state, number):
            return training.ascend(
                lambda encoder: value(encoder, others, number), encoder_optimizer, encoder, opt_state
            )

        def unconverged(carry):
            _, _, number, sums, before = carry
            at_look = (number > 0) & (number % window == 0)
            rises = sums > before
            return (number < max_encoder_steps) & (~at_look | rises)

        def encoder_step(carry):
            encoder, opt_state, number, sums, before = carry
            at_look = (number > 0) & (number % window == 0)
            sums, before = jnp.where(at_look, 0.0, sums), jnp.where(at_look, sums, before)
            encoder, opt_state, info = raise_encoder(encoder, opt_state, number + 1)
            return encoder, opt_state, number + 1, sums + info.bound, before

        nothing = jnp.asarray(-jnp.inf, jnp.float32)
        start = (encoder, states.encoder, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), nothing)
        usual = jnp.where(states.aggressive, 0, max_encoder_steps)  # a loop that is over before it begins
        encoder, encoder_state, number, _, _ = lax.while_loop(
            unconverged, encoder_step, (*start[:2], start[2] + usual, *start[3:])
        )
        number = number - usual
        moved, others_state, info = training.ascend(
            lambda others: value(encoder, others, 0), decoder_optimizer, others, states.others
        )
        encoder, encoder_state = lax.cond(
            states.aggressive,
            lambda: (encoder, encoder_state),
            lambda: raise_encoder(encoder, encoder_state, 0)[:2],
        )
        params = expectation_maximization.joined(encoder, moved)

        def look(states):
            found = evaluation.mutual_information_of(vae, params, check_key, validation).astype(jnp.float32)
            rises = found > states.best
            failures = jnp.where(rises, 0, states.failures + 1)
            return states._replace(
                best=jnp.maximum(states.best, found), failures=failures, aggressive=failures < patience
            )

        states = LaggingStates(encoder_state, others_state, states.aggressive, states.best, states.failures)
        due = states.aggressive & ((state.step + 1) % check_every == 0)
        now = lax.cond(due, look, lambda states: states, states)
        report = LaggingInfo(
            bound=info.bound,
            elbo=info.elbo,
            reconstruction=info.reconstruction,
            kl=info.kl,
            encoder_steps=jnp.where(states.aggressive, number, 1).astype(jnp.float32),
            aggressive=states.aggressive.astype(jnp.float32),
            mutual_information=jnp.where(jnp.isinf(now.best), jnp.nan, now.best),
        )
        return TrainState(params, now, state.step + 1), lax.stop_gradient(report)

    return step
