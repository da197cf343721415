"""The published notebooks run from their first cell to their last, on runs cut short."""

import re
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import VARIABLE, execute, overrides

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "results").glob("*.ipynb"))
SHORT = (
    "network.width=4 inference.schedule.num_chains=2 inference.schedule.num_warmup=20 inference.schedule.num_samples=20"
)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_executes(path, tmp_path, monkeypatch):
    """Its own code, in a folder and a store of its own: what it writes is written there."""
    monkeypatch.setenv(VARIABLE, f"{SHORT} store.path={tmp_path}/store")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = execute(path, folder=tmp_path, to=tmp_path / path.name)
    cells = [cell for cell in nbformat.read(made, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    if any("overrides" in cell.source for cell in cells):  # the others compute in memory
        assert list((tmp_path / "store").glob("*/run.json"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_published_notebook_holds_its_outputs_and_nothing_of_the_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "execute it again: make notebooks"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type in ("stream", "error")]
    text = path.read_text()
    folders = "|".join(f"/{top}/" for top in ("home", "root", "tmp"))
    assert not re.search(rf"{folders}|iopub\.", text)
    assert len(text) < 500_000


def test_overrides_are_the_words_of_the_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert overrides() == []
    monkeypatch.setenv(VARIABLE, "seed=1 'data.path=a b.csv'")
    assert overrides() == ["seed=1", "data.path=a b.csv"]


def test_a_failing_notebook_is_left_as_it_was(tmp_path, capsys):
    from tools.notebooks import main

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0", id="only")])
    path = tmp_path / "broken.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    assert main([str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before
