"""Progress of a study as text: a line per ended trial, and a summary now and then."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from typing import Self

from study.formatting import duration, metric_value, number, settings_line, table
from study.objective import (
    Goal,
    show_values,
)
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord, counts
from study.reporting.snapshot import time_left
from study.search.simulation import Outlook
from study.search.stopping_rule import StoppingRule
from study.system.streams import write_line

SUMMARY_SECONDS = 60.0  # between two summaries while nothing ends
OUTLOOK_SECONDS = 20.0  # between two simulations of the time left
SHARE = 50  # pause after a simulation or a drawing, as a multiple of the time it took


class Progress:
    """Prints a study's events to stderr.

    A summary simulates the time left, so a thread prints it: Ray's callbacks, which report the
    events, never wait for that.

    Args:
        record: The study.
        asked: The stopping rule it was started with.
    """

    def __init__(self, record: StudyRecord, asked: StoppingRule) -> None:
        self.record = record
        self.asked = asked
        self.epochs: dict[int, int] = {}  # running trial -> its last epoch
        self.begun = time.monotonic()
        self.said = self.begun
        self._outlook: Outlook | None = None
        self._known = (0, 0)  # ended trials and epochs at the last simulation
        self._looked = self._rest = 0.0  # time of the last simulation, and the pause after it
        self._closed = False
        self._due = threading.Event()  # a summary, or the end
        self._thread = threading.Thread(target=self._keep_showing, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Print a pending summary; output stays on the screen."""
        self._closed = True
        self._due.set()
        self._thread.join()

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)
        self.said = time.monotonic()

    def tell(self, text: str) -> None:
        """Print a line from a signal handler, where nothing may wait for a lock."""
        write_line(text)

    def epoch(self, number: int, epoch: int) -> None:
        """Note an epoch of a running trial; print a summary if nothing was printed for a while."""
        self.epochs[number] = epoch
        if time.monotonic() - self.said > SUMMARY_SECONDS:
            self._due.set()

    def ended(self, trial: TrialRecord) -> None:
        """Print the line of an ended trial, followed by a summary."""
        self.epochs.pop(trial.number, None)
        self.say(self.ended_line(trial))
        self._due.set()

    def _keep_showing(self) -> None:
        told = self.record.num_ended()
        while True:
            self._due.wait()
            self._due.clear()
            closed = self._closed
            if not closed or self.record.num_ended() > told:
                told = self.record.num_ended()
                self.say(self.summary())
            if closed:
                return

    def ended_line(self, trial: TrialRecord) -> str:
        """Return the line of an ended trial."""
        epochs = self.record.manifest["epochs"]
        goal = self.record.goal
        score = "" if trial.best_value is None else f"{show_values(goal, trial)}  "
        word = {"stopped": "stopped early", "failed": "FAILED"}.get(trial.state, trial.state)
        why = f"  {trial.reason}" if trial.reason else ""
        if goal.missed(trial):
            score += "(violates a constraint)  "
        best = self.record.front() if goal.has_two else self.record.ranking()[:1]
        on_top = trial.number in [one.number for one in best] and not goal.missed(trial)
        star = f"  * {'on the front' if goal.has_two else 'best'} so far" if on_top else ""
        return (
            f"trial {trial.number:>3}  {word:<13} {trial.epochs}/{epochs} epochs  {score}"
            f"{duration(trial.seconds)}  {settings_line(trial.params)}{why}{star}"
        )

    def summary(self) -> str:
        """Return the state of the study in one line."""
        trials = self.record.trials()
        count = counts(trials)
        ended = len(trials) - count["running"]
        best = self.record.ranking()[:1]
        total = "" if self.asked.unlimited else f"/{self.asked.num_samples}"
        parts = [f"{ended}{total} trials"]
        parts += [f"{count[state]} {state}" for state in ("stopped", "failed") if count[state]]
        if running := dict(self.epochs):
            each = self.record.manifest["epochs"]
            shown = (f"{number} at {epoch}/{each}" for number, epoch in running.items())
            parts.append("running: " + ", ".join(shown))
        if best:
            values = show_values(self.record.goal, best[0])
            missed = ", violates a constraint" if self.record.goal.missed(best[0]) else ""
            parts.append(f"best {values} (trial {best[0].number}{missed})")
        if self.record.goal.has_two:
            parts.append(f"{len(self.record.front())} on the front")
        outlook, budget = self.look_ahead(), self.asked.budget_left(self.record.manifest)
        if outlook is not None and (budget is None or outlook.seconds < budget):
            parts.append(f"about {duration(outlook.seconds)} left")
        elif budget is not None:
            parts.append(f"the time budget ends in {duration(budget)}")
        elapsed = time.monotonic() - self.begun
        return f"    [{duration(elapsed)}] " + ", ".join(parts)

    def look_ahead(self) -> Outlook | None:
        """Return the time left; simulate it again when a trial has ended or after a while."""
        since = time.monotonic() - self._looked
        if since >= self._rest:
            trials = self.record.trials()
            known = (self.record.num_ended(), sum(trial.epochs for trial in trials))
            if known[0] != self._known[0] or since > OUTLOOK_SECONDS or self._outlook is None:
                began = time.monotonic()
                self._outlook = time_left(self.record, self.asked)
                self._known, self._looked = known, time.monotonic()
                self._rest = SHARE * (self._looked - began)
        if self._outlook is None or self.record.num_ended() >= self.asked.num_samples:
            return None
        passed = time.monotonic() - self._looked
        times = {
            name: max(0.0, getattr(self._outlook, name) - passed)
            for name in ("seconds", "low", "high")
        }
        return dataclasses.replace(self._outlook, **times)


def standings(record: StudyRecord, ranking: list[TrialRecord], top: int) -> str:
    """Return a table of the best trials or of the Pareto front, and notes on constraints."""
    goal, shown = record.goal, ranking[:top]
    lines = [f"objective {goal}"] if goal.constraints else []
    if goal.has_two and (front := record.front()):
        shown = front
        lines = [f"Pareto front of {goal}: {len(front)} of {len(ranking)} trials"]
    lines.append(trial_table(goal, shown, record.manifest["epochs"]))
    short = goal.shortfall(ranking)
    return "\n".join([*lines, f"\n{short}"] if short else lines)


def trial_table(goal: Goal, trials: list[TrialRecord], epochs: int) -> str:
    """Return trials as a table: state, metrics, epochs, time and hyperparameters.

    A metric that violates a constraint has an exclamation mark.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        [
            str(trial.number),
            trial.state,
            *(_scores(goal, trial)),
            f"{trial.best_epoch or '-'}",
            f"{trial.epochs}/{epochs}",
            duration(trial.seconds),
            *(number(trial.params[name]) if name in trial.params else "" for name in names),
        ]
        for trial in trials
    ]
    header = ["trial", "state", *goal.metrics, "best epoch", "epochs", "time", *names]
    return table(header, rows)


def _scores(goal: Goal, trial: TrialRecord) -> list[str]:
    best = trial.best or {}
    low = {c.metric for c in goal.constraints if c.miss(best.get(c.metric)) > 0}
    return [
        "-" if name not in best else f"{'! ' if name in low else ''}{metric_value(best[name])}"
        for name in goal.metrics
    ]
