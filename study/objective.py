"""Goal of a study: one or two objectives, and constraints on its trials.

    study.tune --objective mean_ap                        the facade task's default
    study.tune --objective ap/pillar
    study.tune --objective worst_class --require 'ap/window>=0.8'
    study.tune --objective accuracy,num_params            two objectives: a Pareto front

Names are those of an epoch's metrics, with or without `val/`. The first objective selects a trial's
best epoch, so it must be a validation metric; all other numbers are taken from that epoch.

A score is a metric's value with its sign set so that higher is better. A point (one or two scores)
dominates another if it is nowhere worse and somewhere better; the Pareto front is the set of points
that no other dominates.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from study.formatting import metric_value
from study.task import Task

# Metrics that do not come from validation but can be an objective or a constraint.
COSTS = {"num_params": "min", "images_per_second": "max", "epoch_seconds": "min"}
OPTIONAL = ("objectives", "require")  # keys of a manifest beyond `metric` and `mode`
# Miss of a metric that was not recorded, and of a diverged trial: worse than any other.
WORST_MISS = 1e6

Point = Sequence[float]  # one score, or two


class Judged(Protocol):
    """A trial as a goal sees it, such as `study.records.trial_record.TrialRecord`."""

    @property
    def number(self) -> int:
        """Number of the trial, from 0."""

    @property
    def state(self) -> str:
        """`failed`, or another state."""

    @property
    def best(self) -> Mapping[str, float] | None:
        """Metrics of the best epoch; None before the first."""


Trial = TypeVar("Trial", bound=Judged)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A metric by full name, and its direction (`max` or `min`)."""

    metric: str
    mode: str

    def score(self, value: float) -> float:
        """Return the value as a score: higher is better."""
        return value if self.mode == "max" else -value


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A lower (`>=`) or upper (`<=`) bound on a metric."""

    metric: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound!r}".removesuffix(".0")

    def miss(self, value: float | None) -> float:
        """Return by how much a value violates the bound, relative to it; at most 0 if not."""
        if value is None:
            return WORST_MISS
        short = self.bound - value if self.sign == ">=" else value - self.bound
        return short / abs(self.bound) if self.bound else short


@dataclasses.dataclass(frozen=True)
class Goal:
    """The objectives and constraints of a study.

    Attributes:
        objectives: One or two.
        constraints: Must hold at a trial's best epoch.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> Goal:
        """Return the goal in a study's manifest."""
        named = manifest.get("objectives") or [[manifest["metric"], manifest["mode"]]]
        constraints = (read_constraint(text) for text in manifest.get("require", []))
        return Goal(tuple(Objective(*entry) for entry in named), tuple(constraints))

    @staticmethod
    def of_task(task: Task) -> Goal:
        """Return the task's own objective."""
        return Goal((Objective(task.metric, task.mode),))

    def describe(self) -> dict[str, Any]:
        """Return the goal as keys of a study's manifest, a JSON object."""
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
        """Metrics that every epoch must report."""
        named = [o.metric for o in self.objectives] + [c.metric for c in self.constraints]
        return tuple(dict.fromkeys(named))

    def point(self, row: Mapping[str, float]) -> tuple[float, ...]:
        """Return the scores of an epoch."""
        return tuple(objective.score(row[objective.metric]) for objective in self.objectives)

    def values(self, trial: Judged) -> list[float] | None:
        """Return a trial's values at its best epoch; None before the first."""
        best = trial.best
        return [best[objective.metric] for objective in self.objectives] if best else None

    def misses(self, trial: Judged) -> dict[str, float]:
        """Return `Constraint.miss` of each constraint; empty before the first epoch."""
        best = trial.best
        return {str(c): c.miss(best.get(c.metric)) for c in self.constraints} if best else {}

    def missed(self, trial: Judged) -> float:
        """Return the sum of the misses of all violated constraints."""
        return sum(max(0.0, miss) for miss in self.misses(trial).values())

    def ranking(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that have a value and did not fail, best first.

        With two objectives the Pareto front comes first, then all other trials, each sorted by the
        first objective. Trials that violate constraints come last, the smallest violation first.
        """
        ended = [trial for trial in trials if trial.best is not None and trial.state != "failed"]
        on_front = {trial.number for trial in self.front(ended)} if self.has_two else set()

        def place(trial: Trial) -> tuple[float, bool, list[float], int]:
            scores = self.point(trial.best or {})
            behind = trial.number not in on_front
            return self.missed(trial), behind, [-score for score in scores], trial.number

        return sorted(ended, key=place)

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the Pareto front of the trials that satisfy all constraints, by first score."""
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
        """Return a sentence on the closest trial if none satisfies all constraints, else None."""
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
    """Return the indices of the points that no other dominates, ascending.

    Equal points are all included.
    """
    # In descending order of the first score, only the point with the best second score so far can
    # dominate, and that is the last one kept.
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
    """Parse a constraint such as `val/ap/window>=0.8`.

    Raises:
        ValueError: The text is not a constraint.
    """
    match = re.fullmatch(r"\s*(.+?)\s*(>=|<=)\s*(\S+)\s*", text)
    if match is None or not abs(float(match[3])) < float("inf"):
        raise ValueError(text)
    return Constraint(match[1], match[2], float(match[3]))
