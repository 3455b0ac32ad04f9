"""Whether a tracking store can be used, told at once and in a sentence.

MLflow tries a database that cannot be opened ten times, in 103 seconds, whatever the reason, and
an HTTP server with many layers of text. Here a store is tried once, before MLflow, and reasons that
no waiting mends are told apart from a server that is away.
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

DATABASES = ("postgresql", "mysql", "mssql")  # and SQLite; the others that MLflow knows are servers
LOCK_SECONDS = 20.0  # to wait for another program's change
OTHER = "name another store with --tracking-uri"
# What the layers below say, and what it means; the first that fits.
REASONS = (
    (
        r"not known|name resolution|translate host name|Failed to resolve|nodename nor servname",
        "there is no host {host}; check the address",
    ),
    (r"timed out|[Tt]imeout", "{host} does not answer in time; check the address and the network"),
    (
        r"\b40[13]\b|[Uu]nauthorized|[Ff]orbidden|authentication failed|Access denied",
        "{host} refuses; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    ),
    (
        r"CERTIFICATE|SSLError",
        "the certificate of {host} is not trusted; set MLFLOW_TRACKING_SERVER_CERT_PATH",
    ),
    (r"\b404\b|JSONDecodeError|not in JSON", "{host} is no MLflow server; check the address"),
    (r"No module named '(?P<what>\w+)'", "it needs a driver; type: pip install {what}"),
    (r"disk is full|No space left", f"the disk is full; make space, or {OTHER}"),
    (r"database is locked", f"another program keeps it locked; end that, or {OTHER}"),
    (
        r"not a database|malformed",
        f"it is no SQLite database, or damaged; move it away, or {OTHER}",
    ),
    (r"readonly|unable to open|denied|[Rr]ead-only", f"it cannot be written; {OTHER}"),
)


def check_access(uri: str) -> None:
    """Make sure that a store can be opened, as far as can be told without MLflow.

    A SQLite file is opened for writing, or its folder is made and tried; another database is asked
    once; a server is left to MLflow.

    Raises:
        InputError: It cannot; says why.
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
        except Exception as error:  # each driver raises its own
            raise refusal(uri, error) from None


def _check_file(uri: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(uri, f"{path.parent} cannot be made, {error.strerror}; {OTHER}") from None
    if not is_writable(path.parent):  # SQLite makes a journal beside
        raise refusal(uri, f"{path.parent} cannot be written; {OTHER}, or go to another folder")
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise refusal(uri, f"{path} is no file; move it away, or {OTHER}")
    try:
        file = f"{path.as_uri()}?mode=rw"
        with closing(sqlite3.connect(file, uri=True, timeout=LOCK_SECONDS)) as store:
            store.execute("BEGIN IMMEDIATE")  # writes nothing
            store.rollback()
    except sqlite3.Error as error:
        raise refusal(uri, error) from None


def refusal(uri: str, error: Exception | str) -> InputError:
    """Return the error that says why a store cannot be used; `error` is a sentence or a cause."""
    host = urlsplit(uri).hostname or "the server"
    text = " ".join(str(error).split())
    if isinstance(error, str):
        return InputError(f"the tracking store {uri} cannot be used: {error}.")
    for pattern, meaning in REASONS:
        if found := re.search(pattern, text):
            told = meaning.format(host=host, what=found.groupdict().get("what"))
            return InputError(f"the tracking store {uri} cannot be used: {told}.")
    cause = re.search(r"\[Errno \d+\] [\w ]+", text)  # out of many layers of HTTP
    reason = cause[0] if cause else (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"the tracking store {uri} does not answer ({reason}).")
