"""Strict JAX settings for the whole suite, and the folder of real data that some tests read."""

import fcntl
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import jaxtyping
import numpy as np
import pytest
from commands import EXPERIMENTS

# Most of the suite's time is compilation of programs that run for milliseconds; also those of the commands it starts.
# The older code for loops on CPUs, which jaxlib 0.10 has and 0.12 not, compiles in a third of the time; short
# vectors save a fifth. The workers inherit the flags.
sys.path.insert(0, str(EXPERIMENTS))
from engines.harness.command_line import add_xla_flag

sys.path.remove(str(EXPERIMENTS))
if "PYTEST_XDIST_WORKER" not in os.environ:
    add_xla_flag("--xla_cpu_use_fusion_emitters=false")
    add_xla_flag("--xla_cpu_prefer_vector_width=128")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
# Tests that make the same model compile the same programs. The folder is this process's own, because a command that a
# test kills may leave half a program in the one it writes to.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# The commands and notebooks that tests start share another folder, and leave the user's alone.
COMPILED_BY_COMMANDS = tempfile.TemporaryDirectory(prefix="compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED_BY_COMMANDS.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(config, items):
    """Mark the other cases of a test whose quick or slow ones are named; and run the notebooks first.

    One worker runs all notebooks: at the end the others would wait for it.
    """
    named, found = set(), set()
    for item in items:
        quick, slow = item.get_closest_marker("quick_for"), item.get_closest_marker("slow_for")
        if quick or slow:
            test, case = item.nodeid.partition("[")[0], item.callspec.id
            named |= {(test, name) for marker in (quick, slow) if marker for name in marker.args}
            found.add((test, case))
            if not (quick and case in quick.args):
                item.add_marker("slow" if slow is None or case in slow.args else "exhaustive")
    # A name that no case has would make its test slow without a word. A case asked for alone hides the others.
    if named - found and not any("[" in argument for argument in config.args):
        raise pytest.UsageError(f"quick_for and slow_for name cases that do not exist: {sorted(named - found)}")
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Each file leaves the memory that its compiled programs took: some hundred files would need many gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for one test, for comparisons with exact answers."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def no_type_hook():
    """Lets an argument of the wrong type through to our own errors, as in a user's program."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def experiments():
    """Makes experiments/ importable, as its commands import each other's files."""
    sys.path.insert(0, str(EXPERIMENTS))
    yield
    sys.path.remove(str(EXPERIMENTS))


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/data beside the checkout, which is not here")
    return folder


@pytest.fixture(scope="session")
def prepared_tfds(tmp_path_factory, shared_data, worker_id):
    """A TFDS data_dir where mnist, fashion_mnist and binarized_mnist are prepared, by vaejax, from the shared files."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip('preparing TFDS sets needs TensorFlow: python -m pip install -e ".[prepare]", in the clone')
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tfds"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers that run the suite, one prepares and the others wait
        if not (folder / "ready").exists():
            prepare_tfds(shared_data, folder)
            (folder / "ready").touch()
    return folder / "prepared"


def prepare_tfds(shared_data, folder):
    """Prepare the three sets in `folder / "prepared"`."""
    from vaejax import data

    amat = folder / "amat"
    amat.mkdir()
    with np.load(shared_data / "binarized_mnist" / "binarized_mnist_larochelle.npz") as packed:
        for part in packed.files:
            bits = np.unpackbits(packed[part], axis=1, count=784)
            text = np.full((len(bits), 1568), ord(" "), np.uint8)
            text[:, ::2] = bits + ord("0")
            text[:, -1] = ord("\n")
            (amat / f"binarized_mnist_{part}.amat").write_bytes(text.tobytes())
    target = folder / "prepared"
    code = "import sys; from vaejax import data; data.load(sys.argv[1], data_dir=sys.argv[2], manual_dir=sys.argv[3])"
    # The third set in a second process, since it takes as long as the two. Their order is the one in which mnist's
    # extracted files would be taken for fashion_mnist's, if they were left where TFDS puts them.
    with subprocess.Popen([sys.executable, "-W", "error", "-c", code, "binarized_mnist", target, amat]) as third:
        for name in ("mnist", "fashion_mnist"):
            data.load(name, data_dir=target, manual_dir=shared_data / name)
    assert third.returncode == 0
    shutil.rmtree(amat)
