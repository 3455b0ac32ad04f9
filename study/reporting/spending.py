"""Time and cost of a study, by trial and by rung, and the savings of early stopping.

Worker time is the time that trials spent in their epochs, times their workers. The cost, if a price
is known, is that of the machines while any trial ran, divided among trials by worker time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord, seconds_of
from study.search.stopping_rule import StoppingRule, milestones

PAUSE = 60.0  # seconds between two epochs of a trial; a longer gap counts as an interruption


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """The epochs after one rung and up to the next.

    Attributes:
        first: First epoch.
        last: Last epoch.
        trials: Number of trials that trained at least one of these epochs.
        stopped: Number of trials that were stopped in them.
        epochs: Number of epochs trained.
        seconds: Of worker time.
    """

    first: int
    last: int
    trials: int
    stopped: int
    epochs: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """Time and cost of a study.

    Attributes:
        work: Trial -> seconds of worker time.
        rungs: In order of epochs.
        epochs: Number of epochs trained.
        full: Epochs that the ended trials would have trained without early stopping.
        saved: Seconds of worker time that early stopping saved: the epochs that stopped trials did
            not train, each at the mean of its trial's epochs.
        active: Seconds in which at least one trial ran.
        workers: Per trial.
        price: US dollars per hour for all machines; None if unknown.
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
        """Compute it from a study's record.

        Args:
            record: The study.
            rule: Stopping rule of its last command; None if unknown.
            price: US dollars per hour for all machines.
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
        """Worker time of all trials, seconds."""
        return sum(self.work.values())

    def money(self, seconds: float) -> float | None:
        """Return the cost of this much worker time of the study, US dollars; None if unknown."""
        if self.price is None:
            return None
        return self.price * self.active / 3600 * (seconds / self.total if self.total else 0.0)


def spans_of(trial: TrialRecord) -> list[tuple[float, float]]:
    """Return when a trial ran, seconds since 1970: several spans if it was interrupted."""
    spans: list[tuple[float, float]] = []
    before = seconds_of(trial.begun)
    for row in trial.history:
        if "ended" not in row:
            continue
        begun = row["ended"] - row.get("epoch_seconds", 0.0)
        if spans and begun - before < PAUSE:
            spans[-1] = (spans[-1][0], row["ended"])
        else:
            near = begun - before < PAUSE  # startup of the trial: its process and data
            spans.append((min(before, begun) if near else begun, row["ended"]))
        before = row["ended"]
    return spans


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return the seconds covered by at least one span."""
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
