import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import export, lax
from jax.test_util import check_grads

from vaejax import models, networks, objectives
from vaejax.models.networks import convolutions


class LinenDense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(jnp.tanh(linen.Dense(5)(x)))


class LinenBatchNorm(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(linen.Dense(4)(x))


class LinenDropout(linen.Module):
    deterministic: bool = False

    @linen.compact
    def __call__(self, x):
        return linen.Dropout(0.5, deterministic=self.deterministic)(linen.Dense(4)(x))


def nnx_dense(rngs):
    return nnx.Sequential(nnx.Linear(3, 5, rngs=rngs), nnx.tanh, nnx.Linear(5, 4, rngs=rngs))


def dense_pair():
    init = lambda key: {"kernel": jax.random.normal(key, (3, 4))}  # noqa: E731
    return init, lambda params, x: x @ params["kernel"]


@pytest.mark.parametrize(
    "network",
    [LinenDense(), LinenDropout(deterministic=True), nnx_dense, nnx_dense(nnx.Rngs(0)), dense_pair()],
    ids=["linen", "linen without randomness", "nnx function", "nnx module", "pure pair"],
)
def test_every_kind_of_network_becomes_a_pure_pair(network):
    pair = networks.as_network(network, (3,))
    params = jax.jit(pair.init)(jax.random.key(0))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert isinstance(params, dict)
    x = jax.random.normal(jax.random.key(1), (7, 3))
    out = pair.apply(params, x)
    assert out.shape == (7, 4)
    np.testing.assert_allclose(jax.jit(pair.apply)(params, x), out, rtol=1e-5)
    grads = jax.grad(lambda params: pair.apply(params, x).sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_an_nnx_function_draws_anew_for_each_key_and_a_module_keeps_its_parameters():
    first, second = (networks.from_nnx(nnx_dense).init(jax.random.key(seed)) for seed in (0, 1))
    assert not np.allclose(first["layers"][0]["kernel"], second["layers"][0]["kernel"])
    module = nnx_dense(nnx.Rngs(3))
    kept = networks.from_nnx(module).init(jax.random.key(0))
    np.testing.assert_array_equal(kept["layers"][0]["kernel"], module.layers[0].kernel[...])


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (LinenBatchNorm(), "LinenBatchNorm: variable collection 'batch_stats'"),
        (LinenDropout(), "LinenDropout: "),
        (lambda rngs: nnx.BatchNorm(3, rngs=rngs), r"mean \(BatchStat\)"),
        (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), r"rngs.key \(RngKey\)"),
    ],
)
def test_state_other_than_parameters_is_refused_by_name(network, name):
    with pytest.raises(
        ValueError, match=rf"no state other than its parameters.*{name}.*Leave out BatchNorm and Dropout"
    ):
        networks.as_network(network, (3,))


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match=r"must be a pair \(init, apply\).*got 3"):
        networks.as_network(3, (3,))


@pytest.mark.parametrize("sizes", [(0, (5,), 2), (3, (0,), 2), (3, (5.0,), 2)])
def test_layer_sizes_must_be_positive_integers(sizes, no_type_hook):
    with pytest.raises(ValueError, match="layer sizes must be made of positive integers"):
        networks.mlp(*sizes)


def test_unknown_activation_names_the_known():
    with pytest.raises(ValueError, match=r"activation must be 'tanh', 'relu'.* or a function; got 'swoosh'"):
        networks.mlp(3, (5,), 2, "swoosh")


def test_mlp_equals_its_matrix_products():
    network = networks.mlp(3, (5, 4), 2, "relu")
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (7, 3))
    expected = x
    for i in range(3):
        layer = params[f"layer_{i}"]
        expected = expected @ layer["kernel"] + layer["bias"][None]
        expected = jax.nn.relu(expected) if i < 2 else expected
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-5, atol=1e-6)


def test_the_kernel_of_a_linear_network():
    network = networks.mlp(3, (), 2)
    params, x = network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (7, 3))
    kernel = networks.linear_kernel(params)
    assert kernel.shape == (3, 2)
    np.testing.assert_allclose(network.apply(params, x), x @ kernel + params["layer_0"]["bias"][None], rtol=1e-5)
    for deep in (networks.mlp(3, (5,), 2), networks.conv_encoder((8, 8, 1), (4,), 6, 2)):
        others = jax.eval_shape(deep.init, jax.random.key(0))
        with pytest.raises(
            ValueError,
            match=r"expected a linear network, mlp.*; got one with",
        ):
            networks.linear_kernel(others)


@pytest.mark.parametrize("image_shape", [(28, 28, 1), (28, 20, 1), (7, 9, 3), (8, 8, 1)])
def test_conv_networks_keep_any_image_shape(image_shape):
    encoder = networks.conv_encoder(image_shape, (4, 8), 16, 6)
    images = jnp.ones((5, *image_shape))
    assert jax.eval_shape(lambda key: encoder.apply(encoder.init(key), images), jax.random.key(0)).shape == (5, 6)
    decoder = networks.conv_decoder(3, image_shape, (4, 8), 16, 2)
    decoded = jax.eval_shape(lambda key: decoder.apply(decoder.init(key), jnp.ones((5, 3))), jax.random.key(0))
    assert decoded.shape == (5, 2, *image_shape)


