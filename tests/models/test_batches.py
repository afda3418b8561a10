"""Batches with a context and a mask, against the same models with both worked in by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats

from vaejax import distributions, estimators, models, objectives, training


def key(seed=0):
    return jax.random.key(seed)


X = (jax.random.uniform(key(7), (5, 6)) < 0.5).astype(jnp.float32)
CONTEXT = jnp.broadcast_to(jnp.array([0.3, -1.0, 2.0]), (5, 3))
MASK = jax.random.bernoulli(key(8), 0.6, X.shape)


def without_context(params, latent_dim=2, data_size=6):
    """The parameters of the model without a context that does what this one does of the one context of all examples."""
    plain = jax.tree.map(lambda leaf: leaf, params)
    for part, size in (("encoder", data_size), ("decoder", latent_dim)):
        first = params[part]["network"]["layer_0"]
        bias = first["bias"] + CONTEXT[0] @ first["kernel"][size:]
        network = {**params[part]["network"], "layer_0": {"kernel": first["kernel"][:size], "bias": bias}}
        plain[part] = {**params[part], "network": network}
    return plain


@pytest.mark.exhaustive
@pytest.mark.parametrize("make", [objectives.make_elbo, objectives.make_iwae])
def test_a_context_shifts_the_first_layers(make):
    vae = models.mlp_vae((6,), 2, (4,), context_shape=(3,))
    params = vae.init(key())
    value, info = make(vae, num_samples=3)(params, key(1), models.Batch(X, CONTEXT))
    plain = make(models.mlp_vae((6,), 2, (4,)), num_samples=3)
    expected, plain_info = plain(without_context(params), key(1), X)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(info.log_w, plain_info.log_w, rtol=1e-4, atol=1e-4)


@pytest.mark.exhaustive
def test_convolutions_and_own_networks_get_the_context():
    images = X[:, :4].reshape(5, 2, 2)
    conv = models.conv_vae((2, 2), 2, (3,), 4, context_shape=(3,))
    params = conv.init(key())
    means = [conv.encode(params, images, context).mean for context in (CONTEXT, 2 * CONTEXT)]
    assert not np.allclose(*means)
    pixels = [conv.decode(params, jnp.zeros((7, 5, 2)), context).mean for context in (CONTEXT, 2 * CONTEXT)]
    assert pixels[0].shape == (7, 5, 2, 2)
    assert not np.allclose(*pixels)
    network = (lambda _: {}, lambda params, x, context: jnp.concatenate([x[:, :1] + context[:, :1], 0 * x[:, :1]], 1))
    own = models.make_vae(network, models.networks.mlp(4, (), 6), data_shape=(6,), latent_dim=1, context_shape=(3,))
    np.testing.assert_allclose(own.encode(own.init(key()), X, CONTEXT).mean[:, 0], X[:, 0] + 0.3, rtol=1e-6)


@pytest.mark.exhaustive
def test_a_whole_mask_changes_nothing():
    vae = models.mlp_vae((2, 3), 2, (4,))
    params, x = vae.init(key()), X.reshape(5, 2, 3)
    elbo = objectives.make_elbo(vae, num_samples=3)
    plain = jax.value_and_grad(elbo, has_aux=True)(params, key(1), x)
    whole = models.Batch(x, mask=jnp.ones(x.shape, bool))
    masked = jax.value_and_grad(elbo, has_aux=True)(params, key(1), whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, masked)


@pytest.mark.quick_for("gaussian")
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian_shared_std"])
def test_the_likelihood_is_that_of_the_observed_numbers(likelihood):
    vae = models.mlp_vae((6,), 2, (4,), likelihood)
    params = vae.init(key())
    nowhere = jnp.where(MASK, X, jnp.nan)  # what was not observed may be anything
    _, info = objectives.make_elbo(vae)(params, key(1), models.Batch(nowhere, mask=MASK))
    filled = jnp.where(MASK, X, 0)
    _, plain = objectives.make_elbo(vae)(params, key(1), filled)  # the same z: the encoder sees zeros
    z = jnp.asarray(vae.encode(params, filled).mean)
    p = vae.decode(params, z)
    by_hand = np.where(MASK, distributions.without_wrappers(p).log_prob(X), 0).sum(1)
    model, x = models.given(vae, models.Batch(nowhere, mask=MASK))
    np.testing.assert_allclose(distributions.data_log_prob(model.decode(params, z), x), by_hand, rtol=1e-5)
    np.testing.assert_allclose(info.kl, plain.kl, rtol=1e-5)
    grads = jax.grad(lambda params: objectives.make_elbo(vae)(params, key(), models.Batch(nowhere, mask=MASK))[0])(
        params
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.exhaustive
def test_linear_gaussian_with_missing_numbers_is_the_marginal():
    vae = models.linear_vae(6, 2)
    params, x = vae.init(key()), jax.random.normal(key(3), (4, 6))
    mask = MASK[:4]
    kernel, bias, std = models.linear_decoder(vae, params)
    covariance = np.asarray(kernel.T @ kernel + jnp.diag(std**2), np.float64)
    exact = [
        scipy.stats.multivariate_normal(bias[m], covariance[np.ix_(m, m)]).logpdf(row[m])
        for row, m in zip(np.asarray(x), np.asarray(mask), strict=True)
    ]
    iwae = jax.jit(objectives.make_iwae(vae, num_samples=20_000))
    _, info = iwae(params, key(4), models.Batch(x, mask=mask))
    error = np.sqrt((1 / info.ess - 1 / 20_000).clip(0))
    assert (np.abs(info.per_example - np.array(exact)) < 5 * error).all()
    assert (error < 0.05).all()
    closed, _ = objectives.make_linear_elbo(vae)(params, key(), models.Batch(x, mask=mask))
    _, sampled = jax.jit(objectives.make_elbo(vae, num_samples=20_000))(params, key(), models.Batch(x, mask=mask))
    spread = (sampled.log_w.mean(1).std() / np.sqrt(20_000)).item()
    assert abs(closed - sampled.elbo) < 5 * spread < 0.1


def test_an_encoder_that_sees_the_mask():
    vae = models.mlp_vae((6,), 2, (4,), sees_mask=True)
    params = vae.init(key())
    assert params["encoder"]["network"]["layer_0"]["kernel"].shape == (12, 4)
    some, whole = (vae.encode(params, X, mask=mask).mean for mask in (MASK, jnp.ones_like(MASK)))
    assert not np.allclose(some, whole)
    np.testing.assert_array_equal(vae.encode(params, X).mean, whole)


@pytest.mark.exhaustive
def test_fit_and_the_score_function_take_batches():
    vae = models.mlp_vae((6,), 2, (4,), context_shape=(3,), posterior="bernoulli")
    estimator = estimators.score_function(baseline="nvil")
    batch = models.Batch(X, CONTEXT, MASK)
    params = estimators.with_baseline(vae.init(key()), estimator, key(5), batch)
    optimizer = optax.adam(1e-2)
    step = training.make_train_step(objectives.make_elbo(vae, estimator), optimizer)
    state, history = training.fit(
        step, training.init_state(params, optimizer), key(2), batch, num_steps=3, batch_size=2
    )
    assert np.isfinite(history.elbo).all()
    assert int(state.step) == 3


def test_own_functions_get_what_they_name():
    seen = []

    def encode(params, x, context):
        seen.append(context)
        return dist.Normal(context[..., :2], 1.0).to_event(1)

    plain = models.mlp_vae((6,), 2, (4,))
    vae = plain._replace(
        encode=encode,
        decode=lambda params, z: plain.decode(params, z),
        prior=lambda params, context: dist.Normal(context[..., :2], 2.0).to_event(1),
    )
    params = plain.init(key())
    _, info = objectives.make_elbo(vae)(params, key(1), models.Batch(X, CONTEXT))
    assert seen[0] is CONTEXT
    np.testing.assert_allclose(info.kl, 2 * (np.log(2) + 1 / 8 - 0.5), rtol=1e-6)


def test_refusals(no_type_hook):
    plain, with_context = models.mlp_vae((6,), 2, (4,)), models.mlp_vae((6,), 2, (4,), context_shape=(3,))
    params, elbo = plain.init(key()), objectives.make_elbo(plain)
    for batch, words in (
        (models.Batch(X, CONTEXT), "expected no context"),
        (models.Batch(X, mask=MASK.astype(jnp.float32)), "mask of booleans"),
        (models.Batch(X, mask=MASK[:, :2]), "mask of booleans"),
        ({"image": X}, "got a dict of image"),
        ((X, X), "got a tuple of 2"),
    ):
        with pytest.raises(ValueError, match=words):
            elbo(params, key(), batch)
    params, elbo = with_context.init(key()), objectives.make_elbo(with_context)
    for batch, words in (
        (X, r"a context of shape \(\*batch, 3\).*got none"),
        (models.Batch(X, CONTEXT[:, :2]), r"a context of shape \(\*batch, 3\)"),
        (models.Batch(X, CONTEXT[:4]), "each of the examples"),
        (models.Batch(X, CONTEXT.at[0, 0].set(jnp.nan)), "finite a context"),
    ):
        with pytest.raises(ValueError, match=words):
            elbo(params, key(), batch)
    own = plain._replace(
        encode=lambda params, x: plain.encode(params, x),
        decode=lambda params, z: plain.decode(params, z),
        prior=lambda params: plain.prior(params),
    )
    with pytest.raises(ValueError, match="a model that takes a context"):
        objectives.make_elbo(own)(params, key(), models.Batch(X, CONTEXT))
    whole = plain._replace(decode=lambda params, z: dist.MultivariateNormal(jnp.zeros((5, 6)), jnp.eye(6)))
    elbo, params = objectives.make_elbo(whole), plain.init(key())
    with pytest.raises(ValueError, match="numbers are independent"):
        elbo(params, key(), models.Batch(X, mask=MASK))
