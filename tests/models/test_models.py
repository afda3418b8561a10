import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from reference import constant_outputs_vae, in_float64, linear_gaussian_arrays

from vaejax import distributions, models, networks, objectives

FACTORIES = {
    "mlp": lambda likelihood: models.mlp_vae((4, 4), 2, (5,), likelihood),
    "conv": lambda likelihood: models.conv_vae((4, 4), 2, (3,), 5, likelihood),
    "linear": lambda likelihood: models.linear_vae((4, 4), 2, likelihood),
}


@pytest.mark.parametrize("likelihood", sorted(distributions.LIKELIHOODS))
@pytest.mark.parametrize("model", sorted(FACTORIES))
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_batch_and_event_shapes(model, likelihood, batch):
    vae = FACTORIES[model](likelihood)
    params = jax.eval_shape(vae.init, jax.random.key(0))
    assert set(params) == {"encoder", "decoder", "prior"}
    q = jax.eval_shape(vae.encode, params, jnp.ones((*batch, 4, 4)))
    assert (q.batch_shape, q.event_shape) == (batch, (2,))
    p = jax.eval_shape(vae.decode, params, jnp.zeros((*batch, 2)))
    assert (p.batch_shape, p.event_shape) == (batch, (4, 4))
    prior = jax.eval_shape(vae.prior, params)
    assert (prior.batch_shape, prior.event_shape) == ((), (2,))


def test_the_decoder_mirrors_the_encoder():
    params = jax.eval_shape(models.mlp_vae((4, 4), 2, (7, 5)).init, jax.random.key(0))
    kernels = [
        [params[half]["network"][f"layer_{i}"]["kernel"].shape for i in range(3)] for half in ("encoder", "decoder")
    ]
    assert kernels == [[(16, 7), (7, 5), (5, 4)], [(2, 5), (5, 7), (7, 16)]]


def test_linear_vae_is_the_linear_gaussian_model(x64):
    vae = models.linear_vae(data_dim=5, latent_dim=2)
    params = in_float64(vae.init(jax.random.key(0)))
    V, c, std, W, b, s = linear_gaussian_arrays(params)
    x, z = jax.random.normal(jax.random.key(1), (7, 5)), jax.random.normal(jax.random.key(2), (7, 2))
    np.testing.assert_allclose(vae.encode(params, x).mean, x @ V + c[None], rtol=1e-12)
    np.testing.assert_allclose(vae.encode(params, x).variance, np.broadcast_to(std**2, (7, 2)), rtol=1e-12)
    np.testing.assert_allclose(vae.decode(params, z).mean, z @ W + b[None], rtol=1e-12)
    np.testing.assert_allclose(vae.decode(params, z).variance, np.full((7, 5), s**2), rtol=1e-12)
    assert vae.prior(params).base_dist.loc.dtype == jnp.float64


