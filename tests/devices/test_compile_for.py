"""Programs compiled by the accelerators' own compilers, on a machine without any."""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from vaejax import devices, models, objectives, training
from vaejax.devices import ahead_of_time, machines

INSTALLED = all(importlib.util.find_spec(name) for name in ("libtpu", "jax_cuda12_plugin"))
needs_compilers = pytest.mark.skipif(not INSTALLED, reason='needs the compilers: pip install -e ".[accelerators]"')
X = jnp.ones((8, 16))


@pytest.fixture(scope="module", autouse=True)
def optimized():
    """Programs as users compile them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def squared(x):
    return x @ x.T


def test_an_unknown_device_names_the_near_ones():
    with pytest.raises(ValueError, match=r"a100, h100, h200, v4:2x2x1, .*; got 'v5x:2x2': did you mean v5p or v5e"):
        devices.compile_for("v5x:2x2", squared, X)
    with pytest.raises(ValueError, match=r"a larger layout such as h100:8; got 'v5e:2by2'$"):
        devices.compile_for("v5e:2by2", squared, X)


def test_what_is_no_name_is_refused(no_type_hook):
    with pytest.raises(ValueError, match=r"device must be one of .*; got None"):
        devices.compile_for(None, squared, X)
    with pytest.raises(ValueError, match=r"function must be a function of arrays.*; got 3"):
        devices.compile_for("h100", 3, X)


def test_a_compiler_that_is_not_there_names_the_install(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machines.metadata, "version", version)
    machines._loaded.cache_clear()
    for device, package in (("v5e:2x2", "libtpu"), ("h200", r"jax-cuda\d\d-plugin")):
        with pytest.raises(ImportError, match=rf"^compiling for this device needs .*{package}: .*\[accelerators\]"):
            devices.compile_for(device, squared, X)


def test_a_compiler_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(machines.metadata, "version", lambda name: "0.0.1")
    machines._loaded.cache_clear()
    with pytest.raises(ImportError, match=r"^jax \S+ needs libtpu \d\S+; got 0\.0\.1: .*accelerators"):
        devices.compile_for("v6e:2x2", squared, X)
    with pytest.raises(ImportError, match=r"^jax \S+ needs jax-cuda\d\d-plugin \d\S+; got 0\.0\.1: .*accelerators"):
        devices.compile_for("a100", squared, X)


def test_what_exceeds_the_memory_is_read_from_the_message():
    tpu = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory (74.58G) exceeds available HBM (15.75G)."
    assert ahead_of_time._missing_bytes(tpu) == int(74.58 * 2**30) - int(15.75 * 2**30)
    other = "RESOURCE_EXHAUSTED: Used 20.0G of 15.75G hbm. Exceeded hbm capacity by 4.25G."
    assert ahead_of_time._missing_bytes(other) == int(4.25 * 2**30)
    assert ahead_of_time._missing_bytes("INTERNAL: 3.0G of something") is None


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize("device", ["h100", "v5e:2x2"])
def test_a_run_of_training(device):
    """Its steps by hand: the products of a network of 16-32-4 on 64 images, and no waiting for the host."""
    vae, optimizer = models.mlp_vae((16,), 4, (32,)), optax.adam(1e-3)
    step = training.make_train_step(objectives.make_elbo(vae), optimizer)

    def fit(state, key, images):
        return training.fit(step, state, key, images, num_steps=30, batch_size=64)

    state = jax.eval_shape(lambda key: training.init_state(vae.init(key), optimizer), jax.random.key(0))
    found = devices.compile_for(device, fit, state, jax.random.key(1), jax.ShapeDtypeStruct((640, 16), np.float32))
    assert found.fits
    assert found.memory_bytes.arguments >= 4 * (640 * 16 + 3 * sum(leaf.size for leaf in jax.tree.leaves(state.params)))
    assert found.passes == 30
    products = 64 * (2 * 16 * 32 + 3 * (32 * 8 + 4 * 32 + 32 * 16))
    assert 2 * products <= found.flops <= 1.1 * 2 * products  # a GPU's kernels may fill up their inputs
    assert 20 < found.kernels < 80
    assert found.all_reduces == 0
    assert found.roofline_seconds > 0
    assert found.limit == ("launches" if device == "h100" else "arithmetic")
    assert "while" in found.text


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize("device", ["h100:4", "v5e:2x2"])
def test_meshes_and_shardings(device):
    """Of the device itself, of no device, and in the arguments: one sum over four, each of a quarter."""

    def total(x):
        return squared(devices.spread(devices.BATCH, x)).sum(1)

    with jax.set_mesh(devices.make_mesh(devices=devices.devices_of(device))):
        own = devices.compile_for(device, lambda x: total(x).sum(), X)
    abstract = AbstractMesh((4,), (devices.BATCH,), axis_types=(AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(abstract):
        other = devices.compile_for(device, lambda x: total(x).sum(), X)
    assert (own.num_devices, own.all_reduces) == (other.num_devices, other.all_reduces) == (4, 1)
    assert own.kernels == other.kernels
    spread = jax.ShapeDtypeStruct((8, 128), np.float32, sharding=NamedSharding(abstract, PartitionSpec(devices.BATCH)))
    argument = devices.compile_for(device, lambda x: (x * 2).sum(), spread)
    assert (argument.num_devices, argument.all_reduces) == (4, 1)
    alone = devices.compile_for(device, lambda x: (x * 2).sum(), jnp.ones((8, 128)))
    assert (alone.num_devices, alone.all_reduces) == (1, 0)
    assert alone.bytes_accessed > 2 * argument.bytes_accessed
    with jax.sharding.use_abstract_mesh(abstract), pytest.raises(ValueError, match="'h100' has 1 devices; got a mesh"):
        devices.compile_for("h100", total, X)


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize("device", ["a100", "v5e:2x2"])
def test_what_is_too_large_is_no_error(device):
    large = jax.ShapeDtypeStruct((150_000, 100_000), np.float32)  # 60 GB, and a product of 90 GB
    found = devices.compile_for(device, squared, large)
    assert not found.fits
    assert found.spare_bytes < -40e9
    assert sum(found.memory_bytes) > 100e9
    if device == "v5e:2x2":
        assert (found.kernels, found.limit, found.roofline_seconds) == (None, None, None)


@needs_compilers
@pytest.mark.slow
def test_calls_of_the_host_are_named():
    def shout(x):
        return x

    def scanned(x):
        def body(carry, _):
            jax.debug.print("now {}", carry.sum())
            return carry, None

        return jax.lax.scan(body, x, length=3)[0]

    def called(x):
        jax.debug.callback(shout, x)
        return jax.pure_callback(shout, x, x)

    with pytest.raises(ValueError, match=r"must not call the host, .*; got debug_print of 'now \{\}': leave it out"):
        devices.compile_for("v5e:2x2", scanned, X)
    with pytest.raises(ValueError, match="got debug_callback of shout, pure_callback of shout: leave it out"):
        devices.compile_for("h100", called, X)


@needs_compilers
@pytest.mark.slow
def test_a_layout_that_is_none_is_refused():
    for device in ("v5e:3x5", "h100:0"):
        with pytest.raises(ValueError, match=rf"^device '{device}': its compiler refuses it: "):
            devices.compile_for(device, squared, X)


@needs_compilers
@pytest.mark.slow
def test_this_process_stays_as_it_was():
    """With flags that the compilers do not know, which would end it, and a cache that they cannot use."""
    program = """
import os
import jax, jax.numpy as jnp
jax.devices()
os.environ["XLA_FLAGS"] = "--xla_nobody_knows_this=1"
from vaejax import devices
x = jnp.arange(6.0).reshape(2, 3)
static = jax.jit(lambda x, n: n * x @ x.T, static_argnums=1)
for device in ("h100", "v5e:2x2", "h100"):
    for arguments in ((jnp.dot, x, x.T), (lambda y: x @ y, x.T), (static, x, 3)):
        assert devices.compile_for(device, *arguments).flops == 2 * 2 * 2 * 3
assert os.environ["XLA_FLAGS"] == "--xla_nobody_knows_this=1"
assert [device.platform for device in jax.devices()] == ["cpu"]
assert jax.config.jax_enable_compilation_cache
print(float((x @ x.T).sum()))
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    env.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "83.0\n"
