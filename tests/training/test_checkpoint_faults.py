"""What a checkpoint may be called, what it must not hide, and in which order it reaches the disk."""

import contextlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import checkpoints, models, training
from vaejax.training import orbax_io, seals
from vaejax.training.checkpoints import CheckpointError


class State(NamedTuple):
    """A training state."""

    params: Any
    opt_state: Any
    step: Any


def make_state(step=3):
    params = {"w": jnp.arange(6.0).reshape(2, 3) + step, "b": {"bias": jnp.ones(2, jnp.bfloat16)}}
    return State(params, (jnp.zeros(3), jax.random.key(step)), jnp.int32(step))


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for mine, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert mine.dtype == theirs.dtype
        key = jnp.issubdtype(mine.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(*(jax.random.key_data(leaf) if key else leaf for leaf in (mine, theirs)))


# Names


@pytest.mark.parametrize(
    "name", ["a[1]", "[", "a\\b", "\\", "a*", "a?", "a\nb", "dots..", "spaces  ", "a~", "{0}", "%20", "a:b", "a'\"b"]
)
def test_whatever_a_directory_is_called_its_checkpoints_come_back(tmp_path, name):
    directory = tmp_path / name
    for step in (1, 2):
        folder = checkpoints.save(directory, make_state(step), config={}, keep=1)
    assert folder.parent == directory
    assert os.listdir(tmp_path) == [name]
    assert checkpoints.steps(directory) == [2]
    assert_same(checkpoints.restore(directory, make_state(), config={}), make_state(2))
    assert_same(checkpoints.restore_params(directory), make_state(2).params)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    folder = checkpoints.save("~/runs", make_state(), config={})
    assert folder.parent == tmp_path / "home" / "runs"
    assert checkpoints.steps("~/runs") == [3]
    assert_same(checkpoints.restore(pathlib.Path("~/runs"), make_state(), config={}), make_state())
    assert_same(checkpoints.restore_params("~/runs"), make_state().params)
    assert os.listdir(tmp_path) == ["home"]


def test_arrays_that_do_not_arrive_are_not_sealed(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, make_state(1), config={})
    call = orbax_io.call

    def elsewhere(function, folder, arrays):  # as TensorStore does with a name that it reads as syntax
        call(function, folder, arrays)
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "_METADATA").write_text("{}")

    monkeypatch.setattr(orbax_io, "call", elsewhere)
    with pytest.raises(
        CheckpointError, match=r"the arrays did not arrive in .* The checkpoint of step 1 is still good"
    ):
        checkpoints.save(tmp_path, make_state(2), config={})
    assert os.listdir(tmp_path) == ["00000001"]


# Order: all that was written is on the disk before the folder gets its name, by one rename


def test_everything_has_reached_the_disk_when_the_name_appears(tmp_path, monkeypatch):
    synced, renamed = set(), {}
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def spy_replace(source, target):
        inside = [pathlib.Path(source), *pathlib.Path(source).rglob("*")]
        renamed[pathlib.Path(target).name] = [path.stat().st_ino in synced for path in inside]
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    folder = checkpoints.save(tmp_path, make_state(), config={})
    assert len(renamed["00000003"]) == 1 + len(list(folder.rglob("*")))
    assert all(renamed["00000003"])
    assert folder.parent.stat().st_ino in synced  # the list of names, after the rename


# What is not hidden


@pytest.mark.parametrize("harm", ["no manifest", "no seal", "a folder for a seal", "a link to itself", "a file"])
def test_a_fallback_to_the_checkpoint_before_is_told(tmp_path, harm, caplog):
    for step in (1, 2):
        newest = checkpoints.save(tmp_path, make_state(step), config={})
    assert int(checkpoints.restore(tmp_path, make_state(), config={}).step) == 2
    assert not caplog.records
    if harm in ("no manifest", "no seal"):
        (newest / {"no manifest": "manifest.json", "no seal": "manifest.sha256"}[harm]).unlink()
    elif harm == "a folder for a seal":
        (newest / "manifest.sha256").unlink()
        (newest / "manifest.sha256").mkdir()
    else:
        shutil.rmtree(newest)
        newest.symlink_to(newest) if harm == "a link to itself" else newest.write_text("")
    with caplog.at_level(logging.WARNING):
        assert int(checkpoints.restore(tmp_path, make_state(), config={}).step) == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "the checkpoint of step 1 is taken, because later ones are incomplete, without"
    )
    assert record.getMessage().endswith(str(newest))


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path):
    for step in (3, 4):
        checkpoints.save(tmp_path, make_state(step), config={})
    (tmp_path / "00000003").rename(tmp_path / "aside")
    (tmp_path / "00000004").rename(tmp_path / "00000003")
    (tmp_path / "aside").rename(tmp_path / "00000004")
    for step in (4, None):
        says = r"expected the checkpoint of step 4 in .*00000004, found that of step 3: the folder was renamed"
        with pytest.raises(CheckpointError, match=says):
            checkpoints.restore(tmp_path, make_state(), config={}, step=step)
        with pytest.raises(CheckpointError, match=says):
            checkpoints.restore_params(tmp_path, step=step)


