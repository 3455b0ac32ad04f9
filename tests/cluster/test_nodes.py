"""Studies over several nodes: Ray's own cluster of processes on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import run_module, started, wait_for
from mlflow.tracking import MlflowClient
from ray.cluster_utils import Cluster

from study.records.study_record import StudyRecord
from study.storage.paths import as_path, children


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Cluster]:
    """A head and two more nodes, with one core each; they can use the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # as this kind of cluster begins
        # A test that ran in this process before may have kept Ray to loopback.
        patch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", True)
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


def alive(cluster: Cluster) -> list[Any]:
    return [node for node in cluster.global_state.node_table() if node["Alive"]]


def raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def trials_on(node: Any) -> int:
    """How many trials run on a node now."""
    try:
        names = [" ".join(child.cmdline()) for child in raylet(node).children()]
    except psutil.Error:
        return 0
    return sum("Trainable" in name for name in names)


def test_a_study_spreads_and_survives_a_node(cluster: Cluster, tmp_path: Path) -> None:
    command = (
        "tune",
        "fashion",
        "--dataset",
        "sample",
        "--num-samples",
        6,
        "--epochs",
        5,
        "--set",
        "batch_size=8",
        "--set",
        "hidden=16",
        "--scheduler",
        "none",
        "--address",
        cluster.address,
    )
    nodes = list(cluster.worker_nodes)
    trials = tmp_path / "studies" / "fashion" / "trials"
    output = tmp_path / "output"
    used: set[int] = set()
    with started(*command, cwd=tmp_path) as study:

        def spread() -> bool:
            assert study.poll() is None, output.read_text()
            used.update(n for n, node in enumerate((cluster.head_node, *nodes)) if trials_on(node))
            saved = len(list(trials.glob("*/last.pt")))
            return len(used) == 3 and saved >= 3 and trials_on(nodes[0]) > 0

        wait_for(spread, seconds=300)
        before = {t.number: t.history for t in StudyRecord.read(trials.parent).trials()}
        cluster.remove_node(nodes[0], allow_graceful=False)
        study.wait(600)
    assert study.returncode == 0, output.read_text()
    record = StudyRecord.read(trials.parent)
    assert [trial.state for trial in record.trials()] == ["finished"] * 6
    moved = [trial for trial in record.trials() if trial.failures]
    assert len(moved) == 1 and "retrying from epoch" in output.read_text(), output.read_text()
    for trial in record.trials():
        assert [row["epoch"] for row in trial.history] == [1, 2, 3, 4, 5]
        # Each row says when its epoch ended: one that was trained again would differ.
        assert trial.history[: len(before.get(trial.number, ()))] == before.get(trial.number, ())

    store = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("fashion")
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id], "tags.`study.role` = 'trial'")
    assert sorted(int(run.data.tags["study.trial"]) for run in runs) == list(range(6))
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert len(store.get_metric_history(run.info.run_id, "val/accuracy")) == 5
    cluster.add_node(num_cpus=1)  # for the next test


