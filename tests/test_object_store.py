"""Studies in S3, against a server on this machine: nothing but the bucket is shared or kept."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_module, wait_for

from study.errors import InputError, StorageError
from study.hold import hold
from study.object_path import ObjectPath, as_path, children


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
    (folder / "a").rmdir()
    assert children(folder) == []


def test_a_store_that_refuses_is_named(bucket: str) -> None:
    nowhere = as_path("s3://other-bucket/studies")
    with pytest.raises(StorageError, match="cannot write s3://other-bucket/studies/x"):
        assert isinstance(nowhere, ObjectPath)
        (nowhere / "x").write_bytes(b"")
    with pytest.raises(StorageError, match="regon"):
        (as_path(f"{bucket}/x?regon=eu-central-1") / "x").exists()
    for text in ("ftp://host/studies", "s3://", "s3://team//studies"):
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
    # One of this host's name and a number no process here has, in another container.
    (folder / ".lease").write_bytes(
        json.dumps({**other, "host": socket.gethostname(), "pid": 2**22 + 1}).encode()
    )
    began = time.monotonic()
    third = hold(folder, lost.append)
    assert time.monotonic() - began >= 3 and len(lost) == 1
    third.release()
    assert not (folder / ".lease").exists()


def test_a_driver_that_was_silent_writes_no_more(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.hold.RENEW_SECONDS", 30.0)  # as of a process that was suspended
    monkeypatch.setattr("study.hold.LEASE_SECONDS", 31.0)
    held = hold(as_path(f"{bucket}/silent"), print)
    held.check()
    time.sleep(1.5)
    with pytest.raises(StorageError, match="another driver may have taken the study over"):
        held.check()
    held.release()


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


def test_a_bucket_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    done = run_module(
        *("tune", "fashion", "--dataset", "sample", "--studies-dir", "s3://no-such/x"),
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert "s3://no-such/x" in done.stderr and len(done.stderr.strip().splitlines()) == 1
