"""cluster.yaml for real: `ray up` of two machines over SSH, a study on them, `ray down`.

The machines are namespaces (machines.py). The file is cluster.yaml with its provider replaced; all
commands are the same, and the packages are really installed, from wheels fetched once before
(STUDY_WHEELS names a folder to keep them in).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, long_only, wait_for
from machines import Machines, missing

RAY = Path(sys.executable).parent / "ray"
HEAD, WORKER = "10.77.0.2", "10.77.0.3"
STUDY = (
    "python -m study.tune fashion --dataset sample --num-samples 2 --epochs 1 --cpus-per-worker 2 "
    "--studies-dir /mnt/shared/studies --address auto"
)

pytestmark = long_only


def find_python() -> Path | None:
    """Return an interpreter of the version that setup.sh wants, if this machine has one."""
    version = re.search(r"^PYTHON=(\S+)", (ROOT / "cluster/setup.sh").read_text(), re.M)
    assert version
    name = f"python{version[1]}"
    found = [shutil.which(name), *sorted(Path.home().glob(f".pyenv/versions/*/bin/{name}"))]
    for path in found:
        say = "import ensurepip, sys; print(sys.executable)"
        if path and not subprocess.run([path, "-c", say], capture_output=True).returncode:
            done = subprocess.run([path, "-c", say], capture_output=True, text=True)
            return Path(os.path.realpath(done.stdout.strip())).parent / name
    return None


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if reason := missing():
        pytest.skip(reason)
    python = find_python()
    if python is None:
        pytest.skip("needs the nodes' Python version")
    folder = tmp_path_factory.mktemp("machines")
    wheels = Path(os.environ.get("STUDY_WHEELS", folder / "wheels"))
    if not wheels.is_dir():
        fetch = ["-m", "pip", "download", "--quiet", "--dest", wheels]
        pins = ["--requirement", ROOT / "cluster/requirements.txt"]
        subprocess.run([python, *fetch, *pins], check=True)
    shutil.copytree(
        ROOT,
        folder / "project",
        ignore=shutil.ignore_patterns(".git", ".venv", "data", "studies", "__pycache__"),
    )
    with Machines(folder, ("head", "worker"), wheels, python) as running:
        config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        config["provider"] = {"type": "local", "head_ip": HEAD, "worker_ips": [WORKER]}
        config["auth"]["ssh_private_key"] = str(running.key)
        for field in ("available_node_types", "head_node_type", "max_workers"):
            del config[field]  # a local provider has its own
        (folder / "local.yaml").write_text(yaml.safe_dump(config))
        yield running


def ray(
    machines: Machines, command: str, *args: object, timeout: float = 300, check: bool = True
) -> subprocess.CompletedProcess[str]:
    project = machines.folder / "project"
    words = (RAY, command, "../local.yaml", *args)
    return machines.desk(*words, cwd=project, timeout=timeout, check=check)


def nodes(machines: Machines) -> int:
    live = 'sum(node["Alive"] for node in ray.nodes())'
    say = f'python -c \'import ray; ray.init("auto"); print({live}, "nodes")\''
    found = re.search(r"(\d+) nodes", ray(machines, "exec", say, check=False).stdout)
    return int(found[1]) if found else 0


def test_set_up_that_fails_fails_ray_up(machines: Machines) -> None:
    pins = machines.folder / "project/cluster/requirements.txt"
    text = pins.read_text()
    pins.write_text("no-such-package==1.0\n" + text)
    done = ray(machines, "up", "-y", timeout=600, check=False)
    pins.write_text(text)
    assert done.returncode != 0
    assert "no-such-package" in done.stdout
    assert "setup.sh FAILED" in done.stdout
    assert "Failed to setup head node." in done.stdout


def test_up_makes_a_cluster_of_all_nodes(machines: Machines) -> None:
    done = ray(machines, "up", "-y", timeout=1200)
    assert "NO DATA for facade on this node" in done.stdout  # said, and no error
    assert "MLflow runs on" in done.stdout
    wait_for(lambda: nodes(machines) == 2, seconds=1200)  # the head sets the worker up now
    versions = "~/venv/bin/pip freeze; ~/venv/bin/python -V"
    assert machines.node(HEAD, versions) == machines.node(WORKER, versions)
    token = "stat -c %a ~/.ray/auth_token; cat ~/.ray/auth_token"
    assert machines.node(HEAD, token) == machines.node(WORKER, token)
    assert machines.node(HEAD, token).startswith("600\n")


def test_only_who_has_the_token_may_in(machines: Machines) -> None:
    script = f"import ray; ray.init({HEAD!r} + ':6379')"
    stranger = f'HOME=/tmp RAY_AUTH_MODE=disabled timeout 60 ~/venv/bin/python -c "{script}" 2>&1'
    assert "ray.init" not in stranger.replace(script, "")
    done = machines.node(WORKER, f"{stranger}; echo code $?", check=False)
    assert "code 0" not in done
    for port in (5000, 8265):  # not even from within the network
        probe = f"import socket; socket.create_connection(({HEAD!r}, {port}), 5)"
        refused = machines.desk(sys.executable, "-c", probe, cwd=machines.folder, check=False)
        assert "ConnectionRefusedError" in refused.stdout


@contextlib.contextmanager
def tunnel(machines: Machines, port: int, command: str, *args: object) -> Iterator[None]:
    """Keep `ray attach -p PORT` or `ray dashboard` open, once it is."""
    words = [str(RAY), command, "../local.yaml", *map(str, args)]
    process = subprocess.Popen(
        [*machines.enter(machines.folder / "project"), *words],
        env=machines.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # to end it with its SSH, as a terminal does
    )

    def reachable() -> bool:
        probe = f"import socket; socket.create_connection(('localhost', {port}), 5)"
        words = (sys.executable, "-c", probe)
        return machines.desk(*words, cwd=machines.folder, check=False).returncode == 0

    try:
        wait_for(reachable, seconds=60)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def mlflow(machines: Machines, call: str, content: dict[str, Any]) -> dict[str, Any]:
    """Ask the head's MLflow through the tunnel, as a browser on the desk would."""
    script = (
        "import sys, urllib.request as u; "
        "r = u.Request(sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json'}); "
        "print(u.urlopen(r, timeout=20).read().decode())"
    )
    url = urllib.parse.urljoin("http://localhost:5000/api/2.0/mlflow/", call)
    words = (sys.executable, "-c", script, url, json.dumps(content))
    answer: dict[str, Any] = json.loads(machines.desk(*words, cwd=machines.folder).stdout)
    return answer


