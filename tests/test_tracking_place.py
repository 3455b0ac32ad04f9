"""A study's life in MLflow: runs and experiments deleted, studies renamed, moved, copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import PIL.Image
import pytest
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from study import tune
from study.errors import InputError
from study.plan import make_plan
from study.record import StudyRecord
from study.study_flags import build_parser
from study.task import load_task
from study.tracking_results import run_of

SPACE = "search:\n  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}\n"
KEYS = ("val/loss", "val/accuracy")


def flags(home: Path, name: str, num: int) -> list[str]:
    (home / "space.yaml").write_text(SPACE)
    return [
        *("fashion", "--dataset", "sample", "--name", name, "--num-samples", str(num)),
        *("--epochs", "2", "--search-space", str(home / "space.yaml"), "--cpus-per-worker", "1"),
        *("--max-concurrent", "1", "--studies-dir", str(home / "studies")),
        *("--tracking-uri", f"sqlite:///{home / 'mlflow.db'}"),
    ]


def train(home: Path, name: str, num: int) -> StudyRecord:
    """Have a study's record say that it trained so many trials."""
    plan = make_plan(build_parser().parse_args(flags(home, name, num)))
    record = StudyRecord.create_or_continue(plan.folder, plan.manifest(), "command")
    while record.num_ended() < num:
        trial = record.ask()
        for epoch in (1, 2):
            values = dict.fromkeys(KEYS, 0.1 * epoch + 0.01 * trial.number)
            record.report(trial.number, {"epoch": epoch, "ended": 1e9 + epoch, **values})
        record.end(trial.number, "finished")
        figures = record.run_folder(trial.number).path / "figures"
        figures.mkdir()
        PIL.Image.new("L", (4, 4)).save(figures / "curve.png")
    record.close()
    return record


def extended(home: Path, name: str, num: int) -> StudyRecord:
    """Run a study's command after its trials were trained: all goes to MLflow."""
    record = train(home, name, num)
    assert tune.main(flags(home, name, num)) == 0
    return record


def client_of(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def runs_of(home: Path, experiment: str, role: str = "trial") -> list[Run]:
    client = client_of(home)
    found = client.get_experiment_by_name(experiment)
    assert found is not None and found.lifecycle_stage == "active"
    condition = f"tags.`study.role` = '{role}'"
    return list(client.search_runs([found.experiment_id], condition, ViewType.ALL))


def check(home: Path, experiment: str, record: StudyRecord) -> Run:
    """Make sure that MLflow has the study once, whole and active; return the study's run."""
    client, record = client_of(home), StudyRecord.read(record.path)
    (parent,) = runs_of(home, experiment, "study")
    assert parent.info.lifecycle_stage == "active" and parent.info.status == "FINISHED"
    runs = sorted(runs_of(home, experiment), key=lambda run: int(run.data.tags["study.trial"]))
    assert [int(run.data.tags["study.trial"]) for run in runs] == [
        trial.number for trial in record.trials()
    ]
    for run, trial in zip(runs, record.trials(), strict=True):
        tags = run.data.tags
        assert run.info.lifecycle_stage == "active" and run.info.status == "FINISHED"
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["study.name"] == record.path.name == parent.data.tags["study.name"]
        assert run.data.params["seed"] == str(record.seed(trial.number))
        assert record.run_folder(trial.number).run_id == run.info.run_id
        for key in KEYS:
            steps = client.get_metric_history(run.info.run_id, key)
            assert {m.step: m.value for m in steps} == {
                int(row["epoch"]): row[key] for row in trial.history
            }
        names = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
        assert "figures/curve.png" in names
    return parent


def test_the_study_s_run_deleted_is_restored_with_its_trials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = extended(tmp_path, "s", 2)
    parent = check(tmp_path, "s", record)
    client_of(tmp_path).delete_run(parent.info.run_id)
    again = check(tmp_path, "s", extended(tmp_path, "s", 3))
    assert again.info.run_id == parent.info.run_id
    assert "the run of study s in MLflow was deleted; it is restored" in caplog.text


def test_runs_that_are_gone_for_good_are_made_anew(tmp_path: Path) -> None:
    """As `mlflow gc` leaves it: the study's run and one of a trial."""
    record = extended(tmp_path, "s", 2)
    client = client_of(tmp_path)
    store = client._tracking_client.store
    gone = [check(tmp_path, "s", record).info.run_id, record.run_folder(1).run_id]
    for run_id in gone:
        client.delete_run(run_id)
        store._hard_delete_run(run_id)
    again = check(tmp_path, "s", extended(tmp_path, "s", 3))
    assert again.info.run_id not in gone and record.run_folder(1).run_id not in gone


def test_the_best_trial_s_run_deleted_is_there_again_before_it_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = extended(tmp_path, "s", 2)
    uri, task = f"sqlite:///{tmp_path / 'mlflow.db'}", load_task("fashion")
    client, before = client_of(tmp_path), record.run_folder(1).run_id
    client.delete_run(before)
    assert run_of(uri, record, task, record.trial(1)) == before
    check(tmp_path, "s", record)
    assert "the run of trial 1 in MLflow was deleted; it is restored" in caplog.text
    for run_id in (before, runs_of(tmp_path, "s", "study")[0].info.run_id):
        client.delete_run(run_id)
        client._tracking_client.store._hard_delete_run(run_id)
    assert run_of(uri, record, task, record.trial(1)) not in (None, before)
    run_of(uri, record, task, record.trial(0))
    check(tmp_path, "s", record)


def test_the_wrong_store_is_refused_and_nothing_is_written_there(tmp_path: Path) -> None:
    record = extended(tmp_path, "s", 1)
    known = record.run_folder(0).run_id
    other = tmp_path / "other.db"
    with pytest.raises(InputError, match="has no run of study s; name the study's with"):
        run_of(f"sqlite:///{other}", record, load_task("fashion"), record.trial(0))
    assert record.run_folder(0).run_id == known
    assert MlflowClient(f"sqlite:///{other}").get_experiment_by_name("s") is None


def test_the_experiment_deleted_is_restored_when_the_study_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    record = extended(tmp_path, "s", 2)
    client = client_of(tmp_path)
    client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
    check(tmp_path, "s", extended(tmp_path, "s", 3))
    assert "the MLflow experiment 's' was deleted; it is restored" in caplog.text
    assert "not complete" not in capsys.readouterr().err
    # A new study must not bring back what somebody wanted gone.
    client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
    shutil.rmtree(record.path)
    with pytest.raises(InputError, match="mlflow experiments restore -x"):
        tune.main(flags(tmp_path, "s", 3))
