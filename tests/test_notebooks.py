"""The notebooks run from top to bottom, on real data where there is some, and are kept clean."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, Finished
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDY_FOLDER", str(finished.home / "studies" / "fashion"))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "strip outputs before committing"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "Traceback" not in text and "error:" not in text
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
    real = os.environ.get("STUDY_DATA_DIR") and path.stem in ("facade", "fashion")
    assert ("drawn by the program" in text) is not bool(real) or path.stem == "analysis"


def test_every_task_has_a_notebook() -> None:
    from study.task import task_names

    assert {path.stem for path in NOTEBOOKS} >= {*task_names(), "quickstart", "analysis"}
