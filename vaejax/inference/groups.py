"""Variational EM: gradient steps of the encoder, then of all other parameters, each group with its own optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Key

from vaejax import checks, records, training
from vaejax.distributions import Params
from vaejax.objectives import Objective
from vaejax.training import TrainState, TrainStep


class GroupInfo(NamedTuple):
    """What one round of variational EM reports, in nats per example.

    Attributes:
        bound: the objective's value in the last M-step. ()
        elbo: plain ELBO there. ()
        reconstruction: its part E_q log p(x|z). ()
        kl: its part KL(q(z|x) || p(z)). ()
        bound_before: the objective's value in the first E-step. ()

    >>> info = GroupInfo(*jnp.array([-90.0, -90.0, -80.0, 10.0]), bound_before=jnp.array(-93.0))
    >>> float(info.reconstruction - info.kl), float(info.bound - info.bound_before)  # the ELBO; what the round gained
    (-90.0, 3.0)
    """

    bound: Float[Array, ""]
    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]
    kl: Float[Array, ""]
    bound_before: Float[Array, ""]

    __repr__ = records.short_repr


class GroupStates(NamedTuple):
    """The optimizer state of `make_variational_em_step`: one for each group of parameters.

    Attributes:
        encoder: state of the encoder's optimizer.
        others: state of the optimizer of all other parameters.

    >>> params = {"encoder": {"w": jnp.ones(3)}, "decoder": {"w": jnp.ones(5)}}
    >>> states = init_groups(params, optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)).opt_state
    >>> [leaf.shape for leaf in jax.tree.leaves(states.encoder)], jax.tree.leaves(states.others)  # one has a momentum
    ([(3,)], [])
    """

    encoder: Any
    others: Any

    __repr__ = records.short_repr


def init_groups(
    params: Params, encoder_optimizer: optax.GradientTransformation, decoder_optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step of `make_variational_em_step`.

    Args:
        params: the model's parameters.
        encoder_optimizer: of `params["encoder"]`.
        decoder_optimizer: of the rest.

    Returns:
        The state, whose `opt_state` is a `GroupStates`.

    >>> from vaejax import models
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> int(init_groups(vae.init(jax.random.key(0)), optax.sgd(0.1), optax.sgd(0.1)).step)
    0
    """
    checks.check_params(params)
    checks.check_optimizer(encoder_optimizer, "encoder_optimizer")
    checks.check_optimizer(decoder_optimizer, "decoder_optimizer")
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
    """Variational EM: gradient steps of the encoder alone, then of all other parameters alone, on the same objective.

    Args:
        objective: what is maximised, such as `objectives.make_elbo(vae)`.
        encoder_optimizer: of `params["encoder"]`, in E-steps.
        decoder_optimizer: of the rest, in M-steps.
        num_e_steps: steps of the encoder in each round, all on the same batch.
        num_m_steps: steps of the rest in each round, on that batch.

    Returns:
        `(state, key, batch) -> (state, info)` with a `GroupInfo`; the state is one of `init_groups`.

    Raises:
        ValueError: if a number of steps is not a positive integer.

    >>> from vaejax import models, objectives
    >>> vae = models.linear_vae(data_dim=3, latent_dim=2)
    >>> optimizers = optax.sgd(0.1), optax.sgd(0.1)
    >>> step = make_variational_em_step(objectives.make_elbo(vae), *optimizers, num_e_steps=2)
    >>> state, info = step(init_groups(vae.init(jax.random.key(0)), *optimizers), jax.random.key(1), jnp.eye(3))
    >>> int(state.step)
    1

    Source: Neal & Hinton 1998, "A view of the EM algorithm that justifies incremental, sparse, and other variants".
    """
    checks.check_objective(objective)
    checks.check_optimizer(encoder_optimizer, "encoder_optimizer")
    checks.check_optimizer(decoder_optimizer, "decoder_optimizer")
    checks.check_counts(num_e_steps=num_e_steps, num_m_steps=num_m_steps)

    def step(state: TrainState, key: Key[Array, ""], batch: Any) -> tuple[TrainState, GroupInfo]:
        training.check_step(state, key)
        (key,) = jax.random.split(key, 1)

        def climb(whole, optimizer, group, opt_state, numbers):
            """Steps of a group of parameters; `whole` adds the others. The group, its state, what each step reports."""

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
    """The encoder's parameters, and all others.

    >>> split_groups({"encoder": {"a": 1}, "decoder": {"b": 2}, "prior": {}})
    ({'a': 1}, {'decoder': {'b': 2}, 'prior': {}})
    """
    return params["encoder"], {name: part for name, part in params.items() if name != "encoder"}


def joined(encoder: Params, others: Params) -> Params:
    """The parameters that `split_groups` took apart.

    >>> joined({"a": 1}, {"decoder": {"b": 2}})
    {'decoder': {'b': 2}, 'encoder': {'a': 1}}
    """
    return {**others, "encoder": encoder}
