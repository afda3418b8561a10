import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from vaejax import estimators, evaluation, models, objectives, sequences, training


@pytest.fixture(scope="module")
def problem():
    vae = sequences.lstm_vae(vocabulary_size=3, length=4, latent_dim=2, embedding_size=5, hidden_size=6)
    params = jax.tree.map(lambda leaf: 3 * leaf, vae.init(jax.random.key(0)))
    return vae, params, jax.random.randint(jax.random.key(1), (7, 4), 0, 3)


def test_all_sequences_together_have_probability_one(problem):
    vae, params, _ = problem
    every = jnp.array(list(itertools.product(range(3), repeat=4)))  # 81 of them
    for z in jax.random.normal(jax.random.key(2), (3, 2)):
        p = vae.decode(params, z)
        np.testing.assert_allclose(jnp.exp(p.log_prob(every)).sum(), 1, rtol=1e-5)


def test_samples_come_as_often_as_their_probability_says(problem):
    vae, params, _ = problem
    every = np.array(list(itertools.product(range(3), repeat=4)))
    p = vae.decode(params, jnp.array([0.5, -1.0]))
    drawn = np.asarray(p.sample(jax.random.key(3), (20_000,)))
    counts = np.bincount(np.ravel_multi_index(drawn.T, (3,) * 4), minlength=81)
    expected = 20_000 * np.exp(np.asarray(p.log_prob(jnp.asarray(every)), np.float64))
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-4
    assert np.ptp(expected) > 100


def test_a_token_is_given_the_code_and_those_before_it_alone(problem):
    """Log p(x|z) of the first tokens does not change with the last, and does with the code."""
    vae, params, x = problem
    z = jax.random.normal(jax.random.key(2), (7, 2))

    def first_three(x, z):  # by summing over the last
        last = [vae.decode(params, z).log_prob(x.at[:, 3].set(token)) for token in range(3)]
        return jax.nn.logsumexp(jnp.stack(last), axis=0)

    changed = x.at[:, 3].set((x[:, 3] + 1) % 3)
    np.testing.assert_allclose(first_three(x, z), first_three(changed, z), rtol=1e-5)
    assert np.abs(first_three(x, z) - first_three(x, z + 1)).min() > 1e-4


@pytest.mark.exhaustive
def test_any_batch_axes(problem):
    vae, params, x = problem
    z = jax.random.normal(jax.random.key(2), (2, 3, 2))
    p = vae.decode(params, z)
    assert (p.batch_shape, p.event_shape) == ((2, 3), (4,))
    assert p.sample(jax.random.key(3)).shape == (2, 3, 4)
    assert p.sample(jax.random.key(3), (5,)).shape == (5, 2, 3, 4)
    shaped = x[:6].reshape(2, 3, 4)
    one_by_one = [vae.decode(params, z[i, j]).log_prob(shaped[i, j]) for i in range(2) for j in range(3)]
    np.testing.assert_allclose(p.log_prob(shaped), jnp.stack(one_by_one).reshape(2, 3), rtol=1e-5)
    assert vae.encode(params, shaped).batch_shape == (2, 3)
    assert vae.encode(params, x[0]).batch_shape == ()


@pytest.mark.exhaustive
def test_it_is_a_model_like_any_other(problem):
    """Bounds by several estimators, training, and every number of the evaluation that needs no mean."""
    vae, params, x = problem
    elbo = objectives.make_elbo(vae, num_samples=4)
    value, _ = elbo(params, jax.random.key(2), x)
    other, _ = objectives.make_elbo(vae, estimators.score_function("leave_one_out"), 4)(params, jax.random.key(2), x)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    step = training.make_train_step(elbo, optax.adam(1e-2))
    state = training.init_state(params, optax.adam(1e-2))
    run = jax.jit(lambda state: training.fit(step, state, jax.random.key(3), x, num_steps=50, batch_size=7))
    state, history = run(state)
    assert history.elbo[-5:].mean() > history.elbo[:5].mean() + 0.1
    params = jax.tree.map(lambda leaf: leaf / 3, params)  # whose weights are better
    exact = evaluation.quadrature_log_likelihood(vae, params, x, 81)
    sampled = evaluation.log_likelihood(vae, params, jax.random.key(4), x, num_samples=2000)
    scores = (sampled.estimate - exact.estimate) / sampled.standard_error
    assert np.abs(scores).max() < 5
    assert sampled.standard_error.max() < 0.05
    assert evaluation.mutual_information(vae, params, jax.random.key(5), x).estimate <= np.log(7)
    assert evaluation.bidirectional_bounds(vae, params, jax.random.key(6), 3, 2, 5).x.dtype == jnp.int32


