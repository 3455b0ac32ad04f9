"""Keeps a study's MLflow runs up to date: one per study, one per trial, written by one thread.

A trial's run is updated from the trial's folder, so nothing is queued in memory: while the server
is down, training continues, and the next attempt sends what is missing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from study.errors import InputError
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.task import Task
from study.tracking.figure_worker import Drawing, figure_note
from study.tracking.notes import best_metric
from study.tracking.outbox import Job, Outbox, ReportJob, TrialJob
from study.tracking.runs import Run, StudyRuns
from study.tracking.store import connect, upload_report
from study.tracking.system_metrics import SystemWatch

logger = logging.getLogger(__name__)

# Minimum interval between two reports of a running study: in seconds, and as a multiple of the time
# the last one took, so that a study of thousands of trials does not spend its time on reports.
REPORT_SECONDS, REPORT_SHARE = 60.0, 20.0


@dataclasses.dataclass
class _Report:
    """The state of writing the study's page.

    Attributes:
        num_ended: Ended trials in the page being written; None if none is being written.
        asked: When it was requested, seconds of the monotonic clock.
        due: When to request the next one.
    """

    num_ended: int | None = None
    asked: float = dataclasses.field(default_factory=time.monotonic)
    due: float = dataclasses.field(default_factory=lambda: time.monotonic() + REPORT_SECONDS)

    def begin(self, num_ended: int) -> None:
        """Note that a page was requested."""
        self.num_ended, self.asked, self.due = num_ended, time.monotonic(), math.inf

    def end(self) -> int:
        """Note that the page was written; return its number of ended trials."""
        assert self.num_ended is not None
        shown, self.num_ended = self.num_ended, None
        now = time.monotonic()
        self.due = now + max(REPORT_SECONDS, REPORT_SHARE * (now - self.asked))
        return shown


class StudyTracker:
    """Keeps MLflow in sync with a study's record, in a separate thread.

    Args:
        uri: Absolute tracking URI.
        record: The study.
        task: Draws the figures.
        settings: Settings shared by all trials, with their values; logged as parameters.
        known: Facts about data, code and machine; logged as tags.
        system_metrics: Whether to log this machine's load, too.
    """

    def __init__(
        self,
        uri: str,
        record: StudyRecord,
        task: Task,
        settings: Mapping[str, Any],
        known: Mapping[str, str],
        *,
        system_metrics: bool = False,
    ) -> None:
        self.uri = uri
        self.record = record
        self.task = task
        self.settings = dict(settings)
        self.known = dict(known)
        self._system_metrics = system_metrics
        self._watch: SystemWatch | None = None
        self._store: StudyRuns | None = None  # None until the store is reached
        self._look_again = False  # after a failure: somebody may have deleted runs
        self._restored: set[int] = set()  # trials whose runs were deleted
        self._runs: dict[int, Run] = {}
        # Trials whose runs an earlier process, or a failed call, may have created.
        self._perhaps_there = {trial.number for trial in record.trials()}
        self._report = _Report()
        self._outbox = Outbox()
        self._drawing = Drawing(drawn=self._outbox.put)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def touch(self, number: int) -> None:
        """Schedule an update of a trial's run."""
        self._outbox.put(TrialJob(number))

    def close(
        self,
        status: str,
        best: TrialRecord | None,
        patience: float = 120.0,
        at_most: float = math.inf,
    ) -> str | None:
        """Send everything that is missing and end the study's run.

        Args:
            status: FINISHED, KILLED or FAILED.
            best: The best trial.
            patience: Seconds to wait for a store that does not answer.
            at_most: Seconds to wait in total.

        Returns:
            The error, None if everything was written.
        """
        if at_most == math.inf:
            self._outbox.close(ReportJob())
        else:  # after a signal there is no time for a report
            self._outbox.close()
        self._wait(patience, at_most)
        if self._thread.is_alive():
            return self._outbox.trouble or "the tracking store is too slow"
        unsent = self._outbox.unsent
        if unsent.keys() - {ReportJob()}:
            jobs = ", ".join(str(job) for job in sorted(unsent, key=_in_order))
            return f"{jobs}: {'; '.join(sorted(set(unsent.values())))}"
        try:
            self._end(status, best)
        except Exception as error:  # as in `_work`
            return _first_line(error)
        return unsent.get(ReportJob())

    def _wait(self, patience: float, at_most: float) -> None:
        """Wait for the thread; each job that it completes extends the wait."""
        closing = heard = time.monotonic()
        sent = self._outbox.num_sent
        while self._thread.is_alive() and time.monotonic() - heard < patience:
            self._thread.join(min(1.0, patience))
            if time.monotonic() - closing > at_most:
                break
            if self._outbox.num_sent > sent:  # a study of short trials may have much left to send
                heard, sent = time.monotonic(), self._outbox.num_sent

    def _end(self, status: str, best: TrialRecord | None) -> None:
        """End the runs of the study and of interrupted trials, and record the best trial."""
        store = self._reach()
        client, parent = store.client, store.parent
        if self._restored:
            numbers = ", ".join(str(number) for number in sorted(self._restored))
            logger.warning("restored the deleted MLflow runs of trials %s", numbers)
        for run in self._runs.values():
            if not run.ended:  # interrupted; the next command resumes it
                client.set_tag(run.run_id, "study.resumable", "true")
                client.set_terminated(run.run_id, "KILLED")
        found = best if store.searches and status == "FINISHED" else None
        if found is not None and found.best_value is not None:
            key = best_metric(self.record)
            if client.get_run(parent).data.metrics.get(key) != found.best_value:
                client.log_metric(parent, key, found.best_value, step=found.number)
                client.set_tag(parent, "study.best_trial", str(found.number))
        if self._watch is not None:
            self._watch.flush()
        client.set_terminated(parent, status)

    def _reach(self) -> StudyRuns:
        """Return the study's runs in MLflow; find or create them the first time."""
        if self._store is None or self._look_again:
            client = connect(self.uri)
            about = (self.record, self.task, self.settings, self.known)
            store = StudyRuns(client, self.uri, *about)
            if store.is_from_other_study():
                logger.warning(
                    "MLflow has a later command of study %s than its folder %s, so there are two "
                    "copies of the study; this one is a separate study from now on, with new runs",
                    self.record.manifest["study"],
                    self.record.path,
                )
                self.record.separate()
                self._runs.clear()
                store = StudyRuns(client, self.uri, *about)
            store.resume()
            self._store = store
            self._look_again = False
        return self._store

    def _work(self) -> None:
        while (job := self._outbox.take(lambda: self._drawing.busy)) is not None:
            try:
                self._send(job)
                self._outbox.succeeded()
            except Exception as error:  # SQLAlchemy, HTTP and MLflow each have their own
                self._forget(job)
                self._outbox.failed(job, _first_line(error))
                # When closing, there is no point in trying them all.
                if self._outbox.unsent and (self._store is None or len(self._outbox.unsent) > 1):
                    self._outbox.give_up()
                    break
        self._drawing.close()

    def _send(self, job: Job) -> None:
        if isinstance(job, ReportJob):
            self._bring_report()
        else:
            self._bring_up_to_date(job.number)
            if time.monotonic() > self._report.due:
                self._outbox.put(ReportJob())
        if self._system_metrics and (self._watch is None or self._watch.ended):
            self._watch = SystemWatch(self.uri, self._reach().parent)

    def _forget(self, job: Job) -> None:
        """Forget what was sent: it is unknown what the failed call has written."""
        self._look_again = True
        self._drawing.forget(job)
        if isinstance(job, ReportJob):
            self._report.num_ended = None
        else:
            self._runs.pop(job.number, None)
            self._perhaps_there.add(job.number)

    def _bring_up_to_date(self, number: int) -> None:
        store = self._reach()
        trial = self.record.trial(number)
        run = self._runs.get(number)
        if run is None:
            run = store.find_or_create(trial, perhaps_there=number in self._perhaps_there)
            self._runs[number] = run
            self._restored |= store.restored
        store.log(trial, run)
        if trial.state != "running" and not run.ended and self._has_figures(trial):
            store.end(trial, run)

    def _has_figures(self, trial: TrialRecord) -> bool:
        """Return whether a trial's figures exist; if not, the trial is touched when they do."""
        if trial.best_epoch is None:
            return True
        folder = self.record.run_folder(trial.number)
        note = figure_note(self.task, self.record, trial)
        damage = self._drawing.request(trial, self.task.name, folder, note)
        for text in damage or []:
            logger.warning(text)
        return damage is not None

    def _bring_report(self) -> None:
        """Write the study's page and upload it to the study's run."""
        store, report = self._reach(), self._report
        if not store.searches:
            return
        if report.num_ended is None:
            if store.reported == self.record.num_ended():
                return
            report.begin(self.record.num_ended())
        damage = self._drawing.request_report(self.record.path)
        if damage is None:
            return  # called again when it is written
        shown = report.end()
        for text in damage:
            logger.warning(text)
        store.describe(shown, self._runs)
        if not damage:
            upload_report(store.client, store.parent, self.record.path)
        if self._outbox.closing:  # a trial may have ended meanwhile
            self._outbox.put(ReportJob())


def _in_order(job: Job) -> int:
    return -1 if isinstance(job, ReportJob) else job.number


def _first_line(error: BaseException) -> str:
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{name}{error}".strip().splitlines()[0]
