"""The doctor on this machine tries what a study does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import run_module

from study import doctor


def test_all_is_well_where_a_study_runs(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 90)
    long.mkdir()
    done = run_module("doctor", "--json", cwd=tmp_path, env={"TMPDIR": str(long), "RAY_TMPDIR": ""})
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"] and not found["problems"], done.stderr
    assert "bytes too long" in done.stderr and "Ray's files go to" in done.stderr
    assert found["nodes"]["this machine"]["cpus"] >= 1


def test_what_keeps_ray_from_starting_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**options: Any) -> None:
        raise RuntimeError("the raylet\ncannot make its socket")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", refuse)
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "Ray failed to start: the raylet cannot make its socket" in out
    assert "no problems found" not in out


def test_a_folder_that_cannot_be_written_is_told_once_and_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "try_ray", lambda resources: None)
    monkeypatch.chdir("/proc")
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "cannot write /proc/studies" in out and "/proc is not writable" in out
