"""Notebooks: what they show was made by their own code, and that runs from a clean kernel."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: Notebooks that load no model.
QUICK = ("toy_transcoder",)
MOST_BYTES = 300_000
# paths of a machine, and addresses of objects
PRIVATE = re.compile(r"(?<![\w.<])/(home|root|tmp|usr|work|Users|var)/|\bat 0x[0-9a-f]{6}")


def code_of(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def kinds_of(book):
    """Kinds of the outputs of each cell."""
    return [
        {kind for out in cell.outputs for kind in out.get("data", [out.output_type])}
        for cell in code_of(book)
    ]


def printed(book):
    """Text of every output."""
    for cell in code_of(book):
        for out in cell.outputs:
            yield out.get("text", "")
            yield from (text for kind, text in out.get("data", {}).items() if "image" not in kind)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"audit", "toy_transcoder"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_it_was_run(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    cells = code_of(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell.outputs]
    # neither errors nor warnings
    assert {out.output_type for out in outputs} <= {"execute_result", "display_data", "stream"}
    assert all(out.name == "stdout" for out in outputs if out.output_type == "stream")
    assert any("text/html" in out.get("data", {}) for out in outputs)
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not [text for text in printed(book) if PRIVATE.search(str(text))]
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow, id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_from_a_clean_kernel(path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(path, as_version=4)
    before = kinds_of(book)
    for cell in code_of(book):
        cell.outputs = []
    where = {"metadata": {"path": str(path.parent)}}
    # any error in a cell is one here
    NotebookClient(book, timeout=600, kernel_name="python3", resources=where).execute()
    assert kinds_of(book) == before
