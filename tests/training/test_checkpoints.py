"""What was saved comes back bit for bit, or is refused with a reason; a crash or a full disk costs one save."""

import contextlib
import gc
import io
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import checkpoints
from vaejax.training import orbax_io, seals
from vaejax.training.checkpoints import CheckpointError

CONFIG = {"latent_dim": 2, "hidden_sizes": (500, 200), "schedule": {"beta": 1.0, "warm_up": None}}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adam(1e-3), {"w": True, "b": False}))


class State(NamedTuple):
    """A training state."""

    params: Any
    opt_state: Any
    step: Any


def make_state(step=3):
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.zeros(4)}
    return State(params, OPTIMIZER.init(params), jnp.int32(step))


@jax.jit
def train_step(state):
    grads = jax.grad(lambda params: jnp.sum(jnp.sin(params["w"]) ** 2) + jnp.sum(params["b"] ** 2))(state.params)
    with jax.numpy_dtype_promotion("standard"):  # adam raises a float to the power of its integer count
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    return State(optax.apply_updates(state.params, updates), opt_state, state.step + 1)


def bits(leaf):
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    assert [bits(leaf) for leaf in jax.tree.leaves(tree)] == [bits(leaf) for leaf in jax.tree.leaves(other)]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def run(code, *arguments, **options):
    """Run Python code in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


# What comes back


def test_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    straight = resumed = make_state(0)
    for _ in range(6):
        straight = train_step(straight)
    for _ in range(2):
        resumed = train_step(resumed)
    checkpoints.save(tmp_path, resumed, config=CONFIG)
    resumed = checkpoints.restore(tmp_path, make_state(0), config=CONFIG)
    for _ in range(4):
        resumed = train_step(resumed)
    assert_same(resumed, straight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "complex64", "int4"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_every_dtype_and_shape(tmp_path, dtype, shape):
    state = State(jnp.asarray(np.arange(np.prod(shape)).reshape(shape) % 5 - 2).astype(dtype), (), jnp.int32(0))
    checkpoints.save(tmp_path, state, config={})
    assert_same(checkpoints.restore(tmp_path, jax.eval_shape(lambda: state), config={}), state)


def test_special_values_keep_their_bits(tmp_path):
    quiet_nan_with_payload = np.array([0x7FC12345, 0xFFC00001], np.uint32).view(np.float32)
    values = np.concatenate([np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45]), quiet_nan_with_payload])
    state = State(jnp.asarray(values), jnp.asarray(values).astype(jnp.bfloat16), 5)
    checkpoints.save(tmp_path, state, config={})
    restored = checkpoints.restore(tmp_path, state, config={})
    assert np.asarray(restored.params).tobytes() == values.tobytes()
    assert bits(restored.opt_state) == bits(state.opt_state)
    assert restored.step == 5


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("abstract", [False, True])
def test_typed_keys(tmp_path, impl, abstract):
    state = State({"one": jax.random.key(1, impl=impl)}, jax.random.key(2, impl=impl)[None], jnp.int32(0))
    checkpoints.save(tmp_path, state, config={})
    restored = checkpoints.restore(tmp_path, jax.eval_shape(lambda: state) if abstract else state, config={})
    assert_same(restored, state)
    assert str(jax.random.key_impl(restored.params["one"])) == impl


@pytest.mark.parametrize(
    "tree",
    [
        {"a.b": 1.0, "a": {"b": 2.0}},  # Orbax alone brings the same number back twice
        {"a/b": 1.0, "a": {"b": 2.0}},
        {"['a']['b']": 1.0, "a": {"b": 2.0}, "": 3.0, "x" * 300: 4.0},
        {2: 1.0, 10: 2.0},
        [float(i) for i in range(12)],
        (optax.EmptyState(), {}, [], None, {"empty": {}}),
    ],
)
def test_every_tree(tmp_path, tree):
    state = State(jax.tree.map(jnp.float32, tree), (), jnp.int32(0))
    checkpoints.save(tmp_path, state, config={})
    assert_same(checkpoints.restore(tmp_path, jax.tree.map(jnp.zeros_like, state), config={}), state)


def test_leaves_are_placed_as_those_of_like(tmp_path):
    wide = np.array([1 / 3])  # float64, although JAX runs in float32
    state = State({"free": jnp.ones(2), "fixed": jax.device_put(jnp.ones(2), jax.devices()[0])}, wide, jnp.int32(0))
    checkpoints.save(tmp_path, state, config={})
    restored = checkpoints.restore(tmp_path, state, config={})
    assert not restored.params["free"].committed
    assert restored.params["fixed"].committed
    assert isinstance(restored.opt_state, np.ndarray)
    assert_same(restored, state)
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("batch",)), jax.sharding.PartitionSpec("batch"))
    like = state._replace(params=jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding))
    like = state._replace(params={**state.params, "free": like.params})
    assert checkpoints.restore(tmp_path, like, config={}).params["free"].sharding == sharding


def test_a_float64_leaf_is_not_rounded_silently(tmp_path):
    checkpoints.save(tmp_path, State(np.array([1 / 3]), (), 0), config={})
    like = State(jax.ShapeDtypeStruct((1,), np.float64), (), 0)
    with pytest.raises(CheckpointError, match="set jax_enable_x64"):
        checkpoints.restore(tmp_path, like, config={})


# Which checkpoints there are


def test_keep_the_newest(tmp_path):
    for step in (1, 2, 10, 100_000_000):
        path = checkpoints.save(tmp_path / "made" / "anew", make_state(step), config=CONFIG, keep=2)
        assert path.is_dir()
    assert checkpoints.steps(tmp_path / "made" / "anew") == [10, 100_000_000]
    assert sorted(os.listdir(path.parent)) == ["00000010", "100000000"]
    assert checkpoints.restore(path.parent, make_state(), config=CONFIG).step == 100_000_000
    assert checkpoints.restore(str(path.parent), make_state(), config=CONFIG, step=10).step == 10


def test_the_one_just_saved_stays_even_if_others_are_later(tmp_path):
    for step in (5, 6, 7, 3):
        checkpoints.save(tmp_path, make_state(step), config=CONFIG, keep=2)
    assert checkpoints.steps(tmp_path) == [3, 7]
    checkpoints.save(tmp_path, make_state(4), config=CONFIG, keep=1)
    assert checkpoints.steps(tmp_path) == [4]


def test_the_same_step_is_replaced(tmp_path):
    state = make_state()
    for factor in (1, 2, 3):
        checkpoints.save(tmp_path, state._replace(params={**state.params, "w": factor * state.params["w"]}), config={})
    assert os.listdir(tmp_path) == ["00000003"]
    assert_same(checkpoints.restore(tmp_path, state, config={}).params["w"], 3 * state.params["w"])


def test_leftovers_are_ignored_and_then_swept(tmp_path):
    good = checkpoints.save(tmp_path, make_state(1), config=CONFIG)
    for leftover in (".tmp-2-77", ".tmp-00000000"):
        shutil.copytree(good, tmp_path / leftover)
    (tmp_path / ".tmp-2-77" / "state.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "notes.txt").write_text("the user's")
    shutil.copytree(good, tmp_path / "00000001.old")  # killed before it was deleted
    assert checkpoints.steps(tmp_path) == [1]
    assert checkpoints.restore(tmp_path, make_state(), config=CONFIG).step == 1
    checkpoints.save(tmp_path, make_state(2), config=CONFIG)
    assert sorted(os.listdir(tmp_path)) == ["00000001", "00000002", "notes.txt"]


def test_killed_between_the_two_renames_of_a_replacement(tmp_path):
    good = checkpoints.save(tmp_path, make_state(1), config=CONFIG)
    good.rename(tmp_path / "00000001.old")
    assert checkpoints.steps(tmp_path) == [1]
    assert checkpoints.restore(tmp_path, make_state(), config=CONFIG).step == 1
    checkpoints.save(tmp_path, make_state(2), config=CONFIG)
    assert sorted(os.listdir(tmp_path)) == ["00000001", "00000002"]


# What is refused, and how


@pytest.mark.parametrize("make", [False, True])
def test_nothing_there(tmp_path, make):
    folder = tmp_path / "runs"
    if make:
        folder.mkdir()
    assert checkpoints.steps(folder) == []
    with pytest.raises(CheckpointError, match=r"expected a checkpoint in .*runs, found none: check the path, or start"):
        checkpoints.restore(folder, make_state(), config=CONFIG)
    with pytest.raises(CheckpointError, match=r"of step 4 in .*runs, found steps \[\]"):
        checkpoints.restore(folder, make_state(), config=CONFIG, step=4)


@pytest.mark.parametrize("missing", ["manifest.json", "manifest.sha256"])
def test_without_digests_it_is_incomplete(tmp_path, missing):
    for step in (1, 2):
        checkpoints.save(tmp_path, make_state(step), config=CONFIG)
    (tmp_path / "00000002" / missing).unlink()
    assert checkpoints.steps(tmp_path) == [1]
    assert checkpoints.restore(tmp_path, make_state(), config=CONFIG).step == 1
    with pytest.raises(CheckpointError, match=r"incomplete, without manifest.* Delete .*00000002 .* steps \[1\]"):
        checkpoints.restore(tmp_path, make_state(), config=CONFIG, step=2)


def test_another_configuration(tmp_path):
    folder = checkpoints.save(tmp_path, make_state(), config={**CONFIG, "nan": float("nan"), "old": "x", "flag": 1})
    (folder / "state" / "orbax.checkpoint").unlink()  # the data are not even looked at
    mine = {**CONFIG, "latent_dim": 20, "schedule": {"beta": 0.5, "warm_up": None}, "new": None, "nan": float("nan")}
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(tmp_path, make_state(), config={**mine, "flag": "1"})
    lines = str(caught.value).splitlines()
    assert "00000003 holds another configuration" in lines[0]
    assert lines[1:-1] == [
        "  flag: expected '1' (this run), found 1 (checkpoint)",
        "  latent_dim: expected 20 (this run), found 2 (checkpoint)",
        "  new: expected None (this run), found absent (checkpoint)",
        "  old: expected absent (this run), found 'x' (checkpoint)",
        "  schedule.beta: expected 0.5 (this run), found 1.0 (checkpoint)",
    ]
    assert "take another directory" in lines[-1]


def test_configurations_are_compared_as_json(tmp_path):
    checkpoints.save(tmp_path, make_state(), config={"sizes": (1, 2), "beta": 1, 3: float("nan")})
    checkpoints.restore(tmp_path, make_state(), config={"3": float("nan"), "beta": 1.0, "sizes": [1, 2]})


def test_another_state(tmp_path):
    state = State({"w": jnp.ones((3, 4)), "b": jnp.ones(4), "gone": jnp.ones(1)}, jax.random.key(0), jnp.int32(0))
    checkpoints.save(tmp_path, state, config={})
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(4, jnp.bfloat16), "new": jnp.ones(1)}
    like = State(params, jax.random.key(0, impl="rbg"), jnp.int32(0))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(tmp_path, like, config={})
    assert str(caught.value).splitlines()[1:-1] == [
        "  .opt_state: expected 'key<rbg>[]' (this run), found 'key<fry>[]' (checkpoint)",
        "  .params['b']: expected 'bfloat16[4]' (this run), found 'float32[4]' (checkpoint)",
        "  .params['gone']: expected absent (this run), found 'float32[1]' (checkpoint)",
        "  .params['new']: expected 'float32[1]' (this run), found absent (checkpoint)",
        "  .params['w']: expected 'float32[4, 3]' (this run), found 'float32[3, 4]' (checkpoint)",
    ]


def test_a_flipped_bit_in_any_file_is_refused(tmp_path):
    """The first, a middle and the last byte of every file, one after another."""
    state, like = make_state(2), make_state(0)
    checkpoints.save(tmp_path, make_state(1), config=CONFIG)
    folder = checkpoints.save(tmp_path, state, config=CONFIG)
    assert len(files(folder)) > 5
    for path in files(folder):
        content = path.read_bytes()
        for position in {0, len(content) // 2, len(content) - 1} if content else ():
            for mask in (0x01, 0x20):  # 0x20 turns a hexadecimal digit's case
                flipped = bytearray(content)
                flipped[position] ^= mask
                path.write_bytes(flipped)
                with pytest.raises(CheckpointError, match=r"is damaged.*pass step=1") as caught:
                    checkpoints.restore(tmp_path, like, config=CONFIG)
                assert path.name in str(caught.value)
        path.write_bytes(content)
    assert_same(checkpoints.restore(tmp_path, like, config=CONFIG), state)


def test_any_byte_of_manifest_and_seal_counts(tmp_path):
    folder = checkpoints.save(tmp_path, State(jnp.ones(2), (), jnp.int32(0)), config={"beta": 0.30000000000000004})
    like = State(jnp.ones(2), (), jnp.int32(0))
    for path in (folder / "manifest.json", folder / "manifest.sha256"):
        content = path.read_bytes()
        for position in range(0, len(content), 7):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(CheckpointError, match="is damaged"):
                checkpoints.restore(tmp_path, like, config={"beta": 0.30000000000000004})
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.with_name("extra").write_bytes(b""), "was not saved with it"),
    ],
)
def test_damage_names_the_file_and_the_newest_that_verifies(tmp_path, harm, said):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, make_state(step), config=CONFIG, keep=3)
    for step in (2, 3):
        largest = max(files(tmp_path / f"{step:08d}" / "state"), key=lambda path: path.stat().st_size)
        harm(largest)
    with pytest.raises(CheckpointError, match=said) as caught:
        checkpoints.restore(tmp_path, make_state(), config=CONFIG)
    assert str(largest.parent) in str(caught.value)
    assert f"pass step=1, the newest that verifies, or delete {tmp_path / '00000003'}" in str(caught.value)
    assert checkpoints.restore(tmp_path, make_state(), config=CONFIG, step=1).step == 1
    shutil.rmtree(tmp_path / "00000001")
    with pytest.raises(CheckpointError, match="start anew"):
        checkpoints.restore(tmp_path, make_state(), config=CONFIG)


def test_another_format(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, make_state(), config=CONFIG)
    monkeypatch.setattr(seals, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="in format 2, found 1"):
        checkpoints.restore(tmp_path, make_state(), config=CONFIG)


@pytest.mark.parametrize(
    ("state", "options", "said"),
    [
        ({"w": 1}, {}, "integer scalar `step` of 0 or more, got step=None"),
        (State(1.0, (), 1.5), {}, r"got step=1\.5"),
        (State(1.0, (), -1), {}, "got step=-1"),
        (State(1.0, (), np.array([1])), {}, "got step=array"),
        (State({"act": "gelu"}, (), 1), {}, r"got \.params\['act'\]: 'gelu'"),
        (State(1.0, (), 1), {"keep": 0}, "got keep=0"),
        (State(1.0, (), 1), {"config": {"path": pathlib.Path()}}, "config that JSON can hold, got: .*Path"),
    ],
)
def test_what_cannot_be_saved(tmp_path, state, options, said):
    with pytest.raises(CheckpointError, match=said):
        checkpoints.save(tmp_path, state, **{"config": {}, **options})
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(CheckpointError, match=r"expected to save step 3 .* but .*File exists"):
        checkpoints.save(tmp_path / "runs", make_state(), config=CONFIG)


# Crashes


KILLED = """
    import os, shutil, signal, sys
    import numpy as np
    from typing import Any, NamedTuple
    from vaejax import checkpoints
    from orbax.checkpoint import v1

    class State(NamedTuple):
        params: Any
        step: Any

    directory, new_step, stride = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    state = lambda step, value: State(np.full(1000, value), np.int32(step))
    watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}

    def child(work):  # in a process of its own; JAX starts no threads before the fork
        if pid := os.fork():
            return os.waitpid(pid, 0)[1]
        work()
        os._exit(0)

    def killed_at(moment):
        left = [moment]
        def hook(event, arguments):
            if event in watched and (directory in str(arguments) or event in ("os.remove", "os.rmdir")):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        checkpoints.save(directory, state(new_step, 2.0), config={}, keep=1)

    def check():
        restored = checkpoints.restore(directory, state(0, 0.0), config={})
        print(int(restored.step), *set(restored.params.tolist()))
        for step in checkpoints.steps(directory):
            checkpoints.restore(directory, state(0, 0.0), config={}, step=step)

    finished, moment = [False], 0
    while not finished[0]:
        shutil.rmtree(directory, ignore_errors=True)
        assert child(lambda: checkpoints.save(directory, state(1, 1.0), config={})) == 0
        moment += stride
        finished[0] = child(lambda: killed_at(moment)) == 0
        assert child(check) == 0, moment
        assert child(lambda: checkpoints.save(directory, state(3, 3.0), config={}, keep=1)) == 0
        assert os.listdir(directory) == ["00000003"], os.listdir(directory)
    print("moments", moment)
