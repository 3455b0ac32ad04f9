"""The best trials again: killed half-way and continued, the winner by its mean, every test told."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from begun import begin
from conftest import Finished, run_module, started, wait_for
from mlflow.tracking import MlflowClient
from scipy import special, stats
from trained import study_in, train

from study.best import main
from study.cli import run_command
from study.datasets.source import DataSource
from study.errors import DamagedFile
from study.objective import Constraint, Goal, Objective
from study.records.checkpoint import digest
from study.records.run_options import RunOptions
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.runner import confirm as confirmation
from study.runner.confirm import ConfirmPlan
from study.selection import held_out_test
from study.selection.confirmation import Confirmation, Confirmed, Training, candidates_of, find
from study.selection.confirmation_runs import FIRST_SEED
from study.selection.test_log import read_tests
from study.storage.files import read_document, write_document
from study.tasks.fashion import TASK
from study.training.intervals import widened

FLAGS = ("fashion", "--confirm", 2, "--cpus-per-worker", 1, "--max-concurrent", 2)


def ended(folder: Path) -> list[int]:
    """Return the numbers of the trials that have ended."""
    found = []
    for path in sorted(folder.glob("trials/*")):
        try:
            if TrialRecord.load(path).state != "running":
                found.append(int(path.name))
        except DamagedFile:
            continue  # is being written
    return found


@pytest.fixture(scope="module")
def confirmed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the study, confirmed by a command that was killed and typed again."""
    home = tmp_path_factory.mktemp("confirmed")
    shutil.copytree(finished.home, home, dirs_exist_ok=True)
    (home / "studies" / "fashion" / "tests.json").unlink(missing_ok=True)  # of other tests
    shutil.rmtree(home / "studies" / "fashion" / "tests", ignore_errors=True)
    record = StudyRecord.read(home / "studies" / "fashion")
    best = sorted(trial.number for trial in record.ranking()[:3])
    folder = record.path / "confirm" / "-".join(map(str, best))
    with started("best", *FLAGS, cwd=home) as command:
        wait_for(lambda: len(ended(folder)) >= 2)
        command.send_signal(signal.SIGKILL)
        command.wait()
    before = {n: (folder / "trials" / f"{n:04d}" / "trial.json").read_text() for n in ended(folder)}
    assert 2 <= len(before) < 6
    assert not (record.path / "tests.json").exists(), "tested only when all is trained"
    done = run_module("best", *FLAGS, "--json", cwd=home)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["confirmation"]["seeds"] == 2
    for number, text in before.items():
        assert (folder / "trials" / f"{number:04d}" / "trial.json").read_text() == text
    return home


