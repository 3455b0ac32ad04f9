"""Results of a confirmation: mean and interval of each configuration, the gap, the winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from study.errors import DamagedFile
from study.formatting import metric_name, score, table, with_interval
from study.objective import Goal
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.selection.confirmation_runs import NUM_CONFIRMED, place_of
from study.selection.test_log import CONFIRMATIONS, folder_in_study, read_tests
from study.storage.paths import AnyPath, children
from study.task import load_task
from study.training.intervals import (
    SHARE,
    Bounds,
    Interval,
    bounds_of,
    of_mean,
    widened,
)

SPLIT = ("split", "split_seed")  # settings that define, with the fold, the validation images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A finished and tested training of a confirmation.

    Attributes:
        number: Number of the trial in the confirmation.
        round: Round; all configurations share seed and fold within a round.
        fold: Validation fold.
        test: Its entry in `tests.json`, with the `run_id`.
    """

    number: int
    round: int
    fold: int
    test: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confirmed:
    """One configuration: a trial of the search, and its trainings over seeds and folds.

    Attributes:
        trial: The trial of the search.
        trainings: Its finished and tested trainings.
        failed: Number of failed trainings.
        metric: The study's first objective, without the split.
        missed: Violation of the study's constraints by the means over trainings.
        bounds: Range of the metric.
    """

    trial: TrialRecord
    trainings: tuple[Training, ...]
    failed: int
    metric: str
    missed: float = 0.0
    bounds: Bounds = SHARE

    @property
    def size(self) -> str:
        """The image size at which it was scored; empty if all trainings failed."""
        return self.trainings[0].test["size"] if self.trainings else ""

    def value(self, training: Training, split: str) -> float:
        """Return the metric of a training on `val` or `test`, both at the data's full size."""
        return float(training.test["metrics"][f"{split}/{self.metric}"])

    def values(self, split: str) -> list[float]:
        """Return the metric of each training; see `value`."""
        return [self.value(training, split) for training in self.trainings]

    def by_fold(self, split: str) -> list[float]:
        """Return the mean per fold: trainings on the same fold are not independent."""
        of_fold: dict[int, list[float]] = {}
        for training in self.trainings:
            of_fold.setdefault(training.fold, []).append(self.value(training, split))
        return [mean(values) for values in of_fold.values()]

    def mean(self, split: str) -> float:
        """Return the mean over folds; nan if all trainings failed."""
        return mean(self.by_fold(split)) if self.trainings else float("nan")

    def interval(self, split: str) -> Interval | None:
        """Return the 95 % interval of the mean.

        Validation images differ between folds, but all trainings share the same test images.
        """
        interval = of_mean(self.by_fold(split), self.bounds)
        name = f"{split}/{self.metric}"
        if split == "val" or interval is None:
            return interval
        tests = [training.test for training in self.trainings]
        known = [test for test in tests if name in test.get("intervals", {})]
        images = [(test["metrics"][name], test["intervals"][name]) for test in known]
        return widened(self.mean(split), interval, images, self.bounds)

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
            "search": self.trial.best_value,
            **scores,
            "gap": self.mean("test") - self.mean("val"),
            "failed": self.failed,
            "missed": self.missed,
            "run_ids": [training.test.get("run_id") for training in self.trainings],
        }


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """The result of a confirmation.

    Attributes:
        record: The record of the confirmation.
        seeds: Number of trainings per configuration.
        ranking: The configurations by mean validation score, best first; those that violate
            constraints or have failures come last.
    """

    record: StudyRecord
    seeds: int
    ranking: tuple[Confirmed, ...]

    @property
    def winner(self) -> Confirmed:
        """The configuration with the best mean validation score."""
        return self.ranking[0]

    def of(self, number: int) -> Confirmed | None:
        """Return the result for a trial of the search; None if it is not confirmed."""
        return next((one for one in self.ranking if one.trial.number == number), None)

    def best_training(self, one: Confirmed) -> TrialRecord:
        """Return a configuration's training with the largest lead over the mean of its round.

        Configurations share the fold within a round, and folds differ more than trainings do.
        """
        score = self.record.goal.objectives[0].score
        rounds: dict[int, list[float]] = {}
        for other in self.ranking:
            for training in other.trainings:
                rounds.setdefault(training.round, []).append(other.value(training, "val"))
        ahead = {
            training.number: score(one.value(training, "val") - mean(rounds[training.round]))
            for training in one.trainings
        }
        return self.record.trial(max(ahead, key=ahead.__getitem__))

    def lead(self) -> tuple[float, Interval | None] | None:
        """Return the winner's mean lead over the second per fold, with its interval."""
        pair = [one for one in self.ranking[:2] if not one.failed and not one.missed]
        if len(pair) < 2:
            return None
        score = self.record.goal.objectives[0].score
        first, second = (one.by_fold("val") for one in pair)
        ahead = [score(a - b) for a, b in zip(first, second, strict=True)]
        width = pair[0].bounds[1] - pair[0].bounds[0]  # the difference of two shares is in [-1, 1]
        return mean(ahead), of_mean(ahead, (-width, width))

    def as_json(self) -> dict[str, Any]:
        """Return the confirmation as a JSON object."""
        return {
            "seeds": self.seeds,
            "winner": self.winner.trial.number,
            "configurations": [one.as_json() for one in self.ranking],
        }

    def as_origin(self, one: Confirmed) -> dict[str, Any]:
        """Return an export's facts about the confirmation of its weights."""
        return {
            "trial": one.trial.number,
            "won": one is self.winner,
            "seeds": len(one.trainings),
            "validated_on": {
                **{k: v for k, v in self.record.manifest["settings"].items() if k in SPLIT},
                "folds": sorted({training.fold for training in one.trainings}),
            },
            "training": self.best_training(one).number,
            **{split: one.as_json()[split] for split in ("val", "test")},
            "search": one.trial.best_value,
            "metric": self.record.manifest["metric"],
        }

    def describe(self) -> str:
        """Return the confirmation as text for people."""
        metric = self.winner.metric
        rows = [
            [
                str(one.trial.number),
                score(one.trial.best_value),
                with_interval(one.mean("val"), one.interval("val")),
                with_interval(one.mean("test"), one.interval("test")),
                f"{one.mean('test') - one.mean('val'):+.4f}",
                f"{one.failed} failed"
                if one.failed
                else "violates a constraint"
                if one.missed
                else "",
            ]
            for one in self.ranking
        ]
        header = [
            "trial",
            f"search's {metric} (optimistic)",
            "validation, mean [95 %]",
            "test, mean [95 %]",
            "gap",
            "",
        ]
        lines = [
            f"\nconfirmed: {self.seeds} full trainings each, with new seeds, on folds that the "
            f"search did not use for selection; scored at {self.winner.size}",
            table(header, rows),
            f"winner: trial {self.winner.trial.number}, by mean validation; the test played no "
            "part in the choice",
        ]
        lead = self.lead()
        if lead is not None:
            chance = lead[1] is not None and lead[1][0] <= 0
            other = self.ranking[1].trial.number
            lines[-1] += (
                f". Mean lead per fold over trial {other}: {with_interval(*lead)}"
                f"{', which may be chance' if chance else ''}"
            )
        return "\n".join(lines)


