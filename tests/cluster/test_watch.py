"""Noticing that Ray is dead or silent; what it does to a study is in test_ray_processes.py."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys

import psutil
import pytest

from study.cluster import watch as ray_watch
from study.cluster.watch import RayWatch


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> str:
    """A place that takes a connection and never says a word; nothing else is watched."""
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(ray_watch, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(ray_watch, "_addresses", lambda: {"raylet": address})
    monkeypatch.setattr(ray_watch, "_processes", lambda dashboard: {})
    monkeypatch.setattr(ray_watch, "_kept", server, raising=False)  # open as long as the test
    return address


@pytest.mark.parametrize("local", [True, False])
def test_silence_is_counted_in_questions(local: bool, silent: str) -> None:
    told: queue.Queue[str] = queue.Queue()
    watch = RayWatch(told.put, local=local, dashboard=False)
    why = told.get(timeout=60)
    watch.close()
    where = "" if local else f" at {silent}"
    questions = ray_watch.NUM_SILENT if local else ray_watch.NUM_SILENT_CLUSTER
    assert why == f"Ray's raylet{where} has not answered for {questions * 0.2:.0f} s"
    assert told.empty(), "told once"


def test_a_real_ray_s_limits_are_below_its_own() -> None:
    # After 60 s without GCS Ray ends the process that asks.
    assert ray_watch.NUM_SILENT * (ray_watch.ASK_SECONDS + 1) < 30
    assert ray_watch.NUM_SILENT_CLUSTER * (ray_watch.ASK_SECONDS + 1) < 60


@pytest.mark.parametrize("asked", [True, False])
def test_a_dead_process_is_told_by_a_question_and_without_one(
    asked: bool, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = {"raylet": psutil.Process(process.pid)}
    monkeypatch.setattr(ray_watch, "_addresses", dict)
    monkeypatch.setattr(ray_watch, "_processes", lambda dashboard: known)
    monkeypatch.setattr(ray_watch, "LOOK_SECONDS", 3600.0 if asked else 0.05)
    told: queue.Queue[str] = queue.Queue()
    watch = RayWatch(told.put, local=True, dashboard=False)
    watch.check()
    assert told.empty()
    process.kill()  # and not waited for: a zombie is dead, too
    if asked:
        process.wait()
        watch.check()
    assert told.get(timeout=60) == "Ray's raylet has died"
    watch.close()
    watch.check()
    assert told.empty()
    process.wait()