"""


@pytest.mark.slow
@pytest.mark.parametrize("new_step", [1, 2])
def test_killed_at_any_moment(tmp_path, new_step):
    """SIGKILL at every fifth file operation of a save, of a later step and of one that replaces the only good one."""
    result = run(KILLED, tmp_path / "run", new_step, 5)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert set(lines[:-2]) == {"1 1.0", f"{new_step} 2.0"}  # killed before, and after, the new one was in place
    assert int(lines[-1].split()[1]) > 60


LIMITED = """
    import resource, sys
    import jax.numpy as jnp, numpy as np
    from typing import Any, NamedTuple
    from vaejax import checkpoints

    class State(NamedTuple):
        params: Any
        step: Any

    state = lambda step, size: State([np.random.default_rng(i).normal(size=size) for i in range(4)], jnp.int32(step))
    checkpoints.save(sys.argv[1], state(1, 10), config={})
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        checkpoints.save(sys.argv[1], state(2, 50_000), config={})
    except checkpoints.CheckpointError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert checkpoints.restore(sys.argv[1], state(0, 10), config={}).step == 1
    print(message)
"""


@pytest.mark.quick_for("1000")
@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_disk_that_fills_costs_only_the_save(tmp_path, limit):
    """The largest file allowed is what Orbax's first metadata file, a later one, or the data do not fit into."""
    result = run(LIMITED, tmp_path, limit)
    assert result.stderr == ""
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1
    assert f"expected to save step 2 (1.6 MB) in {tmp_path}, but the disk or a quota is full: " in result.stdout
    assert "File too large" in result.stdout
    assert "The checkpoint of step 1 is still good." in result.stdout
    assert os.listdir(tmp_path) == ["00000001"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs to mount a small tmpfs, which takes the rights of root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("already", [0, 1_000_000])
def test_no_space_left(small_disk, capfd, caplog, monkeypatch, already):
    monkeypatch.setattr(sys, "stderr", notebook := io.StringIO())
    checkpoints.save(small_disk, make_state(1), config={})
    (small_disk / "other").write_bytes(bytes(max(0, already - 60_000)))
    with pytest.raises(CheckpointError, match=r"the disk or a quota is full: .*No space left.*step 1 is still good"):
        checkpoints.save(
            small_disk, State([np.random.default_rng(i).normal(size=60_000) for i in range(5)], (), 2), config={}
        )
    assert sorted(os.listdir(small_disk)) == ["00000001", "other"]
    assert (*capfd.readouterr(), caplog.records, notebook.getvalue()) == ("", "", [], "")
    (small_disk / "other").unlink()
    assert checkpoints.restore(small_disk, make_state(), config={}).step == 1
    checkpoints.save(small_disk, make_state(2), config={})
    assert checkpoints.steps(small_disk) == [1, 2]


@pytest.mark.parametrize("milliseconds", [2, 5, 10, 15, 20, 25, 30])
def test_ctrl_c_leaves_the_terminal_and_the_directory_in_order(tmp_path, milliseconds):
    def streams():
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook
        return handlers, [identity(1), identity(2)], sys.stdout, sys.stderr, logging.root.handlers[:]

    def identity(descriptor):
        with contextlib.suppress(OSError):
            return os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino

    def copies():
        return sum(identity(descriptor) in (identity(1), identity(2)) for descriptor in range(256))

    checkpoints.save(tmp_path, make_state(1), config={})
    before, copies_before, threads, interrupted = streams(), copies(), set(threading.enumerate()), True
    previous = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)
            checkpoints.save(tmp_path, make_state(2), config={})
            signal.setitimer(signal.ITIMER_REAL, 0)
            interrupted = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert streams() == before
    assert copies() == copies_before
    deadline = time.monotonic() + 60
    while not set(threading.enumerate()) <= threads:  # an interrupted event loop's worker ends with its executor
        assert time.monotonic() < deadline, "a thread of Orbax waits for ever"
        gc.collect()
        time.sleep(0.05)
    assert checkpoints.steps(tmp_path) in ([1], [1, 2])
    assert interrupted or checkpoints.steps(tmp_path) == [1, 2]
    assert not [
        name for name in os.listdir(tmp_path) if name.startswith(".tmp") and len(checkpoints.steps(tmp_path)) == 1
    ]
    checkpoints.save(tmp_path, make_state(3), config={}, keep=1)
    assert os.listdir(tmp_path) == ["00000003"]


