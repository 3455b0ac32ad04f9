"""Studies in S3, against a server on this machine: nothing but the bucket is shared or kept."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import run_module

from study.errors import HoldLost, InputError, StorageError
from study.storage.paths import ObjectPath, as_path, children, is_hopeless


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
        "tune",
        "fashion",
        "--dataset",
        "sample",
        "--studies-dir",
        "s3://no-such/x",
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert "s3://no-such/x" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def busy_store() -> Iterator[tuple[str, list[tuple[int, str]], list[str]]]:
    """The query that leads to a store, the answers it gives in turn, and what it was asked."""
    answers: list[tuple[int, str]] = []
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.command)
            status, code = answers.pop(0) if answers else (200, "")
            content = f"<Error><Code>{code}</Code><Message>of {code}</Message></Error>".encode()
            content = content if code else b"<ListBucketResult/>"
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    query = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=eu-central-1"
    yield query, answers, asked
    server.shutdown()
    thread.join()
    server.server_close()


# Names that look like codes, of which trial 0402 is a real one.
NAMES = ("0402", "invalid-expired", "AWS Error ACCESS_DENIED during PutObject", "NOT_FOUND")


@pytest.mark.parametrize("name", ["0001", *NAMES])
def test_a_store_that_is_busy_is_asked_again_whatever_a_file_is_called(
    bucket: str, busy_store: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("study.storage.paths.RETRY_SECONDS", (0.0, 0.0))
    query, answers, asked = busy_store
    place = as_path(f"s3://team/studies?{query}") / name
    # Arrow repeats some by itself; a status that it does not know it leaves to us.
    answers[:] = [(409, "OperationAborted"), (409, "OperationAborted")]
    assert place.exists() is True and asked == ["HEAD"] * 3
    for status, code in [(403, "AccessDenied"), (400, "ExpiredToken")]:
        asked.clear()
        answers[:] = [(status, code)]
        with pytest.raises(StorageError, match=name):
            place.exists()
        assert asked == ["HEAD"], f"{code}: asking again is of no use"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AWS Error SLOW_DOWN during PutObject operation: msg 404", False),
        ("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 28, 403 ms", False),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: invalid", False),
        ("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: ExpiredToken", True),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: gone", True),
        ("google::cloud::Status(UNAVAILABLE: NOT_FOUND perhaps)", False),
        ("google::cloud::Status(PERMISSION_DENIED: no)", True),
        ("curl: 404 of something else", False),
    ],
)
def test_answers_are_told_by_their_code(text: str, expected: bool) -> None:
    assert is_hopeless(OSError(f"When writing key 'x/0402' in bucket 'b': {text}"), "b/x/0402") == (
        expected
    )
    assert is_hopeless(ValueError("Unexpected query parameter"), "b/x")


def test_whether_it_may_be_written_is_asked_before_every_attempt(
    busy_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.storage.paths.RETRY_SECONDS", (0.0, 0.0))
    query, answers, asked = busy_store
    calls: list[int] = []

    def guard() -> None:
        calls.append(len(asked))
        if asked:  # the first attempt took too long
            raise HoldLost("another driver may have taken over the study")

    place = as_path(f"s3://team/studies?{query}")
    assert isinstance(place, ObjectPath)
    place = dataclasses.replace(place, guard=guard)
    answers[:] = [(409, "OperationAborted")] * 3
    with pytest.raises(HoldLost):
        (place / "trials" / "trial.json").write_bytes(b"content")
    assert calls == [0, 1] and asked == ["POST"]
