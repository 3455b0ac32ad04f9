"""How far the trials of a study get, and when it ends, simulated without training anything.

Asynchronous successive halving keeps more than one in F: whoever comes first to a rung passes it,
and the next are compared with few. So the number is counted in many simulated studies, in which a
trial's rank among all is random and the same at every rung, and slots are taken as they get free.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import random
from collections.abc import Sequence

from study.trial_record import TrialRecord

NUM_STUDIES = 300  # simulated; the standard error of a mean is then 6 % of the spread
MOST_STEPS = 300_000  # epochs simulated in all, about a second


class Rungs:
    """The rule of Ray's ASHA (`ray.tune.schedulers.async_hyperband`, one bracket, largest is best).

    Args:
        grace_period: Epochs before the first rung.
        epochs: Of a trial that is not stopped; the last one ends it anyway.
        reduction_factor: The best one in so many of those so far goes on at each rung.
    """

    def __init__(self, grace_period: int, epochs: int, reduction_factor: float) -> None:
        grace_period = min(grace_period, epochs)
        number = int(math.log(epochs / grace_period) / math.log(reduction_factor) + 1)
        self.milestones = [grace_period * reduction_factor**k for k in reversed(range(number))]
        self._epochs = epochs
        self._position = 1 - 1 / reduction_factor
        self._values: list[list[float]] = [[] for _ in self.milestones]  # sorted
        self._seen: list[set[int]] = [set() for _ in self.milestones]

    def goes_on(self, number: int, epoch: int, value: float) -> bool:
        """Return whether a trial goes on after an epoch; to be asked after every epoch."""
        if epoch >= self._epochs:
            return True
        for milestone, values, seen in zip(self.milestones, self._values, self._seen, strict=True):
            if epoch < milestone or number in seen:
                continue
            passes = not values or value >= self._cutoff(values)
            bisect.insort(values, value)
            seen.add(number)
            return passes
        return True

    def _cutoff(self, values: list[float]) -> float:
        """Return the percentile of sorted values, between two of them if need be, as NumPy does."""
        place = self._position * (len(values) - 1)
        below = int(place)
        above = min(below + 1, len(values) - 1)
        return values[below] + (values[above] - values[below]) * (place - below)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runner:
    """A trial to be simulated.

    Attributes:
        begin: Seconds before its first epoch.
        epoch: Seconds of an epoch. Both while as many trials run as ever do.
        done: Epochs it had before, being cut off.
        rank: In [0, 1], its place among all trials; None for a random one.
    """

    begin: float
    epoch: float
    done: int = 0
    rank: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the simulated studies gave.

    Attributes:
        reached: For every epoch the expected number of trials that train it.
        seconds: Expected time from the first trial's start to the last one's end.
        low: One study in ten takes less time.
        high: One study in ten takes more.
    """

    reached: tuple[float, ...]
    seconds: float
    low: float
    high: float


def simulate(
    runners: Sequence[Runner],
    *,
    epochs: int,
    concurrent: int,
    rule: tuple[int, float] | None,
    past: Sequence[tuple[int, float]] = (),
    alone: float = 1.0,
    most_steps: int = MOST_STEPS,
) -> Outlook:
    """Simulate a study many times.

    Args:
        runners: The trials that are left, in the order of their start.
        epochs: Of a trial that is not stopped.
        concurrent: Trials at a time.
        rule: Grace period and reduction factor of ASHA; None if no trial is stopped.
        past: Of the trials that ended before: their epochs, and their ranks in [0, 1].
        alone: How many times faster a trial is when it runs alone.
        most_steps: Epochs simulated in all, about, if they make 30 studies.
    """
    generator = random.Random(0)
    least = 1 if rule is None and concurrent == 1 else 30
    repeats = max(least, min(NUM_STUDIES, most_steps // max(1, len(runners) * epochs)))
    reached = [0.0] * epochs
    ends = []
    for _ in range(repeats):
        rungs = Rungs(rule[0], epochs, rule[1]) if rule else None
        known = [(len(runners) + place, *trial) for place, trial in enumerate(past)]
        known += [(number, r.done, r.rank or 0.0) for number, r in enumerate(runners) if r.done]
        for number, done, rank in known:
            for epoch in range(1, done + 1) if rungs else ():
                assert rungs is not None
                rungs.goes_on(number, epoch, rank)
        ends.append(_run(runners, epochs, concurrent, rungs, alone, generator, reached))
    ends.sort()
    return Outlook(
        reached=tuple(count / repeats for count in reached),
        seconds=sum(ends) / repeats,
        low=ends[repeats // 10],
        high=ends[-1 - repeats // 10],
    )


def ranks(trials: Sequence[TrialRecord], mode: str) -> dict[int, float]:
    """Return where trials stand among each other after their first epoch, in [0, 1]."""
    sign = 1 if mode == "max" else -1
    begun = sorted((t for t in trials if t.epochs), key=lambda t: sign * t.curve[1])
    return {trial.number: (place + 0.5) / len(begun) for place, trial in enumerate(begun)}


def _run(
    runners: Sequence[Runner],
    epochs: int,
    concurrent: int,
    rungs: Rungs | None,
    alone: float,
    generator: random.Random,
    reached: list[float],
) -> float:
    """Run one simulated study; add to `reached`; return its seconds."""
    ranks = [generator.random() if r.rank is None else r.rank for r in runners]
    waiting = list(reversed(range(len(runners))))
    slots: list[list[float]] = []  # number, last epoch, work left until its next one
    clock = 0.0
    while waiting or slots:
        while waiting and len(slots) < concurrent:
            number = waiting.pop()
            runner = runners[number]
            if runner.done < epochs:
                slots.append([number, runner.done, runner.begin + runner.epoch])
        if not slots:
            break
        free = (concurrent - len(slots)) / max(1, concurrent - 1)  # 1 if a trial runs alone
        speed = 1 + (alone - 1) * free
        step = min(slot[2] for slot in slots)
        clock += step / speed
        still = []
        for slot in slots:
            slot[2] -= step
            if slot[2] > 1e-9:
                still.append(slot)
                continue
            number, epoch = int(slot[0]), int(slot[1]) + 1
            reached[epoch - 1] += 1
            stays = rungs is None or rungs.goes_on(number, epoch, ranks[number])
            if stays and epoch < epochs:
                still.append([number, epoch, runners[number].epoch])
        slots = still
    return clock
