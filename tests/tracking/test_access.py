"""Stores that cannot be used: each says why, at once, and no two reasons read alike."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from study.errors import InputError
from study.tracking import access
from study.tracking import store as tracking_store


def reason(uri: str) -> str:
    """Return how a store is refused, making sure that nothing was tried for long."""
    began = time.monotonic()
    with pytest.raises(InputError) as raised:
        tracking_store.connect(uri)
    assert time.monotonic() - began < 60, "MLflow's ten attempts take 103 s"
    text = str(raised.value)
    assert uri in text and "\n" not in text
    return text


def test_a_folder_that_cannot_be_written() -> None:
    assert "/proc is not writable" in reason("sqlite:////proc/mlflow.db")
    assert "cannot create /proc/none" in reason("sqlite:////proc/none/mlflow.db")


def test_what_is_no_sqlite_file(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not what it seems\n" * 100)
    assert "it is not a SQLite database" in reason(f"sqlite:///{tmp_path}/text.db")
    (tmp_path / "folder").mkdir()
    assert "is a folder" in reason(f"sqlite:///{tmp_path}/folder")
    (tmp_path / "file").touch()
    assert "(File exists)" in reason(f"sqlite:///{tmp_path}/file/m.db")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in reason(f"sqlite:///{tmp_path}/pipe")


def test_a_file_that_another_program_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.db"
    monkeypatch.setattr(access, "LOCK_SECONDS", 0.2)
    with closing(sqlite3.connect(file)) as store:
        store.execute("CREATE TABLE t (x)")
        store.execute("BEGIN EXCLUSIVE")
        assert "it is locked by another program" in reason(f"sqlite:///{file}")


def test_servers_and_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    # `.invalid` has no addresses (RFC 2606).
    assert "the host nowhere.invalid was not found" in reason("http://nowhere.invalid:5000")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert "does not answer ([Errno 111] Connection" in reason(f"http://127.0.0.1:{port}")
    assert "driver is missing; run: pip install pyodbc" in reason("mssql+pyodbc://127.0.0.1/m")


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        assert "127.0.0.1 timed out" in reason(uri)


def test_files_of_a_store_that_have_no_place_are_told_before_a_study(tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = tracking_store.connect(uri)
    with pytest.raises(
        InputError, match="artifact folder .*mlruns/fashion is not writable; name another"
    ):
        tracking_store.ensure_experiment(client, uri, "fashion")
    assert client.get_experiment_by_name("fashion") is None
