"""Who goes on at a rung: against Ray's own class, against sorting anew, and by hand."""

from __future__ import annotations

import random
import types
from typing import Any

import numpy as np
import pytest
from points import brute_force, drawn
from ray.tune.schedulers import ASHAScheduler

from study.search.asha import FrontRungs, Fronts, Rungs


@pytest.mark.parametrize(
    ("grace", "epochs", "factor"),
    [(1, 20, 3), (1, 4, 3), (2, 27, 3), (1, 1, 3), (5, 3, 2), (1, 16, 2.5), (1, 9, 1.5)],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_rule_is_that_of_ray(grace: int, epochs: int, factor: float, seed: int) -> None:
    bracket = ASHAScheduler(
        max_t=epochs, grace_period=min(grace, epochs), reduction_factor=factor
    )._brackets[0]
    rungs = Rungs(grace, epochs, factor)
    generator = random.Random(seed)
    going = dict.fromkeys(range(60), 0)
    while going:
        number = generator.choice(list(going))
        going[number] += 1
        epoch, value = going[number], generator.random()
        if epoch >= epochs:  # the study decides nothing there, as `RecordASHA`
            del going[number]
            continue
        trial: Any = types.SimpleNamespace(trial_id=number)
        expected = bracket.on_result(trial, epoch, value) == "CONTINUE"
        assert rungs.goes_on(number, epoch, (value,)) == expected
        if not expected:
            del going[number]


def brute_force_ranks(points: list[tuple[float, ...]]) -> list[int]:
    left, rank, found = list(range(len(points))), 0, [0] * len(points)
    while left:
        best = [left[place] for place in brute_force([points[place] for place in left])]
        for place in best:
            found[place] = rank
        left, rank = [place for place in left if place not in best], rank + 1
    return found


@pytest.mark.parametrize("seed", range(30))
def test_points_that_come_one_by_one_have_the_ranks_and_places_of_brute_force(seed: int) -> None:
    fronts, points = Fronts(), drawn(seed, 60)
    for number, point in enumerate(points):
        known = points[: number + 1]
        ranks = brute_force_ranks(known)
        order = sorted(range(number + 1), key=lambda k: (ranks[k], [-s for s in known[k]]))
        assert fronts.add(point) == (ranks[number], order.index(number))


class SortedAnew:
    """The rule as it was first written: all points of a rung are sorted for every decision."""

    def __init__(self, milestones: list[float], reduction_factor: float) -> None:
        self.rungs: list[tuple[float, dict[int, tuple[float, ...]]]] = [
            (milestone, {}) for milestone in sorted(milestones, reverse=True)
        ]
        self.factor = reduction_factor

    def goes_on(self, number: int, epoch: int, point: tuple[float, ...]) -> bool:
        for milestone, seen in self.rungs:
            if epoch < milestone or number in seen:
                continue
            seen[number] = point
            rank = dict(zip(seen, brute_force_ranks(list(seen.values())), strict=True))
            order = sorted(seen, key=lambda known: (rank[known], [-s for s in seen[known]]))
            return rank[number] == 0 or order.index(number) < len(seen) / self.factor
        return True


@pytest.mark.parametrize("seed", range(12))
def test_decisions_are_those_of_sorting_anew(seed: int) -> None:
    factor = [2.0, 3.0, 1.5][seed % 3]
    new = FrontRungs(1, 4, factor)
    old = SortedAnew(new.milestones, factor)
    for epoch, points in enumerate([drawn(seed, 80), drawn(seed + 1, 80), drawn(seed + 2, 80)], 1):
        for number, point in enumerate(points):
            assert new.goes_on(number, epoch, point) == old.goes_on(number, epoch, point)


def test_a_decision_compares_a_few_points_however_many_there_are() -> None:
    """Counted are the comparisons of scores: fewer than a tenth of the 4,000 points."""

    class Counted(float):
        compared = 0

        def __lt__(self, other: object) -> bool:
            Counted.compared += 1
            return float(self) < float(other)  # type: ignore[arg-type]

        def __le__(self, other: object) -> bool:
            Counted.compared += 1
            return float(self) <= float(other)  # type: ignore[arg-type]

        def __ge__(self, other: object) -> bool:
            Counted.compared += 1
            return float(self) >= float(other)  # type: ignore[arg-type]

        def __gt__(self, other: object) -> bool:
            Counted.compared += 1
            return float(self) > float(other)  # type: ignore[arg-type]

        def __neg__(self) -> Counted:
            return Counted(-float(self))

    generator, rungs = np.random.default_rng(0), FrontRungs(1, 2, 3.0)
    for number in range(4000):
        if number == 3900:
            Counted.compared = 0
        first, second = generator.random(2)
        rungs.goes_on(number, 1, (Counted(first + second), Counted(first - second)))
    assert 0 < Counted.compared < 100 * 400, Counted.compared


def test_a_rung_by_hand() -> None:
    rungs = FrontRungs(1, 8, 3.0)
    assert rungs.goes_on(0, 1, (0.5, -10.0)), "the first always passes"
    assert not rungs.goes_on(1, 1, (0.4, -10.0)), "dominated, and second of two"
    assert rungs.goes_on(2, 1, (0.1, -5.0)), "on the front, however poor the first score"
    assert rungs.goes_on(3, 1, (0.9, -99.0))
    assert rungs.goes_on(2, 2, (0.0, -99.0)), "no rung here"
    # Four of seven are on the front, so being among the best third does not help those behind.
    assert rungs.goes_on(4, 1, (0.6, -11.0)) and not rungs.goes_on(5, 1, (0.55, -12.0))
    assert rungs.goes_on(0, 3, (0.1, -10.0)) and not rungs.goes_on(2, 3, (0.1, -11.0))
    assert rungs.goes_on(2, 4, (0.0, -99.0)), "asked once at each rung"


def test_behind_a_short_front_the_best_by_the_first_score_go_on() -> None:
    rungs = FrontRungs(1, 2, 2.0)
    values = [0.9, 0.1, 0.2, 0.3, 0.8, 0.0]
    passed = [rungs.goes_on(n, 1, (value, value)) for n, value in enumerate(values)]
    assert passed == [True, False, True, True, True, False]
