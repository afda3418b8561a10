import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from vaejax import baselines, data, estimators, models, objectives, training


@pytest.fixture(scope="module", autouse=True)
def optimized():
    """Programs as users compile them: that runs cut into chunks agree to the last bit is a promise about those."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def problem():
    """A small model, its step, its first state, 53 grey images and the key of the run."""
    vae = models.mlp_vae((4,), 2, (5,))
    optimizer = optax.adam(1e-2)
    step = training.make_train_step(objectives.make_elbo(vae, num_samples=2), optimizer, data.binarize_dynamic)
    images = jax.random.uniform(jax.random.key(5), (53, 4))
    return step, training.init_state(vae.init(jax.random.key(0)), optimizer), images


def run(problem, num_steps, state=None, **options):
    step, first, images = problem
    fit = jax.jit(
        lambda state, key: training.fit(step, state, key, images, num_steps=num_steps, batch_size=10, **options)
    )
    return fit(first if state is None else state, jax.random.key(7))


@pytest.mark.exhaustive
def test_a_run_equals_its_steps_by_hand(problem):
    step, state, images = problem
    step = jax.jit(step)
    key = jax.random.key(7)
    for t in range(12):
        if t % 5 == 0:  # 53 examples make 5 batches of 10
            order_key = jax.random.fold_in(key, 2**32 - 1)
            order = jax.random.permutation(jax.random.fold_in(order_key, t // 5), 53)
        batch = images[order[(t % 5) * 10 : (t % 5) * 10 + 10]]
        state, _ = step(state, jax.random.fold_in(key, t), batch)
    chex.assert_trees_all_close(run(problem, 12)[0], state, rtol=1e-5)


def test_an_epoch_shows_each_example_at_most_once_and_epochs_differ():
    seen = training.fit(
        lambda state, key, batch: (state._replace(step=state.step + 1), {f"x{i}": batch[i] for i in range(10)}),
        training.TrainState({}, optax.EmptyState(), jnp.zeros((), jnp.int32)),
        jax.random.key(0),
        np.arange(53.0, dtype=np.float32),
        num_steps=10,
        batch_size=10,
    )[1]
    epochs = np.stack([seen[f"x{i}"] for i in range(10)], axis=1).reshape(2, 50)
    assert [len(np.unique(epoch)) for epoch in epochs] == [50, 50]
    assert set(epochs[0]) != set(epochs[1])
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))


@pytest.mark.quick_for("12")
@pytest.mark.parametrize("cut", [1, 3, 5, 10, 12])
def test_chunks_equal_one_run_bit_for_bit(problem, cut):
    whole, history = run(problem, 13)
    first, before = run(problem, cut)
    second, after = run(problem, 13 - cut, first)
    chex.assert_trees_all_equal(whole, second)
    np.testing.assert_array_equal(history.elbo, np.concatenate([before.elbo, after.elbo]))


def test_a_traced_stop_serves_every_length_with_one_compilation(problem):
    step, state, images = problem
    step = chex.assert_max_traces(step, 2)  # one for the shapes of what it reports, one for the scan
    fit = jax.jit(
        lambda state, key, stop: training.fit(step, state, key, images, num_steps=8, batch_size=10, stop=stop)
    )
    key = jax.random.key(7)
    for stop in (3, 8):
        stopped, history = fit(state, key, stop)
        expected, expected_history = run(problem, stop)
        chex.assert_trees_all_equal(stopped, expected)
        np.testing.assert_array_equal(history.elbo[:stop], expected_history.elbo)
        assert np.isnan(history.elbo[stop:]).all()
    resumed, _ = fit(fit(state, key, 8)[0], key, 13)
    chex.assert_trees_all_equal(resumed, run(problem, 13)[0])


@pytest.mark.exhaustive
def test_a_long_run_draws_its_epochs_in_between_and_is_the_same(problem, monkeypatch):
    """The order of 2 steps at one time, of 13 or of those before a stop; and so under vmap over runs."""
    whole, history = run(problem, 13)
    monkeypatch.setattr(training.loop, "_MOST_ROWS", 25)
    pieces, same = run(problem, 13)
    chex.assert_trees_all_equal((pieces, same), (whole, history))
    pieces, same = run(problem, 13, stop=8)
    assert int(pieces.step) == 8
    np.testing.assert_array_equal(same.elbo[:8], history.elbo[:8])
    assert np.isnan(same.elbo[8:]).all()
    step, state, images = problem
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)._replace(step=state.step)
    keys = jax.random.split(jax.random.key(7), 2)
    together, several = jax.jit(
        lambda states: training.fit_population(lambda _: step, states, keys, images, num_steps=13, batch_size=10)
    )(states)
    assert several.elbo.shape == (2, 13)
    alone, _ = jax.jit(lambda key: training.fit(step, state, key, images, num_steps=13, batch_size=10))(keys[1])
    mine = jax.tree.map(lambda leaf: leaf[1], together.params)
    chex.assert_trees_all_close(mine, alone.params, rtol=1e-4, atol=1e-6)


def test_a_step_has_no_condition(problem):
    """One would make a GPU wait for its host at each step: the order of an epoch is drawn before the steps."""
    step, state, images = problem

    def fit(state, key):
        return training.fit(step, state, key, images, num_steps=13, batch_size=10)

    assert "cond[" not in str(jax.make_jaxpr(fit)(state, jax.random.key(0)))
    assert " conditional(" not in jax.jit(fit).lower(state, jax.random.key(0)).compile().as_text()


@pytest.mark.exhaustive
def test_a_run_has_a_gradient(problem):
    """Of where it ends with respect to the learning rate, against a difference."""
    _, state, images = problem
    objective, images = objectives.make_elbo(models.mlp_vae((4,), 2, (5,))), (images > 0.5).astype(jnp.float32)

    @jax.jit
    def end(rate):
        step = training.make_train_step(objective, optax.sgd(rate))
        begin = training.init_state(state.params, optax.sgd(rate))
        ended, _ = training.fit(step, begin, jax.random.key(7), images, num_steps=12, batch_size=10)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(ended.params))

    slope, difference = jax.jit(jax.grad(end))(0.02), (end(0.022) - end(0.018)) / 0.004
    assert abs(slope) > 0.1
    np.testing.assert_allclose(slope, difference, rtol=0.02)


def test_a_run_is_traced_once(problem):
    step, state, images = problem
    fit = chex.assert_max_traces(
        lambda state, key, images: training.fit(step, state, key, images, num_steps=5, batch_size=10), 1
    )
    jitted = jax.jit(fit)
    for seed in range(3):
        state, _ = jitted(state, jax.random.key(seed), images)


def test_a_population_under_vmap_equals_single_runs(problem):
    step, state, images = problem
    keys = jax.random.split(jax.random.key(3), 3)
    shared_step = training.TrainState(params=None, opt_state=None, step=None)
    out = training.TrainState(params=0, opt_state=0, step=None)
    fit = lambda state, key: training.fit(step, state, key, images, num_steps=12, batch_size=10)  # noqa: E731
    together, history = jax.jit(jax.vmap(fit, in_axes=(shared_step, 0), out_axes=(out, 0)))(state, keys)
    assert together.step.shape == ()
    for i, key in enumerate(keys):
        single, single_history = jax.jit(fit)(state, key)
        np.testing.assert_allclose(history.elbo[i], single_history.elbo, rtol=1e-5)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together.params), single.params, rtol=1e-4, atol=1e-6
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("group_size", [None, 1, 2])
def test_a_population_is_its_runs(group_size):
    """Seeds, weights of the KL, learning rates and numbers of the estimator side by side; of 5 runs 2 leave one."""
    vae, images = models.mlp_vae((4,), 2, (5,)), jax.random.uniform(jax.random.key(5), (53, 4))
    estimator = estimators.score_function(baseline="moving_average")

    def optimizer_of(numbers):
        return baselines.with_optimizer(optax.adam(numbers["rate"]), decay=numbers["decay"])

    def make_step(numbers):
        objective = objectives.make_elbo(vae, estimator, 2, beta=numbers["beta"])
        return training.make_train_step(objective, optimizer_of(numbers), data.binarize_dynamic)

    def init(key):
        return estimators.with_baseline(vae.init(key), estimator, key, images[:1])

    numbers = {
        "beta": jnp.array([0.5, 1.0, 1.0, 2.0, 2.0]),
        "rate": jnp.array([1e-2, 1e-2, 1e-3, 1e-3, 0.0]),
        "decay": jnp.array([0.9, 0.5, 0.9, 0.9, 0.9]),
    }
    init_keys, keys = jax.random.split(jax.random.key(3), (2, 5))
    first = {name: float(values[0]) for name, values in numbers.items()}
    states = training.init_population(init, optimizer_of(first), init_keys)
    options = {"num_steps": 12, "batch_size": 10}
    run = jax.jit(
        lambda states, keys, stop: training.fit_population(
            make_step, states, keys, images, numbers, group_size=group_size, stop=stop, **options
        )
    )
    begun, _ = run(states, jax.random.clone(keys), 4)
    ended, history = run(begun, jax.random.clone(keys), 11)  # in two calls, and not to the end
    assert ended.step.shape == ()
    assert int(ended.step) == 11
    for i, key in enumerate(jax.random.clone(keys)):
        step = make_step({name: float(values[i]) for name, values in numbers.items()})
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], (states.params, states.opt_state))
        fit = jax.jit(lambda state, key, step=step: training.fit(step, state, key, images, **options))
        _, alone = fit(training.TrainState(*mine, states.step), key)
        np.testing.assert_allclose(history.bound[i, :7], alone.bound[4:11], rtol=1e-4)
    unmoved = jax.tree.map(lambda new, old: new[4] == old[4], ended.params["decoder"], states.params["decoder"])
    assert all(leaf.all() for leaf in jax.tree.leaves(unmoved))  # at a rate of 0


@pytest.mark.exhaustive
@pytest.mark.parametrize(("data_axis", "group_size"), [(0, None), (0, 1), (1, 2)])
def test_a_population_may_have_data_of_its_own(problem, data_axis, group_size):
    step, state, _ = problem
    number, options = 3, {"num_steps": 7, "batch_size": 10}
    keys = jax.random.split(jax.random.key(3), number)
    images = jax.random.uniform(jax.random.key(4), (number, 23, 4))
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * number), state)._replace(step=state.step)
    run = jax.jit(
        lambda states, keys, images: training.fit_population(
            lambda _: step, states, keys, images, data_axis=data_axis, group_size=group_size, **options
        )
    )
    ended, history = run(states, jax.random.clone(keys), jnp.moveaxis(images, 0, data_axis))
    fit = jax.jit(lambda key, images: training.fit(step, state, key, images, **options))
    for i, key in enumerate(keys):
        single, alone = fit(key, images[i])
        exact = group_size == 1  # without vmap the program of a run is its own
        np.testing.assert_allclose(history.elbo[i], alone.elbo, rtol=0 if exact else 1e-5)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], ended.params)
        chex.assert_trees_all_close(mine, single.params, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-6)


def test_a_population_refuses_bad_data_of_its_own(problem):
    step, state, _ = problem
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)._replace(step=state.step)
    keys, images = jax.random.split(jax.random.key(3), 2), np.ones((2, 20, 4), np.float32)
    options = {"num_steps": 2, "batch_size": 10, "data_axis": 0}
    with pytest.raises(ValueError, match=r"data and hyperparameters of 2 runs.*; got lengths \[1, 2\]"):
        training.fit_population(lambda _: step, states, keys, images[:1], **options)
    images[1, 3, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 NaN or inf.*\(1, 3, 2\)"):
        training.fit_population(lambda _: step, states, keys, images, **options)


def test_a_population_of_unequal_numbers_is_refused(problem):
    step, _, images = problem
    vae = models.mlp_vae((4,), 2, (5,))
    keys = jax.random.split(jax.random.key(3), 3)
    states = training.init_population(vae.init, optax.adam(1e-2), keys)
    options = {"num_steps": 2, "batch_size": 10}
    with pytest.raises(ValueError, match=r"hyperparameters of 2 runs.*; got lengths \[3\]"):
        training.fit_population(lambda _: step, states, jax.random.clone(keys)[:2], images, **options)
    with pytest.raises(ValueError, match=r"of 3 runs.*; got lengths \[2, 3\]"):
        training.fit_population(lambda _: step, states, keys, images, jnp.ones(2), **options)
    with pytest.raises(ValueError, match=r"group_size must be an integer of at least 1; got 0"):
        training.fit_population(lambda _: step, states, keys, images, group_size=0, **options)


def test_a_traced_weight_below_0_is_no_number():
    vae = models.mlp_vae((4,), 2, (5,))
    params, x = vae.init(jax.random.key(0)), jnp.ones((3, 4))

    def value(beta):
        return objectives.make_elbo(vae, beta=beta)(params, jax.random.key(1), x)[0]

    assert np.isnan(jax.jit(value)(-1.0))
    np.testing.assert_allclose(jax.jit(value)(0.5), value(0.5), rtol=1e-6)


def test_the_caller_keeps_its_state(problem):
    step, state, images = problem
    jax.jit(lambda s, k: training.fit(step, s, k, images, num_steps=2, batch_size=10))(state, jax.random.key(0))
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_history_has_scalars_alone(problem):
    _, history = run(problem, 4)
    assert isinstance(history, objectives.ObjectiveInfo)
    assert {name for name, value in history._asdict().items() if value is not None} == {
        "bound",
        "elbo",
        "reconstruction",
        "kl",
    }
    assert all(leaf.shape == (4,) for leaf in jax.tree.leaves(history))


def test_training_raises_the_bound(problem):
    _, history = run(problem, 300)
    assert history.elbo[-50:].mean() > history.elbo[:50].mean() + 0.05


def test_a_scheduled_weight_gets_the_step():
    vae = models.linear_vae(3, 2)
    objective = objectives.make_elbo(vae, beta=optax.linear_schedule(0.0, 1.0, 4))
    step = training.make_train_step(objective, optax.sgd(0.0))
    state = training.init_state(vae.init(jax.random.key(0)), optax.sgd(0.0))
    _, history = training.fit(step, state, jax.random.key(1), jnp.ones((8, 3)), num_steps=6, batch_size=8)
    beta = (history.reconstruction - history.bound) / history.kl
    np.testing.assert_allclose(beta, [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-4)


def check_lowers_for_every_platform(program, state, x_shape):
    """`program(state, key, x)`, in one export: it fails where a single platform lacks an operation."""
    platforms = ("cpu", "cuda", "tpu")
    # Typed keys inside the program are its own business; at its boundary jax.export wants their bits.
    of_bits = jax.jit(lambda state, bits, x: program(state, jax.random.wrap_key_data(bits), x))
    bits, x = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct(x_shape, jnp.float32)
    assert export.export(of_bits, platforms=platforms)(state, bits, x).platforms == platforms


@pytest.mark.quick_for("estimator0-linear_vae")
@pytest.mark.parametrize("make", [models.mlp_vae, models.conv_vae, models.linear_vae])
@pytest.mark.parametrize("estimator", [estimators.pathwise(), estimators.score_function("leave_one_out")])
def test_a_run_lowers_for_every_platform(make, estimator):
    vae = make((4, 4), 2, likelihood="bernoulli")
    step = training.make_train_step(objectives.make_elbo(vae, estimator, 2), optax.adam(1e-3), data.binarize_dynamic)
    state = jax.eval_shape(lambda key: training.init_state(vae.init(key), optax.adam(1e-3)), jax.random.key(0))
    fit = lambda state, key, x: training.fit(step, state, key, x, num_steps=3, batch_size=4)  # noqa: E731
    check_lowers_for_every_platform(fit, state, (20, 4, 4))


GRADIENTS = {
    "score function": (objectives.make_elbo, estimators.score_function(), 1, "gaussian"),
    "leave-one-out": (objectives.make_elbo, estimators.score_function("leave_one_out"), 2, "gaussian"),
    "moving average": (objectives.make_elbo, estimators.score_function("moving_average"), 1, "gaussian"),
    "NVIL": (objectives.make_elbo, estimators.score_function("nvil"), 1, "gaussian"),
    "VIMCO, IWAE": (objectives.make_iwae, estimators.vimco(), 2, "gaussian"),
    "sticking the landing, IWAE": (objectives.make_iwae, estimators.sticking_the_landing(), 2, "gaussian"),
    "doubly reparameterized, IWAE": (objectives.make_iwae, estimators.doubly_reparameterized(), 2, "gaussian"),
    "measure-valued": (objectives.make_elbo, estimators.measure_valued(), 1, "gaussian"),
    "enumerated coins": (objectives.make_elbo, estimators.enumerate_support(), 1, "bernoulli"),
}


@pytest.mark.quick_for("moving average", "NVIL")
@pytest.mark.parametrize(("make", "estimator", "num_samples", "posterior"), GRADIENTS.values(), ids=GRADIENTS)
def test_a_step_by_every_estimator_lowers_for_every_platform(make, estimator, num_samples, posterior):
    vae = models.mlp_vae((4,), 2, (3,), posterior=posterior)
    optimizer = baselines.with_optimizer(optax.adam(1e-3))
    step = training.make_train_step(make(vae, estimator, num_samples), optimizer)

    def init(key, x):
        params_key, baseline_key = jax.random.split(key)
        params = estimators.with_baseline(vae.init(params_key), estimator, baseline_key, x)
        return training.init_state(params, optimizer)

    state = jax.eval_shape(init, jax.random.key(0), jnp.ones((5, 4)))
    assert ("baseline" in state.params) == (estimator.baseline is not None)
    check_lowers_for_every_platform(step, state, (5, 4))


def fit_with(problem, images, **options):
    step, state, _ = problem
    return training.fit(step, state, jax.random.key(0), images, **{"num_steps": 1, "batch_size": 1, **options})


def test_one_image_is_enough(problem):
    state, _ = fit_with(problem, np.ones((1, 4), np.float32))
    assert int(state.step) == 1


def test_bad_data_are_refused(problem):
    with pytest.raises(ValueError, match=r"same number of examples, at least one, .*got lengths \[0\]"):
        fit_with(problem, np.ones((0, 4), np.float32))
    with pytest.raises(ValueError, match="batch_size must be at most the number of examples; got 11 for 10 examples"):
        fit_with(problem, np.ones((10, 4), np.float32), batch_size=11)
    images = np.ones((10, 4), np.float32)
    images[3, 2] = images[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"2 .*NaN or inf.*\(3, 2\)"):
        fit_with(problem, images)
    with pytest.raises(ValueError, match=r"expected float32 data.*got float64"):
        fit_with(problem, np.ones((10, 4)))
    with pytest.raises(ValueError, match=r"same number of examples, .*got lengths \[9, 10\]"):
        fit_with(problem, {"x": np.ones((10, 4), np.float32), "y": np.ones(9, np.float32)})


@pytest.mark.parametrize(
    ("name", "value"), [("num_steps", -1), ("num_steps", 1.5), ("batch_size", 0), ("batch_size", 2.0)]
)
def test_sizes_must_be_integers(problem, name, value, no_type_hook):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
        fit_with(problem, np.ones((10, 4), np.float32), **{name: value})
