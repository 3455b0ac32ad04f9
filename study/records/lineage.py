"""The origin of a study's folder: created here, moved, renamed, or copied from another.

    studies/a -> studies/b     moved: the study is now called b and keeps its runs in MLflow
    cp -r studies/a studies/b  copied: a separate study, with new runs for all its trials

A copy is recognised by the place in its `study.json`, where the original still is. A copy on
another machine is recognised by its commands: the study's last one in MLflow is not in this folder.
A copy that includes its own tracking store (a whole project was copied) conflicts with nothing and
keeps its runs.
"""

from __future__ import annotations

import logging
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from study.errors import DamagedFile, StorageError
from study.storage.files import read_document
from study.storage.paths import AnyPath, ObjectPath, as_path, children
from study.storage.sqlite_uri import path_of

logger = logging.getLogger(__name__)


def place_of(path: AnyPath) -> str:
    """Return the folder of a study as written in its manifest."""
    if isinstance(path, ObjectPath):
        return f"{path.scheme}://{path.key}"
    return str(path.resolve())


def name_of(path: AnyPath, manifest: dict[str, Any]) -> str:
    """Return a study's name, that of its folder; for a confirmation, of the study it confirms."""
    confirms = "confirms" in manifest and path.parent.name == "confirm"
    return path.parent.parent.name if confirms else path.name


def first_place(path: AnyPath, manifest: dict[str, Any]) -> str:
    """Return where a study was created, guessed from an old manifest that has no `place`."""
    if "confirms" in manifest and path.parent.name == "confirm":
        searched = path.parent.parent.parent / manifest["study"]
        return place_of(searched / "confirm" / path.name)
    return place_of(path.parent / manifest["study"])


def settle(path: AnyPath, manifest: dict[str, Any], uri: str) -> dict[str, Any]:
    """Adopt a moved or copied study at its new place, a copy with new runs; return its manifest.

    Args:
        path: The study's folder.
        manifest: The manifest in it.
        uri: Absolute tracking URI of the current command.
    """
    here, before = place_of(path), manifest["place"]
    if before == here:
        return manifest
    if not _is_there(before, path, manifest):
        logger.warning(
            "the study in %s was moved from %s; it keeps its runs in MLflow", path, before
        )
    elif _brought_its_store(before, here, uri):
        logger.warning(
            "the study in %s is a copy of %s, with its own copy of the tracking store; both "
            "continue independently",
            path,
            before,
        )
    else:
        logger.warning(
            "the study in %s is a copy of %s; from now on it is a separate study, and its trials "
            "get new runs in MLflow",
            path,
            before,
        )
        manifest = separate(path, manifest)
    return {**manifest, "place": here}


def separate(path: AnyPath, manifest: dict[str, Any]) -> dict[str, Any]:
    """Detach a copy from the original's runs in MLflow; return its manifest as a new study."""
    for folder in children(path / "trials"):
        (folder / "mlflow_run.json").unlink(missing_ok=True)
    origin = {"id": manifest["id"], "place": manifest["place"]}
    return {**manifest, "id": uuid.uuid4().hex, "copy_of": origin}


def _is_there(before: str, path: AnyPath, manifest: dict[str, Any]) -> bool:
    """Return whether the same study still exists at its old place."""
    there = as_path(before)
    if isinstance(there, Path) and isinstance(path, Path):
        with suppress(OSError):
            if there.samefile(path):  # the same folder under another path
                return False
    if isinstance(there, ObjectPath) and isinstance(path, ObjectPath):
        there = ObjectPath(there.scheme, there.key, path.query)
    elif isinstance(there, ObjectPath):
        return False  # its credentials are unknown
    try:
        other = read_document(there / "study.json")
    except (DamagedFile, StorageError):  # StorageError: a bucket we may not read
        return False
    return bool(other.get("id") == manifest["id"])


def _brought_its_store(before: str, here: str, uri: str) -> bool:
    """Return whether the tracking store was copied too: same relative place as the original's."""
    file = path_of(uri) if uri else None
    if file is None or "://" in before + here or not file.exists():
        return False
    other = Path(os.path.normpath(Path(before) / os.path.relpath(file.resolve(), here)))
    return other.exists() and not other.samefile(file)
