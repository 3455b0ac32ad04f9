"""What a study is after: an objective or two, and the constraints of a good trial.

    study.tune --objective mean_ap                        the facade task's default
    study.tune --objective ap/pillar
    study.tune --objective worst_class --require 'ap/window>=0.8'
    study.tune --objective accuracy,num_params            two at once: a Pareto front

Names are those of an epoch's metrics, with or without `val/`. The first objective decides which
epoch of a trial counts, so it is one of validation; all other numbers are of that epoch.

Scores are values such that more is better. A point, one score or two, dominates another if it is
nowhere worse and somewhere better; the Pareto front is what nothing dominates.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from study.formatting import metric_value
from study.task import Task

# Metrics that are no result of validation but can be an objective or a constraint.
COSTS = {"num_params": "min", "images_per_second": "max", "epoch_seconds": "min"}
OPTIONAL = ("objectives", "require")  # keys of a manifest that say more than `metric` and `mode`
# Of a metric that was not recorded, and of a trial whose loss was not finite: worse than any other.
WORST_MISS = 1e6

Point = Sequence[float]  # one score, or two


class Judged(Protocol):
    """What a goal asks a trial for; `study.records.trial_record.TrialRecord` answers."""

    @property
    def number(self) -> int:
        """From 0."""

    @property
    def state(self) -> str:
        """`failed`, or how else it stands."""

    @property
    def best(self) -> Mapping[str, float] | None:
        """The row of the best epoch; None before the first."""


Trial = TypeVar("Trial", bound=Judged)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A metric by full name, and whether the largest (`max`) or smallest (`min`) is best."""

    metric: str
    mode: str

    def score(self, value: float) -> float:
        """Return a value such that more is better."""
        return value if self.mode == "max" else -value


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What a metric must be at least (`>=`) or at most (`<=`)."""

    metric: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound!r}".removesuffix(".0")

    def miss(self, value: float | None) -> float:
        """Return by how much a value misses, as part of the bound; 0 or less if it does not."""
        if value is None:
            return WORST_MISS
        short = self.bound - value if self.sign == ">=" else value - self.bound
        return short / abs(self.bound) if self.bound else short


@dataclasses.dataclass(frozen=True)
class Goal:
    """The objectives and constraints of a study.

    Attributes:
        objectives: One or two.
        constraints: What must hold at a trial's best epoch.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> Goal:
        """Return what a study's manifest says."""
        named = manifest.get("objectives") or [[manifest["metric"], manifest["mode"]]]
        constraints = (read_constraint(text) for text in manifest.get("require", []))
        return Goal(tuple(Objective(*entry) for entry in named), tuple(constraints))

    @staticmethod
    def of_task(task: Task) -> Goal:
        """Return the task's own objective."""
        return Goal((Objective(task.metric, task.mode),))

    def describe(self) -> dict[str, Any]:
        """Return what a study's manifest says of it, as a JSON object."""
        first = self.objectives[0]
        described: dict[str, Any] = {"metric": first.metric, "mode": first.mode}
        if self.has_two:
            described["objectives"] = [[o.metric, o.mode] for o in self.objectives]
        if self.constraints:
            described["require"] = [str(constraint) for constraint in self.constraints]
        return described

    def __str__(self) -> str:
        named = " and ".join(f"{o.metric} ({o.mode})" for o in self.objectives)
        required = " and ".join(map(str, self.constraints))
        return f"{named}, required: {required}" if required else named

    @property
    def has_two(self) -> bool:
        """Whether there are two objectives."""
        return len(self.objectives) > 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that every epoch must have."""
        named = [o.metric for o in self.objectives] + [c.metric for c in self.constraints]
        return tuple(dict.fromkeys(named))

    def point(self, row: Mapping[str, float]) -> tuple[float, ...]:
        """Return an epoch's scores, each the better the larger."""
        return tuple(objective.score(row[objective.metric]) for objective in self.objectives)

    def values(self, trial: Judged) -> list[float] | None:
        """Return a trial's values at its best epoch; None before the first."""
        best = trial.best
        return [best[objective.metric] for objective in self.objectives] if best else None

    def misses(self, trial: Judged) -> dict[str, float]:
        """Return how far a trial is off each bound, as `Constraint.miss`; empty before an epoch."""
        best = trial.best
        return {str(c): c.miss(best.get(c.metric)) for c in self.constraints} if best else {}

    def missed(self, trial: Judged) -> float:
        """Return how far a trial is off the bounds of violated constraints, added up."""
        return sum(max(0.0, miss) for miss in self.misses(trial).values())

    def ranking(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that have a value and did not fail, best first.

        With two objectives the front comes first, by the first of them, then all others by it.
        Trials that violate constraints are last, the nearest first.
        """
        ended = [trial for trial in trials if trial.best is not None and trial.state != "failed"]
        on_front = {trial.number for trial in self.front(ended)} if self.has_two else set()

        def place(trial: Trial) -> tuple[float, bool, list[float], int]:
            scores = self.point(trial.best or {})
            behind = trial.number not in on_front
            return self.missed(trial), behind, [-score for score in scores], trial.number

        return sorted(ended, key=place)

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the Pareto front of trials that satisfy all constraints, by the first score."""
        found: list[tuple[Point, Trial]] = [
            (self.point(trial.best), trial)
            for trial in trials
            if trial.best is not None and trial.state != "failed" and not self.missed(trial)
        ]
        kept = [found[place] for place in front([point for point, _ in found])]
        return [
            trial for point, trial in sorted(kept, key=lambda k: ([-s for s in k[0]], k[1].number))
        ]

    def shortfall(self, ranking: Sequence[Judged]) -> str | None:
        """Return a sentence if no trial satisfies all constraints: which is nearest, how near."""
        if not self.constraints or not ranking or not self.missed(ranking[0]):
            return None
        nearest, best = ranking[0], ranking[0].best or {}
        short = [
            f"{c.metric} is {metric_value(value)}, {metric_value(abs(c.bound - value))} "
            f"{'below' if c.sign == '>=' else 'above'} {c.bound:g}"
            for c in self.constraints
            if (value := best.get(c.metric)) is not None and c.miss(value) > 0
        ]
        short += [f"{c.metric} was not recorded" for c in self.constraints if c.metric not in best]
        required = " and ".join(map(str, self.constraints))
        return (
            f"no trial satisfies {required}; trial {nearest.number} is closest: {'; '.join(short)}"
        )


def dominates(one: Point, other: Point) -> bool:
    """Return whether a point is nowhere worse than another, and somewhere better."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def front(points: Sequence[Point]) -> list[int]:
    """Return the places of the points that no other dominates, in their order.

    Of points that are equal, all are there.
    """
    # From the best by the first score downwards only the best second score so far can dominate,
    # and the last point of the front has it.
    order = sorted(range(len(points)), key=lambda place: tuple(points[place]), reverse=True)
    kept: list[int] = []
    for place in order:
        if not kept or not dominates(points[kept[-1]], points[place]):
            kept.append(place)
    return sorted(kept)


def show_values(goal: Goal, trial: Judged) -> str:
    """Return a trial's values with their names; empty before its first epoch."""
    pairs = zip(goal.objectives, goal.values(trial) or [], strict=False)
    return "  ".join(f"{objective.metric} {metric_value(value)}" for objective, value in pairs)


def read_constraint(text: str) -> Constraint:
    """Return what `val/ap/window>=0.8` says.

    Raises:
        ValueError: It does not say such a thing.
    """
    match = re.fullmatch(r"\s*(.+?)\s*(>=|<=)\s*(\S+)\s*", text)
    if match is None or not abs(float(match[3])) < float("inf"):
        raise ValueError(text)
    return Constraint(match[1], match[2], float(match[3]))
