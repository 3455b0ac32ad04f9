"""Handing over a winner: what fails does so with the test closed; each opening is recorded."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from begun import begin
from mlflow.tracking import MlflowClient
from trained import study_in, train

from study import best
from study.cli import run_command
from study.datasets.source import DataSource
from study.export import export, folder
from study.records.study_record import StudyRecord
from study.selection import held_out_test
from study.selection.test_log import read_openings, read_tests
from study.storage.files import read_document, write_document
from study.tasks.fashion import TASK

STUDY = Path("studies") / "garments"


@pytest.fixture(scope="module")
def made(sample: DataSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two trials that ended and one that was cut off after an epoch."""
    home = tmp_path_factory.mktemp("made")
    record = study_in(home, sample)
    for number in range(3):
        begin(record)
        train(record, number, sample, epochs=1 if number == 2 else 2)
    record.close()
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which commands run."""
    home = tmp_path / "home"
    shutil.copytree(made, home)
    StudyRecord.settle(home / STUDY, f"sqlite:///{home}/mlflow.db")  # a study of its own
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


def run(*args: object) -> int:
    return run_command(lambda: best.main(["garments", *map(str, args)]))


def damage_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in home.glob("studies/*/trials/*/*.pt"):
        file.write_bytes(file.read_bytes()[:1000])


def change_data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_document(STUDY / "study.json", {**read_document(STUDY / "study.json"), "checksum": "x"})


def fail_to_draw(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(*args: Any) -> Any:
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr(type(TASK), "figures", figures)


def fail_to_export(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", fail_with(torch._dynamo.exc.Unsupported("if")))


def differ(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_largest_difference", lambda *args: 1.0)


def fill_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "save_file", fail_with(OSError(errno.ENOSPC, "No space left")))


def fill_disk_at_the_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "save_figures", fail_with(OSError(errno.ENOSPC, "No space left")))


def fail_with(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def forbid_openings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (STUDY / "tests").touch()


def damage_tests(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (STUDY / "tests.json").write_text("{")


def use_another_store(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StudyRecord.read(home / STUDY).run_folder(0).write_run_id("0" * 32)
    StudyRecord.read(home / STUDY).run_folder(1).write_run_id("1" * 32)


def occupy_target(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "out").touch()


def nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


STEPS = [
    (damage_weights, (), "is corrupted"),
    (change_data, (), "is not the one this study uses"),
    (fail_to_draw, (), "the figures cannot be drawn (RuntimeError: latex could not be found)"),
    (fail_to_export, (), "cannot be exported"),
    (differ, (), "differs from the trained one by 1"),
    (fill_disk, (), "No space left"),
    (fill_disk_at_the_end, (), "No space left"),
    (forbid_openings, (), "so the test split stays closed"),
    (damage_tests, (), "which weights have been tested"),
    (use_another_store, (), "has no run of study garments"),
    (occupy_target, (), "is a file; name a folder"),
    (nothing, ("--tracking-uri", "http://127.0.0.1:9"), "does not answer"),
    (nothing, ("--register", "a/b"), "cannot contain '/'"),
    (nothing, ("--trial", 2), "has not ended (epoch 1 of 2), so the test split stays closed"),
    (nothing, ("--trial", 7), "has no trial 7 with a result"),
    (nothing, ("--force",), "--force needs --trial N"),
]


@pytest.mark.parametrize(
    ("spoil", "flags", "message"), STEPS, ids=[f"{s.__name__}{f}" for s, f, _ in STEPS]
)
def test_what_fails_fails_with_the_test_closed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys, spoil, flags, message: str
) -> None:
    scored = []
    score = held_out_test.score

    def counted(*args: Any) -> Any:
        scored.append(args[3])
        return score(*args)

    monkeypatch.setattr(held_out_test, "score", counted)
    with monkeypatch.context() as patch:
        spoil(home, patch)
        assert run("--export", "out", *flags) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    closed = TASK.load_full_size(DataSource.find("sample"), None, "test")
    assert not any(len(images.images) == len(closed.images) for images in scored)
    if spoil is not damage_tests:
        assert not (home / STUDY / "tests").is_dir() or not read_openings(home / STUDY)
    assert not (home / "out" / "model.pt2").exists()
    assert [path.name for path in home.iterdir() if path.name.startswith(".out")] == []


def exported(home: Path, *flags: object) -> dict[str, Any]:
    assert run("--export", "out", *flags) == 0
    meta: dict[str, Any] = json.loads((home / "out" / "meta.json").read_text())
    return meta


def test_an_opening_is_recorded_before_the_scores_and_with_them(home: Path, monkeypatch) -> None:
    score, seen = held_out_test.score, []

    def look(*args: Any) -> Any:
        seen.append(read_openings(home / STUDY))
        return score(*args)

    monkeypatch.setattr(held_out_test, "score", look)
    meta = exported(home)
    assert [len(openings) for openings in seen] == [0, 1] and "metrics" not in seen[1][0]
    (test,) = read_tests(home / STUDY)
    assert read_document(home / STUDY / "tests.json")["tests"] == [test]
    assert test["id"] == seen[1][0]["id"] and test["metrics"] == meta["metrics"]
    assert (test["state"], test["epochs"], test["why"]) == ("finished", 2, "export")
    assert meta["openings"] == 1 and not meta["forced"] and meta["state"] == "finished"
    assert "test, evaluated once" in (home / "out" / "README.md").read_text()
    assert exported(home)["metrics"] == meta["metrics"]
    assert len(seen) == 2 and len(read_openings(home / STUDY)) == 1


KILL = """
import os, signal, sys
from study import best
from study.selection import held_out_test as closed_split
score, calls = closed_split.score, []
def killed(*args):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(*args)
closed_split.score = killed
best.main(["garments", "--export", "out"])
"""


def test_an_opening_that_was_cut_off_counts_and_is_told(home: Path, capsys) -> None:
    done = subprocess.run([sys.executable, "-c", KILL], cwd=home, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (opening,) = read_openings(home / STUDY)
    assert "metrics" not in opening and not read_tests(home / STUDY)
    assert read_document(home / STUDY / "tests.json")["tests"] == [opening]
    assert not (home / "out").exists()
    meta = exported(home)
    assert meta["openings"] == 2 and len(read_tests(home / STUDY)) == 1
    assert "test (opened 2 times" in capsys.readouterr().out
    assert "| test, opened 2 times," in (home / "out" / "README.md").read_text()
    assert "was opened" in (home / STUDY / "report.html").read_text()


TOGETHER = """
import sys, time
from pathlib import Path
from study import best
from study.export import handover as winner
from study.selection import held_out_test as closed_split
def meet(place):
    Path(f"{place}-{sys.argv[1]}").touch()
    while len(list(Path().glob(f"{place}-*"))) < 2:
        time.sleep(0.01)
