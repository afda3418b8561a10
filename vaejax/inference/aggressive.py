"""Aggressive training of the encoder: steps of the encoder to convergence before each step of the decoder.

Early in training the decoder moves, and the posterior with it. An encoder that takes one step for each of the decoder's
lags behind, and both may settle where the latent is ignored (He et al. 2019).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from vaejax import checks, evaluation, models, records, training
from vaejax.distributions import Params
from vaejax.inference.groups import joined, split_groups
from vaejax.models import VAE, Batch
from vaejax.objectives import Objective
from vaejax.training import TrainState, TrainStep

Prepare = Callable[[Key[Array, ""], Any], Any]


class LaggingStates(NamedTuple):
    """The optimizer state of `make_aggressive_train_step`.

    Attributes:
        encoder: state of the encoder's optimizer.
        others: state of the optimizer of all other parameters.
        aggressive: whether the encoder still runs ahead. ()
        best: highest mutual information on the validation data so far, in nats. ()
        failures: checks in a row that have not raised it. ()

    >>> params = {"encoder": {"w": jnp.ones(3)}, "decoder": {"w": jnp.ones(5)}}
    >>> states = init_lagging(params, optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)).opt_state
    >>> [leaf.shape for leaf in jax.tree.leaves(states.encoder)], float(states.best)  # nothing measured yet
    ([(3,)], -inf)
    """

    encoder: Any
    others: Any
    aggressive: Bool[Array, ""]
    best: Float[Array, ""]
    failures: Int[Array, ""]

    __repr__ = records.short_repr


class LaggingInfo(NamedTuple):
    """What an aggressive step reports, in nats per example where it is a bound.

    Attributes:
        bound: the objective's value at the decoder's step. ()
        elbo: plain ELBO there. ()
        reconstruction: its part E_q log p(x|z). ()
        kl: its part KL(q(z|x) || p(z)). ()
        encoder_steps: steps that the encoder took before. ()
        aggressive: 1 while the encoder runs ahead, 0 once training is the usual one. ()
        mutual_information: highest on the validation data so far, in nats; 0 before the first check. ()

    >>> ahead = {"encoder_steps": jnp.array([50.0, 20.0, 1.0]), "aggressive": jnp.array([1.0, 1.0, 0.0])}
    >>> history = LaggingInfo(*jnp.zeros((4, 3)), **ahead, mutual_information=jnp.array([0.0, 1.5, 1.5]))
    >>> int(history.encoder_steps.sum()), int(history.aggressive.argmin())  # encoder steps; when training became usual
    (71, 2)
    """

    bound: Float[Array, ""]
    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]
    kl: Float[Array, ""]
    encoder_steps: Float[Array, ""]
    aggressive: Float[Array, ""]
    mutual_information: Float[Array, ""]

    __repr__ = records.short_repr


def init_lagging(
    params: Params, encoder_optimizer: optax.GradientTransformation, decoder_optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step of `make_aggressive_train_step`.

    Args:
        params: the model's parameters.
        encoder_optimizer: of `params["encoder"]`.
        decoder_optimizer: of the rest.

    Returns:
        The state, whose `opt_state` is a `LaggingStates`.

    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> state = init_lagging(vae.init(jax.random.key(0)), optax.sgd(0.1), optax.sgd(0.1))
    >>> bool(state.opt_state.aggressive), int(state.opt_state.failures)
    (True, 0)
    """
    checks.check_params(params)
    checks.check_optimizer(encoder_optimizer, "encoder_optimizer")
    checks.check_optimizer(decoder_optimizer, "decoder_optimizer")
    encoder, others = split_groups(params)
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
    validation: Batch | ArrayLike,
    *,
    batch_size: int,
    max_encoder_steps: int = 50,
    window: int = 10,
    check_every: int = 500,
    patience: int = 1,
    prepare: Prepare | None = None,
) -> TrainStep:
    """One step of the decoder after as many of the encoder as it takes to converge, all in the compiled program.

    Each step of the encoder sees other examples: the batch that a train step gets holds `max_encoder_steps + 1` batches
    of `batch_size`, and the decoder's step sees the first. The encoder has converged when the mean value over `window`
    of its steps is not above the mean over the `window` steps before. Every `check_every` steps the mutual information
    of the validation data is measured. Once `patience` checks in a row have not raised it, training is the usual one
    from then on: encoder and decoder take one step each, on the first batch.

    Args:
        vae: the model.
        objective: what is maximised, such as `objectives.make_elbo(vae)`.
        encoder_optimizer: of `params["encoder"]`.
        decoder_optimizer: of the rest.
        validation: data that no step trains on, (n, *data_shape), or a `models.Batch`, prepared; some hundreds are
            enough, and their mutual information is at most log n.
        batch_size: examples in a gradient. Give `training.fit` batches of batch_size * (max_encoder_steps + 1).
        max_encoder_steps: for each step of the decoder.
        window: encoder steps between two tests of convergence. The first test has nothing to compare with. If
            max_encoder_steps is at most twice the window, the second comes too late, and all steps are taken.
        check_every: steps between two measurements of the mutual information.
        patience: measurements in a row without a rise, after which the encoder no longer runs ahead.
        prepare: what is done to each batch of `batch_size` first, as in `training.make_train_step`.

    Returns:
        `(state, key, batch) -> (state, info)` with a `LaggingInfo`; the state is one of `init_lagging`.

    Raises:
        ValueError: if a number is not a positive integer, or `validation` is not the model's or fewer than two
            examples; when called, if the batch has another size.

    >>> from vaejax import objectives
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> optimizers = optax.sgd(0.1), optax.sgd(0.1)
    >>> step = make_aggressive_train_step(
    ...     vae, objectives.make_elbo(vae), *optimizers, jnp.eye(3), batch_size=5, max_encoder_steps=3
    ... )
    >>> state = init_lagging(vae.init(jax.random.key(0)), *optimizers)
    >>> state, info = jax.jit(step)(state, jax.random.key(1), jnp.ones((20, 3)))
    >>> float(info.encoder_steps)
    3.0

    Source: He, Spokoyny, Neubig & Berg-Kirkpatrick 2019, "Lagging inference networks and posterior collapse in
    variational autoencoders".
    """
    checks.check_given(vae=vae, objective=objective)
    checks.check_optimizer(encoder_optimizer, "encoder_optimizer")
    checks.check_optimizer(decoder_optimizer, "decoder_optimizer")
    checks.check_counts(batch_size=batch_size, max_encoder_steps=max_encoder_steps, window=window)
    checks.check_counts(check_every=check_every, patience=patience)
    validation = _checked_validation(vae, validation)

    def step(state: TrainState, key: Key[Array, ""], batch: Batch | ArrayLike) -> tuple[TrainState, LaggingInfo]:
        training.check_step(state, key)
        batches = _in_batches(batch, batch_size, max_encoder_steps)
        check_key, key = jax.random.split(key)
        value = _value_of_batch(objective, prepare, batches, key, state.step)
        states: Any = state.opt_state
        encoder, others = split_groups(state.params)

        def raise_encoder(encoder, opt_state, number):
            return training.ascend(
                lambda encoder: value(encoder, others, number), encoder_optimizer, encoder, opt_state
            )

        skipped = jnp.where(states.aggressive, 0, max_encoder_steps)  # all of them, in usual training
        encoder, encoder_state, last = _until_converged(
            raise_encoder, encoder, states.encoder, skipped, max_encoder_steps, window
        )
        moved, others_state, info = training.ascend(
            lambda others: value(encoder, others, 0), decoder_optimizer, others, states.others
        )
        encoder, encoder_state = lax.cond(
            states.aggressive,
            lambda: (encoder, encoder_state),
            lambda: raise_encoder(encoder, encoder_state, 0)[:2],
        )
        params = joined(encoder, moved)

        def measure(states):
            found = evaluation.mutual_information(vae, params, check_key, validation).estimate
            return _after_measurement(states, found.astype(jnp.float32), patience)

        states = states._replace(encoder=encoder_state, others=others_state)
        due = states.aggressive & ((state.step + 1) % check_every == 0)
        now = lax.cond(due, measure, lambda states: states, states)
        report = _report(info, last - skipped, states.aggressive, now.best)
        return TrainState(params, now, state.step + 1), lax.stop_gradient(report)

    return step


