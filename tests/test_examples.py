"""The notebooks of examples/ run, and the pictures in them are kept."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def pictures(notebook):
    """How many of the outputs show pictures."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.get("data", {}) for output in outputs]
    return sum("image/png" in data or "<img" in str(data.get("text/html", "")) for data in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    """With two updates a picture: what is asked is whether it runs, not what it shows."""
    notebook = nbformat.read(path, as_version=4)
    as_kept = pictures(notebook)
    assert as_kept >= 3, "it is kept with its pictures"
    for cell in notebook.cells:
        cell.source = cell.source.replace('preset="draft"', 'preset="draft", updates=2, width=0.25')
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == as_kept


def test_there_is_a_notebook():
    assert NOTEBOOKS
