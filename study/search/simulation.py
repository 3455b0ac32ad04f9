"""Simulation of a study without training: how far its trials get, and how long it takes.

Asynchronous successive halving with reduction factor F keeps more than one trial in F: the first at
a rung always passes, and the next are compared with few. So the number is estimated from many
simulated studies, in which a trial's rank is random and the same at every rung, and slots are
filled as they become free.

The cost does not depend on the number of remaining trials: a few hundred are simulated; of all
later ones, which are compared with many, one in F continues at each rung.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import operator
import random
from collections.abc import Sequence
from itertools import accumulate, cycle, islice

from study.records.trial_record import TrialRecord
from study.search.asha import Rungs

NUM_STUDIES = 300  # simulated; the standard error of a mean is then 6 % of the spread
LEAST_STUDIES = 30  # for large studies
LEAST_TRIALS = 100  # per study
MOST_STEPS = 300_000  # total arrivals of trials at a rung or at their end; about a second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runner:
    """A trial to be simulated.

    Attributes:
        begin: Seconds before its first epoch, with all slots in use.
        epoch: Seconds per epoch, with all slots in use.
        done: Epochs done before an interruption.
        rank: Its rank among all trials, in [0, 1]; None for a random one.
    """

    begin: float
    epoch: float
    done: int = 0
    rank: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlook:
    """The result of the simulated studies.

    Attributes:
        reached: For each epoch, the expected number of trials that train it.
        seconds: Expected time from the start of the first trial to the end of the last.
        low: 10th percentile of that time.
        high: 90th percentile of that time.
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
        runners: The remaining trials, in order of their start.
        epochs: Epochs of a full trial.
        concurrent: Trials at a time.
        rule: Grace period and reduction factor of ASHA; None if no trial is stopped.
        more: Number of trials after `runners`, each like one of the new ones, in turn.
        past: Epochs and ranks in [0, 1] of the trials that have ended.
        alone: Speed-up of a trial that runs alone.
        most_steps: Approximate limit on arrivals of trials at a rung or at their end.
    """
    rungs = Rungs(rule[0], epochs, rule[1]) if rule else None
    steps = len(rungs.decisions()) + 1 if rungs else 1  # per trial
    new = [runner for runner in runners if not runner.done]
    room = max(LEAST_TRIALS, most_steps // (LEAST_STUDIES * steps)) - len(runners)
    simulated = [*runners, *islice(cycle(new), max(0, min(more, room)))]
    rest = _Rest.of(len(runners) + more - len(simulated), new, epochs, rungs)
    study = _Study(
        runners=simulated,
        epochs=epochs,
        concurrent=min(concurrent, len(simulated)) if rest.number else concurrent,
        rungs=rungs,
        known=_known(rungs, runners, past),
        alone=alone,
    )
    fitting = max(LEAST_STUDIES, min(NUM_STUDIES, most_steps // max(1, len(simulated) * steps)))
    repeats = fitting if rungs else 1  # without a rule nothing is random
    generator = random.Random(0)
    runs = [(*study.run(generator), rest.seconds(generator)) for _ in range(repeats)]
    ends = sorted(seconds + late / concurrent for seconds, _, late in runs)
    changes = map(sum, zip(*(changed for _, changed, _ in runs), strict=True))
    counts = (count / repeats for count in accumulate(changes))
    return Outlook(
        reached=tuple(map(operator.add, counts, rest.reached)),
        seconds=sum(ends) / repeats,
        low=ends[repeats // 10],
        high=ends[-1 - repeats // 10],
    )


def ranks(trials: Sequence[TrialRecord], mode: str) -> dict[int, float]:
    """Return the trials' ranks in [0, 1] after their first epoch."""
    sign = 1 if mode == "max" else -1
    begun = sorted((t for t in trials if t.epochs), key=lambda t: sign * t.curve[1])
    return {trial.number: (place + 0.5) / len(begun) for place, trial in enumerate(begun)}


