"""Studies in S3, against a server on this machine: nothing but the bucket is shared or kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_module, started, wait_for

from study.errors import InputError, StorageError
from study.hold import hold
from study.object_path import ObjectPath, as_path, children
from study.record import StudyRecord


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of a bucket, found by this process and those it starts."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        import boto3

        place = {"LocationConstraint": "eu-central-1"}
        boto3.client("s3").create_bucket(Bucket="team", CreateBucketConfiguration=place)
        yield "s3://team"
    server.stop()


def test_paths(bucket: str) -> None:
    folder = as_path(f"{bucket}/paths")
    assert isinstance(folder, ObjectPath)
    assert children(folder) == [] and not folder.exists()
    file = folder / "a" / "b.json"
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.unlink(missing_ok=True)
    before = time.time()
    file.write_bytes(b"one")
    file.write_bytes(b"two")
    assert file.read_bytes() == b"two" and file.exists() and folder.exists()
    assert abs(file.modified() - before) < 60
    assert children(folder) == [folder / "a"] and children(folder / "a") == [file]
    assert str(file) == f"{bucket}/paths/a/b.json" and file.parent.parent == folder
    assert as_path(str(file)) == file
    file.unlink()
    assert not file.exists()


def test_a_store_that_refuses_is_named(bucket: str) -> None:
    nowhere = as_path("s3://other-bucket/studies")
    with pytest.raises(StorageError, match="cannot write s3://other-bucket/studies/x"):
        assert isinstance(nowhere, ObjectPath)
        (nowhere / "x").write_bytes(b"")
    for text in ("ftp://host/studies", "s3://"):
        with pytest.raises(InputError, match="s3://bucket/studies"):
            as_path(text)


def test_an_endpoint_in_the_uri(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    query = f"endpoint_override={host}&scheme=http&region=eu-central-1"
    folder = as_path(f"{bucket}/query?{query}")
    assert isinstance(folder, ObjectPath)
    (folder / "x").write_bytes(b"content")
    assert [str(path) for path in children(folder)] == [f"{bucket}/query/x?{query}"]


def test_one_driver_at_a_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.hold.RENEW_SECONDS", 0.3)
    monkeypatch.setattr("study.hold.LEASE_SECONDS", 3.0)
    folder = as_path(f"{bucket}/held")
    lost: list[str] = []
    first = hold(folder, lost.append)
    with pytest.raises(InputError, match=f"another process .*pid {os.getpid()}"):
        hold(folder, lost.append)
    first.release()
    second = hold(folder, lost.append)

    # One on another machine that went silent; its place is taken after a while.
    other = {"id": "x", "host": "elsewhere", "pid": 1, "renewed": 7}
    assert isinstance(folder, ObjectPath)
    (folder / ".lease").write_bytes(json.dumps(other).encode())
    wait_for(lambda: lost, 10)
    assert "host elsewhere, pid 1" in lost[0]
    second.release()
    began = time.monotonic()
    third = hold(folder, lost.append)
    assert time.monotonic() - began >= 3 and len(lost) == 1
    third.release()
    assert not (folder / ".lease").exists()


def test_a_driver_that_died_here_is_not_waited_for(bucket: str) -> None:
    folder = f"{bucket}/died"
    code = (
        "import os; from study.hold import hold; from study.object_path import as_path; "
        f"hold(as_path({folder!r}), print); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    held = as_path(folder)
    assert (held / ".lease").exists()
    began = time.monotonic()
    hold(held, print).release()
    assert time.monotonic() - began < 10


def test_killed_resumed_and_exported(bucket: str, tmp_path: Path) -> None:
    studies = f"{bucket}/studies"
    command = (
        *("tune", "fashion", "--dataset", "sample", "--num-samples", 3, "--epochs", 4),
        *("--set", "batch_size=8", "--set", "hidden=16", "--max-concurrent", 1),
        *("--studies-dir", studies),
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
    assert record.num_ended() == 3 and record.mended == []
    assert not (tmp_path / "studies").exists() and not list(tmp_path.glob("s3*"))

    best = run_module(
        *("best", "fashion", "--studies-dir", studies, "--export", "--json"), cwd=tmp_path
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


def test_a_bucket_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    done = run_module(
        *("tune", "fashion", "--dataset", "sample", "--studies-dir", "s3://no-such/x"),
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert "s3://no-such/x" in done.stderr and len(done.stderr.strip().splitlines()) == 1
