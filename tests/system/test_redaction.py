"""Passwords typed into URIs: they open the store, and are shown and kept nowhere."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import logging
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import run_module
from mlflow.tracking import MlflowClient
from mlflow_server import free_port, server

from study.cli import run_command
from study.errors import InputError
from study.records.manifest import read_manifest
from study.records.run_folder import RunFolder
from study.records.trial_record import TrialRecord
from study.reporting.live_table import Block
from study.runner.faults import keep_traceback, reason_of
from study.storage.paths import as_path
from study.system.redaction import cleaned, command_line, redacted, without_password
from study.tracking.access import refusal
from study.tracking.store import resolve_uri

SECRET = "c0rrect-horse"
AROUND = [  # (before, after) the secret, in what must be shown as before***after
    ("postgresql://me:", "@db.example/mlflow"),
    ("error at http://me:", "@127.0.0.1:5000/api?x=1, again"),
    ("mysql+pymysql://me:p@ss/", "@db/x"),
    ("s3://AKIA:ab/cd+", "@bucket/studies"),
    ("https://", "@host/path"),
    ("s3://bucket/x?region=eu&secret_key=", "&scheme=http"),
    ("https://bucket/x?X-Amz-Security-Token=", ""),
    ("AWS_SECRET_ACCESS_KEY=", " MLFLOW_TRACKING_USERNAME=me"),
    ("HTTPS_PROXY=http://me:", "@proxy:3128"),
    ("connect(host='db', password=", ", port=1)"),
    ("Authorization: Basic ", "\n"),
]


@pytest.mark.parametrize(("before", "after"), AROUND)
def test_a_secret_is_masked(before: str, after: str) -> None:
    shown = redacted(f"{before}{SECRET}{after}")
    assert SECRET not in shown and "***" in shown and shown.endswith(after)
    assert redacted(shown) == shown


def test_a_dictionary_is_masked() -> None:
    shown = redacted(str({"user": "me", "password": SECRET}) + json.dumps({"db_token": SECRET}))
    assert SECRET not in shown and "'user': 'me'" in shown


@pytest.mark.parametrize(
    "text",
    [
        "look at http://127.0.0.1:5000/#/experiments/1?mail=a@b.example",
        "sqlite:////home/me/a@b/mlflow.db",
        "s3://bucket/studies?region=eu-central-1&endpoint_override=http://127.0.0.1:9000",
        "postgresql://me@db/mlflow (write ~/.pgpass)",
        "  token = tokens[0]  # password of nothing",
        "epoch 3: max_tokens=5, ssh://git@example.org",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redacted(text) == text


def test_a_command_is_kept_with_masks() -> None:
    words = ["facade", "--tracking-uri", f"http://me:{SECRET} 'or'@host", "--name", "a b"]
    shown = command_line("tune", words)
    assert shown == "python -m study.tune facade --tracking-uri 'http://me:***@host' --name 'a b'"


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"):
        monkeypatch.setenv(name, "before")  # and put back afterwards
        del os.environ[name]


@pytest.mark.parametrize(
    ("uri", "clean", "expected"),
    [
        (
            "http://me:p%40ss@host:5000/x",
            "http://host:5000/x",
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p@ss"},
        ),
        ("postgresql://me:p%40ss@db/x", "postgresql://me@db/x", {"PGPASSWORD": "p@ss"}),
        ("postgresql+psycopg2://me:a@db", "postgresql+psycopg2://me@db", {"PGPASSWORD": "a"}),
        ("http://me:***@host", "http://host", {}),  # copied from what was shown
        ("sqlite:////tmp/a:b@c.db", "sqlite:////tmp/a:b@c.db", {}),
        ("mysql://me:a@db", "mysql://me:a@db", {}),  # the driver looks nowhere else
    ],
)
def test_a_password_goes_where_the_tools_look_for_it(
    uri: str, clean: str, expected: dict[str, str], variables: None, capsys
) -> None:
    assert without_password(uri) == clean
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD")
    assert {name: os.environ[name] for name in names if name in os.environ} == expected
    error = capsys.readouterr().err
    assert all(name in error for name in expected) and bool(error) == bool(expected)


def test_the_environment_s_uri_is_cleaned_too(variables: None, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@host")
    assert resolve_uri(None) == os.environ["MLFLOW_TRACKING_URI"] == "http://host"


def test_all_output_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `print`, logging and an error that is nobody's mistake."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    class Output(io.TextIOWrapper):
        """As a process has it."""

    streams = [Output(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    uri = f"mysql://me:{SECRET}@db"

    def main() -> int:
        print(uri)
        print("error", uri, file=sys.stderr)
        logging.StreamHandler().emit(logging.makeLogRecord({"msg": f"logged {uri}"}))
        raise refusal(uri, OSError(f"cannot reach {uri}"))

    assert run_command(main) == 2
    shown = b"".join(stream.buffer.getvalue() for stream in streams).decode()  # type: ignore[attr-defined]
    assert SECRET not in shown and shown.count("mysql://me:***@db") >= 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mred\x1b[0m.jpg", "ared.jpg"),
        ("\x1b]0;title\x07 \x1b[2J", "\\x1b]0;title\\x07 \\x1b[2J"),
        ("safe\rskipped", "safe\\rskipped"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\x9b2J", "\\x9b2J"),
        ("\r 45 %", "\r 45 %"),  # a download's progress
        ("caf\u00e9\t\u6f22\u5b57\n\u2581\u2588 \u00b7\r\n", None),
    ],
)
def test_nothing_shown_commands_a_terminal(text: str, expected: str | None) -> None:
    assert cleaned(text) == (text if expected is None else expected)


def test_what_is_printed_above_a_table_is_cleaned(tmp_path: Path) -> None:
    main, other = os.openpty()
    with open(other, "w") as terminal:
        block = Block(terminal)
        block.draw([], f"mysql://me:{SECRET}@db \x1b[2J")
        shown = os.read(main, 1000).decode()
    os.close(main)
    assert "mysql://me:***@db \\x1b[2J" in shown and SECRET not in shown


def test_names_of_files_are_cleaned(tmp_path: Path) -> None:
    """As a user sees it: of an image that is none, and of a folder that is none."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "meta.json").write_text("{}")
    (tmp_path / "evil" / "model.pt2").write_text("")
    for words in (["\x1b[2Jno"], ["evil", "\x1b]0;x\x07"]):
        done = run_module("predict", *words, "b.jpg", cwd=tmp_path)
        assert done.returncode == 2 and "\x1b" not in done.stderr + done.stdout, done.stderr


