"""A real study with two objectives and a constraint: run, continued, shown, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_module
from mlflow.tracking import MlflowClient

from study.records.study_record import StudyRecord

SPACE = """\
search:
  width1: {type: int, low: 2, high: 16, log: true}
  width2: {type: int, low: 2, high: 16, log: true}
  hidden: {type: int, low: 4, high: 64, log: true}
baseline: {width1: 8, width2: 8, hidden: 32}
"""
COMMAND = (
    "fashion",
    "--dataset",
    "sample",
    "--epochs",
    2,
    "--seed",
    1,
    "--max-concurrent",
    2,
    "--cpus-per-worker",
    1,
    "--search-space",
    "space.yaml",
)
GOAL = ("--objective", "accuracy,num_params", "--require", "worst_class>=0.999")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("two")
    (path / "space.yaml").write_text(SPACE)
    for num_samples in (4, 6):
        done = run_module("tune", *COMMAND, *GOAL, "--num-samples", num_samples, cwd=path)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "objective val/accuracy (max) and num_params (min)" in done.stderr
        assert "no trial satisfies val/min_accuracy>=0.999; trial" in done.stdout
        assert "repaired" not in done.stderr and "Traceback" not in done.stderr
    return path


def test_the_study_went_on_and_both_objectives_are_recorded(home: Path) -> None:
    record = StudyRecord.read(home / "studies" / "fashion")
    assert len(record.trials()) == 6 and record.goal.has_two and record.goal.constraints
    for trial in record.trials():
        assert trial.metrics["num_params"] > 0 and trial.metrics["val/min_accuracy"] < 0.999
        assert trial.metrics["val/min_accuracy"] == min(
            value for name, value in trial.metrics.items() if name.startswith("val/accuracy/")
        )
    runs = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").search_runs(["1"], max_results=99)
    assert len(runs) == 7 and all(len(run.data.metrics) <= 30 for run in runs)


def test_without_the_flags_the_study_is_another_one(home: Path) -> None:
    done = run_module("tune", *COMMAND, "--num-samples", 6, cwd=home)
    assert done.returncode == 2 and "was created with objectives=" in done.stderr


def test_best_shows_the_front_and_what_is_missed(home: Path) -> None:
    done = run_module("best", "--json", cwd=home)
    result = json.loads(done.stdout)
    assert result["pareto"] == [] and result["require"] == ["val/min_accuracy>=0.999"]
    assert result["best"][0]["missed"]["val/min_accuracy>=0.999"] > 0
    done = run_module("best", "--json", "--require", "accuracy>=0", cwd=home)
    result = json.loads(done.stdout)
    assert [o["metric"] for o in result["objectives"]] == ["val/accuracy", "num_params"]
    front = [entry["values"] for entry in result["pareto"]]
    points = [
        (trial.metrics["val/accuracy"], trial.metrics["num_params"])
        for trial in StudyRecord.read(home / "studies" / "fashion").trials()
    ]
    expected = [
        [a, n]
        for a, n in points
        if not any(b >= a and m <= n and (b, m) != (a, n) for b, m in points)
    ]
    assert front == sorted(expected, key=lambda values: -values[0])
    assert result["best"][0]["trial"] == result["pareto"][0]["trial"]


def test_another_trial_of_the_front_is_exported(home: Path) -> None:
    record = StudyRecord.read(home / "studies" / "fashion")
    number = record.ranking()[-1].number
    kept = [
        t.number for t in record.trials() if record.run_folder(t.number).best_checkpoint.exists()
    ]
    number = [trial for trial in kept if trial != record.ranking()[0].number][-1]
    done = run_module("best", "--export", "out", "--trial", number, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    meta = json.loads((home / "out" / "meta.json").read_text())
    assert meta["trial"] == number and meta["objective"].startswith("val/accuracy (max) and")
    (run,) = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").search_runs(
        ["1"], "tags.`study.exported` = 'true'"
    )
    assert len(run.data.metrics) <= 30, sorted(run.data.metrics)
    for flags, message in (
        (["--trial", 1], "add --export"),
        (["--export", "out", "--trial", 99], "has no trial 99 with a result"),
        (["--require", "acuracy>=0"], "did you mean 'accuracy'?"),
    ):
        done = run_module("best", *flags, cwd=home)
        assert done.returncode == 2 and message in done.stderr
