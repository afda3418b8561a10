import ast
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import vaejax

PACKAGE = pathlib.Path(vaejax.__file__).parent

# From the ground up: a room imports only those before it.
ROOMS = (
    "checks",
    "records",
    "devices",
    "data",
    "distributions",
    "models",
    "estimators",
    "objectives",
    "autoencoders",
    "training",
    "evaluation",
    "inference",
    "laboratory",
)
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)
FACES = [room for room in ROOMS if (PACKAGE / room).is_dir()]


def path_of(name):
    return PACKAGE / f"{name.replace('.', '/')}.py"


def imports_of(path):
    """Names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def own_imports(name):
    """Modules and rooms of the package that a module imports, such as `models.vae` and `distributions`."""
    found = {full.removeprefix("vaejax.") for full in imports_of(path_of(name)) if full.startswith("vaejax.")}
    return {full for full in found if full in MODULES or full in ROOMS}


def test_every_module_is_in_a_room():
    assert {name.split(".")[0] for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_below(name):
    room = name.split(".")[0]
    allowed = ROOMS[: ROOMS.index(room) + 1]
    assert {full.split(".")[0] for full in own_imports(name)} <= set(allowed)


@pytest.mark.parametrize("room", FACES)
def test_a_room_has_no_circles(room):
    inside = {name: own_imports(name) for name in MODULES if name.startswith(f"{room}.")}
    while inside:
        free = [name for name, imported in inside.items() if not imported & inside.keys()]
        assert free, f"a circle among {sorted(inside)}"
        for name in free:
            del inside[name]


@pytest.mark.parametrize("room", FACES)
def test_a_face_lists_each_public_name_once(room):
    face = importlib.import_module(f"vaejax.{room}")
    assert len(set(face.__all__)) == len(face.__all__)
    assert all(hasattr(face, name) for name in face.__all__)
    public = {name for name in vars(face) if not name.startswith("_")} - {"jaxtyping"}  # the hook of the tests adds it
    submodules = {name.split(".")[1] for name in MODULES if name.startswith(f"{room}.")}
    assert public - submodules <= set(face.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_bears_the_name_of_a_public_function(name):
    room, *rest = name.split(".")
    face = importlib.import_module(f"vaejax.{room}")
    assert not rest or inspect.ismodule(getattr(face, rest[0]))


# Importable where the first version had them.
FORMER = (
    *("adversarial", "augmentation", "autoencoders", "baselines", "checkpoints", "data", "devices", "distributions"),
    *("estimators", "evaluation", "families", "inference", "laboratory", "models", "monte_carlo", "networks"),
    *("objectives", "reparameterization", "sequences", "streams", "training", "two_sample"),
)


@pytest.mark.parametrize("name", FORMER)
def test_public_modules_stay_where_they_were(name):
    assert name in vaejax.__all__
    assert importlib.import_module(f"vaejax.{name}") is getattr(vaejax, name)


FLAX = tuple(f"models.networks.{name}" for name in ("adapters", "images", "perceptrons"))


@pytest.mark.parametrize("name", MODULES)
def test_flax_is_imported_in_one_room(name):
    flax = {full for full in imports_of(path_of(name)) if full.split(".")[0] == "flax"}
    assert bool(flax) == (name in FLAX)


def modules_after(program):
    program += "\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.exhaustive
def test_importing_the_package_imports_little_beside_what_it_stands_on():
    own = {"vaejax", "jaxtyping", "wadler_lindig"}
    ours = modules_after("import vaejax")
    for heavy in ("tensorflow_datasets", "tensorflow", "matplotlib", "sklearn", "orbax.checkpoint", "tyro"):
        assert heavy not in ours
    beneath = modules_after("import jax, flax.nnx, optax, numpyro.distributions")
    standard = sys.stdlib_module_names
    faces = {"jax.ad_checkpoint", "jax.scipy.ndimage", "jax._src.scipy.ndimage"}  # small public parts of JAX
    assert {name.split(".")[0] for name in ours - beneath - faces} - own - standard == set()


@pytest.mark.parametrize("name", MODULES)
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
