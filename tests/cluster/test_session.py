"""Ray on this machine; that it starts in truth is in all tests of studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from conftest import long_only, plugin, started, wait_for

from study.cluster import session
from study.cluster.node_check import Request, check_node
from study.cluster.resources import Resources
from study.errors import StartError

LOOPBACK = "127.0.0.1"
RESOURCES = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0, concurrent=2)


class Slow:
    """A `ray.init` that takes too long so many times, as Ray 2.60 says it."""

    def __init__(self, times: int, text: str) -> None:
        self.left, self.calls, self.text = times, 0, text

    def __call__(self, **options: Any) -> None:
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise Exception(self.text)


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_ray_is_started_again_where_the_machine_is_busy(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(times, "The current node timed out during startup. This could happen because")
    monkeypatch.setattr(ray, "init", slow)
    if times < 3:
        session.start_ray(RESOURCES)
    else:
        with pytest.raises(StartError, match="in 3 attempts; end other programs"):
            session.start_ray(RESOURCES)
    assert slow.calls == min(times + 1, 3)


def test_what_else_goes_wrong_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", Slow(1, "the version is another one"))
    with pytest.raises(Exception, match="the version is another one"):
        session.start_ray(RESOURCES)


@long_only
def test_workers_of_a_trial_listen_on_loopback(tmp_path: Path) -> None:
    """All that the study's processes listen on, while the workers of a trial train together."""
    env = plugin(tmp_path)
    (tmp_path / "faults" / "hold").touch()
    command = (
        "tune",
        "faulty",
        "--dataset",
        "sample",
        "--search-space",
        "space.yaml",
        "--num-samples",
        1,
        "--epochs",
        1,
        "--set",
        "hidden=16",
        "--workers-per-trial",
        2,
    )
    with started(*command, cwd=tmp_path, env=env) as study:
        wait_for(lambda: (tmp_path / "faults" / "began-0").exists() or study.poll() is not None)
        ours = [psutil.Process(study.pid), *psutil.Process(study.pid).children(recursive=True)]
        listening = {}
        for process in ours:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    listening[process.name(), connection.laddr.port] = connection.laddr.ip
        (tmp_path / "faults" / "hold").unlink()
        assert study.wait(300) == 0, (tmp_path / "output").read_text()
    names = {name for name, _ in listening}
    assert {"raylet", "gcs_server"} <= names
    open_ones = {key[0] for key, ip in listening.items() if ip.removeprefix("::ffff:") != LOOPBACK}
    assert open_ones <= {"ray::RayTrainWorker"}, listening  # torch's store, which cannot be told


def test_without_bash_no_worker_would_start(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(
        task=None, dataset="sample", data_dir="", cache_dir="", storage=None, gpus=0.0
    )
    assert not any("bash" in problem for problem in check_node(request).problems)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StartError, match="bash, which is not on PATH"):
        session.start_ray(RESOURCES)
    assert any("bash" in problem for problem in check_node(request).problems)
