"""Eight virtual devices of this machine's CPU, and two processes on it, against one."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import EXPERIMENTS

from vaejax import devices

# What is computed, in a process with so many devices as the first argument says, on a mesh of them.
PROGRAM = """
import contextlib, json, re, sys
import jax, jax.numpy as jnp, optax
from vaejax import data, devices, evaluation, models, objectives, training

number, found = int(sys.argv[1]), {}
vae, optimizer = models.mlp_vae((8, 8), 5, (32,)), optax.adam(2e-3)
images = jnp.asarray(data.load("digits", "train").images)
params = vae.init(jax.random.key(0))

def on(axis, function, *arguments, text=None):
    if number == 1:
        return jax.jit(function)(*arguments)
    mesh = devices.make_mesh(axis)
    with jax.set_mesh(mesh):
        arguments = [each if i == 1 else devices.replicate(mesh, each) for i, each in enumerate(arguments)]
        program = jax.jit(function).lower(*arguments).compile()
    if text:
        found[text] = [len(re.findall(rf" {name}(?:-start)?[(]", program.as_text()))
                       for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute")]
    return program(*arguments)

step = training.make_train_step(objectives.make_elbo(vae), optimizer, prepare=data.binarize_dynamic)
def fit(state, key, images):
    return training.fit(step, state, key, images, num_steps=200, batch_size=104)
_, history = on("batch", fit, training.init_state(params, optimizer), jax.random.key(1), images, text="program of fit")
found["losses"] = history.bound.tolist()

def make(beta):
    return training.make_train_step(objectives.make_elbo(vae, beta=beta), optimizer, prepare=data.binarize_dynamic)
def population(states, keys, images, betas):
    return training.fit_population(make, states, keys, images, betas, num_steps=30, batch_size=50)[1].bound
states = training.init_population(vae.init, optimizer, jax.random.split(jax.random.key(2), 16))
bounds = on("runs", population, states, jax.random.split(jax.random.key(3), 16), images, jnp.linspace(0.5, 2.0, 16),
            text="program of a population")
found["population"] = bounds.tolist()

iwae = objectives.make_iwae(vae, num_samples=64)
x = data.binarize_threshold(None, images[:5])
gradient = on("samples", jax.grad(lambda params, key, x: iwae(params, key, x)[0]), params, jax.random.key(4), x)
found["gradient"] = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)]).tolist()

x = data.binarize_threshold(None, images[:70])
mesh = devices.make_mesh()
with jax.set_mesh(mesh) if number > 1 else contextlib.nullcontext():
    result = evaluation.log_likelihood(vae, params, jax.random.key(5), x, 100, batch_size=3)
found["evaluation"] = result.estimate.tolist()
samples = devices.make_mesh("samples")
with jax.set_mesh(samples) if number > 1 else contextlib.nullcontext():  # 10 samples of the distortion, over 8 devices
    report = evaluation.report(vae, params, jax.random.key(6), x, 30)
found["report"] = [float(report.log_likelihood.estimate), float(report.rate_distortion.distortion)]
print(json.dumps(found))
"""


def environment(tmp_path_factory, **more):
    cache = tmp_path_factory.getbasetemp() / "compiled"
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)} | {name: str(value) for name, value in more.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one device and what eight find."""
    results = {}
    for number in (1, 8):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM, str(number)],
            env=environment(tmp_path_factory, JAX_NUM_CPU_DEVICES=number),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        results[number] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.slow
def test_eight_devices_have_the_losses_of_one(found):
    one, eight = (np.array(found[number]["losses"]) for number in (1, 8))
    assert one.shape == (200,)
    np.testing.assert_allclose(eight, one, rtol=1e-5)


@pytest.mark.slow
def test_a_step_sums_the_gradients_once(found):
    """In a program whose steps are the body of one loop: one all-reduce, and nothing else between devices."""
    assert found[8]["program of fit"] == [1, 0, 0, 0]


@pytest.mark.slow
def test_the_runs_of_a_population_stay_apart(found):
    np.testing.assert_allclose(found[8]["population"], found[1]["population"], rtol=1e-5)
    assert found[8]["population"][0] != found[8]["population"][15]
    assert found[8]["program of a population"][0] == 0  # no gradient of one is added to another's


@pytest.mark.slow
def test_samples_are_spread_too(found):
    one, eight = (np.array(found[number]["gradient"]) for number in (1, 8))
    np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


