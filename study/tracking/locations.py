"""The artifact locations of a SQLite store that was moved or copied together with its artifacts.

MLflow writes absolute paths into each experiment, run and model, and has no call to change them.
`mlflow.db` and `mlruns/` are side by side, so opening a store checks whether they still are.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

logger = logging.getLogger(__name__)

FOLDER = "mlruns"  # beside the store
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# Experiments that `study` created: the locations of others are unknown.
OURS = """
SELECT artifact_location FROM experiments WHERE name = 'study.doctor' OR experiment_id IN (
    SELECT experiment_id FROM experiment_tags WHERE key = 'mlflow.sharedViewState.trials'
    UNION SELECT experiment_id FROM runs JOIN tags USING (run_uuid) WHERE key = 'study.role')
"""


def local_path(location: str) -> Path | None:
    """Return the folder of an artifact location; None if it is not on this machine."""
    if location.startswith("file:"):
        return Path(unquote(urlsplit(location).path))
    return Path(location) if location.startswith("/") else None


def follow_move(file: Path) -> None:
    """Point a store to the artifacts beside it, if it points elsewhere.

    Nothing is changed while the artifacts are where the store says. If they are in neither place,
    new ones go beside the store.

    Args:
        file: The SQLite store, which exists.
    """
    here = file.parent / FOLDER
    with closing(sqlite3.connect(file, timeout=60)) as store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
        if not {"experiments", "experiment_tags", "runs", "tags"} <= tables:
            return  # not an MLflow store, or one that MLflow still has to migrate
        for root in _roots(location for (location,) in store.execute(OURS)):
            if root == here or (root.exists() and here.exists() and root.samefile(here)):
                continue
            old = f"{root.as_uri()}/"
            runs = "SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) = ?"
            found = [uri.removeprefix(old) for (uri,) in store.execute(runs, (len(old), old))]
            along = any((here / unquote(rest)).exists() for rest in found)
            if not along and root.exists():
                continue
            for old, new in ((root.as_uri(), here.as_uri()), (str(root), str(here))):
                _replace(store, f"{old}/", f"{new}/")
            store.commit()
            if along or not found:
                text = "the tracking store %s was moved; its artifacts are now in %s instead of %s"
                logger.warning(text, file, here, root)
            else:
                text = (
                    "the artifacts of earlier runs of %s are neither in %s nor in %s; if you have "
                    "them, move them to the first folder, where new ones are written"
                )
                logger.warning(text, file, here, root)


def _roots(locations: Iterable[str | None]) -> set[Path]:
    """Return the `mlruns` folders of the experiments."""
    found = {local_path(location) for location in locations if location}
    return {path.parent for path in found if path is not None and path.parent.name == FOLDER}


def _replace(store: sqlite3.Connection, old: str, new: str) -> None:
    """Replace the prefix of all locations."""
    tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
    for table, column in COLUMNS:
        if table in tables:
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old), old),
            )