def _known(
    rungs: Rungs | None, runners: Sequence[Runner], past: Sequence[tuple[int, float]]
) -> list[list[float]]:
    """Return the sorted ranks that each rung has seen from ended and interrupted trials."""
    trials = [*past, *((runner.done, runner.rank or 0.0) for runner in runners if runner.done)]
    known: list[list[float]] = [[] for _ in rungs.milestones] if rungs else []
    for epoch, rung in rungs.decisions() if rungs else ():
        known[rung] = sorted(rank for done, rank in trials if epoch <= done)
    return known


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rest:
    """Trials beyond those simulated: one in F continues at each rung.

    Attributes:
        number: Number of trials.
        mean: Mean seconds per trial.
        deviation: Standard deviation of the seconds per trial.
        reached: For each epoch, the expected number of trials that train it.
    """

    number: int
    mean: float = 0.0
    deviation: float = 0.0
    reached: tuple[float, ...]

    @staticmethod
    def of(number: int, new: Sequence[Runner], epochs: int, rungs: Rungs | None) -> _Rest:
        """Return this many trials, each like one of `new`."""
        if not number or not new:
            return _Rest(number=number, reached=(float(number),) * epochs)
        passing = 1 / rungs.reduction_factor if rungs else 1.0
        judged = [epoch for epoch, _ in rungs.decisions()] if rungs else []
        chances = [passing**place * (1 - passing) for place in range(len(judged))]
        chances.append(passing ** len(judged))
        lengths = list(zip([*judged, epochs], chances, strict=True))
        length = sum(n * chance for n, chance in lengths)
        spread = max(0.0, sum(n * n * chance for n, chance in lengths) - length**2)
        share, reached = 1.0, []
        for epoch in range(epochs):
            share *= passing if epoch in judged else 1.0
            reached.append(number * share)
        return _Rest(
            number=number,
            mean=sum(runner.begin + runner.epoch * length for runner in new) / len(new),
            deviation=math.sqrt(sum(runner.epoch**2 * spread for runner in new) / len(new)),
            reached=tuple(reached),
        )

    def seconds(self, generator: random.Random) -> float:
        """Draw their total time, one after the other."""
        if not self.number:
            return 0.0
        chance = math.sqrt(self.number) * self.deviation * generator.gauss()
        return max(0.0, self.number * self.mean + chance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Study:
    """A study to simulate, see `simulate`; `known` are the sorted ranks each rung has seen."""

    runners: Sequence[Runner]
    epochs: int
    concurrent: int
    rungs: Rungs | None
    known: Sequence[list[float]]
    alone: float

    def run(self, generator: random.Random) -> tuple[float, list[int]]:
        """Run it once.

        Args:
            generator: Draws the random ranks.

        Returns:
            Its seconds, and for each epoch the change in the number of trials that train it.
        """
        rungs = self.rungs.knowing(self.known) if self.rungs else None
        ranks = [generator.random() if r.rank is None else r.rank for r in self.runners]
        stops = [*(rungs.decisions() if rungs else ()), (self.epochs, -1)]
        changes = [0] * (self.epochs + 1)
        waiting = iter(enumerate(self.runners))
        slots: list[tuple[float, int, int]] = []  # time of the next stop, number, index of the stop
        clock = now = 0.0  # seconds, and the same with all slots in use
        while True:
            while len(slots) < self.concurrent and (entry := next(waiting, None)) is not None:
                number, runner = entry
                if runner.done < self.epochs:
                    place = next(k for k, stop in enumerate(stops) if stop[0] > runner.done)
                    work = runner.begin + (stops[place][0] - runner.done) * runner.epoch
                    heapq.heappush(slots, (now + work, number, place))
                    changes[runner.done] += 1
            if not slots:
                return clock, changes[: self.epochs]
            free = (self.concurrent - len(slots)) / max(
                1, self.concurrent - 1
            )  # 1 if only one runs
            when, number, place = heapq.heappop(slots)
            clock += (when - now) / (1 + (self.alone - 1) * free)
            now = when
            epoch, rung = stops[place]
            if epoch < self.epochs and rungs is not None and rungs.passes(rung, (ranks[number],)):
                work = (stops[place + 1][0] - epoch) * self.runners[number].epoch
                heapq.heappush(slots, (now + work, number, place + 1))
            else:
                changes[epoch] -= 1
