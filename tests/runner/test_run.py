"""Running a study, as far as that takes no Ray; with it: `test_tune.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from begun import begin

from study.records.manifest import read_manifest
from study.records.run_options import RunOptions
from study.records.study_record import StudyRecord
from study.runner.plan import StudyPlan, make_plan
from study.runner.run import run
from study.tune import build_parser, options_of

COMMAND = "python -m study.tune fashion ..."


def planned(home: Path, *more: str) -> StudyPlan:
    uri = f"sqlite:///{home}/mlflow.db"
    words = ["fashion", "--dataset", "sample", "--num-samples", "2", "--tracking-uri", uri, *more]
    return make_plan(options_of(build_parser().parse_args([*words, "--studies-dir", str(home)])))


def begun(study: StudyPlan, *values: float) -> None:
    """Leave the study with a trial for each value, all ended."""
    record = StudyRecord.create_or_continue(study.folder, study.manifest(), COMMAND)
    for value in values:
        number = begin(record).number
        row = {"val/accuracy": value, "epoch_seconds": 1.0, "ended": 1e9}
        record.report(number, {"epoch": 1, **row})
        record.end(number, "finished")
    record.close()


@pytest.mark.parametrize("values", [(0.5, 0.25), (0.5, 0.25, 0.75)])
def test_a_complete_study_is_told_of_and_left_alone(
    tmp_path: Path, values: tuple[float, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    study = planned(tmp_path, "--epochs", "1")
    begun(study, *values)
    assert run(study, study.manifest(), COMMAND) == 0
    told = capsys.readouterr()
    assert "study fashion already has its 2 trials." in told.err and "not complete" not in told.err
    assert f"best: trial {values.index(max(values))}," in told.out
    starts = read_manifest(study.folder)["starts"]
    assert RunOptions.of(starts[-1]["options"]) == study.options
    assert run(study, study.manifest(), COMMAND, conclude=None) == 0
    assert not capsys.readouterr().out