def test_it_lowers_for_every_platform(problem):
    vae, params, x = problem
    step = training.make_train_step(objectives.make_elbo(vae), optax.adam(1e-2))
    state = training.init_state(params, optax.adam(1e-2))
    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(state, jax.random.key(2), x)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_sequences_that_are_not_the_models_are_refused(problem):
    vae, params, x = problem
    elbo = objectives.make_elbo(vae)
    for bad, words in (
        (
            jnp.zeros((7, 5), jnp.int32),
            r"sequences of shape \(\*batch, 4\); got \(7, 5\): cut longer ones.*their length",
        ),
        (
            x.at[2, 1].set(3),
            r"ids from 0 to 2.*got 1 others, the first at index \(2, 1\) with value 3: make the model",
        ),
        (x.at[0, 0].set(-1), "with value -1"),
        (x.astype(jnp.float32), "expected token ids of an integer dtype; got float32"),
        (x[:0], "at least one example"),
    ):
        with pytest.raises(ValueError, match=words):
            elbo(params, jax.random.key(2), bad)
        with pytest.raises(ValueError, match=r"expected|sequences"):
            evaluation.log_likelihood(vae, params, jax.random.key(2), bad, num_samples=2)
    value, info = jax.jit(elbo)(params, jax.random.key(2), x.at[2, 1].set(3))
    assert np.isnan(value)
    assert np.isnan(info.per_example).tolist() == [i == 2 for i in range(7)]
    with pytest.raises(ValueError, match=r"latents of shape \(\*batch, 2\); got \(3,\)"):
        vae.decode(params, jnp.zeros(3))


@pytest.mark.parametrize(
    ("name", "bad"), [("vocabulary_size", 1), ("length", 0), ("latent_dim", 0), ("hidden_size", 0)]
)
def test_sizes_out_of_range_are_refused(name, bad):
    sizes = {"vocabulary_size": 3, "length": 4, "latent_dim": 2} | {name: bad}
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least [12]; got {bad}"):
        sequences.lstm_vae(**sizes)


@pytest.mark.exhaustive
def test_the_generators_information_is_known():
    """I(x; z) from log p(x) by quadrature, against the same from the entropy that many samples have."""
    vae, params = sequences.latent_lstm(jax.random.key(0), vocabulary_size=3, length=3, hidden_size=20)
    z, x = sequences.draw(vae, params, jax.random.key(1), 2000)
    exact = evaluation.quadrature_log_likelihood(vae, params, x, 61, bound=6.0)
    assert exact.error.max() < 0.05
    every = jnp.array(list(itertools.product(range(3), repeat=3)))
    p = jnp.exp(evaluation.quadrature_log_likelihood(vae, params, every, 61, bound=6.0).estimate)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-3)
    counts = np.bincount(np.ravel_multi_index(np.asarray(x).T, (3,) * 3), minlength=27)
    error = np.sqrt(np.asarray(p) * (1 - p) / 2000)
    assert (np.abs(counts / 2000 - p) < 5 * error + 1e-4).all()
    information = vae.decode(params, z).log_prob(x) - exact.estimate
    assert information.mean() > 5 * information.std() / np.sqrt(2000)
    assert models.sample_data(vae, params, jax.random.key(3), z).dtype == jnp.int32
