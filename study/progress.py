"""Progress of a study that a person can read: a line per ended trial, a summary now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Self

from study.record import StudyRecord
from study.tables import duration, table
from study.task import Task, Value
from study.trial_record import TrialRecord, counts

SUMMARY_SECONDS = 60.0  # between two summaries while nothing ends


class Progress:
    """Prints to stderr what happens in a study.

    Args:
        task: Gives the metric.
        record: The study.
        num_samples: Number of trials at which the study is done.
    """

    def __init__(self, task: Task, record: StudyRecord, num_samples: int) -> None:
        self.task = task
        self.record = record
        self.num_samples = num_samples
        self.epochs: dict[int, int] = {}  # running trial -> its last epoch
        self.begun = time.monotonic()
        self.said = self.begun
        self.ended_before = record.num_ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """Do nothing: what is printed stays."""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)
        self.said = time.monotonic()

    def epoch(self, number: int, epoch: int) -> None:
        """Note an epoch of a running trial; print a summary if nothing was said for a while."""
        self.epochs[number] = epoch
        if time.monotonic() - self.said > SUMMARY_SECONDS:
            self.say(self.summary())

    def ended(self, trial: TrialRecord) -> None:
        """Print the line of an ended trial, and a summary."""
        self.epochs.pop(trial.number, None)
        self.say(self.ended_line(trial))
        self.say(self.summary())

    def ended_line(self, trial: TrialRecord) -> str:
        """Return the line of an ended trial."""
        epochs = self.record.manifest["epochs"]
        score = "" if trial.value is None else f"{self.task.metric} {trial.value:.4f}  "
        word = {"stopped": "stopped early", "failed": "FAILED"}.get(trial.state, trial.state)
        why = f"  {trial.reason}" if trial.reason else ""
        best = self.record.ranking()[:1]
        star = "  * best so far" if best and best[0].number == trial.number else ""
        return (
            f"trial {trial.number:>3}  {word:<13} {trial.epochs}/{epochs} epochs  {score}"
            f"{duration(trial.seconds)}  {settings_line(trial.values)}{why}{star}"
        )

    def summary(self) -> str:
        """Return the state of the study in one line."""
        trials = self.record.trials()
        count = counts(trials)
        ended = len(trials) - count["running"]
        best = self.record.ranking()[:1]
        parts = [f"{ended}/{self.num_samples} trials"]
        parts += [f"{count[state]} {state}" for state in ("stopped", "failed") if count[state]]
        if self.epochs:
            total = self.record.manifest["epochs"]
            running = (f"{number} at {epoch}/{total}" for number, epoch in self.epochs.items())
            parts.append("running: " + ", ".join(running))
        if best:
            parts.append(f"best {best[0].value:.4f} (trial {best[0].number})")
        elapsed = time.monotonic() - self.begun
        done = ended - self.ended_before
        if done and ended < self.num_samples:
            left = elapsed / done * (self.num_samples - ended)
            parts.append(f"about {duration(left)} left")
        return f"    [{duration(elapsed)}] " + ", ".join(parts)


def settings_line(values: Mapping[str, Value]) -> str:
    """Return hyperparameters in one line."""
    return " ".join(f"{name}={number(value)}" for name, value in values.items())


def number(value: Value) -> str:
    """Return a value as people read it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trial_table(task: Task, trials: list[TrialRecord], epochs: int) -> str:
    """Return trials as a table: state, metric, epochs, time and hyperparameters."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    rows = [
        [
            str(trial.number),
            trial.state,
            "-" if trial.value is None else f"{trial.value:.4f}",
            f"{trial.epoch or '-'}",
            f"{trial.epochs}/{epochs}",
            duration(trial.seconds),
            *(number(trial.values[name]) if name in trial.values else "" for name in names),
        ]
        for trial in trials
    ]
    return table(["trial", "state", task.metric, "best epoch", "epochs", "time", *names], rows)
