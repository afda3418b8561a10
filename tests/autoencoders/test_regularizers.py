"""Regularized linear autoencoders: gradients against their definitions, and the axes that training finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import autoencoders, networks, training

LATENT = 3


@pytest.fixture(scope="module")
def spectrum():
    """Points with variances 4, 3, 2, 1, .5, .5 along turned axes, and their PCA."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    x = rng.normal(size=(500, 6))
    x = np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(500 * np.array([4, 3, 2, 1, 0.5, 0.5])) @ turn
    x = autoencoders.equivalent_examples(x.astype(np.float32))
    return x, autoencoders.pca(x, LATENT)


def trained(x, penalties=(), corrupt_code=None, num_steps=2000):
    model = autoencoders.linear_autoencoder((6,), LATENT)
    objective = autoencoders.make_reconstruction(model, corrupt_code=corrupt_code, penalties=penalties)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
    step = training.make_train_step(objective, optimizer)
    state = training.init_state(model.init(jax.random.key(0)), optimizer)
    fit = jax.jit(lambda state, key, x: training.fit(step, state, key, x, num_steps=num_steps, batch_size=len(x)))
    state, _ = fit(state, jax.random.key(1), x)
    error = autoencoders.squared_error(model.decode(state.params, model.encode(state.params, x).mean), x).mean()
    return networks.linear_kernel(state.params["decoder"]["network"]), error


def test_a_plain_linear_autoencoder_finds_the_subspace_and_not_the_axes(spectrum):
    x, pca = spectrum
    axes, error = trained(x)
    np.testing.assert_allclose(error, 2.0, rtol=1e-3)  # the variances left out: 1, .5, .5
    assert autoencoders.subspace_distance(axes, pca.components) < 1e-4
    assert autoencoders.axis_alignment(axes, pca.components) > 0.1


def test_uniform_l2_leaves_a_rotation_free(spectrum):
    x, pca = spectrum
    axes, _ = trained(x, (autoencoders.uniform_l2(0.1),))
    assert autoencoders.subspace_distance(axes, pca.components) < 1e-4
    assert autoencoders.axis_alignment(axes, pca.components) > 0.1
    # Of the decoder at its optimum B = O (1 - weight / variance)^(1/2) U^T the Gram matrix in data space is known.
    shrunk = np.diag(1 - 0.1 / np.array([4.0, 3.0, 2.0]))
    np.testing.assert_allclose(pca.components @ axes.T @ axes @ pca.components.T, shrunk, atol=1e-3)


@pytest.mark.quick_for("nested")
@pytest.mark.parametrize("name", ["nonuniform", "rotation", "nested"])
def test_the_principal_components_are_found(spectrum, name):
    x, pca = spectrum
    penalties, corrupt_code = (), None
    if name == "nonuniform":
        penalties = (autoencoders.nonuniform_l2([0.3, 0.9, 1.5]),)
    elif name == "rotation":
        penalties = (autoencoders.uniform_l2(0.1), autoencoders.rotation_augmentation())
    else:
        corrupt_code = autoencoders.nested_dropout([0.3, 0.3, 0.4])
    axes, _ = trained(x, penalties, corrupt_code)
    assert autoencoders.axis_alignment(axes, pca.components) < (0.05 if name == "nested" else 1e-3)
    # In order: the j-th unit is the j-th component.
    cosines = axes @ pca.components.T / jnp.linalg.norm(axes, axis=1, keepdims=True)
    assert (jnp.abs(cosines).argmax(axis=1) == jnp.arange(LATENT)).all()


def test_penalties_are_their_sums(spectrum, x64):
    x = np.asarray(spectrum[0], np.float64)
    model = autoencoders.linear_autoencoder((6,), LATENT)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(0)))
    encoder, decoder = (params[part]["network"]["layer_0"]["kernel"] for part in ("encoder", "decoder"))
    z = model.encode(params, x).mean
    weights = np.array([1.0, 2.0, 4.0])
    exact = sum(weight * (np.sum(encoder[:, j] ** 2) + np.sum(decoder[j] ** 2)) for j, weight in enumerate(weights))
    np.testing.assert_allclose(autoencoders.nonuniform_l2(weights)(params, z), exact)
    exact = 3 * (np.sum(encoder**2) + np.sum(decoder**2))
    np.testing.assert_allclose(autoencoders.uniform_l2(3.0)(params, z), exact)
    bare = autoencoders.make_reconstruction(model)(params, jax.random.key(0), x)[0]
    fined = autoencoders.make_reconstruction(
        model, penalties=(autoencoders.uniform_l2(1.0), autoencoders.nonuniform_l2(weights))
    )(params, jax.random.key(0), x)[0]
    np.testing.assert_allclose(bare - fined, exact / 3 + autoencoders.nonuniform_l2(weights)(params, z))


