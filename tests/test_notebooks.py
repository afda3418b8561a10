"""The notebooks run from top to bottom, keep the outputs of such a run, and define nothing."""

import ast
import pathlib
import re
import shutil

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"/(?:home|root|tmp|Users|usr|opt|var|work|mnt)/|[A-Z]:\\|\bat 0x[0-9a-f]+")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds_of_output(notebook):
    """For each cell, what its outputs are, whatever they say: a text, a picture."""
    return [
        [output.get("name") or sorted(output.data) for output in cell.outputs if output.get("name") != "stderr"]
        for cell in code_cells(notebook)
    ]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    if path.stem == "07_discrete_latents":  # computes for longer than it compiles
        monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    monkeypatch.setenv("JAX_DEBUG_KEY_REUSE", "1")  # a key that a notebook uses twice fails here
    copy = nbformat.read(shutil.copy(path, tmp_path), as_version=4)
    client = nbclient.NotebookClient(
        copy,
        timeout=600,  # for a cell
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()

    printed = [output.text for cell in code_cells(copy) for output in cell.outputs if output.get("name") == "stderr"]
    assert not [text for text in printed if "Warning" in text]
    committed = nbformat.read(path, as_version=4)
    assert kinds_of_output(committed) == kinds_of_output(copy), "the outputs kept are not those of this code: rerun it"


@each_notebook
def test_keeps_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    texts = [output.get("text", "") or output.data.get("text/plain", "") for output in outputs]
    assert not [text for text in texts if MACHINE.search(text)]
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 1_000_000


@each_notebook
def test_defines_nothing(path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not [node.name for node in ast.walk(ast.parse(cell.source)) if isinstance(node, definitions)]
