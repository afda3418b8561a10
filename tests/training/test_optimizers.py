"""Optimizers that ask for the value, averages of the parameters, and trainings that diverge."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import checkpoints, estimators, models, objectives, training

SCALE, TARGET = np.array([1.0, 10.0, 100.0], np.float32), np.array([3.0, -1.0, 0.5], np.float32)


def hill(params, key, x, *, step):
    """-0.5 sum_i scale_i (w_i - target_i)^2, and noise that is the same wherever the key is."""
    noise = jax.random.normal(key)
    return -0.5 * jnp.sum(SCALE * (params["w"] - TARGET) ** 2) + noise, {"noise": noise}


def run(optimizer, num_steps, objective=hill):
    step = training.make_train_step(objective, optimizer)
    state = training.init_state({"w": jnp.zeros(3)}, optimizer)
    batches = jnp.zeros((num_steps, 1))
    return jax.jit(lambda state: training.fit_batches(step, state, jax.random.key(0), batches))(state)


@pytest.mark.exhaustive
def test_lbfgs_finds_the_top_that_gradient_steps_do_not_reach():
    state, _ = run(optax.lbfgs(), 12)
    np.testing.assert_allclose(state.params["w"], TARGET, rtol=1e-4)
    slow, _ = run(optax.sgd(0.01), 12)
    assert np.abs(slow.params["w"] - TARGET)[0] > 1
    # The same recursion by hand, on the loss without the noise, whose differences a line search sees.
    optimizer, params = optax.lbfgs(), {"w": jnp.zeros(3)}
    opt_state = optimizer.init(params)
    loss = lambda params: 0.5 * jnp.sum(SCALE * (params["w"] - TARGET) ** 2)  # noqa: E731
    for _ in range(3):
        value, grad = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grad, opt_state, params, value=value, grad=grad, value_fn=loss)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(run(optimizer, 3)[0].params["w"], params["w"], rtol=1e-3)


def test_a_plateau_lowers_the_rate():
    flat = lambda params, key, x, *, step: (0.0 * params["w"].sum() - 7.0, {})  # noqa: E731
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=3, cooldown=0)
    for optimizer in (
        optax.chain(optax.sgd(0.1), plateau),
        training.with_averages(optax.chain(optax.sgd(0.1), plateau)),
    ):
        state, _ = run(optimizer, 7, flat)
        (found,) = [
            node
            for node in jax.tree.leaves(state.opt_state, is_leaf=lambda node: hasattr(node, "plateau_count"))
            if hasattr(node, "plateau_count")
        ]
        assert float(found.scale) == 0.25  # the first step sets the best value; of the 6 others each 3 halve it
        assert float(found.best_value) == 7.0  # minus what is maximised


@pytest.mark.exhaustive
def test_a_model_is_trained_by_both():
    vae = models.mlp_vae((3,), 2, (4,))
    images = jax.random.bernoulli(jax.random.key(5), 0.3, (20, 3)).astype(jnp.float32)
    for optimizer in (optax.lbfgs(), optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=5))):
        step = training.make_train_step(objectives.make_elbo(vae), optimizer)
        state = training.init_state(vae.init(jax.random.key(0)), optimizer)
        fit = jax.jit(
            lambda state, step=step: training.fit(step, state, jax.random.key(1), images, num_steps=30, batch_size=20)
        )
        _, history = fit(state)
        assert np.isfinite(history.elbo).all()
        assert history.elbo[-5:].mean() > history.elbo[:5].mean()


# Averages


def averaged(trajectory, decay):
    weights = decay ** np.arange(len(trajectory))[::-1]
    return (weights[:, None] * trajectory).sum(0) / weights.sum()


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_averages_are_the_weighted_means_of_what_the_steps_left(decay):
    start = training.init_state({"w": jnp.zeros(3)}, optax.adam(0.1))
    step = training.make_train_step(hill, optax.adam(0.1))
    trajectory, state = [], start
    for t in range(8):
        state, _ = step(state, jax.random.fold_in(jax.random.key(0), t), jnp.zeros(1))
        trajectory.append(np.asarray(state.params["w"], np.float64))
    ended, _ = run(training.with_averages(optax.adam(0.1), decay), 8)
    np.testing.assert_allclose(ended.params["w"], trajectory[-1], rtol=1e-5)  # training is the same
    np.testing.assert_allclose(training.averages(ended)["w"], averaged(np.array(trajectory), decay), rtol=1e-4)


def test_averages_stay_precise_in_half_precision():
    optimizer = training.with_averages(optax.sgd(1.0), 0.9)
    step = training.make_train_step(lambda params, key, x, *, step: (params["w"].astype(jnp.float32), {}), optimizer)
    state = training.init_state({"w": jnp.bfloat16(0)}, optimizer)
    for _ in range(6):
        state, _ = step(state, jax.random.key(0), None)
    expected = averaged(np.arange(1.0, 7.0)[:, None], 0.9)[0]
    np.testing.assert_allclose(state.opt_state.mean["w"], expected, rtol=1e-6)
    assert training.averages(state)["w"].dtype == jnp.bfloat16


def test_averages_are_saved_with_the_state_and_of_each_run(tmp_path):
    optimizer = training.with_averages(optax.sgd(0.005), 0.5)
    state, _ = run(optimizer, 3)
    checkpoints.save(tmp_path, state, config={})
    restored = checkpoints.restore(tmp_path, training.init_state({"w": jnp.zeros(3)}, optimizer), config={})
    chex.assert_trees_all_equal(training.averages(restored), training.averages(state))
    step = training.make_train_step(hill, optimizer)
    keys = jax.random.split(jax.random.key(3), 2)
    states = training.init_population(lambda key: {"w": jax.random.normal(key, 3)}, optimizer, keys)
    sizes = {"num_steps": 3, "batch_size": 1}
    ended, _ = training.fit_population(lambda _: step, states, jax.random.clone(keys), jnp.zeros((1, 1)), **sizes)
    for i in range(2):
        mine = training.TrainState(
            *jax.tree.map(lambda leaf, i=i: leaf[i], (states.params, states.opt_state)), states.step
        )
        alone, _ = training.fit(step, mine, jax.random.key(4), jnp.zeros((1, 1)), **sizes)
        np.testing.assert_allclose(training.averages(ended)["w"][i], training.averages(alone)["w"], rtol=1e-5)


def test_averages_of_an_optimizer_without_are_refused():
    state = training.init_state({"w": jnp.zeros(3)}, optax.adam(0.1))
    with pytest.raises(ValueError, match="expected an optimizer with averages; got a state with 0 of them"):
        training.averages(state)
    twice = training.with_averages(training.with_averages(optax.sgd(0.1)))
    assert len(jax.tree.leaves(training.averages(training.init_state({"w": jnp.zeros(3)}, twice)))) == 1


def test_averages_see_the_baseline_too():
    optimizer = training.with_averages(estimators.baselines.with_optimizer(optax.sgd(0.1)))
    params = {"w": jnp.ones(2), "baseline": {"mean": jnp.ones(())}}
    assert set(training.averages(training.init_state(params, optimizer))) == {"w", "baseline"}


# Divergence


def known(*rows):
    """`fit` of `run_chunks` that reports these numbers, two steps at a time."""
    history = np.array(rows, np.float32) if len(rows) > 1 else np.array(rows[0], np.float32)

    def fit(state, stop):
        start = int(state.step)
        part = {"elbo": history[..., start : start + 2], "left_out": None}
        return state._replace(step=jnp.int32(min(start + 2, stop))), part

    return fit


COUNTER = training.TrainState({}, optax.EmptyState(), jnp.zeros((), jnp.int32))
NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("rows", "step", "says"),
    [
        ([[1, 2, 3, NAN, NAN, NAN]], 3, "got elbo nan at step 3: .*before step 2 is the last good one"),
        ([[1, 2, -INF, 3, 4, 5]], 2, "got elbo -inf at step 2"),
        ([[INF, 1, 1, 1, 1, 1]], 0, "got elbo inf at step 0"),
        ([[1, NAN, NAN, NAN, NAN, NAN], [1, 1, 1, 1, NAN, NAN]], 4, "got elbo nan at step 4"),
        ([[1, 1, 1, 1, NAN, NAN], [1, 1, 1, 1, 1, NAN]], 5, "got elbo nan at step 5: .*before step 4 is the last good"),
        ([[1, NAN, NAN, NAN, NAN, NAN], [1, 1, 1, 1, 1, 1]], None, None),
    ],
)
def test_the_first_number_that_is_not_finite_is_told_and_refused(rows, step, says, caplog):
    chunks = training.run_chunks(known(*rows), COUNTER, 6)
    good, lost = 0, None
    with caplog.at_level(logging.WARNING):
        for chunk in chunks:
            try:
                training.check_chunk(chunk)
            except training.DivergedError as error:
                lost = lost or error
            else:
                good = chunk.stop if lost is None else good
    if step is None:
        assert (lost, good, caplog.records) == (None, 6, [])
        return
    assert lost.step == step
    assert good == step // 2 * 2
    (record,) = caplog.records  # once, whatever follows
    assert record.getMessage() == str(lost)
    with pytest.raises(ValueError, match=says):
        raise lost


def test_a_run_that_diverges_under_jit_keeps_its_last_good_checkpoint(tmp_path):
    vae = models.mlp_vae((3,), 2, (4,), likelihood="gaussian")
    optimizer = optax.sgd(lambda count: jnp.where(count < 5, 1e-3, 1e12))
    step = training.make_train_step(objectives.make_elbo(vae), optimizer)
    first = training.init_state(vae.init(jax.random.key(0)), optimizer)
    images = jax.random.normal(jax.random.key(5), (20, 3))
    sizes = {"num_steps": 4, "batch_size": 5}
    fit = jax.jit(lambda state, stop: training.fit(step, state, jax.random.key(1), images, stop=stop, **sizes))

    def save_each_chunk():
        for chunk in training.run_chunks(fit, first, 40):
            training.check_chunk(chunk)
            checkpoints.save(tmp_path, chunk.state, config={})

    with pytest.raises(training.DivergedError) as caught:
        save_each_chunk()
    assert 5 < caught.value.step < 12
    assert checkpoints.steps(tmp_path)[-1] == caught.value.step // 4 * 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoints.restore_params(tmp_path)))
