"""The notebook of the docs runs in a real kernel, and its page shows all of it."""

import base64
import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOK = DOCS / "tutorials" / "notebook.ipynb"
SMALL = {"patches=1200": "patches=300", "steps=300": "steps=60", "start=100": "start=20", "every=50": "every=30"}
"""What the test machine runs instead of numbers of the notebook."""
PIXEL = base64.b64encode(b"\x89PNG").decode()


@pytest.fixture
def write_notebook_page(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    from notebook_page import write_notebook_page

    return write_notebook_page


def cells(kind):
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == kind]


def streams(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def executed(notebook, folder):
    client = NotebookClient(notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute()


def test_the_page_shows_each_cell_and_picture(write_notebook_page, tmp_path):
    write_notebook_page(NOTEBOOK, tmp_path)
    page = (tmp_path / "notebook.md").read_text()
    assert page.startswith("# ") and page.count("\n# ") == 0 and "{download}`notebook.ipynb" in page
    for cell in cells("code"):
        assert f"code-block}} python\n{cell.source}\n" in page
    for cell in cells("markdown"):
        assert cell.source.split("\n\n")[-1] in page
    pictures = re.findall(r"\]\((notebook_\d\.png)\)", page)
    assert len(pictures) >= 3 and all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)


def test_outputs_of_all_kinds_are_shown_without_colors(write_notebook_page, tmp_path):
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": ["\x1b[31mtrain:\x1b[0m 50 %\n", "train: 100 %\n"]},
        {"output_type": "execute_result", "data": {"text/plain": "True"}},
        {"output_type": "display_data", "data": {"image/png": PIXEL, "text/plain": "<Figure>"}},
    ]
    made = [{"cell_type": "markdown", "source": ["# A\n", "\n", "b"]}]
    made += [{"cell_type": "code", "source": "1", "outputs": outputs}]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": made}))
    write_notebook_page(tmp_path / "n.ipynb", tmp_path)
    page = (tmp_path / "n.md").read_text()
    assert "\ntrain: 50 %\ntrain: 100 %\n" in page and "\nTrue\n" in page and "](n_1.png)" in page
    assert "<Figure>" not in page and "\x1b" not in page and page.startswith("# A\n\nDownload it")


def test_the_notebook_in_the_tree_was_run_in_order_without_errors():
    code = cells("code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    text = NOTEBOOK.read_text()
    assert len(text) < 600_000 and not re.search(r"/(tmp|root|home|work)/", text)  # no paths of the machine that ran it
    assert all(old in text for old in SMALL)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.flaky(reruns=0)
@pytest.mark.timeout(600)
def test_readme_notebook_runs_in_a_kernel(tmp_path):
    text = NOTEBOOK.read_text()
    for old, new in SMALL.items():
        text = text.replace(old, new)
    notebook = executed(nbformat.reads(text, as_version=4), tmp_path)
    shown = streams(notebook)
    for words in ("write: 100 %, 300/300 patches", "convert: 100 %", "train: 100 %, 60/60", "student: mAP 0."):
        assert words in shown, shown
    assert "Traceback" not in shown and "pid=" not in shown, shown
    assert (tmp_path / "notebook" / "report.html").exists()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in left


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_control_readme_notebook_with_a_wrong_cell_fails(tmp_path):
    going_on = {"tags": ["raises-exception"]}
    sources = ("import stssl; stssl.open_store('none.zarr')", "1 / 0")
    made = [nbformat.v4.new_code_cell(source, metadata=going_on) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=[*made, nbformat.v4.new_code_cell(sources[0])])
    with pytest.raises(CellExecutionError, match="DataError"):
        executed(notebook, tmp_path)
    ours, others = (cell.outputs[-1].traceback for cell in notebook.cells[:2])
    assert len(ours) == 1 and ours[0].startswith("DataError: ") and "none.zarr" in ours[0]
    assert len("\n".join(others).splitlines()) > 3  # control: Python's own errors keep their traceback