@pytest.mark.exhaustive
@pytest.mark.parametrize("image_shape", [(8, 8, 3), (7, 10, 1), (9, 5, 2)])
def test_convolutions_as_products_are_those_of_flax(image_shape):
    """In value and in both gradients, also at odd sizes."""
    depth = image_shape[-1]
    x = jax.random.normal(jax.random.key(0), (3, *image_shape))
    halving = nnx.Conv(depth, 4, (4, 4), strides=2, padding="SAME", use_bias=False, rngs=nnx.Rngs(1))
    doubling = nnx.ConvTranspose(depth, 4, (4, 4), strides=(2, 2), padding="SAME", use_bias=False, rngs=nnx.Rngs(2))
    for layer, product in ((halving, networks.halving_product), (doubling, networks.doubling_product)):
        graph, state = nnx.split(layer)
        expected, pull = jax.vjp(lambda state, x, graph=graph: nnx.merge(graph, state)(x), state, x)
        found, own_pull = jax.vjp(product, x, layer.kernel[...])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        slope = jax.random.normal(jax.random.key(3), expected.shape)
        (of_state, of_x), (own_of_x, own_of_kernel) = pull(slope), own_pull(slope)
        np.testing.assert_allclose(own_of_x, of_x, atol=1e-5)
        np.testing.assert_allclose(own_of_kernel, jax.tree.leaves(of_state)[0], atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("product", [networks.halving_product, networks.doubling_product])
def test_convolutions_as_products_have_derivatives_of_every_kind(product, x64):
    """Forwards, backwards, twice, and under `vmap`, though each has the transpose of the other for its own."""
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape, jnp.float64) for i, shape in enumerate([(2, 5, 4, 3), (4, 4, 3, 2)])
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # of check_grads itself
        check_grads(lambda *arrays: product(*map(jnp.asarray, arrays)), (x, kernel), order=2, modes=("fwd", "rev"))
    several = jnp.stack([x, 2 * x, -x])
    one_by_one = jnp.stack([product(each, kernel) for each in several])
    np.testing.assert_allclose(jax.vmap(product, (0, None))(several, kernel), one_by_one, atol=1e-12)


# One program for each platform: matrix products on a CPU, convolutions on an accelerator

CONV = models.conv_vae((6, 5), 2, (3, 4), 5)


def encoded(params, x):
    return CONV.encode(params, x).mean


def decoded(params, x):
    return CONV.decode(params, encoded(params, x)).mean


def bound(params, x, **options):
    return objectives.make_elbo(CONV, num_samples=2, **options)(params, jax.random.key(3), x)[0]


def scanned(params, x):
    """Without rematerialization: what the derivative needs is kept for each turn of the loop."""
    return lax.scan(lambda total, each: (total + encoded(params, each[None]).sum(), None), 0.0, x)[0]


def twice(function):
    """A batch axis over the parameters, as a population has."""
    return lambda params, x: jax.vmap(function, (0, None))(
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params), x
    )


PROGRAMS = {
    "encode": encoded,
    "decode": decoded,
    "gradient of the bound": jax.grad(bound),
    "gradient in chunks": jax.grad(lambda params, x: bound(params, x, chunk_size=1)),
    "gradient of a loop": jax.grad(scanned),
    "population": twice(jax.grad(bound)),
    "vmap of examples": lambda params, x: jax.vmap(lambda each: encoded(params, each))(x),
    "forwards over backwards": lambda params, x: jax.jvp(jax.grad(lambda p: bound(p, x)), (params,), (params,))[1],
    "bfloat16": lambda params, x: encoded(*jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))),
}


@pytest.fixture(scope="module")
def of_conv():
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (3, 6, 5)).astype(jnp.float32)
    return CONV.init(jax.random.key(0)), x


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_only_an_accelerator_is_given_convolutions(name, platform, of_conv):
    text = export.export(jax.jit(PROGRAMS[name]), platforms=[platform])(*of_conv).mlir_module()
    assert ("stablehlo.convolution" in text) == (platform != "cpu")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_compiled_program_of_a_cpu_does_not_choose(name, of_conv):
    if jax.default_backend() != "cpu":
        pytest.skip("compiles for this machine, which is no CPU alone")
    text = jax.jit(PROGRAMS[name]).lower(*of_conv).compile().as_text()
    assert " conditional(" not in text
    assert " convolution(" not in text


@pytest.mark.parametrize("name", ["halve", "double"])
def test_a_platforms_own_is_the_same_map(name, x64):
    """Values and derivatives of the function, which are the product's here, against the convolution's."""
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 5, 4, 3), (4, 4, 3, 2)]))
    function, other = getattr(convolutions, name), getattr(convolutions, f"_{name[:-1]}ing_convolution")
    (value, pull), (expected, pull_other) = jax.vjp(function, x, kernel), jax.vjp(other, x, kernel)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    for slope, known in zip(pull(value), pull_other(value), strict=True):
        np.testing.assert_allclose(slope, known, atol=1e-10)
    compiled = jax.jit(function)
    compiled(x, kernel), compiled(2 * x, kernel)
    assert compiled._cache_size() == 1


def test_half_precision_is_of_the_arithmetic_alone():
    half = networks.in_dtype(networks.mlp(3, (5,), 2), jnp.bfloat16)
    params = half.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (7, 3))
    value, gradient = jax.value_and_grad(lambda params: half.apply(params, x).astype(jnp.float32).sum())(params)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, gradient))} == {jnp.float32.dtype}
    assert half.apply(params, x).dtype == jnp.bfloat16
    np.testing.assert_allclose(value, networks.mlp(3, (5,), 2).apply(params, x).sum(), rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match=r"expected a floating dtype .*such as jnp\.bfloat16"):
        networks.in_dtype(half, jnp.int32)
