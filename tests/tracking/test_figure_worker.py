"""Figures drawn in a process of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import Finished
from PIL import Image

from study.errors import StorageError
from study.records.run_folder import RunFolder, write_arrays
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.tracking.figure_worker import Drawing
from study.tracking.outbox import TrialJob

ROW = {"epoch": 1, "train/loss": 2.0, "val/loss": 1.0, "val/accuracy": 0.5}
TRIAL = TrialRecord(number=7, metric="val/accuracy", mode="max", params={}, history=(ROW,))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A trial of fashion with data that no figure can be drawn from."""
    write_arrays(tmp_path / "evidence.npz", {"nothing": np.zeros(1)})
    return RunFolder(tmp_path)


class Drawn:
    """Waits for figures."""

    def __init__(self) -> None:
        self.told = threading.Semaphore(0)
        self.drawing = Drawing(drawn=lambda job: self.told.release())

    def damage(self, folder: RunFolder, task: str = "fashion") -> list[str]:
        assert self.drawing.request(TRIAL, task, folder, "note") is None
        assert self.drawing.request(TRIAL, task, folder, "note") is None, "asked for once"
        assert self.drawing.busy
        assert self.told.acquire(timeout=60)
        damage = self.drawing.request(TRIAL, task, folder, "note")
        assert damage is not None and not self.drawing.busy
        return damage


def test_what_cannot_be_drawn_is_said_and_the_rest_is_drawn(folder: RunFolder) -> None:
    drawn = Drawn()
    (text,) = drawn.damage(folder)
    assert str(folder.path) in text and "KeyError" in text
    (folder.path / "evidence.npz").unlink()
    (text,) = drawn.damage(folder)
    assert "missing" in text
    with Image.open(folder.path / "figures" / "learning_curves.png") as image:
        assert image.width > image.height > 100
    drawn.drawing.close()


def test_a_process_that_was_killed_is_started_again(folder: RunFolder) -> None:
    drawn = Drawn()
    drawn.damage(folder)
    process = drawn.drawing._process
    assert process is not None and os.getpriority(os.PRIO_PROCESS, process.pid) > 0
    process.send_signal(signal.SIGKILL)
    (text,) = drawn.damage(folder)
    assert "KeyError" in text, "not that it died"
    again = drawn.drawing._process
    assert again is not None and again.pid != process.pid
    drawn.drawing.close()
    assert again.wait(10) == 0


def test_a_process_that_hangs_is_replaced(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn()
    drawn.damage(folder)
    process = drawn.drawing._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    # The next one has as long for an answer as it needs.
    limits, timer = iter([1.0]), threading.Timer
    monkeypatch.setattr(threading, "Timer", lambda s, kill: timer(next(limits, s), kill))
    (text,) = drawn.damage(folder)
    assert "KeyError" in text, "not that it died"
    assert process.poll() == -signal.SIGKILL
    drawn.drawing.close()


def test_figures_that_nobody_fetches_keep_nobody_waiting(folder: RunFolder) -> None:
    drawn = Drawn()
    assert drawn.drawing.request(TRIAL, "fashion", folder, "note") is None
    assert drawn.told.acquire(timeout=60) and drawn.drawing.busy
    drawn.drawing.forget(TrialJob(TRIAL.number))
    assert not drawn.drawing.busy
    drawn.damage(folder)
    drawn.drawing.close()


def test_a_full_disk_is_told_apart(folder: RunFolder) -> None:
    (folder.path / "evidence.npz").unlink()
    (folder.path / "figures").mkdir()
    (folder.path / "figures" / "learning_curves.png").mkdir()  # cannot be replaced by a file
    drawn = Drawn()
    with pytest.raises(StorageError, match="learning_curves.png"):
        drawn.damage(folder)
    assert not drawn.drawing.busy
    drawn.drawing.close()


def test_requests_are_plain_json(folder: RunFolder) -> None:
    drawn = Drawn()
    odd = RunFolder(folder.path / "a \n\u00e9")
    odd.path.mkdir()
    (text,) = drawn.damage(odd)
    assert json.dumps(str(odd.path))[1:5] in json.dumps(text)
    drawn.drawing.close()


def test_a_report_is_written_after_the_figures(finished: Finished, tmp_path: Path) -> None:
    study = shutil.copytree(finished.home / "studies" / "fashion", tmp_path / "fashion")
    page = study / "report.html"
    page.unlink(missing_ok=True)
    drawn = Drawn()
    best = StudyRecord.read(study).ranking()[0]
    folder = RunFolder(study / "trials" / f"{best.number:04d}")
    for figure in folder.figures():
        figure.unlink()
    assert drawn.drawing.request(best, "fashion", folder, "note") is None
    assert drawn.drawing.request_report(study) is None
    assert drawn.told.acquire(timeout=60) and drawn.told.acquire(timeout=60)
    assert drawn.drawing.request_report(study) == []
    assert "confusion matrix of trial" in page.read_text()
    page.unlink()
    page.mkdir()
    assert drawn.drawing.request_report(study) is None and drawn.told.acquire(timeout=60)
    with pytest.raises(StorageError, match="report.html"):
        drawn.drawing.request_report(study)
    (study / "study.json").write_text("{}")
    (study / "optuna.db").unlink()
    assert drawn.drawing.request_report(study) is None and drawn.told.acquire(timeout=60)
    (text,) = drawn.drawing.request_report(study) or []
    assert "no report" in text and "study.json" in text
    drawn.drawing.close()
