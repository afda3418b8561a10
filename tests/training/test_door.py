"""What training takes, and what it refuses in one line before a compiled program hides it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import data, models, objectives, training


class Frame:
    """What a data frame is to us: rows that NumPy can read, and neither shape nor dtype of its own."""

    def __init__(self, rows):
        self.rows = rows

    def __array__(self, dtype=None, copy=None):
        return np.array(self.rows, dtype)


VAE = models.mlp_vae((3,), 2, (4,))
STEP = training.make_train_step(objectives.make_elbo(VAE), optax.adam(1e-2), data.binarize_dynamic)
ROWS = np.random.default_rng(0).uniform(size=(12, 3)).astype(np.float32)


def first_state():
    return training.init_state(VAE.init(jax.random.key(0)), optax.adam(1e-2))


def elbos(images, num_steps=3, batch_size=4):
    run = jax.jit(
        lambda state: (
            training.fit(STEP, state, jax.random.key(1), images, num_steps=num_steps, batch_size=batch_size)[1].elbo
        )
    )
    return run(first_state())


@pytest.mark.parametrize("images", [ROWS.tolist(), Frame(ROWS), jnp.asarray(ROWS)], ids=["lists", "frame", "JAX"])
def test_whatever_numpy_reads_is_data(images, no_type_hook):
    np.testing.assert_array_equal(elbos(images, np.int64(3), np.int32(4)), elbos(ROWS))


def test_lists_are_batches_too():
    state, key = first_state(), jax.random.key(1)
    batches = ROWS.reshape(3, 4, 3)
    of_lists, of_array = (training.fit_batches(STEP, state, key, x)[1].elbo for x in (batches.tolist(), batches))
    np.testing.assert_array_equal(of_lists, of_array)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (Frame(ROWS.astype(np.float64)), r"expected float32 data.*; got float64. Convert with x.astype"),
        (None, "at least one, on the first axis; got lengths"),
        ("digits", "expected data as an array of numbers; got 'digits'"),
        ([[0.5, 1.0], [0.5]], r"expected data as an array of numbers; got a list of 2"),
        (3.0, r"got lengths \[0\]"),
        (object(), "expected data as an array of numbers; got an object of type object"),
    ],
)
def test_what_is_no_data_is_refused(images, says):
    with pytest.raises(ValueError, match=says):
        training.fit(STEP, first_state(), jax.random.key(1), images, num_steps=1, batch_size=1)


@pytest.mark.parametrize("wrong", [{"images": ROWS}, (ROWS, ROWS)])
def test_a_tree_where_the_objective_takes_an_array_is_refused(wrong, no_type_hook):
    step = training.make_train_step(objectives.make_elbo(VAE), optax.adam(1e-2))
    with pytest.raises(
        ValueError, match=r"expected data as an array of numbers; got a (dict of images|tuple of 2): pass"
    ):
        training.fit(step, first_state(), jax.random.key(1), wrong, num_steps=1, batch_size=1)
    with pytest.raises(ValueError, match=r"expected images as an array of numbers; got a (dict of images|tuple of 2)"):
        data.binarize_dynamic(jax.random.key(0), wrong)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (
            lambda batches: batches.at[2, 1, 0].set(jnp.nan),
            r"1 NaN or infinite value of 36, the first nan at index \(2, 1, 0\)",
        ),
        (lambda batches: batches.at[1, 3, 2].set(jnp.inf), r"the first inf at index \(1, 3, 2\)"),
        (
            lambda batches: np.asarray(batches, np.float64),
            "expected float32 data, because JAX runs in 32 bits; got float64",
        ),
        (
            lambda batches: {"x": batches, "y": batches[:2]},
            r"alike in all arrays and not empty; got \[\(2, 4\), \(3, 4\)\]",
        ),
        (lambda batches: None, r"alike in all arrays and not empty; got \[\]"),
    ],
)
def test_bad_batches_are_refused_with_batch_and_example(bad, says):
    with pytest.raises(ValueError, match=says):
        training.fit_batches(STEP, first_state(), jax.random.key(1), bad(jnp.asarray(ROWS).reshape(3, 4, 3)))


KEYS = {
    "an old key": (
        lambda: jax.random.PRNGKey(0),
        r"got uint32\[2\], as the old style has it: jax.random.wrap_key_data",
    ),
    "keys stacked": (lambda: jax.random.split(jax.random.key(0), 3), r"got keys of shape \(3,\): take one of them"),
    "a number": (lambda: 0, r"got 0: jax.random.key\(0\) makes one"),
    "nothing": (lambda: None, "got None"),
    "floats": (lambda: np.ones(2), r"got float64\[2\]: jax"),
}


@pytest.mark.parametrize(("make", "says"), KEYS.values(), ids=KEYS)
def test_what_is_no_key_is_refused(make, says, no_type_hook):
    says = "key must be one typed key of JAX; " + says
    state, key = first_state(), make()
    for call in (
        lambda: STEP(state, key, ROWS),
        lambda: training.fit(STEP, state, key, ROWS, num_steps=1, batch_size=2),
        lambda: training.fit_batches(STEP, state, key, ROWS[None]),
        lambda: data.binarize_dynamic(key, ROWS),
        lambda: data.two_gaussians(key, 3),
        lambda: data.spiral(key, 3),
        lambda: data.linear_gaussian(key, 3),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def optimizers(wrong):
    elbo, params = objectives.make_elbo(VAE), VAE.init(jax.random.key(0))
    return (
        lambda: training.make_train_step(elbo, wrong),
        lambda: training.init_state(params, wrong),
        lambda: training.with_averages(wrong),
        lambda: training.init_population(VAE.init, wrong, jax.random.split(jax.random.key(0), 2)),
    )


@pytest.mark.parametrize(
    ("wrong", "got"),
    [(1e-3, "0.001"), (None, "None"), ("adam", "'adam'"), (optax.adam, "the function adam"), ({}, "an empty dict")],
)
def test_what_is_no_optimizer_is_refused(wrong, got, no_type_hook):
    for call in optimizers(wrong):
        with pytest.raises(ValueError, match=rf"optimizer must be an optax transformation, .*; got {got}"):
            call()


def test_what_is_no_function_state_or_tree_of_parameters_is_refused(no_type_hook):
    params, key, adam = VAE.init(jax.random.key(0)), jax.random.key(1), optax.adam(1e-3)
    with pytest.raises(ValueError, match=r"objective must be a function \(params, key, x, .*\).*; got 0.5"):
        training.make_train_step(0.5, adam)
    with pytest.raises(ValueError, match=r"prepare must be a function \(key, batch\) -> batch, or None; got 'dynamic'"):
        training.make_train_step(objectives.make_elbo(VAE), adam, "dynamic")
    with pytest.raises(ValueError, match=r"step must be a function \(state, key, batch\).*; got None"):
        training.fit(None, first_state(), key, ROWS, num_steps=1, batch_size=1)
    says = "state must be a TrainState, as training.init_state makes; got a dict of encoder, decoder, prior"
    for call in (
        lambda: STEP(params, key, ROWS),
        lambda: training.fit(STEP, params, key, ROWS, num_steps=1, batch_size=1),
        lambda: training.run_chunks(lambda state, stop: None, params, 10),
        lambda: training.averages(params),
    ):
        with pytest.raises(ValueError, match=says.replace("encoder, decoder", r"\w+, \w+").replace("prior", r"\w+")):
            call()
    for wrong, got in ((None, "None"), ({}, "an empty dict"), ({"w": "x"}, "'x'"), (VAE.init, r"the function \w+")):
        with pytest.raises(ValueError, match=rf"params.*; got {got}"):
            training.init_state(wrong, adam)
    keys = jax.random.split(key, 2)
    states = training.init_population(VAE.init, adam, jax.random.clone(keys))
    for wrong in (jax.random.key(0), 2, np.ones((2, 2), np.uint32)):
        with pytest.raises(ValueError, match=r"keys must be typed, one for each run, .*; got"):
            training.fit_population(lambda _: STEP, states, wrong, ROWS, num_steps=1, batch_size=1)


@pytest.mark.parametrize("count", [True, np.True_, 2.0, "2", None])
def test_what_is_no_count_is_refused(count, no_type_hook):
    for name, call in {
        "num_steps": lambda: training.fit(STEP, first_state(), jax.random.key(0), ROWS, num_steps=count, batch_size=1),
        "batch_size": lambda: training.fit(STEP, first_state(), jax.random.key(0), ROWS, num_steps=1, batch_size=count),
        "num_examples": lambda: data.spiral(jax.random.key(0), count),
        "data_dim": lambda: data.linear_gaussian_parameters(data_dim=count),
        "latent_dim": lambda: data.linear_gaussian_parameters(latent_dim=count),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least .; got {count!r}"):
            call()


@pytest.mark.parametrize("number", [np.nan, np.inf, "1", None])
def test_what_is_no_finite_number_is_refused(number, no_type_hook):
    for name, call in {
        "mean": lambda: data.two_gaussians(jax.random.key(0), 3, mean=number),
        "std": lambda: data.two_gaussians(jax.random.key(0), 3, std=number),
        "turns": lambda: data.spiral(jax.random.key(0), 3, turns=number),
        "std ": lambda: data.linear_gaussian_parameters(std=number),
        "decay": lambda: training.with_averages(optax.sgd(0.1), number),
    }.items():
        with pytest.raises(ValueError, match=f"{name.strip()} must be a number.*; got {number!r}"):
            call()


# Keys


def test_preparation_and_objective_get_keys_of_their_own():
    def bits(key):
        return jax.random.key_data(key)

    def objective(params, key, x, *, step):
        return params["w"], {"objective": bits(key), "prepare": x}

    optimizer = optax.sgd(0.1)
    state = training.init_state({"w": jnp.array(0.0)}, optimizer)
    step = training.make_train_step(objective, optimizer, lambda key, batch: bits(key))
    _, info = step(state, jax.random.key(3), jnp.zeros(2))
    expected, whole = np.asarray(bits(jax.random.split(jax.random.key(3)))), np.asarray(bits(jax.random.key(3)))
    np.testing.assert_array_equal(np.stack([info["prepare"], info["objective"]]), expected)
    assert len({tuple(row.tolist()) for row in (*expected, whole)}) == 3
    _, info = training.make_train_step(objective, optimizer)(state, jax.random.key(3), jnp.zeros(2))
    np.testing.assert_array_equal(info["objective"], whole)
