"""Training of quantized autoencoders: the codebook's step, the value and the gradients by hand; runs that agree."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax import export

from vaejax import autoencoders, data, distributions, evaluation, models, objectives, training

BETA = 0.3


@pytest.fixture
def linear(x64):
    """A linear VQ-VAE of 5 numbers, with 3 positions of 2 numbers and 6 codes; its parameters in double precision."""
    vae = models.vq_vae((5,), 6, 2, 3, hidden_sizes=())
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), vae.init(jax.random.key(0)))
    return vae, params, np.random.default_rng(0).normal(size=(20, 5))


def by_hand(params, x):
    """Outputs (n, 3, 2), indices, codes and x^ - x, by products of numpy and brute force."""
    encoder, decoder = (jax.tree.map(np.asarray, params[part]["network"]["layer_0"]) for part in ("encoder", "decoder"))
    codes = np.asarray(params["encoder"]["head"]["codebook"]["codes"])
    outputs = (x @ encoder["kernel"] + encoder["bias"]).reshape(len(x), -1, 2)
    indices = ((outputs[:, :, None] - codes) ** 2).sum(axis=-1).argmin(axis=-1)
    latents = codes[indices]
    return outputs, indices, latents, latents.reshape(len(x), -1) @ decoder["kernel"] + decoder["bias"] - x


def codebook_of(params):
    """Codes and usage."""
    book = params["encoder"]["head"]["codebook"]
    return np.asarray(book["codes"]), np.asarray(book["usage"])


def test_the_value_is_minus_error_and_commitment(linear):
    vae, params, x = linear
    outputs, indices, latents, residual = by_hand(params, x)
    errors, distances = (residual**2).sum(axis=1), ((outputs - latents) ** 2).sum(axis=(1, 2))
    value, info = autoencoders.make_vector_quantization(vae, commitment=BETA)(params, jax.random.key(1), x)
    np.testing.assert_allclose([value, info.bound], -errors.mean() - BETA * distances.mean(), rtol=1e-12)
    np.testing.assert_allclose([info.error, info.squared_error], errors.mean(), rtol=1e-12)
    np.testing.assert_allclose(info.distance, distances.mean(), rtol=1e-12)
    np.testing.assert_allclose(info.per_example, errors, rtol=1e-12)
    shares = np.bincount(indices.ravel(), minlength=6) / indices.size
    shares = shares[shares > 0]
    np.testing.assert_allclose(info.perplexity, np.exp(-(shares * np.log(shares)).sum()), rtol=1e-12)


def test_the_gradient_is_straight_through_and_of_the_commitment(linear):
    vae, params, x = linear
    outputs, _, latents, residual = by_hand(params, x)
    objective = autoencoders.make_vector_quantization(vae, commitment=BETA)
    grads, _ = jax.jit(jax.grad(objective, has_aux=True))(params, jax.random.key(1), x)
    slope = -2 * residual / len(x)  # of the value, by the reconstruction
    flat = latents.reshape(len(x), -1)
    decoder, encoder = (grads[part]["network"]["layer_0"] for part in ("decoder", "encoder"))
    np.testing.assert_allclose(decoder["kernel"], flat.T @ slope, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(decoder["bias"], slope.sum(axis=0), rtol=1e-9, atol=1e-12)
    through = slope @ np.asarray(params["decoder"]["network"]["layer_0"]["kernel"]).T
    drawn = -2 * BETA * (outputs - latents).reshape(len(x), -1) / len(x)
    np.testing.assert_allclose(encoder["kernel"], x.T @ (through + drawn), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(encoder["bias"], (through + drawn).sum(axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_codebook_is_a_ratio_of_moving_averages(linear, decay):
    vae, params, _ = linear
    optimizer = autoencoders.with_codebook(optax.sgd(0.0))
    step = jax.jit(training.make_train_step(autoencoders.make_vector_quantization(vae, decay=decay), optimizer))
    state, (codes, counts) = training.init_state(params, optimizer), codebook_of(params)
    sums, absent = counts[:, None] * codes, 0
    for t in range(6):
        x = np.random.default_rng(t).normal(size=(4, 5))
        outputs, indices, *_ = by_hand(state.params, x)
        taken = np.eye(6)[indices.ravel()]
        counts = decay * counts + (1 - decay) * taken.mean(axis=0)
        sums = decay * sums + (1 - decay) * taken.T @ outputs.reshape(-1, 2) / indices.size
        state, _ = step(state, jax.random.key(t), x)
        codes, usage = codebook_of(state.params)
        np.testing.assert_allclose(usage, counts, rtol=1e-10)
        np.testing.assert_allclose(codes, sums / counts[:, None], rtol=1e-10)
        absent += (~taken.any(axis=0)).sum()
    assert absent > 0
    chex.assert_trees_all_equal(state.params["encoder"]["network"], params["encoder"]["network"])


def test_without_memory_a_code_is_the_mean_of_what_takes_it(linear):
    vae, params, x = linear
    optimizer = autoencoders.with_codebook(optax.sgd(0.0))
    step = training.make_train_step(autoencoders.make_vector_quantization(vae, decay=0.0), optimizer)
    state, _ = step(training.init_state(params, optimizer), jax.random.key(1), x[:3])
    outputs, indices, *_ = by_hand(params, x[:3])
    codes, usage = codebook_of(state.params)
    np.testing.assert_allclose(usage, np.bincount(indices.ravel(), minlength=6) / 9, atol=1e-15)
    assert (usage == 0).any()  # where the ratio is 0 / 0 the code stays
    for k in range(6):
        own = outputs[indices == k]
        expected = own.mean(axis=0) if len(own) else codebook_of(params)[0][k]
        np.testing.assert_allclose(codes[k], expected, rtol=1e-10)


@pytest.mark.slow
def test_a_code_that_nothing_takes_stays_or_is_revived(linear):
    vae, params, x = linear
    book = params["encoder"]["head"]["codebook"]
    far = {"codes": book["codes"].at[4].set(1e3), "usage": book["usage"].at[4].set(0.02)}
    params["encoder"]["head"] = {"codebook": far}
    optimizer = autoencoders.with_codebook(optax.adamw(0.1, weight_decay=0.1))
    for revive_below in (0.0, 0.1, 0.5):  # times 1/6 that is 0, 0.017, 0.083; the usage becomes 0.0198
        objective = autoencoders.make_vector_quantization(vae, revive_below=revive_below)
        state, _ = training.make_train_step(objective, optimizer)(
            training.init_state(params, optimizer), jax.random.key(3), x
        )
        moved = state.params["encoder"]["head"]["codebook"]
        if revive_below < 0.5:
            np.testing.assert_array_equal(moved["codes"][4], far["codes"][4])
            np.testing.assert_allclose(moved["usage"][4], 0.99 * 0.02)
            kept = moved
        else:
            outputs = by_hand(params, x)[0].reshape(-1, 2)
            assert np.isclose(outputs, moved["codes"][4], atol=1e-9).all(axis=1).any()
            np.testing.assert_allclose(moved["usage"][4], 1 / 6)
            others = np.delete(np.arange(6), 4)
            np.testing.assert_allclose(moved["codes"][others], kept["codes"][others], rtol=1e-12)


def test_every_dead_code_is_revived_by_an_output_of_its_own_draw(linear):
    vae, params, x = linear
    params["encoder"]["head"]["codebook"]["usage"] = jnp.full(6, 1e-9)
    optimizer = autoencoders.with_codebook(optax.sgd(0.0))
    objective = autoencoders.make_vector_quantization(vae, decay=0.999999, revive_below=0.9)
    step = training.make_train_step(objective, optimizer)
    codes = [
        step(training.init_state(params, optimizer), jax.random.key(seed), x)[0].params["encoder"]["head"]["codebook"]
        for seed in (1, 2)
    ]
    assert len(np.unique(np.asarray(codes[0]["codes"]).round(9), axis=0)) > 3
    assert (codes[0]["codes"] != codes[1]["codes"]).any()


def test_parameters_without_a_codebook_get_the_optimizer():
    vae = models.fsq_vae((3,), (5, 4), 2, (4,))
    params, x = vae.init(jax.random.key(0)), jnp.ones((4, 3))
    grads = jax.grad(autoencoders.make_vector_quantization(vae), has_aux=True)(params, jax.random.key(1), x)[0]
    plain = optax.sgd(0.5)
    optimizer = autoencoders.with_codebook(plain)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    chex.assert_trees_all_equal(updates, plain.update(grads, plain.init(params), params)[0])


def test_a_fixed_grid_has_the_reconstruction_error_alone():
    vae = models.fsq_vae((3,), (5, 4), 2, (4,))
    params, x = vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(2), (9, 3))
    own, plain = autoencoders.make_vector_quantization(vae), autoencoders.make_reconstruction(vae)
    of = lambda objective: jax.value_and_grad(objective, has_aux=True)(params, jax.random.key(1), x)  # noqa: E731
    ((value, info), grads), ((expected, _), expected_grads) = of(own), of(plain)
    assert value == expected
    assert info.distance == 0
    chex.assert_trees_all_equal(grads, expected_grads)


MODELS = {
    "vq": lambda: models.vq_vae((8, 8), 16, 2, 4, (32,)),
    "conv vq": lambda: models.vq_vae((8, 8), 16, 2, 4, (16,), channels=(4,)),
    "fsq": lambda: models.fsq_vae((8, 8), (8, 5), 4, (32,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_training_on_digits_lowers_the_error_and_uses_the_codes(name):
    train, test = (data.load("digits", split).images for split in ("train", "test"))
    vae, optimizer = MODELS[name](), autoencoders.with_codebook(optax.adam(2e-3))
    step = training.make_train_step(autoencoders.make_vector_quantization(vae), optimizer)
    state = training.init_state(vae.init(jax.random.key(0)), optimizer)
    fit = jax.jit(lambda state: training.fit(step, state, jax.random.key(1), train, num_steps=600, batch_size=100))
    state, history = fit(state)
    variance = ((test - test.mean(axis=0, keepdims=True)) ** 2).sum(axis=(1, 2)).mean()
    _, info = autoencoders.make_vector_quantization(vae)(state.params, jax.random.key(2), test)
    assert info.squared_error < 0.6 * variance  # a decoder that ignores its latent ends at the variance
    assert history.error[-50:].mean() < 0.6 * history.error[0]
    usage = evaluation.codebook_usage(vae, state.params, test, batch_size=100)
    assert usage.counts.sum() == 4 * len(test)
    assert usage.num_used >= 10
    assert 8 < usage.perplexity <= float(usage.num_used)


@pytest.mark.slow
def test_usage_is_counted_by_index():
    vae, x = models.vq_vae((3,), 6, 2, 4, (5,)), jax.random.normal(jax.random.key(1), (13, 3))
    params = vae.init(jax.random.key(0))
    indices = distributions.as_quantized(vae.encode(params, x)).indices
    usage = evaluation.codebook_usage(vae, params, x, batch_size=4)
    np.testing.assert_array_equal(usage.counts, np.bincount(np.ravel(indices), minlength=6))
    assert usage.num_used == len(np.unique(indices))
    np.testing.assert_allclose(usage.perplexity, distributions.perplexity(usage.counts))


@pytest.mark.slow
def test_runs_compiled_in_chunks_and_in_populations_agree():
    x = jax.random.normal(jax.random.key(5), (30, 3))
    vae, optimizer = models.vq_vae((3,), 5, 2, 2, (4,)), autoencoders.with_codebook(optax.adam(1e-2))

    def make_step(numbers):
        objective = autoencoders.make_vector_quantization(
            vae, commitment=numbers["commitment"], decay=numbers["decay"], revive_below=0.3
        )
        return training.make_train_step(objective, optimizer)

    numbers = {"commitment": jnp.array([0.25, 1.0]), "decay": jnp.array([0.9, 0.5])}
    init_keys, keys = jax.random.split(jax.random.key(3), (2, 2))
    states = training.init_population(vae.init, optimizer, init_keys)
    run = jax.jit(
        lambda states, keys: training.fit_population(make_step, states, keys, x, numbers, num_steps=9, batch_size=10)
    )
    together, history = run(states, jax.random.clone(keys))
    assert history.perplexity.shape == (2, 9)
    for i in range(2):
        step = make_step({name: float(values[i]) for name, values in numbers.items()})
        mine = training.TrainState(*jax.tree.map(lambda leaf, i=i: leaf[i], states[:2]), states.step)
        fit = jax.jit(
            lambda state, key, stop, step=step: training.fit(step, state, key, x, num_steps=9, batch_size=10, stop=stop)
        )
        key, again, rest = (jax.random.clone(keys)[i] for _ in range(3))
        whole, alone = fit(mine, key, 9)
        chex.assert_trees_all_equal(fit(fit(mine, again, 4)[0], rest, 9)[0], whole)
        np.testing.assert_allclose(history.bound[i], alone.bound, rtol=1e-4)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together.params), whole.params, rtol=1e-4, atol=1e-5
        )


def test_a_run_is_exported_for_every_platform():
    vae, optimizer = models.vq_vae((8, 8), 5, 2, 2, (4,), channels=(4,)), autoencoders.with_codebook(optax.adam(1e-2))
    step = training.make_train_step(autoencoders.make_vector_quantization(vae, revive_below=0.1), optimizer)

    def program(state, bits, x):
        # Typed keys inside the program are its own business; at its boundary jax.export wants their bits.
        return training.fit(step, state, jax.random.wrap_key_data(bits), x, num_steps=3, batch_size=4)

    state = jax.eval_shape(lambda key: training.init_state(vae.init(key), optimizer), jax.random.key(0))
    bits, x = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((20, 8, 8), jnp.float32)
    platforms = ("cpu", "cuda", "tpu")
    assert export.export(jax.jit(program), platforms=platforms)(state, bits, x).platforms == platforms


class Small(linen.Module):
    """Two convolutions that halve an image, to two numbers at each place, one after another."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (4, 4), strides=2)(x[..., None]))
        return linen.Conv(2, (4, 4), strides=2)(x).reshape(len(x), -1)


