"""The notebooks of launch/ run from top to bottom, and keep what a full run gave."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "launch").glob("*.ipynb"))
SHORT = "SEG_JAX_SHORT"
"""Variable of the environment by which a notebook trains for a few steps only."""


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def shown(notebook):
    """Returns how many pictures and pages each cell shows; text may come in any number of parts."""
    kinds = ("display_data", "execute_result")
    return [sum(one.output_type in kinds for one in cell.outputs) for cell in code(notebook)]


def texts(notebook):
    """Returns all that a notebook shows as text."""
    found = []
    for one in outputs(notebook):
        data = one.get("data", {})
        found += [one.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(found)


def test_each_is_named_in_the_readme():
    assert NOTEBOOKS
    told = (ROOT / "launch" / "README.md").read_text()
    assert all(f"`{path.name}`" in told for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_full_run_gave_is_kept(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 2**20
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == [*range(1, len(counts) + 1)], "expected one run from top to bottom"
    kinds = [output.output_type for output in outputs(notebook)]
    assert "error" not in kinds
    pictures = [
        one for one in outputs(notebook) if {"image/png", "image/jpeg"} & {*one.get("data", ())}
    ]
    assert len(pictures) >= 2
    assert not re.search(r"(?<![\w.~-])/(?:home|root|tmp|work|Users|mnt)/", texts(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_short_and_full_runs_differ_in_one_cell_of_numbers(path):
    cells = [cell.source for cell in code(nbformat.read(path, as_version=4))]
    assert "find_spec" in cells[0]
    assert [SHORT in cell for cell in cells] == [place == 1 for place in range(len(cells))]
    assert [bool(re.search(r"\bSHORT\b", cell)) for cell in cells].count(True) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, monkeypatch, tmp_path):
    monkeypatch.setenv(SHORT, "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # One device, as a user has it.
    notebook = nbformat.read(path, as_version=4)
    before = [cell.source for cell in notebook.cells]
    kept = shown(notebook)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=800, kernel_name="python3", resources=resources
    ).execute()
    assert [cell.source for cell in notebook.cells] == before
    assert shown(notebook) == kept
