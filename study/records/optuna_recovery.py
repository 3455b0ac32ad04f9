"""Recovery of a study's trials and manifest from `optuna.db` when their own files are damaged."""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.records.trial_record import TrialRecord, cause_before
from study.storage import sqlite_uri
from study.storage.paths import AnyPath

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

MANIFEST = "study.json"  # user attribute: the study's manifest
LOCK_SECONDS = 60.0  # to wait for a reader such as optuna-dashboard


def recall_manifest(path: AnyPath) -> dict[str, Any] | None:
    """Return the manifest stored in the file; None if it cannot be read."""
    manifest: dict[str, Any] | None
    manifest = _recall(path, lambda study: json.loads(study.user_attrs[MANIFEST]))
    return manifest


def recall_trials(path: AnyPath, metric: str, mode: str) -> list[TrialRecord]:
    """Return the trials in the file: the metric of each epoch, all metrics of the best one."""

    def read(study: optuna.Study) -> list[TrialRecord]:
        return [_remembered(trial, metric, mode) for trial in study.get_trials(deepcopy=False)]

    return _recall(path, read) or []


def _recall(path: AnyPath, read: Callable[[optuna.Study], Any]) -> Any:
    if not path.exists():
        return None
    with tempfile.TemporaryDirectory(prefix="study-optuna-") as scratch:
        copy = Path(scratch) / path.name
        for suffix in ("", "-journal"):  # SQLite rolls back a partial change from the journal
            with suppress(FileNotFoundError):
                content = (path.parent / f"{path.name}{suffix}").read_bytes()
                copy.with_name(copy.name + suffix).write_bytes(content)
        return _read_copy(path, copy, read)


def _read_copy(path: AnyPath, copy: Path, read: Callable[[optuna.Study], Any]) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        check_pages(copy)
        return read(optuna.load_study(study_name=None, storage=sqlite_uri.uri_of(copy)))
    except Exception as error:  # SQLite, SQLAlchemy and Optuna each raise their own
        logger.warning("%s cannot be read (%s)", path, str(error).splitlines()[0])
        return None


def _remembered(there: optuna.trial.FrozenTrial, metric: str, mode: str) -> TrialRecord:
    best = there.user_attrs.get("best", {"epoch": 0})
    rows = [
        best if best["epoch"] == epoch else {"epoch": epoch, metric: value}
        for epoch, value in sorted(there.intermediate_values.items())
    ]
    names: dict[str, Any] = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}
    state = there.user_attrs.get("ending") or names.get(there.state.name, "running")
    reason, cause = there.user_attrs.get("reason"), there.user_attrs.get("cause")
    if state == "failed" and cause is None:
        cause = cause_before(reason or "")
    begun, ended = there.datetime_start, there.datetime_complete
    return TrialRecord(
        number=there.number,
        metric=metric,
        mode=mode,
        state=state,
        params=dict(there.params),
        history=tuple(rows),
        begun=begun.isoformat(timespec="seconds") if begun else "",
        ended=ended.isoformat(timespec="seconds") if ended else None,
        reason=reason,
        cause=cause,
    )


def check_pages(path: Path) -> None:
    """Raise `sqlite3.DatabaseError` if the file's structure is damaged."""
    with sqlite3.connect(path, timeout=LOCK_SECONDS) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    connection.close()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