@pytest.mark.slow
def test_networks_of_ones_own_have_a_code_at_each_place():
    vae = models.make_vae(
        Small(),
        models.networks.mlp(8, (), 64),
        data_shape=(8, 8),
        latent_dim=8,
        likelihood="gaussian_fixed_std",
        posterior=distributions.vector_quantized(16, 2),
    )
    params, x = vae.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (1, 8, 8))
    outputs = distributions.as_quantized(vae.encode(params, x)).outputs.reshape(2, 2, 2)
    changed = distributions.as_quantized(vae.encode(params, x.at[0, 0, 0].add(3.0))).outputs.reshape(2, 2, 2)
    moved = (outputs != changed).any(axis=-1)
    assert moved.tolist() == [[True, False], [False, False]]  # the corner's place alone
    _, info = autoencoders.make_vector_quantization(vae)(params, jax.random.key(2), x)
    assert info.per_example.shape == (1,)


@pytest.mark.slow
def test_a_checkpoint_keeps_the_codebook(tmp_path):
    vae, optimizer = models.vq_vae((3,), 5, 2, 2, (4,)), autoencoders.with_codebook(optax.adam(1e-2))
    step = training.make_train_step(autoencoders.make_vector_quantization(vae), optimizer)
    state, _ = step(training.init_state(vae.init(jax.random.key(0)), optimizer), jax.random.key(1), jnp.ones((4, 3)))
    training.checkpoints.save(tmp_path, state, config={})
    like = training.init_state(vae.init(jax.random.key(7)), optimizer)
    chex.assert_trees_all_equal(training.checkpoints.restore(tmp_path, like=like, config={}), state)