FORGERIES = {
    "no text": lambda text: b"\xff\xfe" + text,
    "no JSON": lambda text: text[:-2],
    "a list": lambda text: b"[]",
    "a number": lambda text: b"3",
    "empty": lambda text: b"{}",
    **{
        f"without {name}": lambda text, name=name: json.dumps({k: v for k, v in json.loads(text).items() if k != name})
        for name in ("format", "config", "leaves", "key_impls", "files")
    },
    **{
        f"{name} is {value!r}": lambda text, name=name, value=value: json.dumps({**json.loads(text), name: value})
        for name in ("format", "config", "leaves", "key_impls", "files")
        for value in (None, "x", [], {"x": "y"}, {"x": [1, 2]})
        if not (name == "config" and isinstance(value, dict))
    },
    "another order": lambda text: json.dumps(
        {**json.loads(text), "leaves": dict(reversed(json.loads(text)["leaves"].items()))}
    ),
    "another kind of key": lambda text: text.replace(b"threefry2x32", b"rbg"),
    "no kind of key": lambda text: text.replace(b"threefry2x32", b"fry"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_manifest_that_was_changed_and_sealed_anew_is_one_clear_error(forge, sealed):
    folder, text = sealed
    forged = forge(text)
    (folder / seals.MANIFEST).write_bytes(forged if isinstance(forged, bytes) else forged.encode())
    (folder / seals.SEAL).write_text(seals._seal(folder))
    with pytest.raises(CheckpointError, match=r"00000003|key"):
        checkpoints.restore(folder.parent, make_state(), config={"a": 1})
    with contextlib.suppress(CheckpointError):  # it does not need all of the manifest
        checkpoints.restore_params(folder.parent)
    assert not seals.verifies(folder) or forge in [FORGERIES["another order"], FORGERIES["another kind of key"]]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = checkpoints.save(tmp_path_factory.mktemp("forged"), make_state(), config={"a": 1})
    return folder, (folder / seals.MANIFEST).read_bytes()


@pytest.mark.parametrize("keep", [True, 1.5, "1", None])
def test_how_many_stay_is_an_integer(tmp_path, keep, no_type_hook):
    with pytest.raises(CheckpointError, match=f"expected to keep 1 checkpoint or more, got keep={keep!r}"):
        checkpoints.save(tmp_path, make_state(), config={}, keep=keep)
    checkpoints.save(tmp_path, make_state(), config={}, keep=np.int64(1))
    with pytest.raises(ValueError, match=r"step must be an integer of at least 0; got 3\.5"):
        checkpoints.restore(tmp_path, make_state(), config={}, step=3.5)


# Parameters alone


def test_parameters_need_neither_model_nor_optimizer(tmp_path):
    vae = models.mlp_vae((3,), 2, (4,))
    optimizer = training.with_averages(optax.adam(1e-3))
    state = training.init_state(vae.init(jax.random.key(0)), optimizer)
    checkpoints.save(tmp_path, state, config={})
    assert_same(checkpoints.restore_params(tmp_path), state.params)
    assert state.params["prior"] == {}  # of which no leaf tells
    flat = training.flatten_params(state.params)
    np.savez(tmp_path / "params.npz", **flat)
    with np.load(tmp_path / "params.npz") as stored:
        assert_same(training.unflatten_params(stored, like=jax.eval_shape(vae.init, jax.random.key(0))), state.params)
        assert set(training.unflatten_params(stored)) == {"encoder", "decoder"}


@pytest.mark.parametrize("params", [(jnp.ones(2),), jnp.ones(2), {1: jnp.ones(2)}, {"k": jax.random.key(0)}, {}])
def test_parameters_of_other_forms_are_refused_with_the_way_out(tmp_path, params):
    checkpoints.save(tmp_path, State(params, (), 3), config={})
    with pytest.raises(CheckpointError, match=r"params that are dicts of arrays in .*: use restore"):
        checkpoints.restore_params(tmp_path)


def test_flat_parameters_that_do_not_fit_are_named(no_type_hook):
    flat = training.flatten_params({"a": {"b": jnp.ones(2)}})
    with pytest.raises(ValueError, match=r"expected float32\[3\] as a/b, .*; got float32\[2\]"):
        training.unflatten_params(flat, like={"a": {"b": jnp.ones(3)}})
    with pytest.raises(ValueError, match=r"expected float32\[2\] as a/c, .*; got nothing"):
        training.unflatten_params(flat, like={"a": {"b": jnp.ones(2), "c": jnp.ones(2)}})
    with pytest.raises(ValueError, match=r"expected nothing as a/b, .*; got float32\[2\]"):
        training.unflatten_params(flat, like={"a": {}})
    with pytest.raises(ValueError, match="names of arrays alone; got a/b/c"):
        training.unflatten_params({**flat, "a/b/c": np.ones(2)})
    with pytest.raises(ValueError, match="bfloat16"):
        training.unflatten_params({"a": np.zeros(2, "V2")})
    for params in ({"a/b": jnp.ones(2)}, (jnp.ones(2),), jnp.ones(2)):
        with pytest.raises(ValueError, match="params as dicts of arrays with names without '/'; got params"):
            training.flatten_params(params)
