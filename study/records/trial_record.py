"""The record of one trial, stored in `trial.json`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from study.config import Value
from study.errors import DamagedFile
from study.storage.files import read_document, write_document
from study.storage.paths import AnyPath
from study.system.redaction import redacted
from study.task import best_row

# How a trial ended: after all epochs, stopped early, or with an error.
Ending = Literal["finished", "stopped", "failed"]
# Why a trial failed: loss not finite, out of memory, no report for too long, its process died, its
# process or machine was lost, wrong input, any other error.
Cause = Literal["diverged", "out_of_memory", "hung", "died", "lost", "input", "error"]
STATES = ("finished", "stopped", "failed", "running")
# Keys of an epoch that are not metrics: its number, and when it ended in seconds since 1970.
NOT_METRICS = ("epoch", "ended")
IN_FILE = {"params": "values", "micro_batches": "parts"}  # attributes with other names in the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """The record of one trial.

    Attributes:
        number: From 0.
        metric: The metric to optimise.
        mode: `max` or `min`.
        state: `running` also covers an interrupted trial that can resume.
        params: Hyperparameters of the search space; `values` in the file.
        history: One row per epoch reported to the scheduler: `epoch`, `ended` and the metrics.
        failures: Failures that were retried, each with `time`, `epoch` and `reason`.
        micro_batches: Parts in which a batch is computed, more than one after running out of
            memory; `parts` in the file.
        begun: ISO time.
        ended: ISO time; None while it runs.
        reason: Why it failed, for people.
        cause: Why it failed, for programs.
    """

    number: int
    metric: str
    mode: str
    state: Literal["finished", "stopped", "failed", "running"] = "running"
    params: dict[str, Value]
    history: tuple[dict[str, float], ...] = ()
    failures: tuple[dict[str, Any], ...] = ()
    micro_batches: int = 1
    begun: str = ""
    ended: str | None = None
    reason: str | None = None
    cause: Cause | None = None

    @property
    def epochs(self) -> int:
        """Number of recorded epochs."""
        return len(self.history)

    @cached_property
    def best(self) -> dict[str, float] | None:
        """The row of the best epoch; None before the first epoch."""
        return best_row(self.history, self.metric, self.mode) if self.history else None

    @property
    def best_value(self) -> float | None:
        """The metric at the best epoch; None before the first."""
        return self.best[self.metric] if self.best else None

    @property
    def best_epoch(self) -> int | None:
        """The best epoch; None before the first."""
        return int(self.best["epoch"]) if self.best else None

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics at the best epoch."""
        return metrics_of(self.best or {})

    @property
    def curve(self) -> dict[int, float]:
        """The metric by epoch."""
        return {int(row["epoch"]): row[self.metric] for row in self.history}

    @property
    def diverged(self) -> bool:
        """Whether its own settings made it fail: the loss was not finite."""
        return self.cause == "diverged"

    @property
    def informs(self) -> bool:
        """Whether a search learns from it: it ended with a value, or diverged.

        Other failures say nothing about the settings, and running trials nothing yet.
        """
        return self.state in ("finished", "stopped") or self.diverged

    @property
    def seconds(self) -> float:
        """Time spent, over all epochs."""
        return sum(row.get("epoch_seconds", 0.0) for row in self.history)

    def with_row(self, row: dict[str, float]) -> TrialRecord:
        """Return the record with one more epoch."""
        assert row["epoch"] == self.epochs + 1
        return dataclasses.replace(self, history=(*self.history, row))

    def with_failure(self, reason: str, micro_batches: int) -> TrialRecord:
        """Return the record with a failure after which the trial is retried."""
        failure = {"time": now(), "epoch": self.epochs + 1, "reason": redacted(reason)}
        failures = (*self.failures, failure)
        return dataclasses.replace(self, failures=failures, micro_batches=micro_batches)

    def with_end(
        self, ending: Ending, reason: str | None = None, cause: Cause | None = None
    ) -> TrialRecord:
        """Return the record of the ended trial, with a reason and cause if it failed."""
        kept = redacted(reason) if reason else reason
        return dataclasses.replace(self, state=ending, reason=kept, cause=cause, ended=now())

    def save(self, folder: AnyPath) -> None:
        """Write `trial.json`.

        Raises:
            StorageError: The disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_document(folder / "trial.json", self.describe())

    def describe(self) -> dict[str, Any]:
        """Return the record as a JSON object for `of`."""
        own = dataclasses.asdict(self)
        return {IN_FILE.get(name, name): value for name, value in own.items()}

    @staticmethod
    def of(content: Mapping[str, Any]) -> TrialRecord:
        """Return the record in a JSON object; old ones without a cause get one from the reason.

        Raises:
            TypeError, KeyError: The object is not a trial.
        """
        known = {**content, **{key: tuple(content[key]) for key in ("history", "failures")}}
        known |= {name: known.pop(key) for name, key in IN_FILE.items()}
        if "cause" not in known and known.get("state") == "failed":
            known["cause"] = cause_before(known.get("reason") or "")
        return TrialRecord(**known)

    @staticmethod
    def load(folder: AnyPath) -> TrialRecord:
        """Read `trial.json`.

        Raises:
            DamagedFile: It is missing or damaged.
        """
        path = folder / "trial.json"
        content = read_document(path)
        try:
            return TrialRecord.of(content)
        except (TypeError, KeyError) as error:
            raise DamagedFile(f"{path} was written by another version ({error}).") from None


def cause_before(reason: str) -> Cause:
    """Return the cause of a failure from its reason, for old records that have no cause."""
    words: dict[str, Cause] = {
        "loss is not finite": "diverged",
        "out of memory": "out_of_memory",
        "for want of memory": "out_of_memory",
        "(--trial-timeout)": "hung",
        "its process died": "died",
        "its process or its machine is gone": "lost",
        "InputError: ": "input",
    }
    return next((cause for said, cause in words.items() if said in reason), "error")


def metrics_of(row: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of an epoch's row."""
    return {name: value for name, value in row.items() if name not in NOT_METRICS}


def counts(trials: list[TrialRecord]) -> dict[str, int]:
    """Return the number of trials by state."""
    return {state: sum(trial.state == state for trial in trials) for state in STATES}


def now() -> str:
    """Return the current time in the record's format."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def seconds_of(text: str) -> float:
    """Return a time from the record in seconds since 1970; 0 if it has none."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return 0.0
