import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import data, models, objectives, training


@pytest.fixture(scope="module", autouse=True)
def optimized():
    """Programs as users compile them: that runs cut into chunks agree to the last bit is a promise about those."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def problem():
    """`(state, stop) -> (state, history)` of four steps, compiled; and of the whole run of ten; and the first state."""
    vae = models.mlp_vae((4,), 2, (5,))
    optimizer = optax.adam(1e-2)
    step = training.make_train_step(objectives.make_elbo(vae), optimizer, data.binarize_dynamic)
    state = training.init_state(vae.init(jax.random.key(0)), optimizer)
    images, key = jax.random.uniform(jax.random.key(5), (53, 4)), jax.random.key(7)

    def compiled(num_steps):
        def fit(state, stop):
            return training.fit(step, state, key, images, num_steps=num_steps, batch_size=10, stop=stop)

        return jax.jit(fit).lower(state, 10).compile()

    return compiled(4), compiled(10), state


def joined(chunks):
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *(chunk.history for chunk in chunks))


@pytest.mark.exhaustive
def test_a_run_in_chunks_equals_the_run_in_one_call(problem):
    in_fours, at_once, state = problem
    chunks = list(training.run_chunks(in_fours, state, 10))
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 4), (4, 8), (8, 10)]
    ended, history = at_once(state, 10)
    chex.assert_trees_all_equal(chunks[-1].state, ended)
    chex.assert_trees_all_equal(joined(chunks), jax.tree.map(np.asarray, history))


def test_a_run_that_was_left_continues_where_it_was(problem):
    in_fours, at_once, state = problem
    chunk = next(training.run_chunks(in_fours, state, 10))
    assert chunk.stop == 4
    rest = list(training.run_chunks(in_fours, chunk.state, 10))
    assert [(chunk.start, chunk.stop) for chunk in rest] == [(4, 8), (8, 10)]
    chex.assert_trees_all_equal(rest[-1].state, at_once(state, 10)[0])
    assert not list(training.run_chunks(in_fours, rest[-1].state, 10))
    assert not list(training.run_chunks(in_fours, state, 0))


def test_a_chunk_may_be_several_calls(problem):
    in_fours, at_once, state = problem
    first, second = training.run_chunks(in_fours, state, 10, chunk_steps=8)
    assert (first.start, first.stop, second.start, second.stop) == (0, 8, 8, 10)
    assert first.history.elbo.shape == (8,)
    chex.assert_trees_all_equal(second.state, at_once(state, 10)[0])
    (whole,) = training.run_chunks(in_fours, state, 10, chunk_steps=100)
    chex.assert_trees_all_equal(whole.history, joined([first, second]))


def count_to(stop, state, wait=0.0):
    """Three steps of two runs that only count, each run from its own number."""
    time.sleep(wait)
    steps = state.step + jnp.arange(3)
    history = jnp.stack([jnp.where(steps < stop, steps + first, -1) for first in (0, 100)])
    return state._replace(step=jnp.minimum(state.step + 3, stop)), {"count": history, "left_out": None}


COUNTER = training.TrainState({}, optax.EmptyState(), jnp.zeros((), jnp.int32))


def test_the_history_is_cut_on_its_last_axis_and_left_out_entries_stay_so():
    history = joined(training.run_chunks(lambda state, stop: count_to(stop, state), COUNTER, 7))
    np.testing.assert_array_equal(history["count"], [range(7), range(100, 107)])
    assert history["left_out"] is None


def test_seconds_are_those_of_the_steps_and_not_of_the_body_of_the_loop():
    seconds = []
    for chunk in training.run_chunks(lambda state, stop: count_to(stop, state, 0.02), COUNTER, 6):
        seconds.append(chunk.seconds)
        time.sleep(0.3)
    assert len(seconds) == 2
    assert 0.02 <= min(seconds) <= max(seconds) < 0.3


def test_what_takes_no_step_or_is_no_number_is_refused(problem):
    with pytest.raises(ValueError, match="expected fit to take at least one step; got none at step 0"):
        list(training.run_chunks(lambda state, stop: (state, {}), COUNTER, 7))
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 0; got -1"):
        training.run_chunks(problem[0], problem[2], -1)
    with pytest.raises(ValueError, match="chunk_steps must be an integer of at least 1; got 0"):
        training.run_chunks(problem[0], problem[2], 10, chunk_steps=0)
