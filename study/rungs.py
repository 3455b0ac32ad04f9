"""How far the trials of a study get, and when it ends, simulated without training anything.

Asynchronous successive halving keeps more than one in F: whoever comes first to a rung passes it,
and the next are compared with few. So the number is counted in many simulated studies, in which a
trial's rank among all is random and the same at every rung, and slots are taken as they get free.

What that costs does not depend on how many trials are left: a few hundred are simulated, and of
all later ones, which are compared with many, one in F goes on at each rung.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import heapq
import math
import random
from collections.abc import Sequence
from itertools import accumulate, cycle, islice

from study.trial_record import TrialRecord

NUM_STUDIES = 300  # simulated; the standard error of a mean is then 6 % of the spread
LEAST_STUDIES = 30  # of large ones
LEAST_TRIALS = 100  # of each
MOST_STEPS = 300_000  # times that a trial comes to a rung or to its end, in all; about a second


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
        for rung, (milestone, seen) in enumerate(zip(self.milestones, self._seen, strict=True)):
            if epoch >= milestone and number not in seen:
                seen.add(number)
                return self.passes(rung, value)
        return True

    def passes(self, rung: int, value: float) -> bool:
        """Note a value at a rung, by its place among the milestones; return whether it goes on."""
        values = self._values[rung]
        goes_on = not values or value >= self._cutoff(values)
        bisect.insort(values, value)
        return goes_on

    def decisions(self) -> list[tuple[int, int]]:
        """Return after which epochs a trial that always goes on is judged, and at which rung.

        At one rung an epoch, the highest that it has not been judged at.
        """
        left = list(enumerate(self.milestones))
        found: list[tuple[int, int]] = []
        epoch = 0
        while left and (epoch := max(epoch + 1, math.ceil(left[-1][1]))) < self._epochs:
            here = next(entry for entry in left if entry[1] <= epoch)
            left.remove(here)
            found.append((epoch, here[0]))
        return found

    def knowing(self, values: Sequence[list[float]]) -> Rungs:
        """Return rungs that have seen these values, sorted, a list for each."""
        known = copy.copy(self)
        known._values = [list(each) for each in values]
        return known

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
    more: int = 0,
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
        more: Trials that come after `runners`, each like a new one of those, in turns.
        past: Of the trials that ended before: their epochs, and their ranks in [0, 1].
        alone: How many times faster a trial is when it runs alone.
        most_steps: Times that a trial comes to a rung or to its end, in all, about.
    """
    rungs = Rungs(rule[0], epochs, rule[1]) if rule else None
    decisions = rungs.decisions() if rungs else []
    each = len(decisions) + 1
    fit = max(LEAST_TRIALS, most_steps // (LEAST_STUDIES * each))
    new = [runner for runner in runners if not runner.done]
    simulated = [*runners, *islice(cycle(new), min(more, max(0, fit - len(runners))))]
    rest = len(runners) + more - len(simulated)
    study = _Study(
        runners=simulated,
        epochs=epochs,
        concurrent=min(concurrent, len(simulated)) if rest else concurrent,
        decisions=decisions,
        alone=alone,
    )
    known: list[list[float]] = [[] for _ in rungs.milestones] if rungs else []
    cut_off = [(runner.done, runner.rank or 0.0) for runner in runners if runner.done]
    for done, rank in [*past, *cut_off]:
        for epoch, rung in decisions:
            if epoch <= done:
                known[rung].append(rank)
    for values in known:
        values.sort()
    repeats = 1  # without a rule nothing is left to chance
    if rule is not None:
        fitting = most_steps // max(1, len(simulated) * each)
        repeats = max(LEAST_STUDIES, min(NUM_STUDIES, fitting))
    generator = random.Random(0)
    passing = 1 / rule[1] if rule else 1.0
    mean, deviation = _later(new, epochs, decisions, passing)
    changes = [0.0] * (epochs + 1)
    ends = []
    for _ in range(repeats):
        seconds = study.run(rungs and rungs.knowing(known), generator, changes)
        late = rest * mean + math.sqrt(rest) * deviation * generator.gauss() if rest else 0.0
        ends.append(seconds + max(0.0, late) / concurrent)
    ends.sort()
    reached = [count / repeats for count in accumulate(changes[:epochs])]
    share = 1.0
    judged = {epoch for epoch, _ in decisions}
    for epoch in range(epochs if rest else 0):
        share *= passing if epoch in judged else 1.0
        reached[epoch] += rest * share
    return Outlook(
        reached=tuple(reached),
        seconds=sum(ends) / repeats,
        low=ends[repeats // 10],
        high=ends[-1 - repeats // 10],
    )


def ranks(trials: Sequence[TrialRecord], mode: str) -> dict[int, float]:
    """Return where trials stand among each other after their first epoch, in [0, 1]."""
    sign = 1 if mode == "max" else -1
    begun = sorted((t for t in trials if t.epochs), key=lambda t: sign * t.curve[1])
    return {trial.number: (place + 0.5) / len(begun) for place, trial in enumerate(begun)}


def _later(
    new: Sequence[Runner], epochs: int, decisions: Sequence[tuple[int, int]], passing: float
) -> tuple[float, float]:
    """Return mean and standard deviation of a trial's seconds once rungs have seen many."""
    if not new:
        return 0.0, 0.0
    lengths = [epoch for epoch, _ in decisions] + [epochs]
    chances = [passing**place * (1 - passing) for place in range(len(decisions))]
    chances.append(passing ** len(decisions))
    length = sum(n * chance for n, chance in zip(lengths, chances, strict=True))
    square = sum(n * n * chance for n, chance in zip(lengths, chances, strict=True))
    spread = max(0.0, square - length**2)
    mean = sum(runner.begin + runner.epoch * length for runner in new) / len(new)
    return mean, math.sqrt(sum(runner.epoch**2 * spread for runner in new) / len(new))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Study:
    """What is simulated: see `simulate`; `decisions` are those of `Rungs`."""

    runners: Sequence[Runner]
    epochs: int
    concurrent: int
    decisions: Sequence[tuple[int, int]]
    alone: float

    def run(self, rungs: Rungs | None, generator: random.Random, changes: list[float]) -> float:
        """Run it once and return its seconds.

        Args:
            rungs: Of this run.
            generator: Of the ranks that are random.
            changes: Gets by how much the number of trials that train an epoch changes at it, by
                epoch from 0.
        """
        ranks = [generator.random() if r.rank is None else r.rank for r in self.runners]
        stops = [*self.decisions, (self.epochs, -1)]
        waiting = iter(enumerate(self.runners))
        slots: list[tuple[float, int, int]] = []  # when it comes to a stop, number, which stop
        clock = now = 0.0  # seconds, and what they would be with all slots taken
        while True:
            while len(slots) < self.concurrent and (entry := next(waiting, None)) is not None:
                number, runner = entry
                if runner.done < self.epochs:
                    place = next(k for k, stop in enumerate(stops) if stop[0] > runner.done)
                    work = runner.begin + (stops[place][0] - runner.done) * runner.epoch
                    heapq.heappush(slots, (now + work, number, place))
                    changes[runner.done] += 1
            if not slots:
                return clock
            free = (self.concurrent - len(slots)) / max(1, self.concurrent - 1)  # 1 if one runs
            when, number, place = heapq.heappop(slots)
            clock += (when - now) / (1 + (self.alone - 1) * free)
            now = when
            epoch, rung = stops[place]
            if epoch < self.epochs and rungs is not None and rungs.passes(rung, ranks[number]):
                work = (stops[place + 1][0] - epoch) * self.runners[number].epoch
                heapq.heappush(slots, (now + work, number, place + 1))
            else:
                changes[epoch] -= 1