prepare, begin = closed_split.prepare, closed_split.begin_opening
def prepare_together(*args):
    ready = prepare(*args)
    meet("ready")
    return ready
def begin_together(*args):
    opening = begin(*args)
    meet("begun")
    return opening
winner.prepare = prepare_together
if sys.argv[2:]:  # as in an object store
    from contextlib import nullcontext
    closed_split._alone = lambda folder: nullcontext()
    closed_split.begin_opening = begin_together
sys.exit(best.main(["garments", "--export", sys.argv[1]]))
"""


@pytest.mark.parametrize("locks", [True, False])
def test_two_commands_at_once_hide_no_opening(home: Path, locks: bool) -> None:
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, name, *([] if locks else ["none"])],
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for command in commands:
        _, error = command.communicate(timeout=300)
        assert command.returncode == 0, error
    openings = read_openings(home / STUDY)
    assert len(openings) == len(read_tests(home / STUDY)) == (1 if locks else 2)
    assert read_document(home / STUDY / "tests.json")["tests"] == openings
    metas = [json.loads((home / name / "meta.json").read_text()) for name in ("a", "b")]
    assert metas[0]["metrics"] == metas[1]["metrics"]
    assert max(meta["openings"] for meta in metas) == len(openings)


def test_a_trial_that_has_not_ended_is_taken_by_force_and_says_so(home: Path, capsys) -> None:
    meta = exported(home, "--trial", 2, "--force")
    (test,) = read_tests(home / STUDY)
    assert (test["forced"], test["state"], test["epochs"]) == (True, "running", 1)
    assert (meta["forced"], meta["state"], meta["epochs_trained"]) == (True, "running", 1)
    assert "before the trial had ended" in capsys.readouterr().out
    assert "was tested before it ended" in (home / "out" / "README.md").read_text()
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    tags = client.get_run(meta["run_id"]).data.tags
    assert tags["study.test_forced"] == "the trial had not ended"
    # Ended later: its own test is what MLflow has then.
    record = StudyRecord.create_or_continue(
        STUDY.absolute(), StudyRecord.read(STUDY.absolute()).manifest, "go on"
    )
    train(record, 2, DataSource.find("sample"))
    record.close()
    ended = exported(home, "--trial", 2)
    if ended["metrics"] == meta["metrics"]:  # its first epoch stayed the best
        return
    assert not ended["forced"] and ended["openings"] == 1 and len(read_tests(home / STUDY)) == 2
    metrics = client.get_run(ended["run_id"]).data.metrics
    assert metrics["test/accuracy"] == ended["metrics"]["test/accuracy"]


def test_tests_of_an_earlier_version_count(home: Path) -> None:
    meta = exported(home)
    (test,) = read_tests(home / STUDY)
    earlier = {key: test[key] for key in ("why", "trial", "folder", "checkpoint", "checksum")}
    earlier |= {key: test[key] for key in ("size", "time", "metrics", "intervals")}
    shutil.rmtree(home / STUDY / "tests")
    write_document(home / STUDY / "tests.json", {"tests": [earlier]})
    assert exported(home)["metrics"] == meta["metrics"]
    assert read_tests(home / STUDY) == [earlier]
    other = StudyRecord.read(home / STUDY).ranking()
    number = next(one.number for one in other if one.number not in (2, meta["trial"]))
    exported(home, "--trial", number)
    assert read_tests(home / STUDY)[0] == earlier and len(read_tests(home / STUDY)) == 2
    assert len(read_document(home / STUDY / "tests.json")["tests"]) == 2


def test_the_best_trial_s_run_may_have_been_deleted(home: Path, capsys) -> None:
    run_id = exported(home)["run_id"]
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    client.delete_run(run_id)
    assert exported(home)["run_id"] == run_id
    assert client.get_run(run_id).info.lifecycle_stage == "active"


def test_a_store_that_goes_away_after_the_test_costs_nothing(
    home: Path, monkeypatch, capsys
) -> None:
    publish = folder.publish

    def and_lose_the_store(draft: Path, target: Path) -> None:
        publish(draft, target)
        os.rename("mlflow.db", "away.db")
        Path("mlflow.db").mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(folder, "publish", and_lose_the_store)
        assert run("--export", "out") == 1
    captured = capsys.readouterr()
    assert "failed: MLflow was not updated" in captured.err and "Traceback" not in captured.err
    assert "test (evaluated once" in captured.out
    before = read_tests(home / STUDY)
    Path("mlflow.db").rmdir()
    os.rename("away.db", "mlflow.db")
    meta = exported(home)
    assert read_tests(home / STUDY) == before
    metrics = MlflowClient(f"sqlite:///{home}/mlflow.db").get_run(meta["run_id"]).data.metrics
    assert metrics["test/accuracy"] == meta["metrics"]["test/accuracy"]


def test_what_else_is_in_the_folder_stays(home: Path) -> None:
    exported(home)
    (home / "out" / "notes.txt").write_text("mine")
    (home / "out" / "predictions").mkdir()
    (home / "out" / "predictions" / "mask.png").touch()
    (home / "latest").symlink_to("out")
    assert run("--export", "latest") == 0
    assert (home / "out" / "notes.txt").read_text() == "mine" and (home / "latest").is_symlink()
    assert (home / "out" / "predictions" / "mask.png").exists()
    names = {path.name for path in (home / "out").iterdir()}
    assert names == {*folder.OWN, "figures", "notes.txt", "predictions"}