# Quiet


def test_nothing_is_printed(tmp_path, capfd):
    checkpoints.save(tmp_path, make_state(), config=CONFIG)
    checkpoints.restore(tmp_path, make_state(), config=CONFIG)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stream", [io.StringIO, lambda: None])
def test_streams_without_a_descriptor(tmp_path, monkeypatch, stream):
    """As in a notebook, and in a program without a console."""
    monkeypatch.setattr(sys, "stdout", out := stream())
    monkeypatch.setattr(sys, "stderr", err := stream())
    checkpoints.save(tmp_path, make_state(), config=CONFIG)
    assert checkpoints.restore(tmp_path, make_state(), config=CONFIG).step == 3
    assert sys.stdout is out
    assert sys.stderr is err
    assert out is None or out.getvalue() + err.getvalue() == ""


def test_importing_and_refusing_need_no_orbax_and_the_log_is_left_alone(tmp_path):
    checkpoints.save(tmp_path, State(np.ones(2), (), 1), config={})
    result = run(
        """
        import logging, sys
        import numpy as np
        from typing import Any, NamedTuple
        from vaejax import checkpoints

        class State(NamedTuple):
            params: Any
            opt_state: Any
            step: Any

        like = State(np.ones(2), (), 0)
        try:
            checkpoints.restore(sys.argv[1], like, config={"latent_dim": 2})
        except checkpoints.CheckpointError:
            print("refused", [name for name in sys.modules if name.startswith(("orbax", "tensorflow"))])
        checkpoints.restore(sys.argv[1], like, config={})
        checkpoints.save(sys.argv[1], like, config={})
        print(logging.root.handlers, logging.getLogger("absl").handlers, "tensorflow" in sys.modules)
        print("from here", file=sys.stderr)
        logging.basicConfig(format="mine: %(message)s", stream=sys.stdout)
        logging.getLogger("absl").error("still here")
        """,
        tmp_path,
        env={**os.environ, "TENSORSTORE_VERBOSE_LOGGING": "all"},  # its C++ threads write to the descriptor
    )
    # On a busy machine a thread may close its store, and say so to this verbose log, when the call has long returned.
    said = [line for line in result.stderr.splitlines() if "Removed kvstore from open cache" not in line]
    assert (result.stdout, said) == ("refused []\n[] [] False\nmine: still here\n", ["from here"])


