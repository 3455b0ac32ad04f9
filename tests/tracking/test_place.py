"""A study's life in MLflow: runs and experiments deleted, studies renamed, moved, copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
from begun import begin
from conftest import wait_for
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient
from tracked import KEYS, client_of, extended, flags, train

from study import best, tune
from study.errors import InputError
from study.records.provenance import facts
from study.records.study_record import StudyRecord
from study.runner.plan import make_plan
from study.task import load_task
from study.tracking.results import ensure_run, record_report
from study.tracking.tracker import StudyTracker
from study.tune import build_parser, options_of


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
        assert "figures/learning_curves.png" in names
    return parent


def test_the_study_s_run_deleted_is_restored_with_its_trials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = extended(tmp_path, "s", 2)
    parent = check(tmp_path, "s", record)
    client_of(tmp_path).delete_run(parent.info.run_id)
    again = check(tmp_path, "s", extended(tmp_path, "s", 3))
    assert again.info.run_id == parent.info.run_id
    assert "the MLflow run of study s was deleted; restored it" in caplog.text


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
    assert ensure_run(uri, record, task, record.trial(1)) == before
    check(tmp_path, "s", record)
    assert "the MLflow run of trial 1 was deleted; restored it" in caplog.text
    for run_id in (before, runs_of(tmp_path, "s", "study")[0].info.run_id):
        client.delete_run(run_id)
        client._tracking_client.store._hard_delete_run(run_id)
    assert ensure_run(uri, record, task, record.trial(1)) not in (None, before)
    ensure_run(uri, record, task, record.trial(0))
    check(tmp_path, "s", record)


def test_the_wrong_store_is_refused_and_nothing_is_written_there(tmp_path: Path) -> None:
    record = extended(tmp_path, "s", 1)
    known = record.run_folder(0).run_id
    other = tmp_path / "other.db"
    with pytest.raises(InputError, match="has no run of study s; name the study's store with"):
        ensure_run(f"sqlite:///{other}", record, load_task("fashion"), record.trial(0))
    assert record.run_folder(0).run_id == known
    assert MlflowClient(f"sqlite:///{other}").get_experiment_by_name("s") is None


def test_artifacts_that_cannot_be_written_are_told_before_anything_else(tmp_path: Path) -> None:
    record = extended(tmp_path, "s", 1)
    shutil.rmtree(tmp_path / "mlruns")
    (tmp_path / "mlruns").write_text("a file")
    with pytest.raises(InputError, match="artifact folder .* is not writable"):
        ensure_run(
            f"sqlite:///{tmp_path / 'mlflow.db'}", record, load_task("fashion"), record.trial(0)
        )


def test_a_page_and_a_result_find_their_runs_in_whatever_experiment(tmp_path: Path) -> None:
    record = extended(tmp_path, "s", 1)
    uri, client = f"sqlite:///{tmp_path / 'mlflow.db'}", client_of(tmp_path)
    (parent,) = runs_of(tmp_path, "s", "study")
    client.rename_experiment(parent.info.experiment_id, "renamed by hand")
    client.delete_run(parent.info.run_id)
    (record.path / "report.html").write_text("a new page")
    record_report(uri, record)
    place = client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
    assert Path(place).read_text() == "a new page"
    assert client.get_experiment_by_name("s") is None


def test_the_experiment_deleted_is_restored_when_the_study_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    record = extended(tmp_path, "s", 2)
    client = client_of(tmp_path)
    client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
    check(tmp_path, "s", extended(tmp_path, "s", 3))
    assert "the MLflow experiment 's' was deleted; restored it" in caplog.text
    assert "not complete" not in capsys.readouterr().err
    # A new study must not bring back what somebody wanted gone.
    client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
    shutil.rmtree(record.path)
    with pytest.raises(InputError, match="mlflow experiments restore -x"):
        tune.main(flags(tmp_path, "s", 3))


def test_a_copy_becomes_a_study_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    one = extended(tmp_path, "a", 2)
    before = check(tmp_path, "a", one).info.run_id
    shutil.copytree(one.path, one.path.with_name("b"))
    assert best.main(["b", "--studies-dir", str(tmp_path / "studies")]) == 0
    assert "study b (fashion)" in capsys.readouterr().out
    two = extended(tmp_path, "b", 3)
    assert f"is a copy of {one.path}; from now on it is a separate study" in caplog.text
    caplog.clear()
    assert check(tmp_path, "b", two).info.run_id != before
    assert check(tmp_path, "a", extended(tmp_path, "a", 4)).info.run_id == before
    check(tmp_path, "b", extended(tmp_path, "b", 4))
    assert "is a copy of" not in caplog.text


def test_a_copy_is_told_from_the_study_before_its_best_trial_is_exported(tmp_path: Path) -> None:
    one = extended(tmp_path, "a", 2)
    shutil.copytree(one.path, one.path.with_name("b"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    StudyRecord.settle(one.path.with_name("b"), uri)
    two, task = StudyRecord.read(one.path.with_name("b")), load_task("fashion")
    assert two.run_folder(1).run_id is None
    for trial in two.trials():
        ensure_run(uri, two, task, trial)
    check(tmp_path, "b", two)
    check(tmp_path, "a", one)


@pytest.mark.parametrize("store", ["same", "own"])
def test_a_whole_project_copied_keeps_its_runs_if_its_store_came_along(
    tmp_path: Path, store: str
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    before = check(old, "a", extended(old, "a", 2)).info.run_id
    shutil.copytree(old, new)
    if store == "same":
        (new / "mlflow.db").unlink()
        (new / "mlflow.db").symlink_to(old / "mlflow.db")
    record = train(new, "a", 3)
    assert tune.main(flags(new, "a", 3)) == 0
    if store == "own":
        assert check(new, "a", record).info.run_id == before
    else:
        assert len(runs_of(old, "a")) == 2 + 3 and len(runs_of(old, "a", "study")) == 2
    assert len(runs_of(old, "a")) == (2 if store == "own" else 5)


def test_a_copy_on_another_machine_is_told_by_the_commands_that_mlflow_saw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = extended(tmp_path, "a", 2)
    other, hidden = tmp_path / "other", tmp_path / "hidden"
    shutil.copytree(one.path, other / "studies" / "a")
    (tmp_path / "studies").rename(hidden)  # the other machine does not see it
    uri = ["--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    train(other, "a", 3)
    assert tune.main([*flags(other, "a", 3), *uri]) == 0
    assert "it keeps its runs in MLflow" in caplog.text
    hidden.rename(tmp_path / "studies")
    mine = extended(tmp_path, "a", 4)
    assert "MLflow has a later command of study a than its folder" in caplog.text
    numbers = [int(run.data.tags["study.trial"]) for run in runs_of(tmp_path, "a")]
    assert sorted(numbers) == [0, 0, 1, 1, 2, 2, 3]
    ids = {run.info.run_id for run in runs_of(tmp_path, "a")}
    theirs = StudyRecord.read(other / "studies" / "a")
    for record in (mine, theirs):
        ids -= {record.run_folder(trial.number).run_id for trial in record.trials()}
    assert not ids


def test_a_study_that_is_renamed_takes_its_experiment_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = extended(tmp_path, "a", 2)
    before = check(tmp_path, "a", one).info.run_id
    one.path.rename(one.path.with_name("b"))
    after = check(tmp_path, "b", extended(tmp_path, "b", 3))
    assert after.info.run_id == before and after.info.run_name == "study b [sample data]"
    assert client_of(tmp_path).get_experiment_by_name("a") is None
    assert "its MLflow experiment 'a' is renamed to match" in caplog.text
    names = optuna.get_all_study_names(f"sqlite:///{one.path.with_name('b') / 'optuna.db'}")
    assert names == ["b"]
    mirror = f"sqlite:///{one.path.with_name('b') / 'optuna.db'}"
    assert optuna.load_study(study_name="b", storage=mirror).metric_names == ["val/accuracy"]
    # A new study takes the old name, and a second renaming finds its name taken.
    again = extended(tmp_path, "a", 1)
    check(tmp_path, "a", again)
    again.path.rename(again.path.with_name("c"))
    client_of(tmp_path).create_experiment("c")
    check(tmp_path, "a", extended(tmp_path, "c", 2))
    assert "its runs stay in the MLflow experiment 'a'" in caplog.text


def test_studies_in_a_bucket_are_copied_and_moved_alike(tmp_path: Path, bucket: str) -> None:
    pytest.importorskip("boto3")
    import boto3

    place = ["--studies-dir", f"{bucket}/life"]
    one = train(tmp_path, "a", 1, place)
    assert tune.main([*flags(tmp_path, "a", 1), *place]) == 0
    check(tmp_path, "a", one)
    store = boto3.resource("s3").Bucket("team")
    for name in ("b", "c"):  # a copy, and a study that moved
        for found in list(store.objects.filter(Prefix="life/a/")):
            source = {"Bucket": "team", "Key": found.key}
            store.copy(source, found.key.replace("life/a/", f"life/{name}/"))
            if name == "c":
                found.delete()
        two = train(tmp_path, name, 2, place)
        assert tune.main([*flags(tmp_path, name, 2), *place]) == 0
        check(tmp_path, name, two)
        if name == "b":
            check(tmp_path, "a", one)


def test_what_is_deleted_while_the_study_runs_comes_back(tmp_path: Path) -> None:
    extended(tmp_path, "s", 1)
    uri, client = f"sqlite:///{tmp_path / 'mlflow.db'}", client_of(tmp_path)
    plan = make_plan(options_of(build_parser().parse_args(flags(tmp_path, "s", 2))))
    record = StudyRecord.create_or_continue(plan.folder, plan.manifest(), "command", uri=uri)
    known = facts(plan.identity, plan.source)
    tracker = StudyTracker(uri, record, plan.task, {**plan.settings, "dataset": "sample"}, known)
    trial = begin(record)
    rows = [{"epoch": n, "ended": 1e9 + n, **dict.fromkeys(KEYS, 0.1 * n)} for n in (1, 2)]
    record.report(trial.number, rows[0])
    tracker.touch(trial.number)
    wait_for(lambda: len(runs_of(tmp_path, "s")) == 2 and record.run_folder(1).run_id)
    client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
    record.report(trial.number, rows[1])
    record.end(trial.number, "finished")
    tracker.touch(trial.number)
    wait_for(lambda: client.get_experiment_by_name("s").lifecycle_stage == "active")
    assert tracker.close("FINISHED", record.trial(1)) is None
    record.close()
    check(tmp_path, "s", record)
