"""Simulated studies: times worked out by hand, and few that stand for many."""

from __future__ import annotations

from typing import Any

import pytest

from study.search.asha import Rungs
from study.search.simulation import Outlook, Runner, simulate


def outlook(*runners: Runner, concurrent: int = 1, **changes: Any) -> Outlook:
    given: dict[str, Any] = {"epochs": 4, "rule": None, **changes}
    return simulate(runners, concurrent=concurrent, **given)


def test_without_a_scheduler_by_hand() -> None:
    short, long = Runner(begin=1, epoch=2), Runner(begin=1, epoch=5)
    one = outlook(short, long)
    assert one.reached == (2, 2, 2, 2) and one.seconds == one.low == one.high == 9 + 21
    assert outlook(short, long, concurrent=2).seconds == pytest.approx(21)
    # Alone twice as fast: 12 of 21 seconds are left when the other one ends.
    assert outlook(short, long, concurrent=2, alone=2).seconds == pytest.approx(9 + 12 / 2)
    cut_off = Runner(begin=1, epoch=2, done=3, rank=0.5)
    assert outlook(cut_off).reached == (0, 0, 0, 1) and outlook(cut_off).seconds == 3


def test_asha_keeps_more_than_one_in_three() -> None:
    # The first passes; the second must beat it: 1 + 1/2; ... so of two trials 1.5 go on.
    two = outlook(*[Runner(begin=0, epoch=1)] * 2, epochs=2, rule=(1, 3))
    assert two.reached[0] == 2 and two.reached[1] == pytest.approx(1.5, abs=0.1)
    many = outlook(*[Runner(begin=0, epoch=1)] * 60, concurrent=4, epochs=9, rule=(1, 3))
    assert many.reached[0] == 60
    assert 20 < many.reached[1] < 30 and many.reached[1] == many.reached[2]
    assert many.low < many.seconds < many.high


def test_trials_that_ended_are_known_at_the_rungs() -> None:
    new = Runner(begin=0, epoch=1)
    good = [(9, 0.99)] * 20
    assert outlook(new, epochs=9, rule=(1, 3), past=good).reached[1] < 0.1
    going = Runner(begin=0, epoch=1, done=1, rank=0.0)  # passed its rung before
    assert outlook(going, epochs=3, rule=(1, 3), past=good).reached == (0, 1, 1)


@pytest.mark.parametrize(
    ("concurrent", "epochs", "rule"),
    [(2, 20, (4, 3)), (4, 9, (1, 3)), (64, 20, (1, 2)), (3, 12, None)],
)
def test_many_trials_are_expected_to_do_as_if_all_were_simulated(
    concurrent: int, epochs: int, rule: tuple[int, float] | None
) -> None:
    kinds = [Runner(begin=1, epoch=2), Runner(begin=1, epoch=5)]
    going = [Runner(begin=0, epoch=3, done=1, rank=0.9)]
    given: dict[str, Any] = {"concurrent": concurrent, "epochs": epochs, "rule": rule}
    given |= {"past": [(epochs, 0.8), (1, 0.1)]}
    full = outlook(*going, *kinds * 500, **given, most_steps=10**6)
    some = outlook(*going, *kinds, **given, more=998, most_steps=30_000)
    assert some.seconds == pytest.approx(full.seconds, rel=0.05)
    assert some.low == pytest.approx(full.low, rel=0.05)
    assert some.high == pytest.approx(full.high, rel=0.05)
    assert sum(some.reached) == pytest.approx(sum(full.reached), rel=0.05)


def test_what_a_simulation_costs_does_not_depend_on_how_many_trials_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    passes = Rungs.passes
    monkeypatch.setattr(Rungs, "passes", lambda self, *args: asked.append(1) or passes(self, *args))
    steps = {}
    for more in (10**3, 10**6, 10**15):
        asked.clear()
        new = Runner(begin=0, epoch=1)
        found = outlook(new, more=more, epochs=20, rule=(4, 3.0), concurrent=4, most_steps=30_000)
        assert found.seconds > more and found.reached[0] == more + 1
        steps[more] = len(asked)
    assert len(set(steps.values())) == 1 and 1000 < steps[10**15] < 30_000