def test_the_rotation_has_no_value_and_turns_the_latents(spectrum, x64):
    x = np.asarray(spectrum[0], np.float64)
    model = autoencoders.linear_autoencoder((6,), LATENT)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(0)))
    penalty = autoencoders.rotation_augmentation(0.5)
    value, gradient = jax.value_and_grad(lambda params: penalty(params, model.encode(params, x).mean))(params)
    assert value == 0
    encoder, decoder = (params[part]["network"]["layer_0"]["kernel"] for part in ("encoder", "decoder"))
    covariance = np.cov(x @ encoder, rowvar=False, bias=True)
    turn = (np.tril(covariance) - np.triu(covariance)) / 2
    np.testing.assert_allclose(gradient["encoder"]["network"]["layer_0"]["kernel"], -0.5 * encoder @ turn)
    np.testing.assert_allclose(gradient["decoder"]["network"]["layer_0"]["kernel"], 0.5 * turn @ decoder)
    assert not gradient["encoder"]["network"]["layer_0"]["bias"].any()
    # To first order the reconstruction B A x stays, and the first unit gains variance.
    moved = encoder @ turn @ decoder - encoder @ turn @ decoder
    np.testing.assert_allclose(moved, 0, atol=1e-12)
    step = 1e-4
    faster = np.cov(x @ (encoder + step * encoder @ turn), rowvar=False, bias=True)
    assert faster[0, 0] > covariance[0, 0]


def test_units_are_kept_as_often_as_said():
    kept = autoencoders.nested_dropout([0.2, 0.3, 0.5])(jax.random.key(0), jnp.ones((20_000, 3)))
    assert (jnp.diff(kept, axis=1) <= 0).all()  # only a prefix is kept
    expected = np.array([1.0, 0.8, 0.5])
    error = np.sqrt(expected * (1 - expected) / 20_000)
    assert (np.abs(kept.mean(axis=0) - expected) <= 4 * error).all()


def test_bad_input_is_refused(no_type_hook):
    model = autoencoders.linear_autoencoder((6,), LATENT)
    params, z = model.init(jax.random.key(0)), jnp.ones((2, LATENT))
    for make in (autoencoders.uniform_l2, autoencoders.rotation_augmentation):
        with pytest.raises(ValueError, match="weight must be a number of at least 0; got -1"):
            make(-1.0)
    with pytest.raises(ValueError, match=r"one weight of at least 0 for each unit .*; got \[ 1\. -1\.\]"):
        autoencoders.nonuniform_l2([1.0, -1.0])
    with pytest.raises(ValueError, match=r"one weight of at least 0 for each unit .*\(latent_dim,\); got 1\.0"):
        autoencoders.nonuniform_l2(1.0)
    with pytest.raises(
        ValueError, match=r"latents of shape \(\*batch, 2\); got \(2, 3\): nonuniform_l2 needs one weight"
    ):
        autoencoders.nonuniform_l2([1.0, 2.0])(params, z)
    with pytest.raises(
        ValueError, match=r"latents of shape \(\*batch, 2\); got \(2, 3\): nested_dropout needs one prob"
    ):
        autoencoders.nested_dropout([0.5, 0.5])(jax.random.key(0), z)
    for bad in ([0.5, 0.4], [1.5, -0.5], 1.0):
        with pytest.raises(ValueError, match="nested_dropout expects the probabilities of keeping"):
            autoencoders.nested_dropout(bad)
    deep = autoencoders.mlp_autoencoder((6,), LATENT, (5,)).init(jax.random.key(0))
    for penalty in (autoencoders.uniform_l2(1.0), autoencoders.rotation_augmentation()):
        with pytest.raises(ValueError, match="expected a linear network"):
            penalty(deep, z)
