"""The processes around a study, killed or stopped and continued: no trial is lost, none blamed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import long_only, plugin, run_module, started, toy_study, wait_for
from mlflow.tracking import MlflowClient

from study.records.study_record import StudyRecord
from study.tracking import figure_worker

COMMAND = (
    "tune",
    *toy_study(2, 3),
    "--set",
    "hidden=16",
    "--set",
    "batch_size=128",
)
# What the processes are called, and how their command lines are told apart.
NAMES = {
    "raylet": "raylet/raylet",
    "GCS": "gcs_server",
    "worker": ("ray::StudyTrial", "ray::ResourceTrainable"),  # by what it does at the moment
    "drawing": figure_worker.__name__,
    "agent": "ray::DashboardAgent",
    "environments": "ray::RuntimeEnvAgent",
}
LOOPBACK = "127.0.0.1"


def found(driver: int, name: str) -> psutil.Process | None:
    """Return a process that belongs to a driver, None if it is not there."""
    process = psutil.Process(driver)
    if name == "driver":
        return process
    for child in process.children(recursive=True):
        try:
            text, names = " ".join(child.cmdline()), NAMES[name]
            known = (names,) if isinstance(names, str) else names
            if any(one in text for one in known) and child.status() != "zombie":
                return child
        except psutil.Error:
            continue
    return None


def run_and_strike(
    home: Path, name: str, strike: Callable[[psutil.Process], None], *flags: object
) -> tuple[int, str]:
    """Run a study, strike a process once both trials have saved an epoch; return its end."""
    env = plugin(home)
    record = home / "studies" / "faulty"
    began = [home / "faults" / f"began-{number}" for number in (0, 1)]
    saved = [record / "trials" / f"{number:04d}" / "last.pt" for number in (0, 1)]
    env["PAUSE"] = "0.05"
    with started(*COMMAND, *flags, cwd=home, env=env) as study:
        if name == "drawing":  # it is there when the first trial has ended
            wait_for(lambda: found(study.pid, name) or study.poll() is not None)
        else:
            wait_for(lambda: all(path.exists() for path in (*began, *saved)))
        victim = found(study.pid, name)
        assert victim is not None, (home / "output").read_text()
        strike(victim)
        return study.wait(400), (home / "output").read_text()


def check_complete(home: Path, output: str, blamed: int = 0) -> None:
    """Make sure that the study has all of its trials, once, here and in MLflow."""
    trials = StudyRecord.read(home / "studies" / "faulty").trials()
    assert [trial.state for trial in trials] == ["finished"] * 2, output
    assert [sorted(trial.curve) for trial in trials] == [[1, 2, 3]] * 2, output
    assert sum(len(trial.failures) for trial in trials) == blamed, output
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("faulty")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 3 and {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run.data.tags["study.role"] == "trial":
            history = client.get_metric_history(run.info.run_id, "val/accuracy")
            assert [metric.step for metric in history] == [1, 2, 3]


def kill(victim: psutil.Process) -> None:
    victim.kill()


def while_trials_wait(
    home: Path, act: Callable[[psutil.Process], None]
) -> Callable[[psutil.Process], None]:
    """Return a strike after which no trial gets to its end before the study has noticed it."""

    def strike(victim: psutil.Process) -> None:
        hold = home / "faults" / "hold"
        hold.touch()
        act(victim)
        output = home / "output"
        try:
            wait_for(lambda: "restarting Ray" in output.read_text(), 120)
        finally:
            hold.unlink()

    return strike


def stop(seconds: float) -> Callable[[psutil.Process], None]:
    def strike(victim: psutil.Process) -> None:
        victim.suspend()
        time.sleep(seconds)  # the stimulus itself
        victim.resume()

    return strike


@pytest.mark.parametrize(
    "name",
    [
        "raylet",
        "GCS",
        pytest.param("agent", marks=long_only),
        pytest.param("environments", marks=long_only),
    ],
)
def test_a_ray_that_has_died_is_started_again(tmp_path: Path, name: str) -> None:
    code, output = run_and_strike(tmp_path, name, while_trials_wait(tmp_path, kill))
    assert code == 0, output
    told = [line for line in output.splitlines() if "restarting Ray" in line]
    assert len(told) == 1 and told[0].startswith("Ray's "), output
    assert "Traceback" not in output and "state-dump" not in output, output
    check_complete(tmp_path, output)


@pytest.mark.parametrize("name", ["GCS", pytest.param("raylet", marks=long_only)])
def test_a_ray_that_hangs_is_started_again(tmp_path: Path, name: str) -> None:
    code, output = run_and_strike(
        tmp_path, name, while_trials_wait(tmp_path, psutil.Process.suspend)
    )
    assert code == 0, output
    assert f"Ray's {name} has not answered for 20 s; restarting Ray" in output
    check_complete(tmp_path, output)


@pytest.mark.parametrize("name", ["worker", "drawing"])
def test_a_process_that_is_killed_is_replaced(tmp_path: Path, name: str) -> None:
    code, output = run_and_strike(tmp_path, name, kill)
    assert code == 0 and "restarting Ray" not in output, output
    check_complete(tmp_path, output, blamed=name == "worker")


def test_a_killed_driver_is_continued(tmp_path: Path) -> None:
    code, output = run_and_strike(tmp_path, "driver", kill)
    assert code == -signal.SIGKILL
    done = run_module(*COMMAND, cwd=tmp_path, env=plugin(tmp_path))
    assert done.returncode == 0, done.stderr
    check_complete(tmp_path, output + done.stderr)


@long_only
@pytest.mark.parametrize(
    "name", ["raylet", "GCS", "worker", "drawing", "agent", "environments", "driver"]
)
def test_a_process_that_stands_still_for_a_while_does_no_harm(tmp_path: Path, name: str) -> None:
    code, output = run_and_strike(tmp_path, name, stop(10.0))
    assert code == 0 and "restarting Ray" not in output, output
    check_complete(tmp_path, output)


def test_a_driver_that_stood_still_blames_no_trial_for_its_silence(tmp_path: Path) -> None:
    """Ctrl-Z for longer than a trial may be silent; on the way: what listens, listens here."""

    def strike(driver: psutil.Process) -> None:
        listening = {}
        for process in (driver, *driver.children(recursive=True)):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    listening[process.name(), connection.laddr.port] = connection.laddr.ip
        assert {"raylet", "gcs_server"} <= {name for name, _ in listening}
        open_ones = {k for k, ip in listening.items() if ip.removeprefix("::ffff:") != LOOPBACK}
        assert not open_ones
        stop(35.0)(driver)

    code, output = run_and_strike(tmp_path, "driver", strike, "--trial-timeout", "30s")
    assert code == 0, output
    check_complete(tmp_path, output)


@long_only
def test_a_trial_that_is_too_large_is_halved_and_its_neighbour_is_not(tmp_path: Path) -> None:
    """Ray's memory monitor for real, told that there are 5 GiB more than are in use now."""
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 5 * 2**30) / memory.total
    done = run_module(
        *COMMAND,
        "--set",
        "fault=eats",
        cwd=tmp_path,
        env={
            **plugin(tmp_path),
            **{"EATS": "8192", "RAY_memory_usage_threshold": f"{limit:.3f}"},
            "RAY_memory_monitor_refresh_ms": "100",
        },
    )
    assert done.returncode == 0, done.stderr
    large, small = StudyRecord.read(tmp_path / "studies" / "faulty").trials()
    assert large.micro_batches in (2, 4) and len(large.failures) == large.micro_batches // 2, (
        done.stderr
    )
    assert large.failures[0]["reason"].startswith("out of memory: "), done.stderr
    assert "lower batch_size, image_size" in large.failures[0]["reason"]
    assert small.micro_batches == 1 and small.failures == (), done.stderr
    assert {large.state, small.state} == {"finished"}
