"""Ray Tune's events, taken to the study's record; tracking and terminal look there.

The callback is rebuilt from the record when a study goes on, as `study.runner.scheduler` is.
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

START_SECONDS = 180.0  # for the process of a trial, on a machine that is busy
CROWDED_SECONDS = 20.0  # before a trial is started again that had no memory beside another
NUM_CROWDED = 10  # so often in one epoch, then the study stops


class StudyCallback(NotPickled, tune.Callback):
    """Takes Ray's events to the study's record, and has tracking and terminal look there.

    Args:
        record: The study.
        tracker: Brings MLflow up to date.
        progress: Prints.
        scheduler: Knows which trials were stopped early; None if none ever is.
        stopping: Whether to leave.
        watch: Whether Ray itself is there.
        local: Whether Ray has this machine alone, so that nothing is waited for.
        concurrent: How many trials fit at a time.
        max_failures: How often a trial is started again in one epoch.
        keep: Of how many of the best ended trials the weights stay.
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
        self.heard: dict[int, float] = {}  # running trial -> when it last gave a sign
        self.short = 0.0  # since when fewer trials run than there is room for, and none starts
        self.saved: set[int] = set()  # running trials that wait for the study to stop
        self.groups: dict[int, PlacementGroup] = {}  # of the workers of running trials
        self.actors: dict[int, str] = {}  # running trial -> its actor, in hexadecimal
        self.strikes: dict[int, int] = {}  # trial -> failures since its last epoch
        self.crowded: dict[int, int] = {}  # trial -> ends beside something larger since then
        self.hung: dict[int, str] = {}  # trials that were killed for it -> reason

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self.stopping.cannot_write(error)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Stop the study if it is time, and trials that hang."""
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
        """Wait for the processes of trials no longer than they can take."""
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
        """Show a trial that starts, anew or again."""
        number = trial.config["trial"]
        self.short = self.clock.now
        self.actors[number] = trial.temporary_state.ray_actor._actor_id.hex()
        if self.local or trial.config["workers"] == 1:  # others may have to wait for a node
            self.heard[number] = self.clock.now
        self.tracker.touch(number)
        self.progress.epoch(number, self.record.trial(number).epochs)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record what a trial reports; `study.runner.trial` says what that can be."""
        number = trial.config["trial"]
        if "group" in result:
            self._free(number)  # of workers that ran out of memory
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
                    # Failures count that come in a row: a spot machine that goes away now and
                    # then costs its epoch, never the trial.
                    self.strikes.pop(number, None)
                    self.crowded.pop(number, None)
                self.record.report(number, result["metrics"], ending)
                self.tracker.touch(number)
                self.progress.epoch(number, result["epoch"])
                if self.record.trial(number).state != "running":
                    self._ended(number)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial that had all its epochs before it was cut off."""
        number = trial.config["trial"]
        self._free(number)
        with self._writing():
            self._end_if_finished(number)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a failure after which Ray starts the trial again, or end it."""
        number = trial.config["trial"]
        self.watch.check()
        self._free(number)
        known = self.record.trial(number)
        if known.state != "running":  # it has all that counts
            return
        death = self._death(number, trial)
        trial.config["pause"] = 0.0
        if death.kill is not None and not death.kill.blamed:
            self._wait_for_memory(trial, known, death.kill)
            return
        self.strikes[number] = self.strikes.get(number, 0) + 1
        if self.strikes[number] > self.max_failures:
            self._fail(number, death)
            trial.max_failures = 0  # its next process finds that it has ended; none comes after
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
        """Start a trial again later that merely ran beside something large."""
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
        """End a trial that Ray does not start again."""
        number = trial.config["trial"]
        self.watch.check()
        self._free(number)
        if self.record.trial(number).state == "running":
            self._fail(number, self._death(number, trial))

    def _death(self, number: int, trial: Any) -> Death:
        if number in self.hung:  # killed by us
            return Death(reason=self.hung.pop(number), cause="hung")
        return Death.of(trial, self.actors.get(number, ""))

    def _fail(self, number: int, death: Death) -> None:
        tries = len(self.record.trial(number).failures) + 1
        reason = death.reason + (f" (tried {tries} times)" if tries > 1 else "")
        with self._writing():
            self._end(number, "failed", reason, death.cause)

    def _free(self, number: int) -> None:
        """Wait for a trial no more; end its workers, if it has a group, and free what they take."""
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
