"""How a study stands, from its folder alone."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from begun import begin
from conftest import Finished, run_module
from recorded import COMMAND, MANIFEST, four_trials
from terminal import terminal

from study.cli import run_command
from study.records.run_options import RunOptions
from study.records.study_record import StudyRecord
from study.reporting.progress import Progress
from study.reporting.snapshot import lines, snapshot, time_left
from study.search.asha import Rungs
from study.search.simulation import Outlook
from study.search.stopping_rule import StoppingRule
from study.status import main, read_status
from study.storage.paths import as_path


@pytest.fixture
def record(tmp_path: Path) -> Iterator[StudyRecord]:
    opened = four_trials(tmp_path / "studies" / "s")
    yield opened
    opened.close()


def state_of(record: StudyRecord) -> dict[str, Any]:
    return json.loads(json.dumps(read_status(record.path)))


def test_status_says_what_the_record_knows(record: StudyRecord) -> None:
    state = state_of(record)
    assert state["num_samples"] == 6 and state["epochs_done"] == 14
    assert state["trials"] == {"finished": 1, "stopped": 1, "failed": 1, "running": 1}
    assert state["best"]["trial"] == 3 and state["best"]["value"] == 0.7
    assert state["best"]["so_far"] == sorted(state["best"]["so_far"])
    (running,) = state["running"]
    assert (running["trial"], running["epoch"], running["next_rung"]) == (3, 2, 4)
    assert 0 <= running["last_report"] < 90 and running["curve"] == [0.2, 0.7]
    assert state["rungs"] == [
        {"epoch": 2, "reached": 3, "stopped": 1},
        {"epoch": 4, "reached": 1, "stopped": 0},
        {"epoch": 8, "reached": 1, "stopped": 0},
    ]
    assert state["failures"] == {"loss is\nnot finite \x1b[2J": 1}
    assert state["tried_again"] == {"its process died": 1}


def test_whether_a_driver_lives(record: StudyRecord) -> None:
    driver = state_of(record)["driver"]
    assert driver == {"host": driver["host"], "pid": os.getpid(), "alive": True, "heard": None}
    record.close()
    state = state_of(record)
    assert state["driver"]["alive"] is False and state["left"] is None
    (record.path / "driver.json").write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    assert state_of(record)["driver"] == {
        **{"host": "elsewhere", "pid": 7, "alive": None, "heard": None}
    }


def test_the_time_left_is_that_of_the_trials_to_come(record: StudyRecord) -> None:
    left = state_of(record)["left"]
    # Trial 3 has seven epochs left at most, two new ones nine each; one at a time, 3 s each.
    assert 0 < left["epochs"] <= 25 and left["low"] <= left["seconds"] <= left["high"]
    assert left["seconds"] <= 3 * 25 + 1
    full = time_left(record, StoppingRule(num_samples=6, asha=None))
    assert full is not None and sum(full.reached) == 25
    more = time_left(record, StoppingRule(num_samples=60, asha=(2, 2.0)))
    assert more is not None and more.seconds > 5 * left["seconds"]
    assert time_left(record, StoppingRule(num_samples=3, asha=None)) is None
    assert time_left(record, None) is None


def test_a_look_ahead_costs_the_same_however_many_trials_are_left(
    record: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    passes = Rungs.passes
    monkeypatch.setattr(Rungs, "passes", lambda self, *args: asked.append(1) or passes(self, *args))
    few = time_left(record, StoppingRule(num_samples=500, asha=(2, 2.0)))
    steps = len(asked)
    many = time_left(record, StoppingRule(num_samples=10**8, asha=(2, 2.0)))
    assert few and many and many.seconds > 10**5 * few.seconds
    assert steps <= len(asked) - steps < 2 * steps + 30_000
    assert time_left(record, StoppingRule(num_samples=math.inf, asha=(2, 2.0))) is None


def test_a_study_without_a_number_of_trials_says_when_its_time_budget_ends(
    record: StudyRecord,
) -> None:
    options = RunOptions(task="facade", num_samples=math.inf, time_budget=7200)
    record.manifest["starts"][-1]["options"] = options.describe()
    asked = StoppingRule.of_last_start(record.manifest)
    assert asked is not None and asked.unlimited and asked.budget == 7200
    state = json.loads(json.dumps(snapshot(record, asked, None), allow_nan=False))
    assert state["num_samples"] is None and 7000 < state["budget_left"] <= 7200
    text = lines(state, 120)
    assert text[0].startswith("s (SAMPLE DATA): 3 trials (")
    ends = r"14 done, the time budget ends in (2 h 0|1 h 59) min"
    assert re.search(ends, "\n".join(text))
    said = Progress(record, asked).summary()
    assert "3 trials, 1 stopped" in said and "the time budget ends in" in said
    # A number that cannot be reached in time is no better.
    many = dataclasses.replace(asked, num_samples=10**6)
    outlook = time_left(record, many)
    assert "the time budget ends in" in "\n".join(lines(snapshot(record, many, outlook), 120))


def test_who_tells_of_an_ended_trial_waits_for_no_simulation(
    record: StudyRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's callback does, on the main thread, which hears the signals."""
    simulating, go_on = threading.Event(), threading.Event()

    def simulated(*args: object) -> None:
        simulating.set()
        assert go_on.wait(60)

    monkeypatch.setattr("study.reporting.progress.time_left", simulated)
    with Progress(record, StoppingRule(num_samples=10**8, asha=None)) as progress:
        progress.ended(record.trial(0))  # would wait for ever
        assert simulating.wait(60)
        progress.ended(record.trial(1))
        go_on.set()
    said = capsys.readouterr().err.splitlines()
    assert [row[:9] for row in said if row.startswith("trial")] == ["trial   0", "trial   1"]
    assert "3/100000000 trials" in said[-1]


