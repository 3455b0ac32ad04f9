"""Which trial Ray Tune stops early.

Rebuilt from the study's record when a study goes on. Ray insists on pickling it, as the searcher
and the callback in `study.search`, from time to time; what it gets is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from study.pareto import FrontRungs
from study.record import StudyRecord


class NotPickled:
    """Leaves its state behind when Ray pickles it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RecordASHA(NotPickled, ASHAScheduler):
    """ASHA over epochs that knows the rungs of trials that ran before this process.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning". A trial stops at a
    rung if its metric is below the best 1/`reduction_factor` of those that reached the rung. With
    two objectives `study.pareto.FrontRungs` decides instead.

    Args:
        record: The study; trials are told apart by its numbers.
        grace_period: Epochs before the first rung.
        reduction_factor: Which part goes on at each rung.
    """

    def __init__(self, record: StudyRecord, grace_period: int, reduction_factor: float) -> None:
        manifest = record.manifest
        super().__init__(
            time_attr="epoch",
            metric=manifest["metric"],
            mode=manifest["mode"],
            max_t=manifest["epochs"],
            grace_period=min(grace_period, manifest["epochs"]),
            reduction_factor=reduction_factor,
        )
        self.record = record
        self.stopped: set[int] = set()  # numbers of the trials that were told to stop
        self._fronts: FrontRungs | None = None
        if record.goal.double:
            milestones = [milestone for milestone, _ in self._brackets[0]._rungs]
            self._fronts = FrontRungs(milestones, reduction_factor)
        for trial in record.trials():
            for row in trial.history:
                self._decide(trial.number, row)

    def _decide(self, number: int, row: Mapping[str, float]) -> str:
        epoch, names = int(row["epoch"]), [o.metric for o in self.record.goal.objectives]
        if any(name not in row for name in names):  # of a file that was mended
            return str(TrialScheduler.CONTINUE)
        point = self.record.goal.point(row)
        if self._fronts is not None:
            goes_on = self._fronts.goes_on(number, epoch, point)
            return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)
        known_as: Any = SimpleNamespace(trial_id=number)
        decision: str = self._brackets[0].on_result(known_as, epoch, point[0])
        return decision

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial goes on; the last epoch ends it anyway."""
        number = trial.config["trial"]
        if "epoch" not in result or result["epoch"] >= self._max_t:
            return str(TrialScheduler.CONTINUE)
        if result["epoch"] <= self.record.trial(number).epochs:  # decided before
            return str(TrialScheduler.CONTINUE)
        # Ray flattens results for schedulers.
        known = {name: result.get(f"metrics/{name}") for name in self.record.goal.metrics}
        metrics = {name: value for name, value in known.items() if value is not None}
        decision = self._decide(number, {"epoch": result["epoch"], **metrics})
        if decision == TrialScheduler.STOP:
            self.stopped.add(number)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: the last result was seen when it came."""
