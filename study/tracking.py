"""A study in MLflow: one run per study, one per trial, written by one thread of one process.

A trial's run is brought up to date from the trial's folder. So nothing is queued in memory: when
the server is away, training goes on, and the next attempt sends what is missing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from study.drawing import REPORT, Drawing, figure_note
from study.errors import InputError
from study.record import StudyRecord
from study.task import Task
from study.tracking_notes import best_metric
from study.tracking_runs import Run, StudyRuns
from study.tracking_store import connect, upload_report
from study.tracking_system import SystemWatch
from study.trial_record import TrialRecord

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
# Between two reports while the study runs: at least so many seconds, and so many times as long as
# the last one took, so that a study of thousands of trials does not work for its report.
REPORT_SECONDS, REPORT_SHARE = 60.0, 20.0


class StudyTracker:
    """Keeps MLflow in step with a study's record, from a thread of its own.

    Args:
        uri: Absolute tracking URI.
        record: The study.
        task: Draws the figures.
        settings: Settings that all trials share, with their values; become parameters.
        known: Facts about data, code and machine; become tags.
        system_metrics: Whether to log how busy this machine is, too.
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
        self._store: StudyRuns | None = None  # None as long as the store was not reached
        self._restored: set[int] = set()  # trials whose runs were deleted
        self._look_again = False  # after a failure: somebody may have deleted runs
        self.runs: dict[int, Run] = {}
        # Trials whose runs an earlier process may have made, or a call that failed.
        self._perhaps_there = {trial.number for trial in record.trials()}
        self.trouble: str | None = None
        self._unsent: dict[int, str] = {}  # trial -> why, when closing
        self._waiting: dict[int, None] = {}  # trials to bring up to date, oldest first
        self._changed = threading.Condition()
        self._closing = False
        self._sent = 0  # how often a trial was brought up to date
        self._report_of: int | None = None  # of how many ended trials the one being written is
        self._report_asked = time.monotonic()  # when that was
        self._report_due = self._report_asked + REPORT_SECONDS
        self._drawing = Drawing(drawn=self.touch)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def touch(self, number: int) -> None:
        """Have a trial's run brought up to date soon."""
        with self._changed:
            self._waiting[number] = None
            self._changed.notify()

    def close(
        self,
        status: str,
        best: TrialRecord | None,
        patience: float = 120.0,
        at_most: float = math.inf,
    ) -> str | None:
        """Bring everything up to date and end the study's run.

        Args:
            status: FINISHED, KILLED or FAILED.
            best: The best trial.
            patience: Seconds to wait for a store that does not answer.
            at_most: Seconds to wait in all.

        Returns:
            What went wrong, None if everything was written.
        """
        with self._changed:
            self._closing = True
            if at_most == math.inf:  # after a signal there is no time for it
                self._waiting[REPORT] = None
            self._changed.notify()
        closing = heard = time.monotonic()
        sent = self._sent
        while self._thread.is_alive() and time.monotonic() - heard < patience:
            self._thread.join(min(1.0, patience))
            if time.monotonic() - closing > at_most:
                break
            if self._sent > sent:  # much may be left of a study of short trials
                heard, sent = time.monotonic(), self._sent
        if self._thread.is_alive():
            return self.trouble or "the tracking store is slow"
        if self._unsent.keys() - {REPORT}:
            names = ("report" if n == REPORT else f"trial {n}" for n in sorted(self._unsent))
            return f"{', '.join(names)}: {'; '.join(sorted(set(self._unsent.values())))}"
        try:
            client, parent = self.store.client, self.store.parent
            if self._restored:
                numbers = ", ".join(str(number) for number in sorted(self._restored))
                logger.warning("runs that were deleted in MLflow are restored: trials %s", numbers)
            for run in self.runs.values():
                if not run.ended:  # cut off; the next command goes on with it
                    client.set_tag(run.run_id, "study.resumable", "true")
                    client.set_terminated(run.run_id, "KILLED")
            found = best if self.store.searches and status == "FINISHED" else None
            if found is not None and found.value is not None:
                key = best_metric(self.record)
                if client.get_run(parent).data.metrics.get(key) != found.value:
                    client.log_metric(parent, key, found.value, step=found.number)
                    client.set_tag(parent, "study.best_trial", str(found.number))
            if self._watch is not None:
                self._watch.flush()
            client.set_terminated(parent, status)
        except Exception as error:  # as in `_work`
            return _first_line(error)
        return self._unsent.get(REPORT)

    @property
    def store(self) -> StudyRuns:
        """The study's runs in MLflow; reaches for the store if it was not reached yet."""
        if self._store is None or self._look_again:
            client = connect(self.uri)
            about = (self.record, self.task, self.settings, self.known)
            store = StudyRuns(client, self.uri, *about)
            if store.is_anothers():
                logger.warning(
                    "MLflow has a later command of study %s than its folder %s: one of two copies, "
                    "it is a study of its own from now on, and its trials get runs of their own",
                    self.record.manifest["study"],
                    self.record.path,
                )
                self.record.separate()
                self.runs.clear()
                store = StudyRuns(client, self.uri, *about)
            store.resume()
            self._store = store
            self._look_again = False
        return self._store

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and (not self._closing or self._drawing.busy):
                    self._changed.wait()
                if not self._waiting:
                    self._drawing.close()
                    return
                number = next(iter(self._waiting))
                del self._waiting[number]
            try:
                if number == REPORT:
                    self._bring_report()
                else:
                    self._bring_up_to_date(number)
                    if time.monotonic() > self._report_due:
                        self.touch(REPORT)
                if self._system_metrics and (self._watch is None or self._watch.ended):
                    self._watch = SystemWatch(self.uri, self.store.parent)
                self._sent += 1
                if self.trouble is not None:
                    logger.warning("tracking is back; what is missing is sent now")
                self.trouble = None
            except Exception as error:  # SQLAlchemy, HTTP and MLflow each raise their own
                # What a call that failed has written is not known: look again.
                self.runs.pop(number, None)
                self._perhaps_there.add(number)
                self._look_again = True
                self._drawing.forget(number)
                self._report_of = None if number == REPORT else self._report_of
                if self.trouble is None:
                    logger.warning(
                        "tracking fails, training goes on and all is sent later: %s",
                        _first_line(error),
                    )
                self.trouble = _first_line(error)
                with self._changed:
                    if self._closing:
                        self._unsent[number] = self.trouble
                        if self._store is None or len(self._unsent) > 1:  # no use to try them all
                            self._unsent |= dict.fromkeys(self._waiting, self.trouble)
                            self._drawing.close()
                            return
                    else:
                        self._waiting[number] = None
                        self._changed.wait(RETRY_SECONDS)

    def _bring_up_to_date(self, number: int) -> None:
        store = self.store
        trial = self.record.trial(number)
        run = self.runs.get(number)
        if run is None:
            run = store.find_or_create(trial, perhaps_there=number in self._perhaps_there)
            self.runs[number] = run
            self._restored |= store.restored
        store.log(trial, run)
        if trial.state != "running" and not run.ended and self._drawn(trial):
            store.end(trial, run)

    def _drawn(self, trial: TrialRecord) -> bool:
        """Return whether a trial's figures are there; else it is touched again when they are."""
        if trial.epoch is None:
            return True
        folder, note = (
            self.record.run_folder(trial.number),
            figure_note(self.task, self.record, trial),
        )
        damage = self._drawing.damage(trial, self.task.name, folder, note)
        for text in damage or []:
            logger.warning(text)
        return damage is not None

    def _bring_report(self) -> None:
        """Have the study's page written, and put it on the study's run."""
        known = (self.store.reported, self._report_of)
        if not self.store.searches or known == (self.record.num_ended(), None):
            return
        if self._report_of is None:
            self._report_of, self._report_asked = self.record.num_ended(), time.monotonic()
            self._report_due = math.inf
        damage = self._drawing.report(self.record.path)
        if damage is None:
            return  # touched again when it is there
        took = time.monotonic() - self._report_asked
        self._report_due = time.monotonic() + max(REPORT_SECONDS, REPORT_SHARE * took)
        shown, self._report_of = self._report_of, None
        for text in damage:
            logger.warning(text)
        self.store.describe(shown, self.runs)
        if not damage:
            upload_report(self.store.client, self.store.parent, self.record.path)
        if self._closing:  # a trial may have ended meanwhile
            self.touch(REPORT)


def _first_line(error: BaseException) -> str:
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{name}{error}".strip().splitlines()[0]
