"""What a confirmation found: mean and interval of each configuration, the gap, the winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from study.candidates import NUM_CONFIRMED
from study.interval import Interval, of_mean, shown
from study.object_path import AnyPath
from study.objective import Goal
from study.record import StudyRecord
from study.tables import table
from study.tested import read_tests
from study.trial_record import TrialRecord


@dataclasses.dataclass(frozen=True)
class Confirmed:
    """One configuration: a trial of the search, and its trainings over seeds and folds.

    Attributes:
        trial: Of the search.
        trainings: Numbers of the confirmation's trials that have a test.
        tests: Of these trainings, as in `tests.json`.
        failed: How many trainings failed.
        metric: The study's first objective, without the split.
        missed: By how much the means over trainings miss the study's floors.
    """

    trial: TrialRecord
    trainings: tuple[int, ...]
    tests: tuple[Mapping[str, Any], ...]
    failed: int
    metric: str
    missed: float = 0.0

    def values(self, split: str) -> list[float]:
        """Return the metric of each training on `val` or `test`, both at the data's own size."""
        return [test["metrics"][f"{split}/{self.metric}"] for test in self.tests]

    def mean(self, split: str) -> float:
        """Return the mean over trainings; nan if all failed."""
        values = self.values(split)
        return sum(values) / len(values) if values else float("nan")

    def interval(self, split: str) -> Interval | None:
        """Return the 95 % interval of the mean."""
        return of_mean(self.values(split))

    def best(self, mode: str) -> int:
        """Return the training with the best validation score."""
        choose = max if mode == "max" else min
        values = self.values("val")
        return self.trainings[values.index(choose(values))]

    def as_json(self) -> dict[str, Any]:
        """Return the configuration's scores as a JSON object."""
        scores = {
            split: {
                "mean": self.mean(split),
                "interval": self.interval(split),
                "values": self.values(split),
            }
            for split in ("val", "test")
        }
        return {
            "trial": self.trial.number,
            "search": self.trial.value,
            **scores,
            "gap": self.mean("test") - self.mean("val"),
            "failed": self.failed,
            "missed": self.missed,
            "run_ids": [test.get("run_id") for test in self.tests],
        }


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """The result of a confirmation.

    Attributes:
        record: Its folder.
        seeds: How many trainings each configuration has.
        ranking: The configurations, best mean validation first; before those that miss floors,
            and those that failed.
    """

    record: StudyRecord
    seeds: int
    ranking: tuple[Confirmed, ...]

    @property
    def winner(self) -> Confirmed:
        """The configuration with the best mean validation score."""
        return self.ranking[0]

    def of(self, number: int) -> Confirmed | None:
        """Return what was found of a trial of the search; None if it is not confirmed."""
        return next((one for one in self.ranking if one.trial.number == number), None)

    def best_training(self, one: Confirmed) -> TrialRecord:
        """Return a configuration's training with the best validation score."""
        return self.record.trial(one.best(self.record.manifest["mode"]))

    def lead(self) -> tuple[float, Interval | None] | None:
        """Return how far the winner is ahead of the second, fold by fold, with the interval."""
        pair = [one for one in self.ranking[:2] if not one.failed]
        if len(pair) < 2:
            return None
        sign = 1 if self.record.manifest["mode"] == "max" else -1
        first, second = (one.values("val") for one in pair)
        ahead = [sign * (a - b) for a, b in zip(first, second, strict=True)]
        return sum(ahead) / len(ahead), of_mean(ahead)

    def as_json(self) -> dict[str, Any]:
        """Return the confirmation as a JSON object."""
        return {
            "seeds": self.seeds,
            "winner": self.winner.trial.number,
            "configurations": [one.as_json() for one in self.ranking],
        }

    def as_origin(self, one: Confirmed) -> dict[str, Any]:
        """Return what an export says of where its weights come from, beside the training's own."""
        return {
            "trial": one.trial.number,
            "won": one is self.winner,
            "seeds": self.seeds,
            "training": self.best_training(one).number,
            **{split: one.as_json()[split] for split in ("val", "test")},
            "search": one.trial.value,
            "metric": self.record.manifest["metric"],
        }

    def describe(self) -> str:
        """Return the confirmation for people."""
        metric = self.winner.metric
        rows = [
            [
                str(one.trial.number),
                f"{one.trial.value:.4f}",
                shown(one.mean("val"), one.interval("val")),
                shown(one.mean("test"), one.interval("test")),
                f"{one.mean('test') - one.mean('val'):+.4f}",
                f"{one.failed} failed" if one.failed else "misses a floor" if one.missed else "",
            ]
            for one in self.ranking
        ]
        header = [
            *("trial", f"search's {metric} (optimistic)", "validation, mean [95 %]"),
            *("test, mean [95 %]", "gap", ""),
        ]
        lines = [
            f"\nconfirmed: {self.seeds} trainings each, to the end, with other seeds, on folds on "
            "which the search did not choose",
            table(header, rows),
            f"winner: trial {self.winner.trial.number}, by mean validation; the test chose nothing",
        ]
        lead = self.lead()
        if lead is not None:
            chance = lead[1] is not None and lead[1][0] <= 0
            other = self.ranking[1].trial.number
            lines[-1] += (
                f". Ahead of trial {other} by {shown(*lead)}, fold by fold"
                f"{': that may be chance' if chance else ''}"
            )
        return "\n".join(lines)