def result_of(home: Path) -> dict:
    """Return what the command says of the confirmation."""
    done = run_module("best", "fashion", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_configuration_has_every_seed_on_another_fold(confirmed: Path) -> None:
    study = StudyRecord.read(confirmed / "studies" / "fashion")
    best = sorted(trial.number for trial in study.ranking()[:3])
    record = StudyRecord.read(study.path / "confirm" / "-".join(map(str, best)))
    trials = record.trials()
    assert len(trials) == 6
    for number, trial in enumerate(trials):
        params = record.config(trial)
        wanted = study.config(study.trial(best[number % 3]))
        assert params["seed"] == 1 + FIRST_SEED + number // 3
        assert params["fold"] == 1 + number // 3
        assert {**params, "seed": 0, "fold": 0} == {**wanted, "seed": 0, "fold": 0}
        assert trial.state == "failed" or trial.epochs == 3


def student(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean on the logit's scale; of equal values no width."""
    if len(set(values)) == 1:
        return values[0], values[0]
    mean, half = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    ends = special.expit(special.logit(mean) + np.array([-1, 1]) * half / (mean * (1 - mean)))
    return ends[0], ends[1]


def test_the_winner_is_the_best_mean_validation(confirmed: Path) -> None:
    result = result_of(confirmed)
    found = result["confirmation"]
    good = [one for one in found["configurations"] if not one["failed"]]
    means = [one["val"]["mean"] for one in good]
    assert means == sorted(means, reverse=True)
    assert found["winner"] == good[0]["trial"]
    for one in good:
        values = one["val"]["values"]
        assert len(values) == len(one["test"]["values"]) == 2
        assert one["val"]["interval"] == pytest.approx(student(values))
        low, high = student(one["test"]["values"])
        wide = one["test"]["interval"]
        assert wide[0] < low <= high < wide[1], "the images that all share add to it"
        assert one["gap"] == pytest.approx(one["test"]["mean"] - one["val"]["mean"])
    shown = run_module("best", "fashion", cwd=confirmed)
    assert "by mean validation; the test played no part in the choice" in shown.stdout
    assert "optimistic" in shown.stdout


def test_each_test_is_recorded_in_the_study_and_in_mlflow(confirmed: Path) -> None:
    tests = read_document(confirmed / "studies" / "fashion" / "tests.json")["tests"]
    found = result_of(confirmed)["confirmation"]
    trained = sum(len(one["test"]["values"]) for one in found["configurations"])
    assert len(tests) == trained == len({test["checkpoint"] for test in tests})
    assert all(test["why"] == "confirm" and test["time"] for test in tests)
    client = MlflowClient(f"sqlite:///{confirmed / 'mlflow.db'}")
    runs = client.search_runs(
        [client.get_experiment_by_name("fashion").experiment_id],
        "tags.`study.role` = 'confirm-trial'",
    )
    assert len(runs) == 6
    by_folder = {test["folder"]: test for test in tests}
    for run in runs:
        assert run.data.tags["study.name"] == "fashion" and run.data.tags["study.confirms"]
        if run.info.status == "FAILED":
            continue
        folder = f"trials/{int(run.data.tags['study.trial']):04d}"
        (test,) = (test for name, test in by_folder.items() if name.endswith(folder))
        assert run.data.metrics["test/accuracy"] == test["metrics"]["test/accuracy"]
        low, high = test["intervals"]["test/accuracy"]
        assert run.data.tags["study.test_interval"] == f"test/accuracy {low:.4f} to {high:.4f}"
        assert low < high and len(run.data.metrics) <= 30
        assert run.data.tags["study.tested"] == "confirm"
    for role, number in (("study", 1), ("trial", 8), ("confirm", 1)):
        found_runs = client.search_runs(
            [runs[0].info.experiment_id], f"tags.`study.role` = '{role}'"
        )
        assert len(found_runs) == number
    parent = client.get_run(found_runs[0].data.tags["mlflow.parentRunId"])
    assert parent.data.tags["study.role"] == "study"
    metrics = found_runs[0].data.metrics
    winner = found["configurations"][0]
    assert metrics["confirmed/val/accuracy"] == pytest.approx(winner["val"]["mean"])
    assert found_runs[0].data.tags["study.winner"] == str(winner["trial"])


def test_again_nothing_is_trained_or_tested(confirmed: Path) -> None:
    file = confirmed / "studies" / "fashion" / "tests.json"
    before = file.read_bytes()
    done = run_module("best", *FLAGS, "--json", cwd=confirmed)
    assert done.returncode == 0, done.stderr
    assert "has its 6 trials" in done.stderr
    assert file.read_bytes() == before


def test_the_winner_s_best_training_is_exported_and_not_tested_again(confirmed: Path) -> None:
    file = confirmed / "studies" / "fashion" / "tests.json"
    before = file.read_bytes()
    done = run_module("best", "fashion", "--export", "out", "--json", cwd=confirmed)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == before
    result = json.loads(done.stdout)
    winner = result["confirmation"]["configurations"][0]
    meta = json.loads((confirmed / "out" / "meta.json").read_text())
    assert meta["trial"] == winner["trial"]
    values = np.array([one["val"]["values"] for one in result["confirmation"]["configurations"]])
    ahead = values[0] - values.mean(axis=0)  # of the others on the same fold
    assert meta["metrics"]["val/accuracy"] == values[0][ahead.argmax()]
    assert meta["confirmed"]["validated_on"] == {"split_seed": 0, "folds": [1, 2]}
    assert meta["confirmed"]["val"]["mean"] == winner["val"]["mean"]
    assert meta["run_id"] in winner["run_ids"]
    low, high = meta["intervals"]["test/accuracy"]
    assert low <= meta["metrics"]["test/accuracy"] <= high
    card = (confirmed / "out" / "README.md").read_text()
    assert f"{winner['test']['mean']:.4f}" in card and "optimistic" in card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--confirm", "1"], "--confirm 1: a confidence interval needs at least 2 seeds"),
        (["--confirm", "2", "--cpus-per-worker", "0"], "--cpus-per-worker must be at least 1"),
        (["--confirm", "2", "--wait", "3"], "--wait counts the nodes of a cluster"),
    ],
)
def test_mistakes(finished: Finished, capsys, monkeypatch, flags, message: str) -> None:
    monkeypatch.chdir(finished.home)
    assert run_command(lambda: main(["fashion", *flags])) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def trial(number: int, accuracy: float, num_params: float) -> TrialRecord:
    row = {"epoch": 1, "val/accuracy": accuracy, "num_params": num_params}
    return TrialRecord(
        number=number,
        metric="val/accuracy",
        mode="max",
        params={},
        state="finished",
        history=(row,),
        begun="",
    )


