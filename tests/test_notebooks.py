"""The notebooks run from the first cell to the last, in a folder of their own, and are committed without outputs."""

import os
import re

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="the extra 'dev' is not installed")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STEPS = (
    *("Import", "Tokenize", "Batches", "The model", "The loss", "Configuration 1", "Configuration 2"),
    *("Train", "Plot", "Inference"),
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_committed(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_the_ten_steps():
    cells = nbformat.read(ROOT / "notebooks" / "slm.ipynb", as_version=4).cells
    headings = re.findall(r"^## Step (\d+): (.*)$", "\n".join(cell.source for cell in cells), re.MULTILINE)
    assert [int(number) for number, _ in headings] == list(range(1, 11))
    assert all(title.startswith(step) for (_, title), step in zip(headings, STEPS, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter, about its own event loop
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="the extra 'dev' is not installed")
    if path.stem == "read_a_run":
        pytest.importorskip("pandas", reason="the extra 'dev' is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.reads(path.read_text().replace("STEPS = 600", "STEPS = 40"), as_version=4)
    client.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if 'install "ipywidgets"' in output.get("text", "")]  # rich's request
