"""What the same command knows when it goes on after Ray died, and when it ends instead."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from begun import begin
from recorded import open_record, report

from study.runner.restart import MOST, VARIABLE, Restart
from study.runner.stopping import Stopping


def test_restarts_in_a_row_end_the_study_and_an_epoch_ends_the_row(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    begin(record)
    stopping, restart = Stopping(None), Restart(begun=5.0)
    for row in range(1, MOST + 1):
        restart = restart.after("Ray's GCS has died", record, stopping, local=True)
        assert (restart.row, restart.why, restart.begun) == (row, None, 5.0)
    report(record, 0, 0.1)
    assert restart.after("-", record, stopping, local=True).row == 1
    again = open_record(tmp_path / "other")
    begin(again)
    last = dataclasses.replace(restart, progress=0).after("Ray hangs", again, stopping, local=True)
    assert last.why == f"Ray hangs, {MOST + 1} times in a row without completing an epoch"
    assert last.exit_code == 1


def test_a_study_that_was_to_stop_does_and_a_cluster_is_not_started(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    gone = Restart(begun=0.0).after("Ray's GCS is silent", record, Stopping(None), local=False)
    assert (gone.why, gone.exit_code) == ("Ray's GCS is silent", 1)
    stopping = Stopping(None)
    stopping.request("stopped by Ctrl-C", 130)
    stopped = Restart(begun=0.0).after("Ray hangs", record, stopping, local=True)
    assert (stopped.why, stopped.exit_code) == ("stopped by Ctrl-C", 130)


def test_what_is_known_comes_by_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Restart(begun=1.5, row=2, progress=7)
    monkeypatch.setenv(VARIABLE, json.dumps(dataclasses.asdict(told)))
    assert Restart.take() == told and VARIABLE not in os.environ
    assert Restart.take().row == 0