@pytest.mark.slow
def test_an_evaluation_is_spread_too(found):
    np.testing.assert_allclose(found[8]["evaluation"], found[1]["evaluation"], rtol=1e-5)


@pytest.mark.slow
def test_a_report_takes_a_mesh_of_samples_of_any_size(found):
    np.testing.assert_allclose(found[8]["report"], found[1]["report"], rtol=1e-5)


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"axis must be 'batch', 'samples' or 'runs'; got 'width'"):
        devices.make_mesh("width")
    with pytest.raises(ValueError, match="the number of devices must be an integer of at least 1; got 0"):
        devices.make_mesh(devices=[])
    mesh = jax.sharding.AbstractMesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        assert devices.size("batch") == 8
        assert devices.size("runs") == 1
        with pytest.raises(ValueError, match=r"divisible by the 8 devices of the mesh's axis 'batch'; got 12"):
            devices.spread("batch", np.zeros((12, 3)))


# The command line.

SHORT = ("--num-steps", "10", "--batch-size", "104", "--checkpoint-seconds", "0", "--eval-samples", "2")


def train(folder, *options, env, expected=0):
    line = [sys.executable, EXPERIMENTS / "train.py", *SHORT, "--runs-dir", folder, *options]
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr
    return done.stdout + done.stderr


def bounds(folder):
    return [json.loads(line)["bound"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The bounds of a run on one device."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder, "--name", "run", env=environment(tmp_path_factory))
    return bounds(folder / "run")


@pytest.mark.exhaustive
def test_a_run_of_eight_devices_continues_on_two_and_on_one(alone, tmp_path, tmp_path_factory):
    said = train(tmp_path, "--name", "run", "--devices", "8", env=environment(tmp_path_factory, JAX_NUM_CPU_DEVICES=8))
    assert "on 8 devices" in said
    np.testing.assert_allclose(bounds(tmp_path / "run"), alone, rtol=1e-5)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    steps = sorted((tmp_path / "run" / "checkpoints").iterdir())
    for number, left in ((2, 1), (1, 1)):
        for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())[left:]:
            subprocess.run(["rm", "-r", folder], check=True)  # so that there is something left to do
        env = environment(tmp_path_factory, JAX_NUM_CPU_DEVICES=number)
        said = train(tmp_path, "--name", "run", "--resume", "--devices", str(number), env=env)
        assert f"at step {int(steps[0].name):,}" in said
        np.testing.assert_allclose(bounds(tmp_path / "run"), alone, rtol=1e-5)
    assert len(rows) == len(alone)


@pytest.mark.exhaustive
def test_two_processes_are_one_run(alone, tmp_path, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, EXPERIMENTS / "train.py", *SHORT, "--runs-dir", tmp_path, "--name", "run", "--distributed"]
    several = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": 2}
    processes = [
        subprocess.Popen(
            line,
            env=environment(tmp_path_factory, JAX_PROCESS_ID=i, **several),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "test log p(x)" in said[0][0]
    assert "test log p(x)" not in said[1][0]
    np.testing.assert_allclose(bounds(tmp_path / "run"), alone, rtol=1e-5)
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    subprocess.run(["rm", "-r", last], check=True)
    train(tmp_path, "--name", "run", "--resume", env=environment(tmp_path_factory))
    np.testing.assert_allclose(bounds(tmp_path / "run"), alone, rtol=1e-5)


@pytest.mark.slow
def test_devices_that_are_not_there_are_refused(tmp_path, tmp_path_factory):
    env = environment(tmp_path_factory)
    said = train(tmp_path, "--devices", "3", env=env, expected=2)
    assert re.search(r"--devices 3: JAX sees 1, cpu\. .*JAX_NUM_CPU_DEVICES=3", said)
    env = environment(tmp_path_factory, JAX_NUM_CPU_DEVICES=3)
    said = train(tmp_path, "--devices", "3", env=env, expected=2)
    assert "--batch-size must be divisible by the 3 devices; got 104" in said
    said = train(tmp_path, "--distributed", env=environment(tmp_path_factory), expected=2)
    assert "--distributed: JAX knows no cluster here" in said
    assert "JAX_COORDINATOR_ADDRESS=host:port" in said
    assert not list(tmp_path.iterdir())