def test_a_plain_summary_has_the_same_time_left(record: StudyRecord) -> None:
    asked = StoppingRule(num_samples=4, asha=None)
    progress, expected = Progress(record, asked), time_left(record, asked)
    assert expected is not None and expected.seconds > 20.9  # trial 3 has seven epochs of 3 s left
    said = progress.summary()
    found = re.search(r"3/4 trials.*, about (\d+) s left", said)
    assert found and abs(int(found[1]) - expected.seconds) <= 1, said
    record.end(3, "stopped")
    progress.ended(record.trial(3))
    assert "left" not in progress.summary()


@pytest.mark.parametrize("width", [60, 120])
def test_lines_fit_and_move_no_cursor(record: StudyRecord, width: int) -> None:
    outlook = Outlook(reached=(1.0,), seconds=100.0, low=50.0, high=5000.0)
    text = lines(snapshot(record, StoppingRule(num_samples=6, asha=(2, 2.0)), outlook), width)
    assert max(map(len, text)) <= width and all(row.isprintable() for row in text)
    first = "s (SAMPLE DATA): 3/6 trials (1 finished, 1 stopped, 1 failed, 1 running)"
    assert text[0] == first[:width]
    whole = "".join(text)
    assert "1 min 40 s" in whole and "epoch 2: 2/3, 4: 1/1, 8: 1/1 continued" in whole
    assert any(row.startswith("trial   3  ███░") for row in text)


def test_a_command_of_another_version_hides_only_what_it_asked_for(tmp_path: Path) -> None:
    command = "python -m study.tune s --unknown-flag"
    record = four_trials(tmp_path / "s", command)
    assert (
        StoppingRule.of_last_start(record.manifest) is None
        and StoppingRule.of_last_start({}) is None
    )
    assert lines(snapshot(record, None, None), 100)[0].startswith("s (SAMPLE DATA): 3 trials")
    record.close()


def test_a_study_in_an_object_store(bucket: str) -> None:
    record = four_trials(as_path(f"{bucket}/status/s"))
    driver = state_of(record)["driver"]
    assert driver["alive"] is True and driver["pid"] == os.getpid() and driver["heard"] < 20
    record.close()
    assert state_of(record)["driver"]["alive"] is False


def write_for(path: Path, seconds: float) -> None:
    record = StudyRecord.create_or_continue(path, json.loads(json.dumps(MANIFEST)), COMMAND)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        number = begin(record).number
        for epoch in range(1, 10):
            record.report(number, {"epoch": epoch, "val/mean_ap": 0.1, "ended": time.time()})
        record.end(number, "finished")
    record.close()


def test_it_reads_while_the_driver_writes(tmp_path: Path) -> None:
    path = tmp_path / "studies" / "s"
    writer = multiprocessing.get_context("spawn").Process(target=write_for, args=(path, 3.0))
    writer.start()
    seen = []
    while writer.is_alive():
        if (path / "study.json").exists():
            seen.append(sum(state_of(StudyRecord.read(path))["trials"].values()))
    writer.join()
    assert writer.exitcode == 0 and len(seen) > 3 and seen == sorted(seen)


def test_the_command_of_a_study_that_ended(finished: Finished) -> None:
    done = run_module("status", cwd=finished.home)
    assert done.returncode == 0 and "driver   not running" in done.stdout, done.stderr
    assert "fashion (SAMPLE DATA): 8/8 trials" in done.stdout
    watched = run_module("status", "--json", "--watch", "fashion", cwd=finished.home)
    (line,) = watched.stdout.splitlines()
    assert json.loads(line)["trials"]["running"] == 0


def test_watching_replaces_what_it_showed(record: StudyRecord) -> None:
    home = record.path.parent.parent
    with terminal("study.status", "--watch", "--every", 0.1, cwd=home, columns=80) as running:
        running.wait_for("\x1b[J" * 1)
        for _ in range(12):
            running.read(0.3)
        record.close()
        assert running.wait(30) == 0
    assert running.seen.count("driver   running") > 1
    assert running.screen.text.count("driver") == 1 and "not running" in running.screen.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["x"], "there is no study 'x'"),
        (["--studies-dir", "nowhere"], "there is no study in"),
        (["--watch", "--every", "-1"], "--every must be 0.1 to 86400 seconds"),
        (["--every", "1"], "--every needs --watch"),
    ],
)
def test_mistakes(record: StudyRecord, monkeypatch, capsys, flags, message: str) -> None:
    monkeypatch.chdir(record.path.parent.parent)
    assert run_command(lambda: main(flags)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_help_and_status_import_nothing_heavy(record: StudyRecord) -> None:
    code = (
        "import sys\nfrom study.status import main\nmain([])\n"
        "assert not {'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules)"
    )
    home = record.path.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
