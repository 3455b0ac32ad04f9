"""A study from its command line: real Ray, a real SQLite store, real failures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import SPACE, Finished, run_module
from mlflow.tracking import MlflowClient

from study.records.study_record import StudyRecord
from study.records.trial_record import counts


def client(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def test_the_record_has_every_ending(finished: Finished) -> None:
    trials = StudyRecord.read(finished.home / "studies" / "fashion").trials()
    count = counts(trials)
    assert len(trials) == 8 and count["running"] == 0
    assert count["finished"] and count["stopped"] and count["failed"], count
    for trial in trials:
        assert (trial.state == "failed") == (trial.params["learning_rate"] == 1e30)


def test_mlflow_has_one_run_for_each_trial(finished: Finished) -> None:
    store = client(finished.home)
    experiment = store.get_experiment_by_name("fashion")
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if run.data.tags["study.role"] == "study"]
    children = {int(r.data.tags["study.trial"]): r for r in runs if r not in parents}
    assert len(parents) == 1 and len(runs) == 9 and sorted(children) == list(range(8))
    assert parents[0].info.status == "FINISHED"
    expected = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    record = StudyRecord.read(finished.home / "studies" / "fashion")
    for trial in record.trials():
        run = children[trial.number]
        assert run.info.run_id == record.run_folder(trial.number).run_id
        assert run.info.status == expected[trial.state]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.tags["data.dataset"] == "sample"
        assert run.data.params["seed"] == str(1 + trial.number)
        for name, value in trial.params.items():
            assert run.data.params[name] == str(value)
        history = store.get_metric_history(run.info.run_id, "val/accuracy")
        assert {metric.step: metric.value for metric in history} == trial.curve
        assert len(history) == len(trial.curve), "no step twice"
        figures = {file.path for file in store.list_artifacts(run.info.run_id, "figures")}
        if trial.state == "failed":
            assert "not finite" in run.data.tags["study.reason"]
            assert "error.txt" in {file.path for file in store.list_artifacts(run.info.run_id)}
        else:
            assert "val/accuracy/T-shirt-top" in run.data.metrics
            assert {"figures/confusion_matrix.png", "figures/learning_curves.png"} <= figures
            assert store.list_artifacts(run.info.run_id, "checkpoint")
            assert len(run.data.metrics) < 30


def test_what_a_person_reads(finished: Finished) -> None:
    err, out = finished.done.stderr, finished.done.stdout
    assert err.count("best so far") >= 1 and "stopped early" in err and "FAILED" in err
    assert "Traceback" not in err and "WARNING" not in err
    assert "SAMPLE DATA" in out and "python -m study.best fashion --export" in out
    assert "Ankle boot" in out, "the best trial's per-class metrics"


def test_a_complete_study_says_so_and_a_larger_number_extends_it(
    finished: Finished, tmp_path: Path
) -> None:
    home = tmp_path / "copy"
    shutil.copytree(finished.home, home, ignore=shutil.ignore_patterns("mlruns", "mlflow.db"))
    again = run_module("tune", *finished.command, cwd=home)
    assert again.returncode == 0 and "has its 8 trials" in again.stderr
    # The store was gone: the same command has sent all to the new one.
    assert len(client(home).search_runs(["1"], max_results=1000)) == 9
    third = run_module("tune", *finished.command, cwd=home)
    assert third.returncode == 0, third.stderr
    (parent,) = client(home).search_runs(["1"], "tags.`study.role` = 'study'")
    assert len(client(home).get_metric_history(parent.info.run_id, "best/accuracy")) == 1
    more = [9 if argument == 8 else argument for argument in finished.command]
    done = run_module("tune", *more, cwd=home)
    assert done.returncode == 0, done.stderr
    before = StudyRecord.read(finished.home / "studies" / "fashion").trials()
    after = StudyRecord.read(home / "studies" / "fashion").trials()
    assert after[:8] == before and len(after) == 9
    runs = client(home).search_runs(["1"], max_results=1000)
    assert len(runs) == 10 and "RUNNING" not in {run.info.status for run in runs}


def test_a_study_whose_trials_all_fail_ends_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    done = run_module(
        "tune",
        "fashion",
        "--dataset",
        "sample",
        "--num-samples",
        2,
        "--epochs",
        1,
        "--set",
        "learning_rate=1e30",
        "--search-space",
        "space.yaml",
        "--name",
        "bad",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "no trial has a result" in done.stdout and "not finite" in done.stdout


BAD = [
    (["fasion"], "unknown task 'fasion'; did you mean 'fashion'?"),
    (["fashion", "--data-dir", "nowhere", "--check-only"], "unrecognized arguments"),
    (["facade", "--data-dir", "nowhere"], "there is no facade data set"),
    (["fashion", "--num-samples", "0"], "--num-samples must be at least 1, but got 0"),
    (["fashion", "--gpus-per-worker", "8"], "asks for 8 GPUs, but there are"),
    (["fashion", "--cpus-per-worker", "4096"], "asks for 4096 CPUs"),
    (["fashion", "--epochs", "0"], "epochs must be at least 1"),
    (["fashion", "--epochs", "three"], "invalid int value: 'three'"),
    (["fashion", "--set", "width3=4"], "no setting 'width3'; did you mean 'width"),
    (["fashion", "--set", "width1"], "--set takes FIELD=VALUE"),
    (["fashion", "--set", "seed=4"], "use --seed"),
    (["fashion", "--name", "a/b"], "--name 'a/b'"),
    (["fashion", "--search-space", "fashion2"], "did you mean 'fashion'?"),
    (["fashion", "--search-space", "bad.yaml"], "bad.yaml, line 2: there is no setting 'widht1'"),
    (["fashion", "--search-space", "type.yaml"], "type.yaml, line 2: hidden must be a whole"),
    (["fashion", "--time-budget", "soon"], "--time-budget must be a time like"),
    (["fashion", "--scheduler", "random"], "invalid choice: 'random'"),
    (
        ["fashion", "--sampler", "random", "--warm-start-from", "x"],
        "no effect with --sampler random",
    ),
    (["fashion", "--reduction-factor", "1"], "--reduction-factor must be above 1"),
    (["fashion", "--studies-dir", "a-file"], "cannot write the study's folder"),
    (
        ["fashion", "--workers-per-trial", "2", "--set", "batch_size=7"],
        "batch_size=7 cannot be divided among 2 workers",
    ),
    (["fashion", "--workers-per-trial", "0"], "--workers-per-trial must be at least 1"),
    (
        ["fashion", "--address", "auto", "--workers-per-trial", "2", "--gpus-per-worker", "0.5"],
        "several workers cannot share a GPU",
    ),
    (["fashion", "--dry-run", "--price-per-hour", "-1"], "dollars, at least 0, but got -1"),
    (["fashion", "--dry-run", "--price-per-hour", "nan"], "dollars, at least 0, but got nan"),
    (["fashion", "--price-per-hour", "1"], "--price-per-hour needs --dry-run"),
    (
        ["fashion", "--dry-run", "--price-per-hour", "1", "--address", "auto"],
        "the cost on a cluster is not estimated",
    ),
    (["fashion", "--wait", "3"], "add its --address"),
    (
        [
            "facade",
            "--dataset",
            "sample",
            "--workers-per-trial",
            "2",
            "--gpus-per-worker",
            "0",
            "--set",
            "sync_batch_norm=true",
        ],
        "torch synchronises batch normalisation only on GPUs",
    ),
    (["fashion", "--studies-dir", "/proc/studies"], "cannot write the study's folder"),
    (["fashion", "--objective", "acuracy"], "--objective: fashion has no metric 'acuracy'"),
    (["fashion", "--objective", "num_params"], "the first metric decides which epoch"),
    (["fashion", "--require", "accuracy/Bagg>=0.8"], "did you mean 'accuracy/Bag'?"),
    (["fashion", "--require", "accuracy"], "--require takes METRIC>=VALUE"),
    (["fashion", "--tracking-uri", "nonsense"], "'nonsense' is not a tracking URI"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys, monkeypatch, flags: list[str], message: str
) -> None:
    import ray

    from study.cli import run_command
    from study.tune import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda *a, **k: pytest.fail("Ray was started"))
    (tmp_path / "bad.yaml").write_text("search:\n  widht1: {type: int, low: 1, high: 2}\n")
    (tmp_path / "type.yaml").write_text("fixed:\n  hidden: big\nsearch: {}\n")
    (tmp_path / "a-file").write_text("")
    sample = [] if flags[0] != "fashion" or "nowhere" in flags else ["--dataset", "sample"]
    try:
        code = run_command(lambda: main([*flags, *sample]))
    except SystemExit as end:  # from argparse
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and message in error
    assert len(error.strip().splitlines()) == 1 or "usage:" in error


def test_the_manifest_is_readable_without_this_project(finished: Finished) -> None:
    manifest = json.loads((finished.home / "studies" / "fashion" / "study.json").read_text())
    assert manifest["starts"][0]["command"].startswith("python -m study.tune fashion --dataset")
    assert manifest["space"]["search"]["width1"]["high"] == 16
    assert manifest["data"]["dataset"].startswith("sample garments")