def test_study_runs_on_both_nodes_and_is_in_mlflow(machines: Machines) -> None:
    done = ray(machines, "exec", STUDY, timeout=600)
    assert "2 finished" in done.stdout
    assert "tracking http://127.0.0.1:5000" in done.stdout
    again = ray(machines, "exec", STUDY, timeout=600)
    assert "has its 2 trials" in again.stdout
    with tunnel(machines, 5000, "attach", "-p", 5000):
        found = mlflow(machines, "experiments/search", {"max_results": 10})["experiments"]
        (study,) = [each for each in found if each["name"] == "fashion"]
        ids = {"experiment_ids": [study["experiment_id"]]}
        runs = mlflow(machines, "runs/search", ids)["runs"]
    assert sorted(run["info"]["status"] for run in runs) == ["FINISHED"] * 3  # study, two trials
    assert study["artifact_location"].startswith("mlflow-artifacts:")  # sent through the server


def test_dashboard_asks_for_the_token(machines: Machines) -> None:
    token = machines.node(HEAD, "cat ~/.ray/auth_token")
    script = (
        "import sys, urllib.error, urllib.request as u\n"
        "r = u.Request('http://localhost:8265/api/jobs/', headers={'Authorization': sys.argv[1]})\n"
        "try: print(u.urlopen(r, timeout=20).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
    )
    with tunnel(machines, 8265, "dashboard"):
        for given, code in {"": "401", "Bearer wrong": "403", f"Bearer {token}": "200"}.items():
            words = (sys.executable, "-c", script, given)
            assert machines.desk(*words, cwd=machines.folder).stdout.strip() == code


