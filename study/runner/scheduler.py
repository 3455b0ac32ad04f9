"""Searcher and scheduler for Ray Tune: which trial comes next, and which one stops early.

Both answer from the study's record and are rebuilt from it when a study resumes. Ray pickles them,
and the callback in `study.runner.callbacks`, from time to time; the pickles are empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.errors import StorageError
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.runner.stopping import Stopping
from study.search.asha import FrontRungs, Rungs
from study.selection.proposals import proposals_of


class NotPickled:
    """Pickles without its state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RecordSearcher(NotPickled, Searcher):
    """Gives Ray the interrupted trials first, then new ones from the record.

    Args:
        record: The study.
        stopping: Checked before each trial; informed if the disk is full.
        shared: The part of the Ray config that all trials share.
    """

    def __init__(self, record: StudyRecord, stopping: Stopping, shared: dict[str, Any]) -> None:
        super().__init__(metric=record.manifest["metric"], mode=record.manifest["mode"])
        self.record = record
        self.propose = proposals_of(record.manifest)
        self.stopping = stopping
        self.shared = shared
        self.cut_off = [trial for trial in record.trials() if trial.state == "running"]

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the Ray config of the next trial; None if there is none now."""
        if self.stopping.why is not None:
            return None
        try:
            trial = self.cut_off.pop(0) if self.cut_off else self._begin()
        except StorageError as error:
            self.stopping.cannot_write(error)
            return None
        return {**self.shared, "trial": trial.number, "settings": self.record.config(trial)}

    def _begin(self) -> TrialRecord:
        return self.record.begin(self.propose(self.record.trials()))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the study's callback writes the record."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the record is the state."""


class RecordASHA(NotPickled, FIFOScheduler):
    """ASHA over the study's record, including trials that ran before this process.

    Args:
        record: The study, whose trial numbers identify trials.
        grace_period: Epochs before the first rung.
        reduction_factor: One trial in this many continues at each rung.

    Attributes:
        stopped: Numbers of the trials that were stopped.
    """

    def __init__(self, record: StudyRecord, grace_period: int, reduction_factor: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record
        self.stopped: set[int] = set()
        rungs = FrontRungs if record.goal.has_two else Rungs
        self._rungs = rungs(grace_period, record.manifest["epochs"], reduction_factor)
        for trial in record.trials():
            for row in trial.history:
                self._goes_on(trial.number, row)

    def _goes_on(self, number: int, row: Mapping[str, float]) -> bool:
        goal = self.record.goal
        if any(objective.metric not in row for objective in goal.objectives):
            return True  # an epoch from a repaired file
        return self._rungs.goes_on(number, int(row["epoch"]), goal.point(row))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial continues; the last epoch ends it in any case."""
        number = trial.config["trial"]
        goes_on = str(TrialScheduler.CONTINUE)
        if "epoch" not in result or result["epoch"] <= self.record.trial(number).epochs:
            return goes_on  # not an epoch, or already decided
        # Ray flattens results before schedulers see them.
        known = {name: result.get(f"metrics/{name}") for name in self.record.goal.metrics}
        metrics = {name: value for name, value in known.items() if value is not None}
        if self._goes_on(number, {"epoch": result["epoch"], **metrics}):
            return goes_on
        self.stopped.add(number)
        return str(TrialScheduler.STOP)
