"""Checks that a tracking store can be used: fails fast, with one sentence.

MLflow tries to open a database ten times, over 103 seconds, whatever the error, and wraps an HTTP
error in many layers of text. Here a store is tried once, before MLflow, and permanent errors are
distinguished from a server that is temporarily unreachable.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from study.errors import InputError
from study.storage import sqlite_uri
from study.system.environment import is_writable

DATABASES = ("postgresql", "mysql", "mssql")  # and SQLite; MLflow's other stores are servers
LOCK_SECONDS = 20.0  # wait for another program's lock
OTHER = "name another store with --tracking-uri"
# Patterns of lower-level errors and their meanings; the first match wins.
REASONS = (
    (
        r"not known|name resolution|translate host name|Failed to resolve|nodename nor servname",
        "the host {host} was not found; check the address",
    ),
    (r"timed out|[Tt]imeout", "{host} timed out; check the address and the network"),
    (
        r"\b40[13]\b|[Uu]nauthorized|[Ff]orbidden|authentication failed|Access denied",
        "{host} denies access; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    ),
    (
        r"CERTIFICATE|SSLError",
        "the certificate of {host} is not trusted; set MLFLOW_TRACKING_SERVER_CERT_PATH",
    ),
    (r"\b404\b|JSONDecodeError|not in JSON", "{host} is not an MLflow server; check the address"),
    (r"No module named '(?P<what>\w+)'", "its database driver is missing; run: pip install {what}"),
    (r"disk is full|No space left", f"the disk is full; free some space, or {OTHER}"),
    (r"database is locked", f"it is locked by another program; end that program, or {OTHER}"),
    (
        r"not a database|malformed",
        f"it is not a SQLite database, or it is corrupted; move it away, or {OTHER}",
    ),
    (r"readonly|unable to open|denied|[Rr]ead-only", f"it is not writable; {OTHER}"),
)


def check_access(uri: str) -> None:
    """Check that a store can be opened, as far as possible without MLflow.

    A SQLite file is opened for writing, or its folder is created and checked; another database is
    connected to once; a server is left to MLflow.

    Raises:
        InputError: It cannot be opened; says why.
    """
    path = sqlite_uri.path_of(uri)
    if path is not None:
        _check_file(uri, path)
    elif uri.startswith(DATABASES):
        import sqlalchemy

        try:
            engine = sqlalchemy.create_engine(uri)
            engine.connect().close()
            engine.dispose()
        except Exception as error:  # each driver has its own exceptions
            raise refusal(uri, error) from None


def _check_file(uri: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(uri, f"cannot create {path.parent} ({error.strerror}); {OTHER}") from None
    if not is_writable(path.parent):  # SQLite creates a journal beside the file
        raise refusal(uri, f"{path.parent} is not writable; {OTHER}, or change directory")
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise refusal(uri, f"{path} is not a file; move it away, or {OTHER}")
    try:
        file = f"{path.as_uri()}?mode=rw"
        with closing(sqlite3.connect(file, uri=True, timeout=LOCK_SECONDS)) as store:
            store.execute("BEGIN IMMEDIATE")  # writes nothing
            store.rollback()
    except sqlite3.Error as error:
        raise refusal(uri, error) from None


def refusal(uri: str, error: Exception | str) -> InputError:
    """Return the error that says why a store cannot be used.

    Args:
        uri: Of the store.
        error: The reason as a string, or the exception that was raised.
    """
    host = urlsplit(uri).hostname or "the server"
    text = " ".join(str(error).split())
    if isinstance(error, str):
        return InputError(f"the tracking store {uri} cannot be used: {error}.")
    for pattern, meaning in REASONS:
        if found := re.search(pattern, text):
            told = meaning.format(host=host, what=found.groupdict().get("what"))
            return InputError(f"the tracking store {uri} cannot be used: {told}.")
    cause = re.search(r"\[Errno \d+\] [\w ]+", text)  # from under many layers of HTTP
    reason = cause[0] if cause else (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"the tracking store {uri} does not answer ({reason}).")
