"""Stopping a study: what is saved, how fast, and what the next command makes of it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import long_only, plugin, run_module, started, toy_study, wait_for
from mlflow.tracking import MlflowClient

from study.datasets.source import DataSource
from study.errors import DamagedFile
from study.records import checkpoint
from study.records.study_record import StudyRecord
from study.tasks.fashion import TASK, FashionConfig
from study.training.loop import Interrupted, fit

COMMAND = (
    "tune",
    *toy_study(3, 2),
    "--max-concurrent",
    2,
    "--set",
    "hidden=16",
)
SLOW = {"PAUSE": "0.3"}  # an epoch takes about ten seconds
EXIT = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "budget": 0}


def trials_run(home: Path) -> bool:
    """Whether two trials are at work."""
    return len(list((home / "faults").glob("began-*"))) == 2


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", pytest.param("budget", marks=long_only)])
def test_stopping_saves_what_runs_and_the_same_command_goes_on(
    tmp_path: Path, sample: DataSource, how: str
) -> None:
    env = plugin(tmp_path)
    budget = ("--time-budget", "26s") if how == "budget" else ()
    with started(*COMMAND, *budget, cwd=tmp_path, env={**env, **SLOW}) as study:
        begun = time.monotonic() + 26
        if how != "budget":
            wait_for(lambda: trials_run(tmp_path))
            time.sleep(1)
            begun = time.monotonic()
            study.send_signal(signal.Signals[how])
        code = study.wait(60)
        elapsed = time.monotonic() - begun
    text = (tmp_path / "output").read_text()
    assert code == EXIT[how] and elapsed < 20, text
    assert "Traceback" not in text and "continue with: python -m study.tune faulty" in text
    folders = [tmp_path / "studies" / "faulty" / "trials" / f"{n:04d}" for n in range(2)]
    parts = [checkpoint.load(folder / "last.pt")["part"] for folder in folders]
    assert all(part["sums"][-1] > 0 for part in parts), "saved in the middle of an epoch"
    store = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = store.search_runs(["1"])
    assert len(runs) == 3 and {run.info.status for run in runs} == {"KILLED"}
    children = [run for run in runs if run.data.tags["study.role"] == "trial"]
    assert {run.data.tags["study.resumable"] for run in children} == {"true"}

    done = run_module(*COMMAND, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    trials = StudyRecord.read(tmp_path / "studies" / "faulty").trials()
    assert [trial.state for trial in trials] == ["finished"] * 3
    for run in store.search_runs(["1"], "tags.`study.role` = 'trial'"):
        assert run.info.status == "FINISHED"
        history = store.get_metric_history(run.info.run_id, "val/accuracy")
        assert [metric.step for metric in history] == [1, 2]
    # The trial gives what it would have given without the stop, bit for bit.
    torch.set_num_threads(1)
    whole = StudyRecord.read(tmp_path / "studies" / "faulty").config(trials[0])
    config = FashionConfig(**{k: v for k, v in whole.items() if k not in ("fault", "cycle")})
    expected = list(fit(TASK, config, sample))[-1]
    state = checkpoint.load(folders[0] / "last.pt")
    for name, tensor in expected.state["network"].items():
        assert torch.equal(state["network"][name], tensor)
    assert state["history"][-1]["train/loss"] == expected.metrics["train/loss"]


def test_a_study_of_any_number_of_trials_hears_signals_and_its_time_budget(
    tmp_path: Path, sample: DataSource
) -> None:
    env = plugin(tmp_path)
    study = (*COMMAND[:3], "sample", "--epochs", 1, *COMMAND[8:])
    trials = tmp_path / "studies" / "faulty" / "trials"
    with started(*study, "--num-samples", 10**8, cwd=tmp_path, env=env) as process:
        wait_for(lambda: (trials / "0004").exists())  # so that others ended, and were told of
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    text = (tmp_path / "output").read_text()
    assert code == 143 and "of up to 1 epochs" in text and "/100000000 trials, " in text, text

    begun = len(list(trials.iterdir()))
    budget = ("--num-samples", "inf", "--time-budget", "15s")
    done = run_module(*study, *budget, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "an unlimited number of trials of up to 1 epochs" in done.stderr
    assert (
        "the time budget of 15 s is used up\nto continue for as long again: python -m"
        in done.stderr
    )
    assert len(list(trials.iterdir())) >= begun
    store = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = store.search_runs(["1"], "tags.`study.role` = 'study'")
    assert run.info.status == "FINISHED"


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    env = plugin(tmp_path)
    with started(*COMMAND, cwd=tmp_path, env={**env, "PAUSE": "30"}) as study:
        wait_for(lambda: trials_run(tmp_path))
        study.send_signal(signal.SIGINT)
        time.sleep(1)
        begun = time.monotonic()
        study.send_signal(signal.SIGINT)
        assert study.wait(20) == 130
        assert time.monotonic() - begun < 3
    with pytest.raises(DamagedFile):  # batches of 30 s leave nothing to save in one
        checkpoint.load(tmp_path / "studies" / "faulty" / "trials" / "0000" / "last.pt")


def test_a_trial_goes_on_in_the_middle_of_an_epoch(sample: DataSource) -> None:
    config = FashionConfig(epochs=2, width1=4, width2=4, hidden=16, batch_size=64)
    whole = list(fit(TASK, config, sample))
    for batches in (0, 7, 45):  # the last is after training, in validation
        asked = iter([False] * batches)
        steps = fit(TASK, config, sample, stop=lambda asked=asked: next(asked, True))
        with pytest.raises(Interrupted) as interrupted:
            list(steps)
        rest = list(fit(TASK, config, sample, resume=interrupted.value.state))
        for name, tensor in whole[-1].state["network"].items():
            assert torch.equal(rest[-1].state["network"][name], tensor), batches
        for result, expected in zip(rest[::-1], whole[::-1], strict=False):
            for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
                assert result.metrics[name] == expected.metrics[name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_the_study_and_after_space_is_made_it_goes_on(
    tmp_path: Path, small_disk: Path
) -> None:
    env = plugin(tmp_path)
    ballast = small_disk / "ballast"
    command = (*COMMAND[:-2], "--set", "hidden=128", "--studies-dir", "disk")  # 0.3 MB a checkpoint
    ballast.write_bytes(bytes(1_200_000))
    full = run_module(*command, cwd=tmp_path, env=env)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "No space left on device" in full.stderr and "free some space" in full.stderr
    assert "continue with: python -m study.tune faulty" in full.stderr
    before = StudyRecord.read(small_disk / "faulty").trials()
    assert before and "failed" not in {trial.state for trial in before}, "no trial's fault"
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    done = run_module(*command, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    trials = StudyRecord.read(small_disk / "faulty").trials()
    assert [trial.state for trial in trials] == ["finished"] * 3
    for earlier, trial in zip(before, trials, strict=False):
        assert trial.history[: earlier.epochs] == earlier.history
    store = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for run in store.search_runs(["1"], "tags.`study.role` = 'trial'"):
        history = store.get_metric_history(run.info.run_id, "val/accuracy")
        assert [metric.step for metric in history] == [1, 2]
