import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import evaluation, inference, models, objectives, training

OPTIMIZERS = optax.sgd(0.05), optax.sgd(0.03)


@pytest.fixture
def problem():
    vae = models.mlp_vae((3,), 2, (4,), "gaussian_shared_std")
    return vae, vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (60, 3))


def make(vae, validation, **options):
    settings = {"batch_size": 5, "max_encoder_steps": 7, "window": 2, "check_every": 1000} | options
    return inference.make_aggressive_train_step(vae, objectives.make_elbo(vae), *OPTIMIZERS, validation, **settings)


@pytest.mark.exhaustive
def test_the_encoder_runs_ahead_and_the_decoder_follows(problem):
    """By hand, for as many steps as the program says that it took."""
    vae, params, x = problem
    batch = x[:40].reshape(8, 5, 3)
    step = jax.jit(make(vae, x[40:]))
    state, info = step(inference.init_lagging(params, *OPTIMIZERS), jax.random.key(2), x[:40])
    number = int(info.encoder_steps)
    assert 2 <= number <= 7
    assert info.aggressive == 1
    elbo = objectives.make_elbo(vae)
    _, key = jax.random.split(jax.random.key(2))
    moved, values = params, []
    for i in range(1, number + 1):
        grads, seen = jax.grad(elbo, has_aux=True)(moved, jax.random.fold_in(key, i), batch[i], step=0)
        values.append(float(seen.bound))
        encoder = jax.tree.map(lambda leaf, g: leaf + 0.05 * g, moved["encoder"], grads["encoder"])
        moved = {**moved, "encoder": encoder}
    grads = jax.grad(elbo, has_aux=True)(moved, jax.random.fold_in(key, 0), batch[0], step=0)[0]
    decoder = jax.tree.map(lambda leaf, g: leaf + 0.03 * g, moved["decoder"], grads["decoder"])
    chex.assert_trees_all_close(state.params, {**moved, "decoder": decoder}, rtol=1e-4, atol=1e-6)
    # It stopped at the first pair of steps that was not above the pair before, or at the limit.
    pairs = [sum(values[i : i + 2]) for i in range(0, number - 1, 2)]
    rises = np.diff(pairs) > 0
    assert rises[:-1].all() if number < 7 else rises[: len(pairs) - 1].all()
    assert number == 7 or not rises[-1]


@pytest.mark.exhaustive
def test_usual_training_once_it_is_over(problem):
    """One step of encoder and decoder each, at the parameters that were there: plain gradient ascent."""
    vae, params, x = problem
    step = jax.jit(make(vae, x[40:]))
    state = inference.init_lagging(params, *OPTIMIZERS)
    state = state._replace(opt_state=state.opt_state._replace(aggressive=jnp.asarray(False)))
    state, info = step(state, jax.random.key(2), x[:40])
    _, key = jax.random.split(jax.random.key(2))
    grads, _ = jax.grad(objectives.make_elbo(vae), has_aux=True)(params, jax.random.fold_in(key, 0), x[:5], step=0)
    expected = {
        **params,
        "encoder": jax.tree.map(lambda leaf, g: leaf + 0.05 * g, params["encoder"], grads["encoder"]),
        "decoder": jax.tree.map(lambda leaf, g: leaf + 0.03 * g, params["decoder"], grads["decoder"]),
    }
    chex.assert_trees_all_close(state.params, expected, rtol=1e-4, atol=1e-6)
    assert info.encoder_steps == 1
    assert info.aggressive == 0


@pytest.mark.exhaustive
def test_it_is_over_when_the_information_stops_rising(problem):
    vae, params, x = problem
    step = make(vae, x[40:], check_every=3, patience=2)
    state = inference.init_lagging(params, *OPTIMIZERS)
    run = jax.jit(lambda state: training.fit(step, state, jax.random.key(2), x[:40], num_steps=60, batch_size=40))
    state, history = run(state)
    on = np.asarray(history.aggressive)
    assert on[0] == 1
    assert on[-1] == 0, "the information of a model of noise should stop rising"
    assert (np.diff(on) <= 0).all()  # once over it stays so
    over = int(np.argmin(on))
    assert over % 3 == 0
    found = np.asarray(history.mutual_information)
    assert (found[:2] == 0).all()
    assert (found[2:] > 0).all()
    assert (np.diff(found[2:]) >= 0).all()  # it is the best so far
    assert found[over - 1] == found[over - 4] == found[over - 7] or over == 6
    assert int(state.opt_state.failures) == 2
    final = evaluation.mutual_information(vae, state.params, jax.random.key(3), x[40:])
    assert final.estimate < np.log(20)


def test_a_chunk_before_the_first_measurement_has_not_diverged(problem, caplog):
    vae, params, x = problem
    step = make(vae, x[40:])

    @jax.jit
    def fit(state, stop):
        return training.fit(step, state, jax.random.key(2), x[:40], num_steps=2, batch_size=40, stop=stop)

    for chunk in training.run_chunks(fit, inference.init_lagging(params, *OPTIMIZERS), 4):
        training.check_chunk(chunk)
        assert (chunk.history.mutual_information == 0).all()
    assert not caplog.records


def test_batches_are_prepared_one_by_one(problem):
    vae, params, x = problem
    seen = []

    def prepare(key, batch):
        seen.append(batch.shape)
        return batch + 0 * jax.random.normal(key, batch.shape)

    step = make(vae, x[40:], prepare=prepare)
    state, _ = jax.jit(step)(inference.init_lagging(params, *OPTIMIZERS), jax.random.key(2), x[:40])
    assert set(seen) == {(5, 3)}
    chex.assert_tree_all_finite(state.params)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"window": 0}, "window must be an integer of at least 1; got 0"),
        ({"validation": jnp.ones((1, 3))}, "number of validation examples must be an integer of at least 2; got 1"),
        ({"validation": jnp.ones((9, 4))}, r"expected data of shape \(\*batch, 3\).*got \(9, 4\)"),
        ({"validation": jnp.ones(3)}, "expected examples on one batch axis"),
    ],
)
def test_bad_options_are_refused(problem, options, words):
    vae, _, x = problem
    with pytest.raises(ValueError, match=words):
        make(vae, options.pop("validation", x), **options)


def test_a_batch_of_another_size_is_refused(problem):
    vae, params, x = problem
    with pytest.raises(ValueError, match=r"batch_size \* \(max_encoder_steps \+ 1\) = 40 examples.*got 39"):
        make(vae, x[40:])(inference.init_lagging(params, *OPTIMIZERS), jax.random.key(2), x[:39])


def test_it_lowers_for_every_platform(problem):
    vae, params, x = problem
    step = make(vae, x[40:])
    state = inference.init_lagging(params, *OPTIMIZERS)
    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(state, jax.random.key(2), x[:40])
    assert exported.platforms == ("cpu", "cuda", "tpu")
