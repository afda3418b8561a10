"""The pages in Markdown: their Python runs and prints what they say, and what they link to and name is there."""

import dataclasses
import itertools
import pathlib
import re
import subprocess
import sys

import pytest
from pages import BLOCK, anchors, blocks, links

import vaejax

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("vaejax", "experiments", "notebooks", "tests")
FOUND = [ROOT / "README.md", *(page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md")))]
PAGES = {page.relative_to(ROOT).as_posix(): page for page in FOUND}
FRONT, COMING_FROM = ROOT / "README.md", ROOT / "vaejax/COMING_FROM.md"
LIBRARY, COMMANDS, NOTEBOOKS = (ROOT / f"{folder}/README.md" for folder in ("vaejax", "experiments", "notebooks"))

each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)

# The settings of this suite, for a page's program in a process of its own.
STRICT = """
import jax
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
"""


def program_of(page):
    """All Python of a page, and what its next block of text says that it prints; `py` is of others, and not run."""
    found = blocks(page.read_text())
    code = "\n".join(code for language, code in found if language == "python")
    printed = "".join(
        after
        for (language, code), (kind, after) in itertools.pairwise(found)
        if (language, kind) == ("python", "text") and "print(" in code
    )
    return code, printed


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*\.?\d*", text)]


def test_the_pages_are_found():
    assert {f"{folder}/README.md" for folder in FOLDERS} | {"README.md", "vaejax/COMING_FROM.md"} == PAGES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("page", [FRONT, LIBRARY, COMING_FROM], ids=["front", "library", "coming_from"])
def test_python_runs_and_prints_what_the_page_says(page, tmp_path):
    code, said = program_of(page)
    command = [sys.executable, "-W", "error", "-c", STRICT + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if said:
        words = [re.sub(r"[-\d.,\s]+", " ", text) for text in (done.stdout, said)]
        assert words[0] == words[1]
        assert numbers(done.stdout) == pytest.approx(numbers(said), rel=0.01)


def test_only_these_pages_have_python():
    assert {page for page in PAGES.values() if program_of(page)[0]} == {FRONT, LIBRARY, COMING_FROM}


@each_page
def test_links_and_pictures_are_there(page):
    text = page.read_text()
    for target in links(text):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{target} is not there"
        assert other.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(other.read_text()), f"{target}: no such heading"


@each_page
def test_lines_are_short(page):
    prose = BLOCK.sub("", page.read_text()).splitlines()
    # A table has a row a line, and a picture or a link cannot be broken.
    assert not [line for line in prose if len(line) > 120 and not line.startswith(("|", "![", "<"))]


@each_page
def test_names_are_those_of_the_library(page):
    spans = re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()))
    code = "\n".join([*spans, *(code for language, code in blocks(page.read_text()) if language == "python")])
    for room, name in re.findall(rf"(?<![\w./])({'|'.join(vaejax.__all__)})\.(\w+)(?![\w/])", code):
        if name not in ("py", "md", "png"):
            assert hasattr(getattr(vaejax, room), name), f"vaejax has no {room}.{name}"


def test_the_front_page_is_short():
    assert len(FRONT.read_text().splitlines()) <= 260


def test_the_two_commands():
    commands = [
        code.strip() for language, code in blocks(FRONT.read_text()) if language == "sh" and "venv .venv" in code
    ]
    environment = "python3 -m venv .venv && .venv/bin/python -m pip install -q -e"
    assert commands == [
        f'{environment} ".[experiments]" && .venv/bin/python experiments/train.py',
        f'{environment} ".[test]" && .venv/bin/python -m pytest',
    ]
    first = next(line for line in FRONT.read_text().splitlines() if "python -m pytest" in line)
    assert first == commands[1], "CI runs the first line that has these words"


def test_every_room_notebook_and_command_has_a_line():
    rooms = [f"{path.stem}{'/' * path.is_dir()}" for path in sorted((ROOT / "vaejax").iterdir())]
    rooms = [name for name in rooms if name.endswith("/") and name != "__pycache__/"]
    assert rooms
    assert not [name for name in rooms if f"| `{name}` |" not in LIBRARY.read_text()]
    notebooks = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    for page, folder in ((NOTEBOOKS, ""), (FRONT, "notebooks/")):
        assert not [name for name in notebooks if f"({folder}{name})" not in page.read_text()]
    commands = sorted(path.name for path in (ROOT / "experiments").glob("*.py"))
    assert not [name for name in commands if f"| `{name}` |" not in COMMANDS.read_text()]


def test_every_option_of_the_training_command_is_listed(experiments):
    from engines.train import config

    named = set(re.findall(r"--[a-z-]+", COMMANDS.read_text()))
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config.Config)}
    assert options - named == set()
    assert not [name for name in config.PRESETS if name not in COMMANDS.read_text()]


def test_a_part_of_your_own_takes_at_most_25_lines():
    _, _, extending = LIBRARY.read_text().partition("## Extending")
    lines = [len(code.splitlines()) for language, code in blocks(extending) if language == "python"]
    assert len(lines) == 9
    assert max(lines) <= 25


def test_the_citation_is_of_this_version():
    assert f"\nversion: {vaejax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"vaejax {vaejax.__version__}" in FRONT.read_text()
