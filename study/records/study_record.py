"""The record of a study: its folder, the single source of truth.

    studies/NAME/study.json       the manifest: identity of the study, and the commands run
    studies/NAME/trials/0007/     one `RunFolder` per trial; its `trial.json` is the record
    studies/NAME/optuna.db        a second copy, for Optuna's tools

Ray holds no state that matters, and MLflow can be rebuilt from here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from study.config import Value
from study.errors import InputError, StorageError
from study.objective import Goal
from study.records import lineage
from study.records.command_text import options_of
from study.records.manifest import read_manifest, refuse_other_study, space_of, write_manifest
from study.records.optuna_mirror import OptunaFile
from study.records.provenance import versions
from study.records.run_folder import RunFolder
from study.records.run_options import RunOptions
from study.records.trial_files import load_trials, read_trials, run_folder
from study.records.trial_record import Cause, Ending, TrialRecord, now
from study.storage.lock import Hold, hold
from study.storage.paths import AnyPath, ObjectPath
from study.system.redaction import redacted

REPORT_FILE = "report.html"  # in a study's folder, by `study.report`


class StudyRecord:
    """Reads and writes a study's folder. Only one process may have it open for writing.

    Attributes:
        path: The folder.
        manifest: Content of `study.json`.
        space: The search space.
        goal: The objectives and constraints.
        repaired: Damage found and repaired on opening, as sentences.
    """

    def __init__(self, path: AnyPath, manifest: dict[str, Any], *, write: bool = False) -> None:
        self.path = path
        self.manifest = manifest
        self.space = space_of(manifest)
        self.goal = Goal.of(manifest)
        self._hold: Hold | None = None
        self._dropped: set[int] = set()  # trials whose weights are deleted
        self._optuna = OptunaFile(path / "optuna.db", manifest, self.space)
        self._trials, self.repaired = load_trials(path, manifest, repair=write)
        if write and (repaired := self._optuna.follow(self._trials)):
            self.repaired.append(repaired)

    @staticmethod
    def read(path: AnyPath) -> StudyRecord:
        """Open a study for reading, as it is now.

        Raises:
            InputError: There is none, or a file is damaged beyond recovery.
        """
        return StudyRecord(path, read_manifest(path))

    @staticmethod
    def create_or_continue(
        path: AnyPath,
        manifest: dict[str, Any],
        command: str,
        on_taken_over: Callable[[str], None] = lambda why: None,
        uri: str = "",
        options: RunOptions | None = None,
    ) -> StudyRecord:
        """Open a study for writing; create it if it does not exist.

        Args:
            path: The study's folder.
            manifest: The study's identity; must match that of an earlier start.
            command: The command line, kept in the manifest.
            on_taken_over: Called from another thread if another driver takes the study over.
            uri: Absolute tracking URI, which tells whether a copied study has its own store.
            options: The command's options, kept beside it; None to parse the command.

        Raises:
            InputError: The folder cannot be written, another process has the study open, or a
                different study has this name.
            StorageError: The disk is full.
        """
        manifest = json.loads(json.dumps(manifest))  # tuples become lists, as in the file
        try:
            path.mkdir(parents=True, exist_ok=True)
            held = hold(path, on_taken_over)
        except OSError as error:
            raise InputError(
                f"cannot write the study's folder {path} ({error.strerror}); choose another with "
                "--studies-dir."
            ) from None
        try:
            return StudyRecord._opened(path, manifest, command, held, uri, options)
        except BaseException:
            held.release()
            raise

    @staticmethod
    def _opened(
        path: AnyPath,
        manifest: dict[str, Any],
        command: str,
        held: Hold,
        uri: str,
        options: RunOptions | None,
    ) -> StudyRecord:
        if isinstance(path, ObjectPath):  # guards every write through this path
            path = dataclasses.replace(path, guard=held.check)
        driver = {"host": socket.gethostname(), "pid": os.getpid()}
        if any((path / name).exists() for name in ("study.json", "optuna.db", "trials")):
            known = read_manifest(path)
            refuse_other_study(path, known, manifest)
            if "confirms" in manifest:  # the study it confirms may have changed identity
                known["confirms"] = manifest["confirms"]
            manifest = lineage.settle(path, known, uri)
        else:  # a study of the same name in another folder has separate runs in MLflow
            manifest |= {"id": uuid.uuid4().hex, "place": lineage.place_of(path)}
        options = options or options_of(command)
        start = {
            "command": redacted(command),
            "options": None if options is None else options.describe(),
            "time": now(),
            **driver,
            "versions": versions(),
        }
        manifest = {
            **manifest,
            "starts": [*manifest.get("starts", []), start],
            "lineage": [*manifest.get("lineage", []), uuid.uuid4().hex[:12]],
        }
        write_manifest(path, manifest)
        record = StudyRecord(path, manifest, write=True)
        record._hold = held
        return record

    @staticmethod
    def settle(path: AnyPath, uri: str) -> None:
        """Adopt a copied or moved study at its new place, before anything is written.

        Raises:
            InputError: There is no study, or its folder cannot be written.
        """
        manifest = read_manifest(path)
        if manifest["place"] == lineage.place_of(path):
            return
        try:
            held = hold(path, lambda why: None)
        except OSError as error:
            raise InputError(
                f"cannot write the study's folder {path} ({error.strerror})."
            ) from None
        try:
            write_manifest(path, lineage.settle(path, read_manifest(path), uri))
        finally:
            held.release()

    def separate(self) -> None:
        """Make this a separate study: its runs in MLflow belong to another folder."""
        self.manifest = lineage.separate(self.path, self.manifest)
        write_manifest(self.path, self.manifest)

    def close(self, abandoned: bool = False) -> None:
        """Release the study; if `abandoned`, another process is writing it already."""
        if self._hold is not None and self._hold.took_over and not abandoned:
            self._write_again()
        self._optuna.close(send=not abandoned)
        if self._hold is not None:
            self._hold.release()

    def _write_again(self) -> None:
        """Rewrite trials whose files differ from the record.

        A driver presumed dead may have been writing a file, and its delayed write may have landed
        since.
        """
        with suppress(StorageError):  # else the next command continues from what is there
            found = read_trials(self.path, len(self._trials))
            for trial, file in zip(self._trials, found, strict=True):
                if file != trial:
                    self._save(trial)

    def let_go(self) -> None:
        """Release the lock immediately, whatever this process is doing."""
        if self._hold is not None:
            self._hold.release()

    def run_folder(self, number: int) -> RunFolder:
        """Return the folder of a trial."""
        return run_folder(self.path, number)

    def begin(self, params: Mapping[str, Value]) -> TrialRecord:
        """Begin a new trial.

        Args:
            params: Its hyperparameters; see `study.selection.proposals`.

        Raises:
            StorageError: The disk is full.
        """
        trial = TrialRecord(
            number=len(self._trials),
            metric=self.manifest["metric"],
            mode=self.manifest["mode"],
            params=dict(params),
            begun=now(),
        )
        self._save(trial)
        self._trials.append(trial)
        self._optuna.update(trial)
        return trial

    def report(self, number: int, row: dict[str, float], ending: Ending | None = None) -> None:
        """Record an epoch; one already recorded is left unchanged.

        Args:
            number: The trial's number.
            row: `epoch`, and metrics by full name.
            ending: The trial's ending, if this epoch ends it; both are written atomically.

        Raises:
            StorageError: The disk is full.
        """
        trial = self.trial(number)
        if row["epoch"] == trial.epochs + 1:  # after a gap the next command reports them all again
            trial = trial.with_row(row)
            self._put(trial.with_end(ending) if ending else trial)

    def retry(self, number: int, reason: str, micro_batches: int) -> None:
        """Record a failure after which the trial is retried with this many micro-batches."""
        self._put(self.trial(number).with_failure(reason, micro_batches))

    def end(
        self,
        number: int,
        ending: Ending,
        reason: str | None = None,
        cause: Cause | None = None,
    ) -> None:
        """End a trial, a failed one with its reason and cause."""
        assert self.trial(number).state == "running"
        self._put(self.trial(number).with_end(ending, reason, cause))

    def _put(self, trial: TrialRecord) -> None:
        self._save(trial)
        self._trials[trial.number] = trial
        self._optuna.update(trial)

    def _save(self, trial: TrialRecord) -> None:
        if self._hold is not None:
            self._hold.check()
        trial.save(self.run_folder(trial.number).path)

    def drop_losers(self, keep: int) -> None:
        """Delete the weights of all ended trials except the best `keep`.

        With two objectives the whole Pareto front is kept.
        """
        ended = [trial for trial in self._trials if trial.state != "running"]
        if not self.goal.has_two:  # a dropped trial never becomes one of the best again
            ended = [trial for trial in ended if trial.number not in self._dropped]
        kept = {trial.number for trial in self.goal.ranking(ended)[:keep]}
        if self.goal.has_two:
            kept |= {trial.number for trial in self.goal.front(ended)}
        for number in {trial.number for trial in ended} - kept - self._dropped:
            self.run_folder(number).drop_weights()
            self._dropped.add(number)

    def trial(self, number: int) -> TrialRecord:
        """Return one trial."""
        return self._trials[number]

    def trials(self) -> list[TrialRecord]:
        """Return all trials by number."""
        return list(self._trials)

    def num_ended(self) -> int:
        """Return the number of ended trials."""
        return sum(trial.state != "running" for trial in self._trials)

    def ranking(self) -> list[TrialRecord]:
        """Return the trials that have a value and did not fail, best first."""
        return self.goal.ranking(self._trials)

    def front(self) -> list[TrialRecord]:
        """Return the Pareto front, sorted by the first objective."""
        return self.goal.front(self._trials)

    def seed(self, number: int) -> int:
        """Return the seed of a trial; trial 0 has the study's seed."""
        return int(self.manifest["seed"]) + number

    def config(self, trial: TrialRecord) -> dict[str, Value]:
        """Return all settings of a trial, shared and its own."""
        seed = {"seed": self.seed(trial.number)}
        return {**self.manifest["settings"], **seed, **trial.params}
