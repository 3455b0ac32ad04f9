"""`optuna.db`: a copy of the study for Optuna's own tools, such as optuna-dashboard.

It follows the record, at most about a second behind, and never leads it. If it is damaged it is
rebuilt from the trials' files; if one of those is damaged, the trial is recovered from it. Only the
study's driver opens it; others read a copy, since two machines must not open SQLite over a network.
In an object store it is a copy that the driver uploads now and then.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.objective import Goal
from study.records import optuna_storage
from study.records.optuna_recovery import LOCK_SECONDS, MANIFEST, check_pages
from study.records.optuna_trials import directions, frozen, write_on
from study.records.trial_record import TrialRecord
from study.search_space import SearchSpace
from study.storage import sqlite_uri
from study.storage.paths import AnyPath, ObjectPath

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

# SQLite errors that are not the file's fault.
DISK = tuple(f"SQLITE_{name}" for name in "FULL BUSY LOCKED READONLY IOERR CANTOPEN".split())
SEND_SECONDS = 30.0  # between two uploads to an object store
WRITE_SECONDS = 1.0  # between two writes; a value takes 6 ms, and short trials report many at once


class OptunaFile:
    """Keeps the Optuna study of a record up to date.

    Args:
        path: The SQLite file.
        manifest: The study's manifest.
        space: The search space.
    """

    def __init__(self, path: AnyPath, manifest: dict[str, Any], space: SearchSpace) -> None:
        self.place = path
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._sent = 0.0
        self.path = Path()  # of the open file
        self.manifest = manifest
        self.space = space
        self.goal = Goal.of(manifest)
        self._study: optuna.Study | None = None
        self._storage: optuna.storages.RDBStorage | None = None
        self._known: list[TrialRecord] = []  # trials in the file, by number
        self._ids: list[int] = []  # ids of the trials in the file
        self._waiting: dict[int, TrialRecord] = {}  # to be written, by number
        self._written = -math.inf
        self._behind = False

    def follow(self, trials: Sequence[TrialRecord]) -> str | None:
        """Bring the file up to date with the record; return what was repaired, as a sentence."""
        self._fetch()
        wrong = None
        if self.path.exists():
            try:
                wrong = self._adopt(trials)
            except Exception as error:  # SQLite, SQLAlchemy and Optuna each raise their own
                wrong = f"{type(error).__name__}: {error}".splitlines()[0]
        if wrong is None:
            wrong = self._catch_up(trials)
        if wrong is None:
            self._send()
            return None
        if not self.path.exists():
            self._behind = True
            logger.warning(
                "%s cannot be created (%s); the study runs without it.", self.place, wrong
            )
            return None
        self._close()
        kept = self.place.parent / f"{self.place.name}.damaged-{time.time():.0f}"
        if isinstance(kept, ObjectPath):
            kept.write_bytes(self.path.read_bytes())
            self.path.unlink()
        else:
            self.path.rename(kept)
        self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
        if self._catch_up(trials) is not None:
            self._behind = True
        self._send()
        return (
            f"{self.place} was damaged ({wrong}); rebuilt from the trials' files, the damaged one "
            f"is kept as {kept.name}."
        )

    def _catch_up(self, trials: Sequence[TrialRecord]) -> str | None:
        """Write what is missing; return what is wrong with the file, None for a disk error."""
        try:
            self._open()
            for trial in trials:
                self._write(trial)
        except Exception as error:  # as in `follow`
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            if not _is_disk(error):
                return text
            self._behind = True
            logger.warning("%s cannot be written at the moment (%s)", self.path, text)
        return None

    def update(self, trial: TrialRecord) -> None:
        """Queue a trial's changes; a file that cannot be written now catches up later."""
        self._waiting[trial.number] = trial
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._write_waiting()
            if trial.state != "running" and time.monotonic() - self._sent > SEND_SECONDS:
                self._try(self._send)

    def close(self, send: bool) -> None:
        """Close the file, after writing changes and uploading them if `send`."""
        if send:
            self._write_waiting()
            if self._study is not None:
                self._try(self._send)
        self._close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _write_waiting(self) -> None:
        for _, trial in sorted(self._waiting.items()):
            self._try(functools.partial(self._write, trial))
        self._waiting.clear()
        self._written = time.monotonic()

    def _try(self, write: Callable[[], None]) -> None:
        if self._behind:
            return
        try:
            write()
        except Exception as error:  # as in `follow`
            self._behind = True
            logger.warning(
                "%s cannot be written (%s); the study runs without it, the next command updates it",
                self.place,
                str(error).splitlines()[0],
            )

    def _fetch(self) -> None:
        """Locate the file; download it from an object store."""
        if isinstance(self.place, Path):
            self.path = self.place
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="study-optuna-")
        self.path = Path(self._scratch.name) / self.place.name
        with suppress(FileNotFoundError):
            self.path.write_bytes(self.place.read_bytes())

    def _send(self) -> None:
        if isinstance(self.place, ObjectPath) and self.path.exists():
            self.place.write_bytes(self.path.read_bytes())
            self._sent = time.monotonic()

    def _open(self) -> optuna.Study:
        import optuna

        if self._study is None:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self._storage = optuna.storages.RDBStorage(
                sqlite_uri.uri_of(self.path),
                engine_kwargs={"creator": functools.partial(_connect, self.path)},
            )
            for name in optuna.get_all_study_names(self._storage):
                if name != self.manifest["study"]:  # renamed; rewritten from the record
                    optuna.delete_study(study_name=name, storage=self._storage)
            study = optuna.create_study(
                study_name=self.manifest["study"],
                storage=self._storage,
                directions=directions(self.goal),
                load_if_exists=True,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([one.metric for one in self.goal.objectives])
            kept = json.dumps({k: v for k, v in self.manifest.items() if k != "starts"})
            if study.user_attrs.get(MANIFEST) != kept:
                study.set_user_attr(MANIFEST, kept)
            self._study = study
        return self._study

    def _close(self) -> None:
        if self._study is not None:
            assert self._storage is not None
            optuna_storage.close(self._storage)
            self._study = None
        self._known, self._ids = [], []

    def _adopt(self, trials: Sequence[TrialRecord]) -> str | None:
        """Load the file's trials; return the first difference from the record, if any.

        The file may lack the latest changes.
        """
        check_pages(self.path)
        study = self._open()
        if [there.name.lower() for there in study.directions] != directions(self.goal):
            return "direction differs"
        there = study.get_trials(deepcopy=False)
        if len(there) > len(trials):
            return f"{len(there)} trials in the file, {len(trials)} in the study"
        ids = optuna_storage.trial_ids(study)
        for have, trial, trial_id in zip(there, trials, ids, strict=False):
            want = frozen(trial, self.space, self.goal)
            rows = sorted(want.intermediate_values.items())
            # Optuna gives a pruned trial the value of its last epoch.
            pruned = [rows[-1][1]] if have.state.name == "PRUNED" and rows else None
            ended = have.state == want.state
            fits = (
                have.number == trial.number
                and have.params == want.params
                and have.distributions == want.distributions
                and have.intermediate_values == dict(rows[: len(have.intermediate_values)])
                and (ended or have.state.name == "RUNNING")
                and have.values in (want.values, pruned)
            )
            if not fits:
                return f"trial {trial.number} differs from its trial.json"
            known = dataclasses.replace(
                trial, history=trial.history[: len(have.intermediate_values)]
            )
            if not ended:
                known = dataclasses.replace(known, state="running", reason=None, cause=None)
            self._known.append(known)
            self._ids.append(trial_id)
        return None

    def _write(self, trial: TrialRecord) -> None:
        study, number = self._open(), trial.number
        if number == len(self._known):
            self._ids.append(optuna_storage.add_trial(study, frozen(trial, self.space, self.goal)))
            self._known.append(trial)
        elif (before := self._known[number]) != trial:
            if before.state == "running":
                write_on(study, self._ids[number], before, trial, self.goal)
            self._known[number] = trial


def _is_disk(error: BaseException | None) -> bool:
    """Return whether an error comes from the disk or a lock, not from the file's content."""
    while error is not None:
        if isinstance(error, sqlite3.Error):
            return getattr(error, "sqlite_errorname", "").startswith(DISK)
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__
    return False


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file without fsync: corruption after a power loss is repaired like any other."""
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA synchronous = OFF")
    return connection