def folder_of(searched: StudyRecord, chosen: Sequence[TrialRecord]) -> AnyPath:
    """Return the folder of the confirmation of these trials."""
    return searched.path / "confirm" / "-".join(str(n) for n in sorted(t.number for t in chosen))


def candidates_of(goal: Goal, ranking: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Return which trials are confirmed, by number: of the front, if there is one, the first.

    Trials that miss a floor are none, unless all do.
    """
    kept = [trial for trial in ranking if not goal.missed(trial)] or ranking
    return tuple(sorted(kept[:NUM_CONFIRMED], key=lambda trial: trial.number))


def find(searched: StudyRecord, ranking: Sequence[TrialRecord]) -> Confirmation | None:
    """Return the confirmation of the best trials; None if they are not confirmed."""
    chosen = candidates_of(searched.goal, ranking)
    folder = folder_of(searched, chosen)
    if not chosen or not (folder / "study.json").exists():
        return None
    record = StudyRecord.read(folder)
    tests = {test.get("folder"): test for test in read_tests(searched.path)}
    trials = record.trials()
    seeds = 0  # rounds in which every configuration was tested or has failed
    for trial in trials:
        if trial.state != "failed" and _test_key(record, trial) not in tests:
            break
        seeds = (trial.number + 1) // len(chosen)
    if not seeds:
        return None
    found = []
    for place, trial in enumerate(chosen):
        own = trials[place : seeds * len(chosen) : len(chosen)]
        good = [one for one in own if one.state != "failed"]
        known = []
        for one in good:
            run_id = record.run_folder(one.number).run_id
            known.append({**tests[_test_key(record, one)], "run_id": run_id})
        numbers = tuple(one.number for one in good)
        metric = record.manifest["metric"].split("/", 1)[1]
        failed, missed = len(own) - len(good), _missed(searched.goal, good)
        found.append(Confirmed(trial, numbers, tuple(known), failed, metric, missed))
    if not any(one.tests for one in found):
        return None
    sign = -1 if record.manifest["mode"] == "max" else 1

    def order(one: Confirmed) -> tuple[int, float, float]:
        return one.failed, one.missed, sign * one.mean("val") if one.tests else 0.0

    return Confirmation(record, seeds, tuple(sorted(found, key=order)))


def _test_key(record: StudyRecord, trial: TrialRecord) -> str:
    path = record.run_folder(trial.number).path
    return str(path).removeprefix(f"{record.path.parent.parent}/")


def _missed(goal: Goal, trainings: Sequence[TrialRecord]) -> float:
    """Return by how much the means over trainings, each at its best epoch, miss the floors."""
    rows = [training.best for training in trainings if training.best]
    total = 0.0
    for floor in goal.floors if rows else ():
        values = [row[floor.metric] for row in rows if floor.metric in row]
        total += max(0.0, floor.miss(sum(values) / len(values) if values else None))
    return total
