"""Which of several points are the best ones when there is more than one objective.

A point is a tuple of scores, each the better the larger. It dominates another one if it is at least
as good in all of them and better in one; the Pareto front is what nothing dominates.
"""

from __future__ import annotations

from collections.abc import Sequence

Point = Sequence[float]


def dominates(one: Point, other: Point) -> bool:
    """Return whether a point is nowhere worse than another, and somewhere better."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def front(points: Sequence[Point]) -> list[int]:
    """Return the places of the points that no other dominates, in their order.

    Of points that are equal, all are there.
    """
    # From the best by the first score downwards only points of the front so far can dominate.
    order = sorted(range(len(points)), key=lambda place: tuple(points[place]), reverse=True)
    kept: list[int] = []
    for place in order:
        if not any(dominates(points[known], points[place]) for known in kept):
            kept.append(place)
    return sorted(kept)


def ranks(points: Sequence[Point]) -> list[int]:
    """Return for every point on which front it is: 0 the Pareto front, 1 that of the rest, ...

    Non-dominated sorting as in Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic
    Algorithm: NSGA-II".
    """
    result = [0] * len(points)
    left = list(range(len(points)))
    rank = 0
    while left:
        best = {left[place] for place in front([points[place] for place in left])}
        for place in best:
            result[place] = rank
        left = [place for place in left if place not in best]
        rank += 1
    return result


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
        self._rungs: list[tuple[float, dict[int, Point]]] = [
            (milestone, {}) for milestone in sorted(milestones, reverse=True)
        ]
        self._factor = reduction_factor

    def goes_on(self, number: int, epoch: int, point: Point) -> bool:
        """Return whether a trial goes on after an epoch; to be asked after every epoch."""
        for milestone, seen in self._rungs:
            if epoch < milestone or number in seen:
                continue
            seen[number] = point
            rank = dict(zip(seen, ranks(list(seen.values())), strict=True))
            order = sorted(seen, key=lambda known: (rank[known], [-s for s in seen[known]]))
            return rank[number] == 0 or order.index(number) < len(seen) / self._factor
        return True