def test_the_manifest_can_be_read_and_checked_by_hand(tmp_path):
    folder = checkpoints.save(tmp_path, make_state(), config=CONFIG)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"]["hidden_sizes"] == [500, 200]
    assert manifest["leaves"][".params['w']"] == "float32[3, 4]"
    assert sorted(manifest["files"]) == [path.relative_to(folder).as_posix() for path in files(folder / "state")]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--status", "-c", "manifest.sha256"], cwd=folder, check=True)


def test_a_callback_that_comes_after_the_sink_is_closed_is_silent(capfd):
    """As one of TensorStore's does, at random, on a busy machine with a full disk."""
    unraisable = types.SimpleNamespace(exc_value=ValueError("no space"))
    with io.StringIO() as sink:
        orbax_io._write_unraisable(sink, unraisable)
        assert sink.getvalue() == "ValueError: no space\n"
    orbax_io._write_unraisable(sink, unraisable)
    assert capfd.readouterr() == ("", "")


def test_a_callback_that_comes_after_a_failed_write_is_silent(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    for _ in range(2):
        with pytest.raises(AttributeError):
            orbax_io.call("no_such_function")
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(words)) for words in ("Event loop is closed", "something else")
    )
    sys.unraisablehook(late)
    assert heard == []
    sys.unraisablehook(other)
    assert heard == [other]
    assert sys.unraisablehook.args == (heard.append,)  # one filter, however many writes failed
