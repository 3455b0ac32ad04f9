"""Which trial Ray Tune stops early.

Rebuilt from the study's record when a study goes on. Ray insists on pickling it, as the searcher
and the callback in `study.search`, from time to time; what it gets is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from study.asha import FrontRungs, Rungs
from study.record import StudyRecord


class NotPickled:
    """Leaves its state behind when Ray pickles it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RecordASHA(NotPickled, FIFOScheduler):
    """Has ASHA stop trials; it knows the rungs of trials that ran before this process.

    Args:
        record: The study; trials are told apart by its numbers.
        grace_period: Epochs before the first rung.
        reduction_factor: The best one in so many goes on at each rung.

    Attributes:
        stopped: Numbers of the trials that were told to stop.
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
            return True  # of a file that was mended
        return self._rungs.goes_on(number, int(row["epoch"]), goal.point(row))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial goes on; the last epoch ends it anyway."""
        number = trial.config["trial"]
        goes_on = str(TrialScheduler.CONTINUE)
        if "epoch" not in result or result["epoch"] <= self.record.trial(number).epochs:
            return goes_on  # not of an epoch, or decided before
        # Ray flattens results for schedulers.
        known = {name: result.get(f"metrics/{name}") for name in self.record.goal.metrics}
        metrics = {name: value for name, value in known.items() if value is not None}
        if self._goes_on(number, {"epoch": result["epoch"], **metrics}):
            return goes_on
        self.stopped.add(number)
        return str(TrialScheduler.STOP)
