"""Fronts against brute force, and who goes on at a rung, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from study.pareto import FrontRungs, dominates, front, ranks


def brute_force(points: list[tuple[float, ...]]) -> list[int]:
    return [
        place
        for place, point in enumerate(points)
        if not any(
            all(a >= b for a, b in zip(other, point, strict=True)) and other != point
            for other in points
        )
    ]


@pytest.mark.parametrize("seed", range(40))
def test_fronts_and_ranks_are_those_of_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (int(generator.integers(0, 30)), int(generator.integers(1, 4)))
    points = [tuple(map(float, row)) for row in generator.integers(0, 6, shape)]  # with ties
    assert front(points) == brute_force(points)
    left, rank, found = list(range(len(points))), 0, ranks(points)
    while left:
        best = [left[place] for place in brute_force([points[place] for place in left])]
        assert sorted(place for place in left if found[place] == rank) == best
        left, rank = [place for place in left if place not in best], rank + 1


def test_dominance_by_hand() -> None:
    assert dominates((1, 2), (1, 1)) and dominates((2, 2), (1, 1))
    assert not dominates((1, 1), (1, 1)) and not dominates((2, 0), (1, 1))


def test_a_rung_by_hand() -> None:
    rungs = FrontRungs([1, 3], 3.0)
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
    rungs = FrontRungs([1], 2.0)
    values = [0.9, 0.1, 0.2, 0.3, 0.8, 0.0]
    passed = [rungs.goes_on(n, 1, (value, value)) for n, value in enumerate(values)]
    assert passed == [True, False, True, True, True, False]