class LinenEncoder(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        return linen.Dense(2)(x), linen.Dense(2)(x)


class NNXDecoder(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(2, 16, rngs=rngs)

    def __call__(self, z):
        return self.dense(z).reshape(-1, 4, 4, 1)


@pytest.mark.slow
@pytest.mark.parametrize("build", [models.mlp_vae, models.conv_vae])
@pytest.mark.parametrize("posterior", ["bernoulli", distributions.categorical(4)], ids=["bernoulli", "categorical"])
def test_discrete_codes(build, posterior):
    vae = build((8, 8), 3, posterior=posterior)
    params, x = vae.init(jax.random.key(0)), jnp.ones((2, 5, 8, 8))
    q, prior = vae.encode(params, x), vae.prior(params)
    z = distributions.sample(q, jax.random.key(1))
    assert (q.batch_shape, q.event_shape, z.shape, z.dtype) == ((2, 5), (3,), (2, 5, 3), jnp.int32)
    p = vae.decode(params, z)
    assert (p.batch_shape, p.event_shape) == ((2, 5), (8, 8))
    np.testing.assert_array_equal(p.mean, vae.decode(params, z.astype(jnp.float32)).mean)
    states = 2 if posterior == "bernoulli" else 4
    np.testing.assert_allclose(distributions.log_prob(prior, z), -3 * np.log(states), rtol=1e-6)


def test_a_decoder_sees_categories_one_hot():
    decoder = networks.mlp(2 * 3, (), 5)
    vae = models.make_vae(
        networks.mlp(5, (), 2 * 3),
        decoder,
        data_shape=(5,),
        latent_dim=2,
        likelihood="gaussian_fixed_std",
        posterior=distributions.categorical(3),
    )
    params = vae.init(jax.random.key(0))
    one_hot = jnp.array([[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    expected = decoder.apply(params["decoder"]["network"], one_hot)
    np.testing.assert_array_equal(vae.decode(params, jnp.array([[1, 0]])).mean, expected)


@pytest.mark.exhaustive
def test_a_users_own_networks_and_head():
    laplace = distributions.Head(1, lambda key, shape: {}, lambda params, mean: dist.Laplace(mean, jnp.ones_like(mean)))
    vae = models.make_vae(
        LinenEncoder(), lambda rngs: NNXDecoder(rngs=rngs), data_shape=(4, 4), latent_dim=2, likelihood=laplace
    )
    params = vae.init(jax.random.key(0))
    assert distributions.name_of(vae.decode(params, jnp.zeros((3, 2)))) == "Laplace"
    objective = objectives.make_elbo(vae, num_samples=2)
    grads, info = jax.grad(objective, has_aux=True)(params, jax.random.key(1), jnp.ones((3, 4, 4)))
    assert jnp.isfinite(info.elbo)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


@pytest.mark.quick_for("entropy-gaussian_fixed_std-bfloat16", "analytic-bernoulli-float32")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian_shared_std", "gaussian_fixed_std"])
@pytest.mark.parametrize("kl", ["analytic", "sampled", "entropy"])
def test_objectives_are_finite_for_every_network_output(likelihood, kl, dtype):
    num_outputs = distributions.likelihood_head(likelihood).num_outputs
    vae = constant_outputs_vae(likelihood, [0.0] * 4, [0.0] * 3 * num_outputs, dtype)
    objective = jax.jit(jax.value_and_grad(objectives.make_elbo(vae, num_samples=2, kl=kl), has_aux=True))
    params = vae.init(jax.random.key(0))
    assert params["encoder"]["network"]["row"].dtype == dtype
    x = jnp.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    for mean in (-1e4, 0.0, 1e4):
        for raw in (-1e4, -100.0, 0.0, 100.0, 1e4):
            params["encoder"]["network"]["row"] = jnp.asarray([mean, -mean, raw, raw], dtype)
            params["decoder"]["network"]["row"] = jnp.asarray(
                [mean, raw, -mean, raw, raw, mean][: 3 * num_outputs], dtype
            )
            (value, _), grads = objective(params, jax.random.key(1), x)
            assert jnp.isfinite(value)
            assert all(jnp.isfinite(leaf.astype(jnp.float32)).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("latent_dim", [0, -1, 2.0])
def test_latent_dim_must_be_positive(latent_dim, no_type_hook):
    with pytest.raises(ValueError, match="latent_dim must be an integer of at least 1; got"):
        models.make_vae(NNXDecoder, NNXDecoder, data_shape=(3,), latent_dim=latent_dim)


@pytest.mark.parametrize("data_shape", [(), (0,), (28, -1)])
def test_data_shape_must_be_positive(data_shape):
    with pytest.raises(ValueError, match="data_shape must be made of positive integers"):
        models.mlp_vae(data_shape, 2)


def test_conv_vae_wants_an_image():
    with pytest.raises(ValueError, match=r"expects data_shape \(height, width\) or .* got \(16,\)"):
        models.conv_vae((16,), 2)
    with pytest.raises(
        ValueError,
        match=r"channels must be made of positive integers; got \(\): a model without convolutions is an mlp_vae",
    ):
        models.conv_vae((4, 4), 2, channels=())


def test_wrong_data_shape_says_both_shapes():
    vae = models.mlp_vae((4, 4), 2, (5,))
    params = vae.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"expected data of shape \(\*batch, 4, 4\).*got \(3, 16\)"):
        vae.encode(params, jnp.ones((3, 16)))
    with pytest.raises(ValueError, match=r"expected data of shape .*got \(4,\)"):
        vae.encode(params, jnp.ones(4))
    with pytest.raises(ValueError, match=r"expected latents of shape \(\*batch, 2\); got \(3, 4\)"):
        vae.decode(params, jnp.ones((3, 4)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_integers_where_floats_are_due(dtype):
    vae = models.mlp_vae((4, 4), 2, (5,))
    params = vae.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"expected data of a floating dtype; got .*astype\('float32'\) / 255"):
        vae.encode(params, np.ones((3, 4, 4), dtype))


def test_float64_without_x64_is_refused():
    vae = models.mlp_vae((4, 4), 2, (5,))
    params = vae.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"expected float32 data.*got float64"):
        vae.encode(params, np.ones((3, 4, 4)))


def test_check_data_speaks_before_anything_is_compiled():
    vae = models.mlp_vae((4, 4), 2, (5,))
    params = vae.init(jax.random.key(0))
    models.check_data(vae, params, np.ones((3, 4, 4), np.float32))
    with pytest.raises(ValueError, match="exactly 0 or 1; got 48 others"):
        models.check_data(vae, params, np.full((3, 4, 4), 0.5, np.float32))
    with pytest.raises(ValueError, match="expected at least one example"):
        models.check_data(vae, params, np.ones((0, 4, 4), np.float32))
    with pytest.raises(ValueError, match="expected float32"):
        models.check_data(vae, params, np.ones((3, 4, 4)))
    params["decoder"]["network"]["layer_1"]["bias"] *= jnp.nan
    with pytest.raises(
        ValueError, match=r"NaN or infinite values in params\['decoder'\].*\['bias'\]: the training div"
    ):
        models.check_data(vae, params, np.ones((3, 4, 4), np.float32))


def test_networks_with_too_few_outputs_are_refused():
    vae = models.make_vae(networks.mlp(3, (), 3), networks.mlp(2, (), 3), data_shape=(3,), latent_dim=2)
    with pytest.raises(
        ValueError, match=r"the encoder must return 2 arrays of shape \(2,\) .* got \[\(7, 3\)\] for n = 7"
    ):
        vae.encode(vae.init(jax.random.key(0)), jnp.ones((7, 3)))
