"""Which of several points are the best ones when there is more than one objective.

A point is a pair of scores, each the better the larger. It dominates another one if it is at least
as good in both of them and better in one; the Pareto front is what nothing dominates.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from operator import itemgetter

Point = Sequence[float]  # one score, or two


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


class Fronts:
    """Points in layers: the Pareto front, that of the rest, and so on, kept as points come.

    Non-dominated sorting as in Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic
    Algorithm: NSGA-II", one point at a time as in Li et al. 2017, "Efficient Nondomination Level
    Update Method for Steady-State Evolutionary Multiobjective Optimization". Along a front the
    second score rises as the first one falls, so that two bisections find what a point dominates.
    """

    def __init__(self) -> None:
        # Each by falling first score, scores negated, and equal points in the order they came.
        self._layers: list[list[tuple[float, float]]] = []

    def add(self, point: Point) -> tuple[int, int]:
        """Add a point; return its rank, 0 on the Pareto front, and how many are before it.

        Before it are those of lower rank, and on its own front those that have a better first
        score, or are equal and came earlier.
        """
        new = (-point[0], -point[-1])
        # Whatever is dominated by a front is dominated by all fronts before it.
        rank = bisect.bisect_left(self._layers, True, key=lambda layer: not _dominated(new, layer))
        pushed = [new]  # to this front; what they dominate there goes to the next
        for layer in self._layers[rank:]:
            pushed = _push(layer, pushed)
            if not pushed:
                break
        if pushed:
            self._layers.append(pushed)
        before = sum(map(len, self._layers[:rank]))
        return rank, before + bisect.bisect_right(self._layers[rank], new) - 1


def _dominated(point: tuple[float, float], layer: list[tuple[float, float]]) -> bool:
    """Return whether a point is dominated by one of a front."""
    place = bisect.bisect_right(layer, point[0], key=itemgetter(0))
    if not place:
        return False
    nearest = layer[place - 1]  # of those with a first score as good, the best by the second
    return nearest[1] <= point[1] and nearest != point


def _push(
    layer: list[tuple[float, float]], points: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Add points to a front that does not dominate them; return what they push out of it."""
    pushed = []
    for point in points:
        start = bisect.bisect_right(layer, point)  # behind its equals
        end = bisect.bisect_right(layer, -point[1], start, key=lambda known: -known[1])
        pushed += layer[start:end]
        layer[start:end] = [point]
    return pushed


class FrontRungs:
    """Successive halving for two objectives: which trial goes on at a rung.

    A trial goes on if nothing that reached the rung before dominates it, or if it is among the best
    one in `reduction_factor` there by rank, then by the first score. So no trial is stopped that
    is on the front of its rung, however poor its first score, and as with one objective the first
    at a rung always passes. After Schmucker et al. 2021, "Multi-objective Asynchronous Successive
    Halving", who rank in the same way but do not spare the front.

    Args:
        milestones: Epochs of the rungs.
        reduction_factor: One in so many goes on.
    """

    def __init__(self, milestones: Sequence[float], reduction_factor: float) -> None:
        self._rungs: list[tuple[float, set[int], Fronts]] = [
            (milestone, set(), Fronts()) for milestone in sorted(milestones, reverse=True)
        ]
        self._factor = reduction_factor

    def goes_on(self, number: int, epoch: int, point: Point) -> bool:
        """Return whether a trial goes on after an epoch; to be asked after every epoch."""
        for milestone, seen, fronts in self._rungs:
            if epoch < milestone or number in seen:
                continue
            seen.add(number)
            rank, before = fronts.add(point)
            return rank == 0 or before < len(seen) / self._factor
        return True
