"""What Ray Tune asks, which trial next and which to stop early, and what it tells of trials.

All of it is rebuilt from the study's record when a study goes on. Ray insists on pickling these
objects from time to time; what it gets is empty.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.progress import Progress
from study.record import Ending, StudyRecord, TrialRecord
from study.space import SearchSpace
from study.tracking import StudyTracker


class NotPickled:
    """Leaves its state behind when Ray pickles it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RecordSearcher(NotPickled, Searcher):
    """Hands Ray the trials that were cut off, then new ones from the record's Optuna study.

    Args:
        record: The study.
        space: What is searched.
        shared: The part of a trial's Ray config that all trials have.
    """

    def __init__(self, record: StudyRecord, space: SearchSpace, shared: dict[str, Any]) -> None:
        super().__init__(metric=record.manifest["metric"], mode=record.manifest["mode"])
        self.record = record
        self.space = space
        self.shared = shared
        self.cut_off = [trial.number for trial in record.trials() if trial.state == "running"]

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the Ray config of the next trial."""
        if self.cut_off:
            number, values = self.record.reopen(self.cut_off.pop(0), self.space)
        else:
            number, values = self.record.ask(self.space)
        settings = {**self.space.fixed, **values, "seed": self.record.seed(number)}
        return {**self.shared, "trial": number, "settings": settings}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the study's callback has told the record."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the record is the state."""


class RecordASHA(NotPickled, ASHAScheduler):
    """ASHA over epochs that knows the rungs of trials that ran before this process.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning". A trial stops at a
    rung if its metric is below the best 1/`reduction_factor` of those that reached the rung.

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
        self.stopped: set[int] = set()  # numbers of the trials that were told to stop
        self._sign = 1.0 if manifest["mode"] == "max" else -1.0
        for trial in record.trials():
            self._remember(trial)

    def _remember(self, trial: TrialRecord) -> None:
        for epoch, value in sorted(trial.curve.items()):
            self._decide(trial.number, epoch, value)

    def _decide(self, number: int, epoch: int, value: float) -> str:
        known_as: Any = SimpleNamespace(trial_id=number)
        decision: str = self._brackets[0].on_result(known_as, epoch, self._sign * value)
        return decision

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial goes on; the last epoch ends it anyway."""
        key = f"metrics/{self._metric}"  # Ray flattens results for schedulers
        if key not in result or result["epoch"] >= self._max_t:
            return str(TrialScheduler.CONTINUE)
        number = trial.config["trial"]
        decision = self._decide(number, result["epoch"], result[key])
        if decision == TrialScheduler.STOP:
            self.stopped.add(number)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: the last result was seen when it came."""


class StudyCallback(NotPickled, tune.Callback):
    """Takes Ray's events to the study's record, and has tracking and terminal look there.

    Args:
        record: The study.
        tracker: Brings MLflow up to date.
        progress: Prints.
        scheduler: Knows which trials were stopped early; None if none ever is.
    """

    def __init__(
        self,
        record: StudyRecord,
        tracker: StudyTracker,
        progress: Progress,
        scheduler: RecordASHA | None,
    ) -> None:
        self.record = record
        self.tracker = tracker
        self.progress = progress
        self.scheduler = scheduler
        self.failures: dict[int, str] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show a trial that starts, anew or again."""
        number = trial.config["trial"]
        self.tracker.touch(number)
        self.progress.epoch(number, max(self.record.trial(number).curve, default=0))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record an epoch."""
        number = trial.config["trial"]
        if "failure" in result:
            self.failures[number] = result["failure"]
            return
        self.record.report(number, self.record.run_folder(number).history())
        self.tracker.touch(number)
        self.progress.epoch(number, result["epoch"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial, unless the time budget cut it off: then the next command goes on."""
        number = trial.config["trial"]
        if number in self.failures:
            self._end(number, "failed", self.failures[number])
            return
        # The folder, not Ray's last result: a trial cut off after its last epoch reports nothing.
        history = self.record.run_folder(number).history()
        self.record.report(number, history)
        if history and history[-1]["epoch"] >= self.record.manifest["epochs"]:
            self._end(number, "finished")
        elif self.scheduler is not None and number in self.scheduler.stopped:
            self._end(number, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial whose process died more often than it is started again."""
        lines = str(trial.get_error()).strip().splitlines()
        self._end(trial.config["trial"], "failed", f"its process died: {lines[-1]}")

    def _end(self, number: int, ending: Ending, reason: str | None = None) -> None:
        self.record.end(number, ending, reason)
        self.tracker.touch(number)
        self.progress.ended(self.record.trial(number))
