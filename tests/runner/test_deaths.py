"""What becomes of a trial that Ray ended: whose fault it was, and what is waited for."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from begun import begin
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from recorded import open_record, report

from study.records.study_record import StudyRecord
from study.runner import callbacks, deaths, driver_clock
from study.runner.callbacks import StudyCallback
from study.runner.deaths import Death
from study.runner.driver_clock import DriverClock
from study.runner.faults import MemoryKill, reason_of
from study.runner.stopping import Stopping

OWN, OTHER = "6dc9acaace0a5f680906fd2a01000000", "82ce96e0bdd82846c2778d1601000000"


def told(own: float, other: float, browser: float = 0.1, also: bool = False) -> str:
    """Return what Ray 2.60 says when it has ended `OWN`, and perhaps `OTHER`, for memory."""
    line = (
        "(Actor({}): job ID=01000000, lease ID=01000000df86, task name=T.__init__, required "
        "resources={{CPU_group_0_c285: 1, bundle_group_c285: 0.001}}, pid={}, actual memory "
        "used={:.2f}GB, worker ID=2b69f295521e)\n"
    )
    selected = "Selected to kill: "
    return (
        "Failure # 1 (occurred at 2026-11-27_08-30-01)\n"
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
        "127.0.0.1, ID: 1507d8) was 14.96GB used / 15.54GB limit (0.960840)\n"
        "OOM kill reason: Memory usage 5329285120B exceeded threshold of 5308065280B\n"
        "Ray killed 1 worker(s) based on the killing policy\nConsidered workers: [\n"
        + selected
        + line.format(OWN, 9634, own)
        + (selected if also else "")
        + line.format(OTHER, 9633, other)
        + "]\nTotal non-selected idle workers: 0\n"
        "To see more information about memory usage on this node, use `ray logs raylet.out`\n"
        "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n"
        f"9634\t{own:.2f}\tray::T.train\n9633\t{other:.2f}\tray::T.train\n"
        f"77\t{browser:.2f}\tfirefox\n\n"
        "Refer to the documentation on how to address the out of memory issue: https://docs.ray.io\n"
    )


@pytest.mark.parametrize(
    ("own", "other", "browser", "also", "blamed"),
    [
        (9.0, 1.0, 0.1, False, True),
        (1.0, 9.0, 0.1, False, False),
        (1.0, 9.0, 0.1, True, False),  # both were ended; each is judged by its own
        (4.5, 5.0, 0.1, False, True),  # alike: both are too large
        (1.0, 0.5, 8.0, False, False),  # a program that is not Ray's
    ],
)
def test_who_is_to_blame_for_a_want_of_memory(
    own: float, other: float, browser: float, also: bool, blamed: bool
) -> None:
    kill = MemoryKill.of(told(own, other, browser, also), OWN)
    assert kill is not None
    assert (kill.own, kill.largest) == (own, max(other, browser))
    assert (kill.used, kill.limit, kill.blamed) == (14.96, 15.54, blamed)
    assert len(str(kill).splitlines()) == 1 and "--max-concurrent" in str(kill)
    assert ("batch_size, image_size" in str(kill)) == blamed


def test_of_a_group_of_workers_the_largest_that_was_ended_is_judged() -> None:
    kill = MemoryKill.of(told(1.0, 9.0, also=True))
    assert kill is not None and kill.own == 9.0 and kill.blamed
    assert MemoryKill.of("CUDA out of memory") is None
    assert reason_of(RuntimeError(told(9.0, 1.0))).startswith("out of memory: 15.0 of 15.5 GB")


class Watched:
    """What a callback tells, kept."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.record: StudyRecord = open_record(path / "study")
        begin(self.record)
        begin(self.record)
        self.said: list[str] = []
        self.dead: list[str] = []
        self.stopping = Stopping(None)
        monkeypatch.setattr(callbacks, "logs_folder", lambda: "/tmp/ray/logs")
        tracker: Any = types.SimpleNamespace(touch=lambda number: None)
        progress: Any = types.SimpleNamespace(
            say=self.said.append, epoch=lambda *a: None, ended=lambda trial: None
        )
        watch: Any = types.SimpleNamespace(check=lambda: None, dead=self.dead.append)
        given = {"local": True, "concurrent": 2, "max_failures": 2, "keep": 1, "timeout": 60.0}
        self.callback = StudyCallback(
            self.record, tracker, progress, None, self.stopping, watch, **{**given, **changes}
        )
        self.file, self.pickled = path / "error.txt", path / "error.pkl"
        self.trial = self.ray_trial(0)

    def ray_trial(self, number: int, status: str = "RUNNING") -> Any:
        """Return a trial as Ray Tune has it."""
        actor = types.SimpleNamespace(_actor_id=types.SimpleNamespace(hex=lambda: OWN))
        return types.SimpleNamespace(
            config={"trial": number, "workers": 1},
            status=status,
            error_file=str(self.file),
            pickled_error_file=str(self.pickled),
            max_failures=-1,
            temporary_state=types.SimpleNamespace(ray_actor=actor),
        )

    def fails(self, text: str) -> None:
        """Have trial 0 start and fail."""
        self.file.write_text(text)
        self.callback.on_trial_start(0, [self.trial], self.trial)
        self.callback.on_trial_recover(0, [self.trial], self.trial)


