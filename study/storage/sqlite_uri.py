"""Conversion between paths of SQLite files and SQLAlchemy URIs.

SQLAlchemy, and so MLflow, decodes `%20` in a URI and treats the part after `?` as options, so an
unescaped path may name another file. Optuna substitutes text in braces.

    path_of("sqlite:///mlflow.db")      # /home/me/mlflow.db, relative to the current folder
    path_of("sqlite:////data/a%3Fb.db") # /data/a?b.db
    uri_of(Path("/data/100%.db"))       # sqlite:////data/100%25.db
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote

from study.errors import InputError

PREFIX = "sqlite:///"


def uri_of(path: Path) -> str:
    """Return the URI of a file, with an absolute path."""
    text = str(path.expanduser().absolute())
    # No other character has a meaning (braces have one to Optuna); MLflow shows the rest unchanged.
    for sign in "%?#{}":
        text = text.replace(sign, f"%{ord(sign):02X}")
    return PREFIX + text


def path_of(uri: str) -> Path | None:
    """Return the absolute path of a URI's file; None for a store that is not a SQLite file.

    Raises:
        InputError: The URI names no file.
    """
    if not uri.startswith("sqlite:"):
        return None
    text, mark, options = uri.removeprefix(PREFIX).partition("?")
    if not uri.startswith(PREFIX):
        raise InputError(f"{uri!r} is not the URI of a SQLite file; write {PREFIX}PATH.")
    if mark and not parse_qsl(options):
        raise InputError(f"{uri!r}: in a URI write %3F for a ? in a path (%25 for %, %23 for #).")
    path = unquote(text)
    if not path or path == ":memory:" or path.startswith("file:"):
        raise InputError(
            f"{uri!r} is not a file that a later command could read; write {PREFIX}PATH."
        )
    if path.endswith("/") or Path(path).expanduser().is_dir():
        raise InputError(f"{uri!r} is a folder; name a file in it, {PREFIX}{path}/mlflow.db.")
    return Path(path).expanduser().absolute()


def absolute(uri: str) -> str:
    """Return a SQLite URI with its path made absolute and its options kept.

    Raises:
        InputError: The URI names no file.
    """
    path = path_of(uri)
    assert path is not None
    _, mark, options = uri.partition("?")
    return uri_of(path) + mark + options
