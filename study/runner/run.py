"""Run of a study: opens it, runs its trials under Ray Tune, tracks them, and closes it.

Trials run in Ray's processes, and `study.runner.callbacks` writes their reports to the study's
record. Whatever ends the study, a signal or an error, the record is closed and MLflow is brought up
to date.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from typing import TYPE_CHECKING, Any

from study.cluster.resources import DRIVER, Resources
from study.cluster.session import shut_down_ray, start_ray
from study.cluster.watch import RayWatch
from study.records.provenance import facts
from study.records.run_options import say_trials
from study.records.study_record import StudyRecord
from study.reporting.live_table import progress_for
from study.reporting.progress import Progress
from study.runner.connections import (
    is_complete,
    join_cluster,
    reach_tracking,
    reach_tracking_and_start_ray,
)
from study.runner.plan import StudyPlan
from study.runner.restart import Restart, go_on_after
from study.runner.stopping import Stopping, StudyStopped
from study.runner.summary import page_command, summary
from study.search.stopping_rule import StoppingRule
from study.tracking.tracker import StudyTracker

if TYPE_CHECKING:
    from ray.tune import Tuner

    from study.runner.callbacks import StudyCallback
    from study.runner.scheduler import RecordASHA

TRACKING_SECONDS = 120.0  # to wait for an unresponsive tracking store at the end
HASTY_SECONDS = 5.0  # the same after a signal, in total


def run(
    study: StudyPlan,
    manifest: dict[str, Any],
    command: str,
    conclude: Callable[[StudyPlan, StudyRecord], str] | None = summary,
) -> int:
    """Run or resume a study, print how it ended, and return the exit code.

    Args:
        study: The plan.
        manifest: The study's manifest, from `study.manifest()`.
        command: The command line, kept in the record and shown as the one that resumes.
        conclude: Returns the summary printed at the end; None for no summary.

    Raises:
        InputError: The study cannot be run as requested.
    """
    study.refuse_changed_metrics()
    restart = Restart.take()
    stopping = Stopping(study.options.time_budget, restart.begun)
    uri = reach_tracking(study) if restart.why else reach_tracking_and_start_ray(study)
    on_cluster = study.options.address is not None
    if on_cluster and restart.why is None and not is_complete(study):
        try:
            study = join_cluster(study, stopping, uri)
        except StudyStopped:
            print(f"{stopping.why} before the study started", file=sys.stderr)
            return stopping.exit_code
    record = StudyRecord.create_or_continue(
        study.folder, manifest, command, stopping.abandon, uri, study.options
    )
    stopping.watch(record.path)
    if restart.why is not None:
        stopping.request(restart.why, restart.exit_code)
    for text in record.repaired:
        print(f"repaired: {text}", file=sys.stderr)
    started = Run(study=study, record=record, uri=uri, stopping=stopping, restart=restart)
    started.work()
    if conclude is not None:
        print(conclude(study, record))
    return started.tell_end(command)


class Run:
    """An open study, from its first trial to its last.

    Args:
        study: The plan.
        record: The study, open for writing.
        uri: The tracking URI.
        stopping: Whether to stop.
        restart: State from before Ray died.
    """

    def __init__(
        self,
        *,
        study: StudyPlan,
        record: StudyRecord,
        uri: str,
        stopping: Stopping,
        restart: Restart,
    ) -> None:
        self.study = study
        self.record = record
        self.uri = uri
        self.stopping = stopping
        self.restart = restart
        self.local = study.options.address is None
        self.facts = facts(study.identity, study.source)
        self.tracker = StudyTracker(
            uri,
            record,
            study.task,
            {**study.settings, "dataset": study.source.dataset},
            self.facts,
            system_metrics=study.options.system_metrics,
        )
        self.screen = ExitStack()  # holds the live table, if any
        self.watch: RayWatch | None = None

    def work(self) -> None:
        """Run the remaining trials, then close the study, whatever happens."""
        for trial in self.record.trials():  # sends what an earlier command could not
            self.tracker.touch(trial.number)
        self.record.drop_losers(self.study.options.keep_weights)
        try:
            if self._left() > 0:
                self._run_trials()
            else:
                asked = self.study.options.num_samples
                print(f"{self.study.title} already has its {asked} trials.", file=sys.stderr)
        except StudyStopped:
            pass  # `stopping` has the reason
        except BaseException:
            self.stopping.exit_code = 1
            raise
        finally:
            self._close()

    def tell_end(self, command: str) -> int:
        """Print why the study stopped and how to resume it; return the command's exit code."""
        if self.stopping.why is not None:
            print(f"\n{self.stopping.why}", file=sys.stderr)
        if self._time_is_up():
            print(f"to continue for as long again: {command}", file=sys.stderr)
        if not self._is_complete():
            print(f"not complete; continue with: {command}", file=sys.stderr)
            return self.stopping.exit_code
        # Trials interrupted by the time budget resume with the next command.
        cut_off = len(self.record.trials()) > self.record.num_ended()
        return 0 if self.record.ranking() or cut_off else 1

    def _left(self) -> float:
        """Return how many more trials have to end; infinity without a limit."""
        return self.study.options.num_samples - self.record.num_ended()

    def _time_is_up(self) -> bool:
        """Return whether a study without a trial limit has used its time budget."""
        return math.isinf(self.study.options.num_samples) and self.stopping.spent

    def _is_complete(self) -> bool:
        return self._time_is_up() or self._left() <= 0

    def _run_trials(self) -> None:
        """Run trials under Ray Tune until none is left.

        Raises:
            StudyStopped: The study stops before that; `stopping` has the reason.
        """
        if self.stopping.why is not None:  # from before Ray died
            raise StudyStopped
        resources = self.study.resources
        if self.local:
            start_ray(resources)
        self.stopping.catch_signals()  # Ray has installed its own SIGTERM handler
        assert resources is not None
        self.watch = RayWatch(self._on_death, self.local, dashboard=resources.workers > 1)
        rule = StoppingRule.of(self.study.options, self.study.epochs)
        progress = self.screen.enter_context(progress_for(self.record, rule))
        self.stopping.tell = progress.tell
        progress.say(self._opening(resources))
        logging.getLogger("ray").setLevel(logging.CRITICAL)  # the callback reports failures
        # Ray prints node events to stdout; the watch reports those of a local node.
        with open(os.devnull, "w") as nowhere:
            with redirect_stdout(nowhere if self.local else sys.stderr):
                # A local folder: Ray itself shares no files between nodes.
                with tempfile.TemporaryDirectory(prefix="study-ray-") as scratch:
                    self._tuner(resources, progress, self.watch, scratch).fit()

    def _opening(self, resources: Resources) -> str:
        """Return the opening lines: what is about to run, and where to see it."""
        study, begun = self.study, bool(self.record.trials())
        at_random = ", random search" if study.options.sampler == "random" else ""
        return (
            f"{study.title} {'continues' if begun else 'begins'}: "
            f"{say_trials(self._left())} of up to {study.epochs} epochs, "
            f"{resources.describe()}; "
            f"{study.identity['dataset']}\n"
            f"    objective {study.goal}{at_random}\n"
            f"    folder {study.folder}, tracking {self.uri}\n"
            f"    in MLflow: {page_command(study)}"
        )

    def _tuner(
        self, resources: Resources, progress: Progress, watch: RayWatch, scratch: str
    ) -> Tuner:
        """Return the Ray Tuner that runs the remaining trials.

        Args:
            resources: Resources per trial.
            progress: Prints to the terminal.
            watch: Detects that Ray has died.
            scratch: Folder for Ray's files.
        """
        from ray import tune

        from study.runner.deaths import take_memory_kills_as_deaths
        from study.runner.scheduler import RecordASHA, RecordSearcher
        from study.runner.trainable import StudyTrial

        take_memory_kills_as_deaths()
        scheduler = None
        if self.study.asha is not None:
            grace_period, reduction_factor = self.study.asha
            scheduler = RecordASHA(self.record, grace_period, reduction_factor)
        request = DRIVER
        if resources.workers == 1:
            request = {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker}
        left = self._left()
        return tune.Tuner(
            tune.with_resources(StudyTrial, request),
            tune_config=tune.TuneConfig(
                num_samples=-1 if math.isinf(left) else int(left),
                search_alg=RecordSearcher(
                    self.record, self.stopping, self._shared(resources, scratch)
                ),
                scheduler=scheduler,
                max_concurrent_trials=resources.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                callbacks=[self._callback(resources, progress, watch, scheduler)],
                # The callback decides which failures count: not all are the trial's fault.
                failure_config=tune.FailureConfig(max_failures=-1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )

    def _callback(
        self,
        resources: Resources,
        progress: Progress,
        watch: RayWatch,
        scheduler: RecordASHA | None,
    ) -> StudyCallback:
        """Return the callback that writes Ray's events to the record; arguments as for `_tuner`."""
        from study.runner.callbacks import StudyCallback

        options = self.study.options
        return StudyCallback(
            self.record,
            self.tracker,
            progress,
            scheduler,
            self.stopping,
            watch,
            local=self.local,
            concurrent=resources.concurrent,
            max_failures=options.max_failures,
            keep=options.keep_weights,
            timeout=options.trial_timeout,
        )

    def _shared(self, resources: Resources, scratch: str) -> dict[str, Any]:
        """Return the part of the Ray config that all trials share."""
        study = self.study
        return {
            "task": study.task.name,
            "dataset": study.source.dataset,
            "data_dir": str(study.source.data_dir),
            "cache_dir": str(study.source.cache_dir),
            "folder": str(self.record.path / "trials"),
            "ray_folder": scratch,  # Ray Train creates it on other machines
            "epochs": study.epochs,
            "goal": self.record.goal.describe(),
            "workers": resources.workers,
            "cpus_per_worker": resources.cpus_per_worker,
            "gpus_per_worker": resources.gpus_per_worker,
            "facts": self.facts,
        }

    def _on_death(self, why: str) -> None:
        """Restart the command after Ray has died, if possible."""
        go_on_after(why, self.restart, self.record, self.stopping, self.screen.close, self.local)

    def _close(self) -> None:
        """Shut down Ray, bring MLflow up to date and release the study."""
        stopping = self.stopping
        self.screen.close()
        if self.watch is not None:
            self.watch.close()
        if not shut_down_ray():
            if stopping.exit_code == 1 and stopping.why is None:  # an internal error
                traceback.print_exc()
                stopping.request("an internal error ended the study", 1)
            self._on_death("Ray hangs")
        if not stopping.abandoned:  # else the runs belong to another driver now
            self._close_tracking()
        self.record.close(stopping.abandoned)
        stopping.release_signals()

    def _close_tracking(self) -> None:
        """Send MLflow the missing data; print a message if that fails."""
        status = "FAILED" if self.stopping.exit_code == 1 else "KILLED"
        if self._is_complete():
            status = "FINISHED"
        hasty = self.stopping.exit_code > 128
        best = next(iter(self.record.ranking()), None)
        seconds = HASTY_SECONDS if hasty else math.inf
        if trouble := self.tracker.close(status, best, TRACKING_SECONDS, seconds):
            print(
                f"tracking is not complete ({trouble}); nothing is lost: run the same command "
                "again to send the rest.",
                file=sys.stderr,
            )
