"""Asynchronous successive halving (ASHA): which trials continue at a rung.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning". Rungs are epochs, each
`reduction_factor` times the previous one. A trial continues if it is in the top
1/`reduction_factor` of those that have reached the rung so far; no trial waits for others.
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Sequence
from operator import itemgetter

from study.objective import Point


class Rungs:
    """The rule for one objective, with the same decisions as Ray's `ASHAScheduler`.

    Args:
        grace_period: Epochs before the first rung.
        epochs: Epochs of a full trial; it ends after the last one anyway.
        reduction_factor: The best one in this many trials so far continues at each rung.

    Attributes:
        milestones: Epochs of the rungs, last first; may be fractional.
    """

    def __init__(self, grace_period: int, epochs: int, reduction_factor: float) -> None:
        grace_period = min(grace_period, epochs)
        number = int(math.log(epochs / grace_period) / math.log(reduction_factor) + 1)
        self.milestones = [grace_period * reduction_factor**k for k in reversed(range(number))]
        self.epochs = epochs
        self.reduction_factor = reduction_factor
        self._values: list[list[float]] = [[] for _ in self.milestones]  # sorted
        self._seen: list[set[int]] = [set() for _ in self.milestones]

    def goes_on(self, number: int, epoch: int, point: Point) -> bool:
        """Return whether a trial continues after an epoch; must be called after every epoch.

        Args:
            number: The trial's number.
            epoch: From 1.
            point: Its scores after that epoch, higher is better; only the first counts.
        """
        if epoch >= self.epochs:
            return True
        for rung, (milestone, seen) in enumerate(zip(self.milestones, self._seen, strict=True)):
            if epoch >= milestone and number not in seen:
                seen.add(number)
                return self.passes(rung, point)
        return True

    def passes(self, rung: int, point: Point) -> bool:
        """Record a score at a rung (index into `milestones`); return whether it continues."""
        score, values = point[0], self._values[rung]
        if math.isnan(score):  # not comparable
            return True
        goes_on = not values or score >= self._cutoff(values)
        bisect.insort(values, score)
        return goes_on

    def decisions(self) -> list[tuple[int, int]]:
        """Return the epochs after which a trial that always continues is judged, and the rungs.

        One rung per epoch, the highest at which the trial has not been judged.
        """
        left = list(enumerate(self.milestones))
        found: list[tuple[int, int]] = []
        epoch = 0
        while left and (epoch := max(epoch + 1, math.ceil(left[-1][1]))) < self.epochs:
            here = next(entry for entry in left if entry[1] <= epoch)
            left.remove(here)
            found.append((epoch, here[0]))
        return found

    def knowing(self, values: Sequence[list[float]]) -> Rungs:
        """Return a copy that has seen these scores, one sorted list per rung."""
        known = copy.copy(self)
        known._values = [list(each) for each in values]
        return known

    def _cutoff(self, values: list[float]) -> float:
        """Return the percentile of sorted scores, interpolated.

        Rounds exactly like `numpy.percentile`, which is many times slower: a score may equal the
        cutoff.
        """
        place = (1 - 1 / self.reduction_factor) * 100 / 100 * (len(values) - 1)
        below = int(place)
        low, high, part = values[below], values[min(below + 1, len(values) - 1)], place - below
        if part < 0.5:
            return low + (high - low) * part
        return high - (high - low) * (1 - part)


class FrontRungs(Rungs):
    """The rule for two objectives.

    A trial continues if no earlier trial at the rung dominates it, or if it is in the top
    1/`reduction_factor` there by rank, then by the first score. So a trial on the front of its rung
    is never stopped, however poor its first score, and as with one objective the first trial at a
    rung always passes. After Schmucker et al. 2021, "Multi-objective Asynchronous Successive
    Halving", who rank in the same way but do not spare the front.

    Args:
        grace_period: As in `Rungs`.
        epochs: As in `Rungs`.
        reduction_factor: As in `Rungs`.
    """

    def __init__(self, grace_period: int, epochs: int, reduction_factor: float) -> None:
        super().__init__(grace_period, epochs, reduction_factor)
        self._fronts = [Fronts() for _ in self.milestones]

    def passes(self, rung: int, point: Point) -> bool:
        """Record two scores at a rung; return whether the trial continues."""
        rank, before = self._fronts[rung].add(point)
        return rank == 0 or before < len(self._fronts[rung]) / self.reduction_factor


class Fronts:
    """Points in layers: the Pareto front, the front of the rest, and so on, updated online.

    Non-dominated sorting as in Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic
    Algorithm: NSGA-II", one point at a time as in Li et al. 2017, "Efficient Nondomination Level
    Update Method for Steady-State Evolutionary Multiobjective Optimization". Along a front the
    second score rises as the first one falls, so that two bisections find what a point dominates.
    """

    def __init__(self) -> None:
        # Each sorted by descending first score, scores negated, equal points in order of arrival.
        self._layers: list[list[tuple[float, float]]] = []

    def __len__(self) -> int:
        return sum(map(len, self._layers))

    def add(self, point: Point) -> tuple[int, int]:
        """Add a point; return its rank, 0 on the Pareto front, and how many points precede it.

        Points of lower rank precede it, and on its own front those with a better first score, or
        equal ones that came earlier.
        """
        new = (-point[0], -point[-1])
        # A point dominated by one front is dominated by all fronts before it.
        rank = bisect.bisect_left(self._layers, True, key=lambda layer: not _dominated(new, layer))
        pushed = [new]  # onto this front; points they dominate move to the next
        for layer in self._layers[rank:]:
            pushed = _push(layer, pushed)
            if not pushed:
                break
        if pushed:
            self._layers.append(pushed)
        before = sum(map(len, self._layers[:rank]))
        return rank, before + bisect.bisect_right(self._layers[rank], new) - 1


def _dominated(point: tuple[float, float], layer: list[tuple[float, float]]) -> bool:
    """Return whether a point on a front dominates this one."""
    place = bisect.bisect_right(layer, point[0], key=itemgetter(0))
    if not place:
        return False
    nearest = layer[place - 1]  # of those with a first score as good, the best by the second
    return nearest[1] <= point[1] and nearest != point


def _push(
    layer: list[tuple[float, float]], points: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Add points to a front that does not dominate them; return the points they displace."""
    pushed = []
    for point in points:
        start = bisect.bisect_right(layer, point)  # after equal points
        end = bisect.bisect_right(layer, -point[1], start, key=lambda known: -known[1])
        pushed += layer[start:end]
        layer[start:end] = [point]
    return pushed