@pytest.mark.slow
def test_a_quantized_model_has_no_bound_on_log_p():
    vae, x = models.vq_vae((3,), 4, 2, 2, (4,)), jnp.ones((4, 3))
    params, key = vae.init(jax.random.key(0)), jax.random.key(1)
    refused = r"with a density; got a point mass, .* Train it by autoencoders\.make_vector_quantization"
    for evaluate in (
        lambda: evaluation.log_likelihood(vae, params, jax.random.clone(key), x, num_samples=10**9),
        lambda: evaluation.elbo(vae, params, jax.random.clone(key), x),
        lambda: evaluation.report(vae, params, jax.random.clone(key), x),
        lambda: evaluation.rate_distortion(vae, params, jax.random.clone(key), x),
        lambda: objectives.make_elbo(vae)(params, jax.random.clone(key), x),
    ):
        with pytest.raises(ValueError, match=refused):
            evaluate()


def test_what_does_not_fit_is_refused(no_type_hook):
    vae, plain, x = models.vq_vae((3,), 4, 2, 2, (4,)), autoencoders.mlp_autoencoder((3,), 2, (4,)), jnp.ones((4, 3))
    params, own, key = vae.init(jax.random.key(0)), plain.init(jax.random.key(0)), jax.random.key(1)
    make = autoencoders.make_vector_quantization
    for call, words in (
        (lambda: make(vae)(params, key, x[:, :2]), r"expected data of shape \(\*batch, 3\).*got \(4, 2\)"),
        (lambda: make(vae)(params, key, x.at[1, 2].set(jnp.nan)), r"expected finite data, got 1 NaN"),
        (lambda: make(vae)(params, 0, x), "key must be one typed key of JAX; got 0"),
        (lambda: make(vae)(own, key, x), "params must be those of this model"),
        (lambda: make(plain)(own, key, x), "a model with quantized latents.*got one with q = Delta"),
        (lambda: make(vae, error=lambda p, x: x)(params, key, x), r"what error returns to be of shape \(4,\)"),
        (lambda: make(vae, error="squared"), "error must be a function"),
        (lambda: make(vae, commitment=-1.0), "commitment must be a number of at least 0; got -1"),
        (lambda: make(vae, decay=1.0), "decay must be a number of at least 0 and below 1; got 1"),
        (lambda: make(vae, revive_below=1.0), "revive_below must be a number of at least 0 and below 1; got 1"),
        (lambda: make(None), "vae must be a model"),
        (
            lambda: autoencoders.make_reconstruction(vae)(params, key, x),
            r"without a codebook, .* got those of a vq_vae: train it by autoencoders\.make_vector_quantization",
        ),
        (lambda: autoencoders.with_codebook(1e-3), "optimizer must be an optax transformation"),
        (lambda: evaluation.codebook_usage(plain, own, x), "a model with quantized latents.*got one with q = Delta"),
        (lambda: evaluation.codebook_usage(vae, params, x[:, :2]), "expected data of shape"),
        (lambda: evaluation.codebook_usage(vae, params, x, batch_size=0), "batch_size must be an integer"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
