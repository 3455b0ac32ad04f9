"""Ray Tune callback: writes events to the study's record, which tracking and terminal read.

When a study resumes, the callback is rebuilt from the record, like `study.runner.scheduler`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group

from study.cluster.session import logs_folder
from study.cluster.watch import RayWatch
from study.errors import StorageError
from study.formatting import duration
from study.records.study_record import StudyRecord
from study.records.trial_record import Cause, Ending, TrialRecord
from study.reporting.progress import Progress
from study.runner.deaths import Death
from study.runner.driver_clock import DriverClock
from study.runner.faults import NUM_ALIKE, MemoryKill, common_failure
from study.runner.scheduler import NotPickled, RecordASHA
from study.runner.stopping import Stopping
from study.tracking.tracker import StudyTracker

START_SECONDS = 180.0  # for a trial process to start on a busy machine
CROWDED_SECONDS = 20.0  # before retrying a trial that was killed beside a larger process
NUM_CROWDED = 10  # such kills in one epoch before the study stops


class StudyCallback(NotPickled, tune.Callback):
    """Writes Ray's events to the study's record, then notifies tracking and terminal.

    Args:
        record: The study.
        tracker: Keeps MLflow up to date.
        progress: Prints to the terminal.
        scheduler: Knows which trials were stopped early; None if none ever is.
        stopping: Decides whether the study stops.
        watch: Detects that Ray itself has died.
        local: Whether Ray runs on this machine only, so that no node has to be waited for.
        concurrent: Number of trials that fit at a time.
        max_failures: Retries of a trial in one epoch.
        keep: Number of best ended trials whose weights are kept.
        timeout: Seconds without a report after which a trial counts as hung.
    """

    def __init__(
        self,
        record: StudyRecord,
        tracker: StudyTracker,
        progress: Progress,
        scheduler: RecordASHA | None,
        stopping: Stopping,
        watch: RayWatch,
        *,
        local: bool,
        concurrent: int,
        max_failures: int,
        keep: int,
        timeout: float,
    ) -> None:
        self.record = record
        self.tracker = tracker
        self.progress = progress
        self.scheduler = scheduler
        self.stopping = stopping
        self.watch = watch
        self.local = local
        self.concurrent = concurrent
        self.max_failures = max_failures
        self.keep = keep
        self.timeout = timeout
        self.clock = DriverClock()
        self.heard: dict[int, float] = {}  # running trial -> time of its last sign of life
        self.short = 0.0  # since when fewer trials run than fit and none has started
        self.saved: set[int] = set()  # running trials that have saved and wait for the stop
        self.groups: dict[int, PlacementGroup] = {}  # running trial -> its workers' group
        self.actors: dict[int, str] = {}  # running trial -> its actor, in hexadecimal
        self.strikes: dict[int, int] = {}  # trial -> failures since its last epoch
        self.crowded: dict[int, int] = {}  # trial -> kills beside a larger process since then
        self.hung: dict[int, str] = {}  # trials killed because they hung -> reason

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self.stopping.cannot_write(error)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Stop the study if it is time, and kill trials that hang."""
        self.clock.tick()
        self.watch.check()
        self.stopping.check(saving=bool(self.heard.keys() - self.saved))
        self._check_starts(trials)
        since = self.clock.now - self.timeout
        late = [number for number, heard in self.heard.items() if heard < since]
        for trial in trials if late else ():
            number = trial.config["trial"]
            if number in late:
                self.hung[number] = f"no report for {duration(self.timeout)} (--trial-timeout)"
                ray.kill(trial.temporary_state.ray_actor)
                self._free(number)

    def _check_starts(self, trials: list[Any]) -> None:
        """Report trial processes that take too long to start."""
        if len(self.heard) >= self.concurrent or self.stopping.why is not None:
            self.short = self.clock.now
        if self.clock.now - self.short < START_SECONDS:
            return
        self.short = self.clock.now
        waiting = [trial for trial in trials if trial.status in ("PENDING", "RUNNING")]
        if len(self.heard) >= len(waiting):
            return
        told = f"no trial process has started for {duration(START_SECONDS)}"
        if self.local:
            self.watch.dead(f"{told} (logs: {logs_folder()})")
        else:
            self.progress.say(f"{told}; `ray status` shows what the cluster is waiting for")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show a trial that starts or restarts."""
        number = trial.config["trial"]
        self.short = self.clock.now
        self.actors[number] = trial.temporary_state.ray_actor._actor_id.hex()
        if self.local or trial.config["workers"] == 1:  # otherwise it may have to wait for a node
            self.heard[number] = self.clock.now
        self.tracker.touch(number)
        self.progress.epoch(number, self.record.trial(number).epochs)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a report of a trial; `study.runner.trial` lists the kinds of reports."""
        number = trial.config["trial"]
        if "group" in result:
            self._free(number)  # an earlier group that ran out of memory
            self.groups[number] = PlacementGroup(PlacementGroupID.from_hex(result["group"]))
        self.heard[number] = self.clock.now
        with self._writing():
            if "note" in result:
                self.progress.say(f"trial {number:>3}  {result['note']}")
                if "micro_batches" in result:
                    self.record.retry(number, result["note"], result["micro_batches"])
            if "interrupted" in result:
                self.saved.add(number)
            if "halt" in result:
                self.saved.add(number)
                self.stopping.request(result["halt"], 1)
            if "failure" in result:
                self._end(number, "failed", result["failure"], result["cause"])
            if "epoch" in result:
                ending: Ending | None = None
                if self.scheduler is not None and number in self.scheduler.stopped:
                    ending = "stopped"
                elif result["epoch"] >= self.record.manifest["epochs"]:
                    ending = "finished"
                if result["epoch"] == self.record.trial(number).epochs + 1:
                    # Only failures in a row count: losing a spot machine now and then costs an
                    # epoch, never the trial.
                    self.strikes.pop(number, None)
                    self.crowded.pop(number, None)
                self.record.report(number, result["metrics"], ending)
                self.tracker.touch(number)
                self.progress.epoch(number, result["epoch"])
                if self.record.trial(number).state != "running":
                    self._ended(number)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial that had completed all epochs before it was interrupted."""
        number = trial.config["trial"]
        self._free(number)
        with self._writing():
            self._end_if_finished(number)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a failure after which Ray restarts the trial, or end the trial."""
        number = trial.config["trial"]
        self.watch.check()
        self._free(number)
        known = self.record.trial(number)
        if known.state != "running":  # already ended
            return
        death = self._death(number, trial)
        trial.config["pause"] = 0.0
        if death.kill is not None and not death.kill.blamed:
            self._wait_for_memory(trial, known, death.kill)
            return
        self.strikes[number] = self.strikes.get(number, 0) + 1
        if self.strikes[number] > self.max_failures:
            self._fail(number, death)
            trial.max_failures = 0  # its next process finds it ended and is the last
            return
        micro_batches = known.micro_batches
        if death.cause == "out_of_memory":
            twice = 2 * micro_batches
            batch = int(self.record.config(known).get("batch_size", twice))
            micro_batches = max(micro_batches, min(twice, batch // trial.config["workers"]))
        with self._writing():
            self.record.retry(number, death.reason, micro_batches)
        self.tracker.touch(number)
        self.progress.say(
            f"trial {number:>3}  {death.reason}; retrying from epoch {known.epochs + 1}"
        )

    def _wait_for_memory(self, trial: Any, known: TrialRecord, kill: MemoryKill) -> None:
        """Retry later a trial that was killed only because a larger process ran beside it."""
        number = known.number
        self.crowded[number] = self.crowded.get(number, 0) + 1
        if self.crowded[number] == 1:
            again = f"retrying from epoch {known.epochs + 1}, not counted by --max-failures"
            self.progress.say(f"trial {number:>3}  {kill}; {again}")
        if self.crowded[number] >= NUM_CROWDED:
            self.stopping.request(
                f"trial {number} does not fit in memory beside the others: {kill}", 1
            )
        trial.config["pause"] = CROWDED_SECONDS

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial that Ray does not restart."""
        number = trial.config["trial"]
        self.watch.check()
        self._free(number)
        if self.record.trial(number).state == "running":
            self._fail(number, self._death(number, trial))

    def _death(self, number: int, trial: Any) -> Death:
        if number in self.hung:  # killed by this callback
            return Death(reason=self.hung.pop(number), cause="hung")
        return Death.of(trial, self.actors.get(number, ""))

    def _fail(self, number: int, death: Death) -> None:
        tries = len(self.record.trial(number).failures) + 1
        reason = death.reason + (f" (tried {tries} times)" if tries > 1 else "")
        with self._writing():
            self._end(number, "failed", reason, death.cause)

    def _free(self, number: int) -> None:
        """Stop tracking a trial; end its workers, if it has any, and free their resources."""
        self.heard.pop(number, None)
        group = self.groups.pop(number, None)
        if group is not None:
            remove_placement_group(group)

    def _end_if_finished(self, number: int) -> None:
        trial = self.record.trial(number)
        if trial.state == "running" and trial.epochs >= self.record.manifest["epochs"]:
            self._end(number, "finished")

    def _end(
        self,
        number: int,
        ending: Ending,
        reason: str | None = None,
        cause: Cause | None = None,
    ) -> None:
        self.record.end(number, ending, reason, cause)
        self._ended(number)

    def _ended(self, number: int) -> None:
        self.heard.pop(number, None)
        self.record.drop_losers(self.keep)
        self.tracker.touch(number)
        self.progress.ended(self.record.trial(number))
        common = common_failure(self.record.trials())
        if common is not None:
            self.stopping.request(
                f"the first {NUM_ALIKE} trials all failed for the same reason: {common}", 1
            )