def _checked_validation(vae: VAE, validation: Batch | ArrayLike) -> Any:
    params = jax.eval_shape(vae.init, jax.random.key(0))
    evaluation.like_posterior(vae, params, validation)  # refuses data of another shape or kind
    if not isinstance(validation, Batch):
        checks.check_values(validation)
    validation = models.with_batch_axis(vae, params, validation)
    number = evaluation.number_of(validation)
    checks.check_count("the number of validation examples", number, 2, "a mutual information needs them")
    return validation


def _in_batches(batch: Batch | ArrayLike, batch_size: int, max_encoder_steps: int) -> Any:
    """The examples that a step gets, as one batch for each gradient."""
    x = batch if isinstance(batch, Batch) else checks.as_array(batch)
    checks.check_values(x)
    x = jax.tree.map(jnp.asarray, x)
    numbers = checks.as_array(models.numbers_of(x))
    checks.check_shape("a batch", jnp.shape(numbers), ("n", *jnp.shape(numbers)[1:]))
    number, expected = evaluation.number_of(x), batch_size * (max_encoder_steps + 1)
    if number != expected:
        raise ValueError(
            f"expected batch_size * (max_encoder_steps + 1) = {expected} examples, {batch_size} for each gradient; got "
            f"{number}: pass that number to fit"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(max_encoder_steps + 1, batch_size, *leaf.shape[1:]), x)


