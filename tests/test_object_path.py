"""Studies in S3, against a server on this machine: nothing but the bucket is shared or kept."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from conftest import run_module

from study.errors import InputError, StorageError
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


def test_a_bucket_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    done = run_module(
        *("tune", "fashion", "--dataset", "sample", "--studies-dir", "s3://no-such/x"),
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert "s3://no-such/x" in done.stderr and len(done.stderr.strip().splitlines()) == 1