def submit(machines: Machines, study: str) -> Callable[[str], str]:
    """Start a study as a job; return what asks `ray job` about it."""
    done = ray(machines, "exec", f"ray job submit --no-wait -- {study}")
    name = re.search(r"raysubmit_\w+", done.stdout)
    assert name
    return lambda verb: ray(machines, "exec", f"ray job {verb} {name[0]}").stdout


def test_job_outlives_its_terminal(machines: Machines) -> None:
    longer = STUDY.replace("--num-samples 2", "--num-samples 3")
    job = submit(machines, longer)
    wait_for(lambda: "succeeded" in job("status"), seconds=600)
    assert "3 finished" in job("logs")


def test_stopped_job_saves_and_goes_on_when_submitted_again(machines: Machines) -> None:
    study = STUDY.replace("--epochs 1", "--epochs 30 --name stopped --set batch_size=8")
    job = submit(machines, study)
    saved = "ls /mnt/shared/studies/stopped/trials/0000/last.pt"
    wait_for(lambda: "No such" not in machines.node(HEAD, f"{saved} 2>&1", check=False), 300)
    job("stop")
    wait_for(lambda: "stopped by SIGTERM" in job("logs"), seconds=60)
    trial = "cat /mnt/shared/studies/stopped/trials/0000/trial.json"
    before = json.loads(machines.node(HEAD, trial))
    assert before["state"] == "running" and before["history"]
    again = submit(machines, study.replace("batch_size=8", "batch_size=8 --time-budget 60s"))
    wait_for(lambda: "succeeded" in again("status"), seconds=300)
    after = json.loads(machines.node(HEAD, trial))
    assert after["history"][: len(before["history"])] == before["history"]
    assert len(after["history"]) > len(before["history"])


def test_export_is_fetched(machines: Machines) -> None:
    best = "python -m study.best fashion --studies-dir /mnt/shared/studies --export"
    ray(machines, "exec", best, timeout=600)
    ray(machines, "rsync-down", "~/export/", "fetched")
    assert (machines.folder / "project/fetched/fashion/meta.json").exists()


def test_up_again_restarts_mlflow_and_keeps_its_runs(machines: Machines) -> None:
    before = machines.node(HEAD, "cat ~/mlflow/keeper.pid")
    started = time.monotonic()
    ray(machines, "up", "-y", timeout=600)
    print(f"ray up again: {time.monotonic() - started:.0f} s")
    assert machines.node(HEAD, "cat ~/mlflow/keeper.pid") != before
    assert "has its 2 trials" in ray(machines, "exec", STUDY, timeout=600).stdout


def test_down_leaves_nothing_running(machines: Machines) -> None:
    wait_for(lambda: nodes(machines) == 2, seconds=300)  # back since the test before
    # On AWS the machines end with all that runs on them. Machines of one's own stay, and of those
    # Ray's local provider stops Ray on the head only.
    ray(machines, "exec", "bash ~/project/cluster/mlflow.sh stop")
    ray(machines, "down", "-y")
    machines.node(WORKER, "~/venv/bin/ray stop --force")

    def left() -> list[str]:
        found = [machines.node(address, "ps -u ubuntu -o args=") for address in (HEAD, WORKER)]
        # What shows them is no part of it, nor is the connection that Ray keeps for ten seconds.
        shown = ("sshd", "ps -u", "bash -c ps", "ssh: /tmp/ray_ssh")
        return [line for line in "".join(found).splitlines() if not line.startswith(shown)]

    with contextlib.suppress(AssertionError):
        wait_for(lambda: left() == [], seconds=30)
    assert left() == []
