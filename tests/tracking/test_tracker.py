"""Tracking while the server is away, and while two studies write to one store."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from conftest import LONG, long_only, plugin, run_module, started, toy_study, wait_for
from mlflow.tracking import MlflowClient
from mlflow_server import free_port, server

from study.records.study_record import StudyRecord

AWAY_SECONDS = 60 if LONG else 10


def check_complete(uri: str, record: StudyRecord, num_trials: int) -> None:
    """Compare what is in MLflow with the record."""
    store = MlflowClient(uri)
    experiment = store.get_experiment_by_name(record.manifest["study"])
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id], "tags.`study.role` = 'trial'")
    runs.sort(key=lambda run: int(run.data.tags["study.trial"]))
    trials = record.trials()
    assert len(runs) == len(trials) == num_trials
    for run, trial in zip(runs, trials, strict=True):
        expected = {"finished": "FINISHED", "stopped": "KILLED"}[trial.state]
        assert run.info.status == expected and run.data.params["seed"]
        for name in trial.metrics:
            history = store.get_metric_history(run.info.run_id, name)
            assert [metric.step for metric in history] == list(range(1, trial.epochs + 1))
            assert {m.step: m.value for m in history} == {
                int(row["epoch"]): row[name] for row in trial.history
            }
        assert store.list_artifacts(run.info.run_id, "figures")


def test_a_server_that_is_away_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = (
        "tune",
        *toy_study(4, 6),
        "--set",
        "hidden=16",
        "--tracking-uri",
        uri,
    )
    env = {**plugin(tmp_path), "PAUSE": str(AWAY_SECONDS / 450)}
    trials = tmp_path / "studies" / "faulty" / "trials"
    with started(*command, cwd=tmp_path, env=env) as study:
        assert study.wait(60) == 2, "a new study needs the server"
    assert "does not answer" in (tmp_path / "output").read_text()
    with contextlib.ExitStack() as stack:
        with server(tmp_path, port):
            study = stack.enter_context(started(*command, cwd=tmp_path, env=env))
            wait_for(lambda: list(trials.glob("*/last.pt")))
        epochs = [record_epochs(tmp_path)]
        time.sleep(AWAY_SECONDS)
        epochs.append(record_epochs(tmp_path))
        assert epochs[1] > epochs[0], "training goes on"
        held = tmp_path / "faults" / "hold"  # a server that starts slowly is not missed
        held.touch()
        with server(tmp_path, port):
            held.unlink()
            assert study.wait(300) == 0, (tmp_path / "output").read_text()
            check_complete(uri, StudyRecord.read(tmp_path / "studies" / "faulty"), 4)
    text = (tmp_path / "output").read_text()
    assert "training continues and everything is sent later" in text and "tracking is back" in text
    assert "Traceback" not in text


def record_epochs(home: Path) -> int:
    return sum(t.epochs for t in StudyRecord.read(home / "studies" / "faulty").trials())


@long_only
def test_a_study_goes_on_and_ends_without_a_server_and_the_next_command_sends_all(
    tmp_path: Path,
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = (
        "tune",
        *toy_study(2, 2),
        "--set",
        "hidden=16",
        "--tracking-uri",
        uri,
    )
    env = plugin(tmp_path)
    trials = tmp_path / "studies" / "faulty" / "trials"
    with contextlib.ExitStack() as stack:
        slow = {**env, "PAUSE": "0.1"}
        with server(tmp_path, port):
            study = stack.enter_context(started(*command, cwd=tmp_path, env=slow))
            wait_for(lambda: list(trials.glob("*/last.pt")))
        study.send_signal(signal.SIGINT)
        assert study.wait(20) == 130
    done = run_module(*command, cwd=tmp_path, env=env)
    assert done.returncode == 0 and "The study continues; the rest is sent later" in done.stderr
    assert "tracking is not complete" in done.stderr and "Traceback" not in done.stderr
    with server(tmp_path, port):
        last = run_module(*command, cwd=tmp_path, env=env)
        assert last.returncode == 0 and "has its 2 trials" in last.stderr
        check_complete(uri, StudyRecord.read(tmp_path / "studies" / "faulty"), 2)


def test_two_studies_at_once_on_one_store(tmp_path: Path) -> None:
    port = free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = ["start", "--head", "--num-cpus=8", f"--port={port}", "--include-dashboard=false"]
    variables = {**os.environ, "RAY_TMPDIR": "/tmp", "PYTHONPATH": plugin(tmp_path)["PYTHONPATH"]}
    cluster = subprocess.Popen(
        [*ray, *start, "--node-ip-address=127.0.0.1", "--block"],
        env={**variables, "FAULTS": str(tmp_path / "faults")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: reached(port))
        command = (
            "tune",
            "faulty",
            "--dataset",
            "sample",
            "--num-samples",
            6,
            "--epochs",
            2,
            "--search-space",
            "space.yaml",
            "--cpus-per-worker",
            1,
            "--max-concurrent",
            4,
            "--set",
            "hidden=16",
            "--address",
            f"127.0.0.1:{port}",
        )
        env = plugin(tmp_path)
        with (
            started(*command, "--name", "one", cwd=tmp_path, env=env) as one,
            started(*command, "--name", "two", "--seed", 9, cwd=tmp_path, env=env) as two,
        ):
            assert [one.wait(300), two.wait(300)] == [0, 0], (tmp_path / "output").read_text()
    finally:
        cluster.terminate()
        cluster.wait(60)
    text = (tmp_path / "output").read_text()
    assert "locked" not in text and "Traceback" not in text and "WARNING" not in text
    assert text.count("4 at a time") == 2
    for name in ("one", "two"):
        record = StudyRecord.read(tmp_path / "studies" / name)
        check_complete(f"sqlite:///{tmp_path / 'mlflow.db'}", record, 6)


def reached(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
