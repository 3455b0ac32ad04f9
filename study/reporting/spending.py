"""What a study spent, trial by trial and rung by rung, and what early stopping saved.

Seconds of work are those that trials spent in their epochs, times their workers. Money, if a price
is known, is that of the machines for as long as any trial ran, shared out by work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord, seconds_of
from study.search.stopping_rule import StoppingRule, milestones

PAUSE = 60.0  # seconds between two epochs of a trial from which on it counts as cut off meanwhile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """The epochs after one rung and up to the next.

    Attributes:
        first: Epoch.
        last: Epoch.
        trials: That trained at least one of them.
        stopped: Of these, after the last one.
        epochs: Trained.
        seconds: Of work.
    """

    first: int
    last: int
    trials: int
    stopped: int
    epochs: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """What a study spent.

    Attributes:
        work: Trial -> seconds of work.
        rungs: From the first.
        epochs: Trained.
        full: Epochs that the ended trials would have trained without early stopping.
        saved: Seconds of work that early stopping saved: the epochs that stopped trials did not
            train, each at the mean of its trial's epochs.
        active: Seconds in which at least one trial ran.
        workers: Of a trial.
        price: US dollars for an hour of all machines; None if unknown.
    """

    work: dict[int, float]
    rungs: tuple[Rung, ...]
    epochs: int
    full: int
    saved: float
    active: float
    workers: int
    price: float | None

    @staticmethod
    def of(record: StudyRecord, rule: StoppingRule | None, price: float | None = None) -> Ledger:
        """Read it from a study's record.

        Args:
            record: The study.
            rule: What its last command asked for; None if unknown.
            price: US dollars for an hour of all machines.
        """
        trials, epochs = record.trials(), int(record.manifest["epochs"])
        workers = rule.workers if rule else 1
        spans = [span for trial in trials for span in spans_of(trial)]
        saved = sum(
            (epochs - trial.epochs) * trial.seconds / trial.epochs
            for trial in trials
            if trial.state == "stopped"
        )
        ended = [trial for trial in trials if trial.state in ("finished", "stopped")]
        unfinished = sum(trial.epochs for trial in trials if trial not in ended)
        return Ledger(
            work={trial.number: workers * trial.seconds for trial in trials},
            rungs=_rungs(trials, [*milestones(rule, epochs), epochs], workers),
            epochs=sum(trial.epochs for trial in trials),
            full=epochs * len(ended) + unfinished,
            saved=workers * saved,
            active=_covered(spans),
            workers=workers,
            price=price,
        )

    @property
    def total(self) -> float:
        """Seconds of work of all trials."""
        return sum(self.work.values())

    def money(self, seconds: float) -> float | None:
        """Return US dollars for so many seconds of this study's work; None without a price."""
        if self.price is None:
            return None
        return self.price * self.active / 3600 * (seconds / self.total if self.total else 0.0)


def spans_of(trial: TrialRecord) -> list[tuple[float, float]]:
    """Return when a trial ran, in seconds since 1970: more than one span if it was cut off."""
    spans: list[tuple[float, float]] = []
    before = seconds_of(trial.begun)
    for row in trial.history:
        if "ended" not in row:
            continue
        begun = row["ended"] - row.get("epoch_seconds", 0.0)
        if spans and begun - before < PAUSE:
            spans[-1] = (spans[-1][0], row["ended"])
        else:
            near = begun - before < PAUSE  # the start of the trial: its process, its data
            spans.append((min(before, begun) if near else begun, row["ended"]))
        before = row["ended"]
    return spans


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return the seconds that lie in at least one span."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _rungs(trials: Sequence[TrialRecord], lasts: Sequence[int], workers: int) -> tuple[Rung, ...]:
    rungs, first = [], 1
    for last in lasts:
        rows = [
            (trial.number, row.get("epoch_seconds", 0.0))
            for trial in trials
            for row in trial.history[first - 1 : last]
        ]
        rungs.append(
            Rung(
                first=first,
                last=last,
                trials=len({number for number, _ in rows}),
                stopped=sum(t.state == "stopped" and first <= t.epochs <= last for t in trials),
                epochs=len(rows),
                seconds=workers * sum(seconds for _, seconds in rows),
            )
        )
        first = last + 1
    return tuple(rungs)