def folder_of(searched: StudyRecord, chosen: Sequence[TrialRecord]) -> AnyPath:
    """Return the folder of the confirmation of these trials."""
    numbers = sorted(trial.number for trial in chosen)
    return searched.path / CONFIRMATIONS / "-".join(map(str, numbers))


def candidates_of(goal: Goal, ranking: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Return the trials to confirm, sorted by number: the first of the ranking or Pareto front.

    Trials that violate a constraint are left out, unless all do.
    """
    kept = [trial for trial in ranking if not goal.missed(trial)] or ranking
    return tuple(sorted(kept[:NUM_CONFIRMED], key=lambda trial: trial.number))


def find(searched: StudyRecord, ranking: Sequence[TrialRecord]) -> Confirmation | None:
    """Return the confirmation of the best trials; None if there is none."""
    chosen = candidates_of(searched.goal, ranking)
    folder = folder_of(searched, chosen)
    if not chosen or not (folder / "study.json").exists():
        return None
    record = StudyRecord.read(folder)
    tests = _tests(searched, record)
    seeds = _rounds_done(record.trials(), tests, len(chosen))
    found = [_confirmed(searched, record, trial, tests, seeds) for trial in chosen]
    if not any(one.trainings for one in found):
        return None
    score = record.goal.objectives[0].score

    def order(one: Confirmed) -> tuple[bool, float, int, float]:
        value = score(one.mean("val")) if one.trainings else 0.0
        return not one.trainings, one.missed, one.failed, -value

    return Confirmation(record, seeds, tuple(sorted(found, key=order)))


def _rounds_done(
    trainings: Sequence[TrialRecord], tests: Mapping[int, Mapping[str, Any]], num: int
) -> int:
    """Return the number of rounds in which all `num` configurations were tested or failed."""
    rounds = 0
    for one in trainings:
        if one.state == "running" or (one.state == "finished" and one.number not in tests):
            break
        rounds = (one.number + 1) // num
    return rounds


def _confirmed(
    searched: StudyRecord,
    record: StudyRecord,
    trial: TrialRecord,
    tests: Mapping[int, Mapping[str, Any]],
    seeds: int,
) -> Confirmed:
    """Return the result for a trial of the search over the first `seeds` rounds."""
    name = metric_name(record.manifest["metric"])
    places = {
        one.number: place_of(record.manifest["confirms"], one.number) for one in record.trials()
    }
    own = [
        one
        for one in record.trials()
        if places[one.number].trial == trial.number and places[one.number].round < seeds
    ]
    good = [one for one in own if one.state == "finished"]
    trainings = tuple(
        Training(
            number=one.number,
            round=places[one.number].round,
            fold=int(one.params["fold"]),
            test={**tests[one.number], "run_id": record.run_folder(one.number).run_id},
        )
        for one in good
    )
    return Confirmed(
        trial=trial,
        trainings=trainings,
        failed=len(own) - len(good),
        metric=name,
        missed=_missed(searched.goal, good, [training.test for training in trainings]),
        bounds=bounds_of(load_task(record.manifest["task"]), name),
    )


def _tests(searched: StudyRecord, record: StudyRecord) -> dict[int, Mapping[str, Any]]:
    """Return the test of each finished training, by number.

    Tests of weights from an earlier epoch do not count.
    """
    folders = {folder_in_study(record, one): one for one in record.trials()}
    found: dict[int, Mapping[str, Any]] = {}
    for test in read_tests(searched.path):
        training = folders.get(test.get("folder", ""))
        if training is not None and training.state == "finished" and _is_of(record, training, test):
            found[training.number] = test
    return found


def _is_of(record: StudyRecord, training: TrialRecord, test: Mapping[str, Any]) -> bool:
    """Return whether a test used the final weights of a finished training."""
    from study.records import checkpoint  # brings torch

    if test.get("state") == "finished":
        return True
    try:  # the best epoch may precede an interruption; early versions recorded no state
        best = record.run_folder(training.number).best_checkpoint
        return bool(test["checkpoint"] == checkpoint.digest(best))
    except DamagedFile:
        return False


def _missed(
    goal: Goal, trainings: Sequence[TrialRecord], tests: Sequence[Mapping[str, Any]]
) -> float:
    """Return the total violation of constraints by the means of tested scores and costs."""
    rows = [
        {**(training.best or {}), **test["metrics"]}
        for training, test in zip(trainings, tests, strict=True)
    ]
    total = 0.0
    for constraint in goal.constraints if rows else ():
        values = [row[constraint.metric] for row in rows if constraint.metric in row]
        total += max(0.0, constraint.miss(mean(values) if values else None))
    return total


def others_confirmed(searched: StudyRecord, ranking: Sequence[TrialRecord]) -> str:
    """Return a note if the confirmed trials are no longer the best, else an empty string."""
    if not (searched.path / CONFIRMATIONS).exists():
        return ""
    best = folder_of(searched, candidates_of(searched.goal, ranking)).name
    earlier = sorted(folder.name for folder in children(searched.path / CONFIRMATIONS))
    if not earlier or best in earlier:
        return ""
    said = " and ".join(name.replace("-", ", ") for name in earlier)
    return (
        f"trials {said} were confirmed, but the best are now {best.replace('-', ', ')}; confirm "
        f"these with: python -m study.best {searched.path.name} --confirm SEEDS"
    )
