import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import baselines, data, estimators, models, objectives, training


@pytest.fixture
def problem():
    vae = models.mlp_vae((8, 8), 2, (20,))
    images = data.binarize_dynamic(jax.random.key(0), data.load("digits", "train").images[:200])
    return vae, vae.init(jax.random.key(1)), images


def test_moving_average_under_its_optimizer_is_an_exponential_moving_average(problem):
    vae, params, images = problem
    estimator = estimators.score_function(baseline="moving_average")
    params = estimators.with_baseline(params, estimator, jax.random.key(2), images)
    optimizer = baselines.with_optimizer(optax.adam(1e-3), decay=0.9)
    step = jax.jit(training.make_train_step(objectives.make_elbo(vae, estimator), optimizer))
    state, average = training.init_state(params, optimizer), 0.0
    for t in range(5):
        state, info = step(state, jax.random.key(10 + t), images[:50])
        average = 0.9 * average + 0.1 * float(info.bound)
        np.testing.assert_allclose(state.params["baseline"]["mean"], average, rtol=1e-5)


@pytest.mark.exhaustive
def test_nvil_learns_what_each_example_brings(problem):
    vae, params, images = problem
    estimator = estimators.score_function(baselines.nvil((50,)))
    params = estimators.with_baseline(params, estimator, jax.random.key(2), images)
    optimizer = baselines.with_optimizer(optax.sgd(0.0), learning_rate=1e-2)  # the model stays as it is
    step = training.make_train_step(objectives.make_elbo(vae, estimator, 4), optimizer)
    state = training.init_state(params, optimizer)
    run = jax.jit(lambda state: training.fit(step, state, jax.random.key(3), images, num_steps=1500, batch_size=50))
    state, _ = run(state)
    _, info = objectives.make_elbo(vae, num_samples=100)(params, jax.random.key(4), images)
    expected = estimator.baseline.apply(state.params["baseline"], images)
    left = np.var(info.per_example - expected) / np.var(info.per_example)
    assert left < 0.5  # a constant would leave all of it
    jax.tree.map(np.testing.assert_array_equal, state.params["decoder"], params["decoder"])


@pytest.mark.quick_for("nvil")
@pytest.mark.parametrize("baseline", ["moving_average", "nvil"])
def test_its_loss_is_half_the_squared_distance_and_changes_nothing_else(problem, baseline):
    vae, params, images = problem
    estimator = estimators.score_function(baseline)
    params = estimators.with_baseline(params, estimator, jax.random.key(2), images)
    objective = objectives.make_elbo(vae, estimator, 3)
    (value, info), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, jax.random.key(5), images)
    plain, _ = jax.jit(objectives.make_elbo(vae, estimators.score_function(), 3))(params, jax.random.key(5), images)
    assert value == plain

    def loss(parameters):
        return -0.5 * ((info.per_example - estimator.baseline.apply(parameters, images)) ** 2).mean()

    expected = jax.grad(loss)(params["baseline"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grads["baseline"], expected)
    assert grads["baseline"]["mean"] != 0


@pytest.mark.exhaustive
def test_a_baseline_near_the_reward_lowers_the_variance(problem):
    vae, params, images = problem
    estimator = estimators.score_function(baseline="moving_average")
    objective = objectives.make_elbo(vae, estimator)
    variances = []
    _, info = objectives.make_elbo(vae)(params, jax.random.key(4), images)
    for mean in (0.0, info.bound):
        own = params | {"baseline": {"mean": jnp.asarray(mean)}}
        keys = jax.random.split(jax.random.key(6), 200)
        gradient = jax.jit(
            lambda keys, own=own: jax.lax.map(
                lambda key: jax.grad(objective, has_aux=True)(own, key, images)[0]["encoder"], keys
            )
        )
        variances.append(sum(leaf.var(axis=0).sum() for leaf in jax.tree.leaves(gradient(keys))))
    assert variances[1] < variances[0] / 10


def test_batches_of_any_shape_have_a_baseline(problem):
    vae, params, images = problem
    for name in ("moving_average", "nvil"):
        estimator = estimators.score_function(name)
        own = estimators.with_baseline(params, estimator, jax.random.key(2), images)
        objective = objectives.make_elbo(vae, estimator)
        for batch, shape in ((images[:6].reshape(2, 3, 8, 8), (2, 3)), (images[0], ())):
            _, info = jax.eval_shape(objective, own, jax.random.key(3), batch)
            assert info.per_example.shape == shape


def test_parameters_without_a_baseline_are_the_models(problem):
    _, params, _ = problem
    grads = jax.tree.map(jnp.ones_like, params)
    plain = optax.sgd(0.5)
    optimizer = baselines.with_optimizer(plain)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of its integer count
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, plain.update(grads, plain.init(params), params)[0])


@pytest.mark.parametrize(
    "make_params", [lambda: {"weights": jnp.zeros(64)}, lambda: jnp.zeros(64)], ids=["dict", "array"]
)
def test_a_baseline_of_ones_own_is_trained(problem, make_params):
    vae, params, images = problem
    own = baselines.Baseline(
        init=lambda key, x: make_params(),
        apply=lambda parameters, x: x.reshape(len(x), -1) @ jax.tree.leaves(parameters)[0],
    )
    estimator = estimators.score_function(own)
    params = estimators.with_baseline(params, estimator, jax.random.key(2), images)
    optimizer = baselines.with_optimizer(optax.sgd(0.0), learning_rate=0.1)
    step = jax.jit(training.make_train_step(objectives.make_elbo(vae, estimator), optimizer))
    state, _ = step(training.init_state(params, optimizer), jax.random.key(3), images[:50])
    (weights,) = jax.tree.leaves(state.params["baseline"])
    assert (weights[images[:50].reshape(50, -1).any(axis=0)] < 0).all()  # the rewards are negative


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="at least 0 and below 1; got"):
        baselines.with_optimizer(optax.sgd(0.1), decay=decay)
