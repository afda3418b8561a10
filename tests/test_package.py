import ast
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import vaejax

PACKAGE = pathlib.Path(vaejax.__file__).parent

# From the ground up: a module imports only what stands before it.
FLOORS = (
    "synthetic",
    "tfds_sets",
    "data",
    "families",
    "reparameterization",
    "distributions",
    "networks",
    "models",
    "sequences",
    "augmentation",
    "two_sample",
    "principal_components",
    "regularizers",
    "autoencoders",
    "baselines",
    "devices",
    "monte_carlo",
    "expectations",
    "chosen_points",
    "estimators",
    "bounds",
    "schedules",
    "cures",
    "objectives",
    "adversarial",
    "training",
    "streams",
    "pareto",
    "importance",
    "annealing",
    "exact",
    "representation",
    "blur",
    "posteriors",
    "chains",
    "divergences",
    "em",
    "lagging",
    "inference",
    "evaluation",
    "moments",
    "summaries",
    "cost",
    "laboratory",
    "orbax_io",
    "checkpoints",
)


def imports_of(path):
    """Names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_module_has_its_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("name", FLOORS)
def test_a_module_imports_only_from_below(name):
    own = {full.split(".")[1] for full in imports_of(PACKAGE / f"{name}.py") if full.startswith("vaejax.")}
    above = set(FLOORS[FLOORS.index(name) :])
    assert not own & above


@pytest.mark.parametrize("name", FLOORS)
def test_flax_is_imported_in_one_room(name):
    flax = {full for full in imports_of(PACKAGE / f"{name}.py") if full.split(".")[0] == "flax"}
    assert bool(flax) == (name == "networks")


def modules_after(program):
    program += "\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_little_beside_what_it_stands_on():
    own = {"vaejax", "jaxtyping", "wadler_lindig"}
    ours = modules_after("import vaejax")
    for heavy in ("tensorflow_datasets", "tensorflow", "matplotlib", "sklearn", "orbax.checkpoint", "tyro"):
        assert heavy not in ours
    beneath = modules_after("import jax, flax.nnx, optax, numpyro.distributions")
    standard = sys.stdlib_module_names
    faces = {"jax.ad_checkpoint", "jax.scipy.ndimage", "jax._src.scipy.ndimage"}  # small public parts of JAX
    assert {name.split(".")[0] for name in ours - beneath - faces} - own - standard == set()


@pytest.mark.parametrize("name", FLOORS)
def test_every_public_function_says_what_it_takes_and_returns(name):
    module = importlib.import_module(f"vaejax.{name}")
    assert module.__doc__
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, f"{name}.{attribute} has no docstring"


def test_the_wheel_is_the_version_of_the_package():
    from importlib.metadata import version

    assert version("vaejax") == vaejax.__version__