def _value_of_batch(objective: Objective, prepare: Prepare | None, batches: Any, key, step) -> Callable:
    """`(encoder, others, number) -> (value, info)` of the objective on batch `number`."""

    def value(encoder, others, number):
        step_key = jax.random.fold_in(key, number)
        rows = jax.tree.map(lambda leaf: leaf[number], batches)
        if prepare is not None:
            prepare_key, step_key = jax.random.split(step_key)
            rows = prepare(prepare_key, rows)
        return objective(joined(encoder, others), step_key, rows, step=step)

    return value


def _until_converged(raise_encoder: Callable, encoder, opt_state, start: Array, most: int, window: int):
    """Encoder steps `start` + 1 to at most `most`: encoder, its optimizer's state, and the number of the last step."""

    def window_ends(number):
        return (number > 0) & (number % window == 0)

    def unconverged(carry):
        _, _, number, total, before = carry
        return (number < most) & (~window_ends(number) | (total > before))

    def one(carry):
        encoder, opt_state, number, total, before = carry
        ends = window_ends(number)
        total, before = jnp.where(ends, 0.0, total), jnp.where(ends, total, before)
        encoder, opt_state, info = raise_encoder(encoder, opt_state, number + 1)
        return encoder, opt_state, number + 1, total + info.bound.astype(total.dtype), before

    # The sums of the bounds over this window and over the one before, which the first window always exceeds.
    sums = jnp.zeros((), jnp.float32), jnp.asarray(-jnp.inf, jnp.float32)
    carry = (encoder, opt_state, jnp.zeros((), jnp.int32) + start, *sums)
    return lax.while_loop(unconverged, one, carry)[:3]


def _after_measurement(states: LaggingStates, found: Float[Array, ""], patience: int) -> LaggingStates:
    """The states after the mutual information `found` was measured."""
    failures = jnp.where(found > states.best, 0, states.failures + 1)
    best = jnp.maximum(states.best, found)
    return states._replace(best=best, failures=failures, aggressive=failures < patience)


def _report(info: Any, ahead: Array, aggressive: Array, best: Array) -> LaggingInfo:
    return LaggingInfo(
        bound=info.bound,
        elbo=info.elbo,
        reconstruction=info.reconstruction,
        kl=info.kl,
        encoder_steps=jnp.where(aggressive, ahead, 1).astype(jnp.float32),
        aggressive=aggressive.astype(jnp.float32),
        mutual_information=jnp.where(jnp.isneginf(best), 0, best),  # a NaN would say that training diverged
    )