def test_a_driver_that_dies_on_a_cluster_with_nothing_shared_but_s3(
    cluster: Cluster, bucket: str, tmp_path: Path
) -> None:
    studies = f"{bucket}/studies"
    command = (
        "tune",
        "fashion",
        "--dataset",
        "sample",
        "--num-samples",
        3,
        "--epochs",
        4,
        "--set",
        "batch_size=8",
        "--set",
        "hidden=16",
        "--max-concurrent",
        1,
        "--studies-dir",
        studies,
        "--address",
        cluster.address,
    )
    trials = as_path(studies) / "fashion" / "trials"
    with started(*command, cwd=tmp_path) as study:
        wait_for(lambda: (trials / "0001" / "last.pt").exists() or study.poll() is not None)
        assert study.poll() is None, (tmp_path / "output").read_text()
        study.kill()
    seen = {t.number: t.history for t in StudyRecord.read(as_path(studies) / "fashion").trials()}
    assert seen[0]
    done = run_module(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = StudyRecord.read(as_path(studies) / "fashion")
    for trial in record.trials():
        before = seen.get(trial.number, ())
        assert trial.history[: len(before)] == before
    assert record.num_ended() == 3 and record.repaired == []
    assert not (tmp_path / "studies").exists() and not list(tmp_path.glob("s3*"))

    best = run_module(
        "best", "fashion", "--studies-dir", studies, "--export", "--json", cwd=tmp_path
    )
    assert best.returncode == 0, best.stderr
    result = json.loads(best.stdout)
    assert result["trials"]["running"] == 0 and result["best"][0]["run_id"]
    export = tmp_path / "export" / "fashion"
    assert {"model.pt2", "meta.json"} <= {path.name for path in export.iterdir()}
    assert list((export / "figures" / "validation").glob("*.png"))
    names = {path.name for path in children(trials / f"{result['best'][0]['trial']:04d}")}
    assert {"trial.json", "best.pt", "last.pt", "metrics.json", "evidence.npz"} <= names
    assert (trials.parent / "tests.json").exists()
    again = run_module(*command, cwd=tmp_path)
    assert again.returncode == 0 and "has its 3 trials" in again.stderr


def doctor(cluster: Cluster, home: Path, *flags: object) -> tuple[int, dict[str, Any]]:
    """Run the command over the cluster; return its exit code and what it found."""
    command = ("doctor", "--dataset", "sample", "--address", cluster.address, "--json", *flags)
    done = run_module(*command, cwd=home)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_doctor_finds_nothing_wrong(cluster: Cluster, tmp_path: Path) -> None:
    num_nodes = 1 + len(cluster.worker_nodes)
    code, found = doctor(cluster, tmp_path, "fashion", "--wait", num_nodes)
    assert (code, found["problems"], found["ok"]) == (0, [], True)
    assert len(found["nodes"]) == num_nodes
    assert found["fits"] == f"{num_nodes} at a time, each with 1 CPU"
    assert len({report["checksum"] for report in found["nodes"].values()}) == 1
    assert not list((tmp_path / "studies").iterdir()), "it leaves nothing behind"


def test_doctor_names_what_no_node_can_do(cluster: Cluster, tmp_path: Path) -> None:
    unreachable = ("--tracking-uri", "http://127.0.0.1:9")
    code, found = doctor(cluster, tmp_path, "--cpus-per-worker", 2, *unreachable)
    told = [problem["problem"] for problem in found["problems"]]
    assert code == 1 and found["fits"] is None
    assert any("http://127.0.0.1:9 does not answer" in text for text in told)
    assert any("--cpus-per-worker" in text for text in told)
    done = run_module("doctor", cwd=tmp_path)
    assert done.returncode == 0 and "no problems found" in done.stdout, done.stdout + done.stderr
    done = run_module("doctor", "--wait", 2, cwd=tmp_path)
    assert done.returncode == 2 and "--address" in done.stderr


def test_doctor_finds_another_version(cluster: Cluster, tmp_path: Path) -> None:
    """A node whose Python finds another torch first."""
    metadata = tmp_path / "packages" / "torch-9.9.9.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    path = f"{metadata.parent}:{os.environ.get('PYTHONPATH', '')}"
    odd = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path})
    try:
        code, found = doctor(cluster, tmp_path)
    finally:
        cluster.remove_node(odd)
    assert code == 1
    (problem,) = found["problems"]
    assert "torch 9.9.9, the driver has" in problem["problem"]
    assert found["nodes"][problem["host"]]["versions"]["torch"] == "9.9.9"


@pytest.fixture
def other_machine(cluster: Cluster, tmp_path: Path) -> Iterator[Any]:
    """Starts a node that sees other disks: takes mount commands, returns when it is up."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("mount namespaces need root")
    before = len(alive(cluster))
    begun: list[subprocess.Popen[bytes]] = []

    def begin(*mounts: str) -> None:
        ray = f"exec ray start --address={cluster.address} --num-cpus=1 --block"
        script = " && ".join([*mounts, ray])
        with (tmp_path / "node").open("wb") as log:
            begun.append(
                subprocess.Popen([unshare, "-m", "bash", "-c", script], stdout=log, stderr=log)
            )

    yield begin
    for process in begun:
        process.terminate()  # `ray start --block` ends its node
        process.wait(60)
    wait_for(lambda: len(alive(cluster)) == before)


def test_doctor_finds_missing_data(
    cluster: Cluster, tmp_path: Path, real: Any, other_machine: Any
) -> None:
    here = f"mount -t tmpfs none {real.data_dir}"
    there = f"mount -t tmpfs none {real.cache_dir}"
    other_machine(here, there)
    flags = ("fashion", "--dataset", "real", "--wait", 2 + len(cluster.worker_nodes))
    code, found = doctor(cluster, tmp_path, *flags)
    assert code == 1
    (problem,) = found["problems"]
    assert "Fashion-MNIST is incomplete" in problem["problem"] and problem["host"]
    assert found["nodes"][problem["host"]]["checksum"] is None
    assert sum(report["checksum"] is not None for report in found["nodes"].values()) >= 3


def test_doctor_finds_storage_that_is_read_only_or_not_shared(
    cluster: Cluster, tmp_path: Path, other_machine: Any
) -> None:
    for name in ("only-read", "not-shared"):
        (tmp_path / name).mkdir()
    other_machine(
        f"mount --bind {tmp_path}/only-read {tmp_path}/only-read",
        f"mount -o remount,ro,bind {tmp_path}/only-read",
        f"mount -t tmpfs none {tmp_path}/not-shared",
    )
    wait = ("--wait", 2 + len(cluster.worker_nodes))
    for name, text in (("only-read", "Read-only file system"), ("not-shared", "is not shared")):
        code, found = doctor(cluster, tmp_path, "--studies-dir", name, *wait)
        assert code == 1
        (problem,) = found["problems"]
        assert text in problem["problem"] and "--studies-dir" in problem["problem"]