def test_a_trial_that_never_fits_is_halved_once_a_try_and_fails_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Watched(tmp_path, monkeypatch)
    for parts in (2, 4):
        study.fails(told(9.0, 1.0))
        assert study.record.trial(0).micro_batches == parts
        assert study.record.trial(0).state == "running"
    study.fails(told(9.0, 1.0))
    trial = study.record.trial(0)
    assert trial.state == "failed" and trial.micro_batches == 4
    assert trial.reason == (
        "out of memory: 15.0 of 15.5 GB in use, 9.0 GB by its process; lower batch_size, "
        "image_size or --max-concurrent (tried 3 times)"
    )
    assert study.trial.max_failures == 0, "Ray starts its process no more"
    study.fails(told(9.0, 1.0))  # of the last process, which finds that the trial has ended
    assert study.record.trial(0) == trial


def test_a_trial_beside_a_large_one_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Watched(tmp_path, monkeypatch)
    for _ in range(callbacks.NUM_CROWDED - 1):
        study.fails(told(1.0, 9.0))
    trial = study.record.trial(0)
    assert (trial.state, trial.micro_batches, trial.failures) == ("running", 1, ())
    assert study.trial.config["pause"] > 0 and study.stopping.why is None
    assert len(study.said) == 1 and "(another used 9.0 GB)" in study.said[0]
    study.fails(told(1.0, 9.0))  # it is never given room
    assert study.stopping.why is not None and "--max-concurrent" in study.stopping.why
    assert study.stopping.exit_code == 1 and study.record.trial(0).state == "running"


@pytest.mark.parametrize(
    ("error", "reason", "cause"),
    [
        (ActorDiedError(), "its process died", "died"),
        (ActorUnavailableError("no route", None), "its process or machine was lost", "lost"),
        (
            RayActorError(error_msg="The node was running low on memory."),
            "its process ran out of memory",
            "out_of_memory",
        ),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error", "error"),
        (MemoryError(), "MemoryError", "out_of_memory"),
    ],
)
def test_why_a_process_ended_is_told_by_the_type_of_ray_s_error(
    error: Exception, reason: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Watched(tmp_path, monkeypatch)
    if not isinstance(error, RayActorError):  # raised by the trial itself
        text = f"ray::T.train()\n{reason}"
        error = RayTaskError("train", text, error).as_instanceof_cause()
    study.file.write_text(f"Failure # 1 (occurred at noon)\n{error}\n")
    study.pickled.write_bytes(cloudpickle.dumps(error))
    assert Death.of(study.trial, OWN) == Death(reason=reason, cause=cause)
    study.file.write_text(f"Failure # 1 (at)\n{error}\nFailure # 2 (at)\nTuneError: another\n")
    assert Death.of(study.trial, OWN) == Death(reason="TuneError: another", cause="error")
    study.pickled.write_bytes(b"of a class that is not here")
    assert Death.of(study.trial, OWN).reason == "TuneError: another"


def test_failures_count_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Watched(tmp_path, monkeypatch)
    for epoch in (1, 2, 3):
        for _ in range(2):
            study.fails("Failure # 1\nOSError: Input/output error")
        row = {"val/mean_ap": 0.5, "epoch": epoch}
        study.callback.on_trial_result(0, [], study.trial, {"epoch": epoch, "metrics": row})
    assert len(study.record.trial(0).failures) == 6
    assert study.record.trial(0).state != "failed"


def test_what_the_driver_slept_through_is_no_silence_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(driver_clock.time, "monotonic", lambda: now[0])
    clock = DriverClock()
    for seconds in (0.1, 3600.0, 0.1):
        now[0] += seconds
        clock.tick()
    assert clock.now == pytest.approx(0.2 + driver_clock.MOST_SECONDS)


@pytest.mark.parametrize("local", [True, False])
def test_a_process_that_does_not_start_is_told(
    local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Watched(tmp_path, monkeypatch, local=local)
    trials = [study.ray_trial(0), study.ray_trial(1, "PENDING")]
    study.callback.on_trial_start(0, trials, trials[0])
    study.callback.clock.now += callbacks.START_SECONDS - 10
    study.callback.heard[0] = study.callback.clock.now  # trial 0 trains
    study.callback.on_step_begin(0, trials)
    assert not study.dead and not study.said
    study.callback.clock.now += 20
    study.callback.on_step_begin(0, trials)
    assert len(study.dead if local else study.said) == 1
    assert "no trial process has started for 3 min" in (study.dead + study.said)[0]
    assert study.dead == [] or "/tmp/ray/logs" in study.dead[0]


def test_the_last_trial_alone_is_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Watched(tmp_path, monkeypatch)
    report(study.record, 1, 0.1)
    trials = [study.ray_trial(0), study.ray_trial(1, "TERMINATED")]
    study.callback.on_trial_start(0, trials, trials[0])
    study.callback.clock.now += 2 * callbacks.START_SECONDS
    study.callback.heard[0] = study.callback.clock.now
    study.callback.on_step_begin(0, trials)
    assert not study.dead and not study.said


def test_ray_tune_survives_the_end_of_an_actor_for_want_of_memory() -> None:
    """Ray 2.60 ends the whole study with a RuntimeError otherwise."""
    deaths.take_memory_kills_as_deaths()
    deaths.take_memory_kills_as_deaths()  # twice is as once
    errors: list[Exception] = []
    actor: Any = types.SimpleNamespace(
        actor_id=1, _on_error=lambda actor, error: errors.append(error), _on_start=None
    )
    task: Any = types.SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager: Any = object.__new__(RayActorManager)
    manager._failed_actor_ids = set()
    manager._cleanup_actor = lambda tracked_actor: None
    # By name, as Ray's own code calls it.
    memory = OutOfMemoryError(told(9.0, 1.0))
    manager._actor_task_failed(tracked_actor_task=task, exception=memory)
    assert isinstance(errors[0], RayActorError) and MemoryKill.of(str(errors[0])) is not None
    with pytest.raises(RuntimeError, match="unexpected"):
        manager._actor_task_failed(tracked_actor_task=task, exception=KeyError("another"))
