"""The documentation site, as its pages are gathered: nothing is dead, and every public name has its place.

`.ci/site` builds it from these pages, and a warning is an error there.
"""

import ast
import importlib.util
import inspect
import json
import pathlib
import re
import types

import pytest
from pages import anchors, links

import vaejax

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vaejax"


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site_pages = _load(ROOT / ".ci/site_pages.py")

# They read sets that have to be prepared on disk; tests/data makes such sets and reads them.
WITHOUT_EXAMPLE = {"open_source", "open_labelled_source", "Writer"}

each_module = pytest.mark.parametrize("module", vaejax.__all__)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of gathered pages, and their order."""
    folder = tmp_path_factory.mktemp("site")
    return folder, site_pages.gather(folder)


def public_names(module):
    """The public names of a module at run time: those that it lists, or what is defined in it."""
    module = getattr(vaejax, module)
    if hasattr(module, "__all__"):
        return set(module.__all__)
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name for name, value in own.items() if getattr(value, "__module__", None) == module.__name__}


def documented_constants():
    """Names of constants and of types in the package, and whether a docstring stands below them."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.Assign | ast.AnnAssign):
                name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
                below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                found[name] = found.get(name, False) or below
    return found


def test_every_page_is_in_the_navigation_once(site):
    folder, order = site
    listed = [path for section in order for pages in section.values() for page in pages for path in page.values()]
    gathered = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".md", ".ipynb")}
    assert sorted(listed) == sorted(gathered)


def test_no_link_between_pages_is_dead(site):
    folder, _ = site
    pages = sorted(folder.rglob("*.md"))
    assert len(pages) > 25
    for page in pages:
        for target in links(page.read_text()):
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.is_relative_to(folder)
            assert other.is_file(), f"{page.relative_to(folder)}: {target} is not there"
            text = other.read_text() if anchor else ""
            entries = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
            assert not anchor or anchor in anchors(text) | entries, f"{page.relative_to(folder)}: no {target}"


def test_no_link_of_a_notebook_is_dead(site):
    folder, _ = site
    built = {site_pages.built(path.relative_to(folder).as_posix()) for path in folder.rglob("*.*")}
    seen = 0
    for page in sorted(folder.rglob("*.ipynb")):
        for cell in json.loads(page.read_text())["cells"]:
            for target in links("".join(cell["source"])) if cell["cell_type"] == "markdown" else ():
                path = (page.parent / target.partition("#")[0]).resolve().relative_to(folder)
                assert path.as_posix() in built, f"{page.name}: {target} is not there"
                seen += 1
    assert seen


def test_a_section_that_moved_is_found_where_it_is(site):
    folder, _ = site
    assert "(vaejax/extending.md)" in (folder / "README.md").read_text()
    assert "## Extending" not in (folder / "vaejax/README.md").read_text()
    assert "\n**An estimator** draws K samples" in (folder / "vaejax/extending.md").read_text()


def test_the_gallery_has_every_picture_and_its_command(site):
    folder, _ = site
    gallery = (folder / "experiments/gallery.md").read_text()
    pictures = {path.name for path in (ROOT / "experiments/pictures").iterdir()}
    assert set(re.findall(r"\(pictures/([^)]+)\)", gallery)) == pictures
    commands = re.findall(r"^Drawn by `python ([^`\s]+)", gallery, re.MULTILINE)
    assert len(commands) == len(pictures)
    assert not [command for command in commands if not (ROOT / command).is_file()]


def test_every_public_module_has_a_page():
    assert set(site_pages.public_modules()) == set(vaejax.__all__)


@each_module
def test_every_public_name_has_an_entry(site, module):
    page = (site[0] / f"api/{module}.md").read_text()
    entries = set(re.findall(rf"^::: vaejax\.{module}\.(\w+)$", page, re.MULTILINE))
    elsewhere = set(re.findall(r"\[`(?:\w+\.)?(\w+)`\]", page))
    names = public_names(module)
    assert names
    assert names - entries - elsewhere == set()


@each_module
def test_every_public_name_says_what_it_is(module):
    constants = documented_constants()
    for name in sorted(public_names(module)):
        value = getattr(getattr(vaejax, module), name)
        if not isinstance(value, types.ModuleType):
            assert inspect.getdoc(value) if isinstance(value, types.FunctionType | type) else constants[name], name


@each_module
def test_every_public_function_and_class_has_an_example_that_runs(module):
    # An example in a docstring is run by pytest.
    values = {name: getattr(getattr(vaejax, module), name) for name in public_names(module)}
    kinds = (types.FunctionType, type)
    documented = {name: value.__doc__ for name, value in values.items() if isinstance(value, kinds)}
    without = {name for name, words in documented.items() if ">>> " not in words}
    assert without == WITHOUT_EXAMPLE & documented.keys()