def test_errors_are_kept_with_masks(tmp_path: Path) -> None:
    error = RuntimeError(f"cannot read postgresql://me:{SECRET}@db/x")
    folder = RunFolder(tmp_path / "0000")
    keep_traceback(folder, error)
    text = (tmp_path / "0000" / "error.txt").read_text() + reason_of(error)
    assert SECRET not in text and text.count("postgresql://me:***@db/x") == 2
    trial = TrialRecord(number=0, metric="val/accuracy", mode="max", params={}).with_failure(
        str(error), 1
    )
    (failure,) = trial.failures  # what Ray told of it
    assert failure["reason"] == trial.with_end("failed", str(error)).reason == redacted(str(error))


@pytest.mark.parametrize("place", [f"s3://AKIA:{SECRET}@bucket", f"s3://b/x?secret_key={SECRET}"])
def test_a_bucket_s_keys_are_refused(place: str) -> None:
    with pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY") as told:
        as_path(place)
    assert SECRET not in str(told.value)


@contextlib.contextmanager
def guarded(port: int) -> Iterator[int]:
    """A door to the server at `port` that asks for the user's name and password."""
    expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()

    class Door(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = 401, [], b"Unauthorized"
            if self.headers.get("Authorization") == expected:
                connection = http.client.HTTPConnection("127.0.0.1", port)
                sent = {k: v for k, v in self.headers.items() if k not in ("Host", "Authorization")}
                connection.request(self.command, self.path, body, sent)
                reply = connection.getresponse()
                status, headers, content = reply.status, reply.getheaders(), reply.read()
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    door = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=door.serve_forever)
    thread.start()
    try:
        yield door.server_port
    finally:
        door.shutdown()
        thread.join()
        door.server_close()


def test_a_study_s_password_is_nowhere(tmp_path: Path) -> None:
    """Of a whole study on a server that asks for it: output, folder, store, page and export."""
    (tmp_path / "server").mkdir()
    home = tmp_path / "home"
    home.mkdir()
    (home / "space.yaml").write_text("search:\n  width1: {type: int, low: 2, high: 8}\n")
    port = free_port()
    with server(tmp_path / "server", port), guarded(port) as door:
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{door}/")
        place = ("--tracking-uri", f"http://me:{SECRET}@127.0.0.1:{door}")
        study = (
            "fashion",
            "--dataset",
            "sample",
            "--num-samples",
            1,
            "--epochs",
            1,
            "--name",
            "s",
            "--search-space",
            "space.yaml",
            "--cpus-per-worker",
            1,
            "--max-concurrent",
            1,
        )
        tuned = run_module("tune", *study, *place, cwd=home)
        assert tuned.returncode == 0, tuned.stderr[-4000:]
        best = run_module("best", "s", "--export", "out", *place, cwd=home)
        assert best.returncode == 0, best.stderr[-4000:]
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name("s")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert {run.data.tags["study.role"] for run in runs} == {"study", "trial"}
    told = tuned.stdout + tuned.stderr + best.stdout + best.stderr
    assert SECRET not in told and "MLFLOW_TRACKING_PASSWORD" in told
    (start,) = read_manifest(home / "studies" / "s")["starts"]
    assert f"'http://me:***@127.0.0.1:{door}'" in start["command"]
    assert "http://me:***@" in (home / "studies" / "s" / "report.html").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