def chosen(goal: Goal, trials: list[TrialRecord]) -> list[int]:
    return [one.number for one in candidates_of(goal, goal.ranking(trials))]


def test_candidates_keep_the_constraints_and_come_from_the_front() -> None:
    trials = [trial(n, 0.5 + n / 10, num_params=100.0 * (n + 1)) for n in range(5)]
    accuracy, size = Objective("val/accuracy", "max"), Objective("num_params", "min")
    assert chosen(Goal((accuracy,)), trials) == [2, 3, 4]
    few = Constraint("num_params", "<=", 250.0)
    assert chosen(Goal((accuracy,), (few,)), trials) == [0, 1]
    none = Constraint("num_params", "<=", 50.0)  # the nearest
    assert chosen(Goal((accuracy,), (none,)), trials) == [0, 1, 2]
    dominated = trial(5, 0.89, num_params=600.0)  # second by accuracy, but on no front
    assert chosen(Goal((accuracy,)), [*trials, dominated]) == [3, 4, 5]
    assert chosen(Goal((accuracy, size)), [*trials, dominated]) == [2, 3, 4]


def test_the_study_s_objective_is_confirmed_and_another_trial_handed_over(
    tmp_path: Path, cache_dir: Path
) -> None:
    (tmp_path / "space.yaml").write_text(
        "search:\n  width1: {type: int, low: 8, high: 16}\nbaseline: {width1: 16}\n"
    )
    machine = ("--cpus-per-worker", 1, "--max-concurrent", 2)
    done = run_module(
        "tune",
        "fashion",
        "--dataset",
        "sample",
        "--num-samples",
        2,
        "--epochs",
        2,
        "--objective",
        "worst_class",
        "--require",
        "num_params>=1",
        *machine,
        "--search-space",
        "space.yaml",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for seeds in (3, 2):  # fewer seeds later cost nothing that is there
        done = run_module("best", "--confirm", seeds, *machine, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
    first, second = json.loads(done.stdout)["confirmation"]["configurations"]
    folder = tmp_path / "studies" / "fashion"
    tests = read_document(folder / "tests.json")["tests"]
    for one in (first, second):
        own = [test["metrics"] for test in tests if test["trial"] % 2 == one["trial"]]
        for split in ("val", "test"):
            assert one[split]["values"] == [test[f"{split}/min_accuracy"] for test in own]
        assert one["missed"] == 0
    assert first["val"]["mean"] >= second["val"]["mean"]
    flags = ("--trial", second["trial"], "--export", "out", "--register")
    done = run_module("best", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "min_accuracy" in done.stdout and "the first champion" in done.stdout
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["trial"] == second["trial"] and not meta["confirmed"]["won"]
    assert meta["metrics"]["val/min_accuracy"] in second["val"]["values"]
    assert meta["objective"].startswith("val/min_accuracy (max), required: num_params>=1")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| | min_accuracy" in card and "chosen by hand" in card
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'fashion'")
    assert version.tags["confirmed.metric"] == "val/min_accuracy"
    run = client.get_run(meta["run_id"])
    assert run.data.metrics["test/min_accuracy"] == meta["metrics"]["test/min_accuracy"]
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert "confirmed/val/min_accuracy" in parent.data.metrics
    (folder / "confirm" / "0-1").rename(folder / "confirm" / "0-7")  # as if others had been best
    done = run_module("best", cwd=tmp_path)
    assert "trials 0, 7 were confirmed, but the best are now 0, 1" in done.stderr


def scored(record: StudyRecord, number: int, values: list[float], missed: float = 0.0) -> Confirmed:
    """A configuration, one of two, whose fourth training is on the first fold again."""
    tests = [{"metrics": {"val/accuracy": value, "test/accuracy": value}} for value in values]
    folds = (1, 2, 3, 1)[: len(values)]
    trainings = tuple(
        Training(number=number + 2 * place, round=place, fold=fold, test=test)
        for place, (fold, test) in enumerate(zip(folds, tests, strict=True))
    )
    return Confirmed(
        trial=trial(number, 0.9, 1), trainings=trainings, failed=0, metric="accuracy", missed=missed
    )


def test_trainings_on_one_fold_count_once(confirmed: Path) -> None:
    study = StudyRecord.read(confirmed / "studies" / "fashion")
    best = sorted(trial.number for trial in study.ranking()[:3])
    record = StudyRecord.read(study.path / "confirm" / "-".join(map(str, best)))
    one, other = (
        scored(record, 0, [0.9, 0.7, 0.8, 1.0]),
        scored(record, 1, [0.8, 0.62, 0.72, 0.9]),
    )
    assert one.mean("val") == pytest.approx((0.95 + 0.7 + 0.8) / 3)
    assert one.interval("val") == pytest.approx(student([0.95, 0.7, 0.8]))
    confirmation = Confirmation(record, 4, (one, other))
    lead = confirmation.lead()
    assert lead is not None and lead[0] == pytest.approx((0.1 + 0.08 + 0.08) / 3)
    one, other = scored(record, 0, [0.9, 0.7, 0.8]), scored(record, 1, [0.88, 0.6, 0.75])
    best_training = Confirmation(record, 3, (one, other)).best_training(one)
    assert best_training.number == 2  # by far ahead on a hard fold, not the highest score
    missed = scored(record, 1, [0.95] * 4, missed=0.1)
    assert Confirmation(record, 4, (one, missed)).lead() is None


@pytest.fixture
def cut_off(sample: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyRecord:
    """A search of two trials; of each two trainings that ended, and a third that was cut off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    searched = study_in(tmp_path, sample)
    for number in range(2):
        begin(searched)
        train(searched, number, sample)
    searched.close()
    record = confirmation_of(searched, 3)
    for number in range(6):
        begin(record)
        train(record, number, sample, epochs=2 if number < 4 else 1)
    record.close()
    return searched


def confirmation_of(searched: StudyRecord, seeds: int) -> StudyRecord:
    """Open the confirmation of a search as its command does."""
    options = RunOptions(task="garments")
    chosen = candidates_of(searched.goal, searched.ranking())
    plan = confirmation._plan(TASK, DataSource.find("sample"), searched, chosen, seeds, options)
    return StudyRecord.create_or_continue(plan.folder, plan.manifest(), "confirm")


def confirm(*flags: object) -> int:
    return run_command(lambda: main(["garments", *map(str, flags)]))


def test_only_trainings_to_the_end_are_tested_and_count(cut_off: StudyRecord, capsys) -> None:
    assert confirm("--confirm", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)["confirmation"]
    assert found["seeds"] == 2
    assert [len(one["test"]["values"]) for one in found["configurations"]] == [2, 2]
    tests = read_tests(cut_off.path)
    assert sorted(test["trial"] for test in tests) == [0, 1, 2, 3], "exactly those asked for"
    assert all((test["state"], test["epochs"]) == ("finished", 2) for test in tests)


def test_a_test_of_half_trained_weights_counts_for_nothing(
    cut_off: StudyRecord, sample: DataSource, capsys
) -> None:
    record = confirmation_of(cut_off, 3)
    for number in range(6):  # as an earlier version did
        held_out_test.test_once(
            held_out_test.prepare(TASK, sample, record, record.trial(number)), "confirm"
        )
    found = find(cut_off, cut_off.ranking())
    assert found is not None and found.seeds == 2
    for number in (4, 5):
        train(record, number, sample)
    record.close()
    half = {t["trial"]: t["checkpoint"] for t in read_tests(cut_off.path) if t["trial"] > 3}
    assert confirm("--confirm", 3) == 0
    found = find(cut_off, cut_off.ranking())
    assert found is not None and found.seeds == 3
    for one in found.ranking:
        for training in one.trainings:
            number, test = training.number, training.test
            best = record.run_folder(number).best_checkpoint
            assert test["checkpoint"] == digest(best), number
            if number > 3 and record.trial(number).best_epoch == 2:
                assert test["checkpoint"] != half[number]
    # The record of an earlier version says no state: weights are told by their checksum.
    tests = [
        {k: v for k, v in one.items() if k not in ("id", "state", "epochs", "host", "pid")}
        for one in read_tests(cut_off.path)
    ]
    shutil.rmtree(cut_off.path / "tests")
    write_document(cut_off.path / "tests.json", {"tests": tests})
    again = find(cut_off, cut_off.ranking())
    assert again is not None and again.as_json() == found.as_json()


def test_one_that_was_cut_off_among_those_asked_for_goes_on_first(
    cut_off: StudyRecord, sample: DataSource, monkeypatch, capsys
) -> None:
    folder = cut_off.path / "confirm" / "0-1" / "trials" / "0002"
    trial = TrialRecord.load(folder)  # cut off, while a later one ended
    dataclasses.replace(trial, state="running", ended=None, history=trial.history[:1]).save(folder)
    asked = []

    def run(plan: ConfirmPlan, manifest: dict, command: str, conclude: None) -> int:
        asked.append(plan.options.num_samples)
        record = StudyRecord.create_or_continue(plan.folder, manifest, command)
        for one in [one for one in record.trials() if one.state == "running"]:
            if record.num_ended() < plan.options.num_samples:
                train(record, one.number, sample)
        record.close()
        return 0

    for file in folder.glob("*.pt"):
        file.unlink()
    monkeypatch.setattr("study.runner.run.run", run)
    assert confirm("--confirm", 2) == 0
    assert asked == [4]  # three of the first four have ended; the fifth and sixth wait
    assert sorted(test["trial"] for test in read_tests(cut_off.path)) == [0, 1, 2, 3]


def test_a_training_that_failed_for_good_is_told(cut_off: StudyRecord, capsys) -> None:
    folder = cut_off.path / "confirm" / "0-1" / "trials" / "0002"
    trial = TrialRecord.load(folder)
    dataclasses.replace(trial, state="failed", reason="the loss is not finite").save(folder)
    assert confirm("--confirm", 2) == 0
    captured = capsys.readouterr()
    assert "training 2 (of trial 0) does not count: the loss is not finite" in captured.err
    assert "1 failed" in captured.out
    assert sorted(test["trial"] for test in read_tests(cut_off.path)) == [0, 1, 3]


def test_test_images_add_to_the_interval_of_a_mean() -> None:
    images = [(0.5, (0.44, 0.58)), (0.5, (0.44, 0.58))]
    assert widened(0.5, (0.42, 0.56), images) == pytest.approx((0.4, 0.6))
    assert widened(0.5, (0.42, 0.56), []) == (0.42, 0.56)
