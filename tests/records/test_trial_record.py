"""The record of one trial: what is written, and what an earlier version wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.errors import DamagedFile
from study.records.trial_record import TrialRecord, cause_before
from study.storage.files import read_document, write_document


def test_a_trial_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    trial = TrialRecord(number=0, metric="val/loss", mode="min", params={"width": 8})
    failed = trial.with_row({"epoch": 1, "val/loss": 0.5}).with_failure("its process died", 2)
    for known in (trial, failed, failed.with_end("failed", "the loss is nan", "diverged")):
        known.save(tmp_path)
        assert TrialRecord.load(tmp_path) == known
    assert TrialRecord.load(tmp_path).diverged
    content = read_document(tmp_path / "trial.json")
    assert content["values"] == {"width": 8} and "params" not in content, "as it was always called"


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("the training loss is not finite (nan); a smaller learning rate may help.", "diverged"),
        ("the validation loss is not finite (inf).", "diverged"),
        ("its process died (tried 3 times)", "died"),
        ("its process died for want of memory (tried 3 times)", "out_of_memory"),
        ("out of memory: 15.0 of 15.5 GB were in use, 9.0 GB by it", "out_of_memory"),
        ("no report for 30 min 00 s (--trial-timeout)", "hung"),
        ("its process or its machine is gone", "lost"),
        ("InputError: the file is gone", "input"),
        ("OSError: [Errno 5] Input/output error", "error"),
        (None, "error"),
    ],
)
def test_a_trial_recorded_before_causes_were_gets_its_cause_from_its_reason(
    reason: str | None, cause: str, tmp_path: Path
) -> None:
    trial = TrialRecord(number=0, metric="val/loss", mode="min", params={})
    trial.with_end("failed", reason, "error").save(tmp_path)
    content = read_document(tmp_path / "trial.json")
    del content["cause"]
    write_document(tmp_path / "trial.json", content)
    assert TrialRecord.load(tmp_path).cause == cause == cause_before(reason or "")
    assert TrialRecord.of({**content, "state": "stopped"}).cause is None


def test_what_is_no_trial_is_refused(tmp_path: Path) -> None:
    write_document(tmp_path / "trial.json", json.loads('{"epochs": 3}'))
    with pytest.raises(DamagedFile):
        TrialRecord.load(tmp_path)
