"""Replay searchers and schedulers over kept learning curves, to choose the defaults of a study.

    python tests/benchmarks/searchers.py            # half an hour on two cores
    python tests/benchmarks/searchers.py --seeds 10

Every strategy runs on the curves that `curves.py` kept until it has seen the target: what 24 random
trials without stopping find as their best, in the median over many seeds. What counts is the epochs
that it spent, averaged over seeds, against random search without stopping in the same space.

Strategies differ in the searcher (TPE as `study.search.sampler` sets it up, or random), in early
stopping (ASHA as `study.search.asha`, with its grace period and reduction factor) and in what
Optuna is told of a stopped trial:

    pruned   PRUNED with all values by epoch: TPE ranks it below those that got further
    last     COMPLETE with its last value, as Ray's OptunaSearch does
    best     COMPLETE with its best value

Two trials run at a time, in turns of one epoch. The first trial is the space's middle, as a study's
first is the baseline. Choices of widths that are not in the file take the nearest that are.

Then the other way round, for short studies: how far the best of 8, 12 or 20 trials is from the best
of all configurations, if TPE begins after 2, 4 or 10 random trials, or never, under ASHA.

    python tests/benchmarks/searchers.py --short    # that alone, five minutes

And TPE as studies use it (`study.search.sampler.tpe`) beside its alternatives: each parameter drawn
for itself, and with no regard to the trials that run.

    python tests/benchmarks/searchers.py --tpe      # that alone, ten minutes
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import itertools
import multiprocessing
import time
from collections.abc import Sequence
from statistics import mean, median, stdev

import numpy as np
import optuna
from curves import EPOCHS, GRIDS, PLACE
from report import Report, out_parser

from study.search.asha import Rungs
from study.search.sampler import NUM_RANDOM, tpe

NUM_TRIALS = 24  # of the random search whose best is the target
MOST_TRIALS = 240  # a strategy that needs more counts with these
CONCURRENT = 2
SHORT = (8, 12, 20)  # trials of short studies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to search.

    Attributes:
        sampler: `tpe` or `random`.
        rule: Grace period and reduction factor of ASHA; None for no stopping.
        told: What Optuna is told of a stopped trial.
        explore: Every so many-th trial is random; 0 for none beyond TPE's first.
        startup: Random trials before TPE.
        multivariate: Whether TPE draws parameters together.
        liar: Whether it keeps away from the trials that run.
    """

    sampler: str
    rule: tuple[int, float] | None = None
    told: str = "pruned"
    explore: int = 0
    startup: int = NUM_RANDOM
    multivariate: bool = True
    liar: bool = True

    def __str__(self) -> str:
        stopping = "no stopping"
        if self.rule:
            stopping = f"ASHA grace {self.rule[0]} factor {self.rule[1]:g}, told {self.told}"
        explore = f", one in {self.explore} random" if self.explore else ""
        startup = "" if self.sampler == "random" else f" after {self.startup}"
        alone = "" if self.multivariate else ", parameters alone"
        alone += "" if self.liar else ", no regard to what runs"
        return f"{self.sampler}{startup}{explore}{alone}, {stopping}"


RULES = [(1, 3.0), (1, 4.0), (2, 2.0), (2, 3.0), (2, 4.0)]
RULES += [(4, 2.0), (4, 3.0), (4, 4.0), (6, 2.0), (6, 3.0), (6, 4.0)]
DEFAULT = Strategy(sampler="tpe", rule=(4, 3.0))  # of `study.tune` with 20 epochs
STRATEGIES = [
    Strategy(sampler="random"),
    Strategy(sampler="tpe"),
    *(Strategy(sampler="random", rule=rule, told="last") for rule in RULES),
    *(Strategy(sampler="tpe", rule=rule) for rule in RULES),
    *(Strategy(sampler="tpe", rule=(4, 3.0), told=told) for told in ("last", "best")),
    Strategy(sampler="tpe", rule=(4, 3.0), explore=4),
    Strategy(sampler="tpe", rule=(4, 3.0), startup=4),
]
STARTUPS = [Strategy(sampler="tpe", rule=(4, 3.0), startup=startup) for startup in (2, 4, 10)]
STARTUPS.append(Strategy(sampler="random", rule=(4, 3.0)))
TPES = [
    Strategy(sampler="tpe", rule=(4, 3.0), multivariate=multivariate, liar=liar)
    for multivariate in (True, False)
    for liar in (True, False)
]


class Landscape:
    """The learning curves of a grid."""

    def __init__(self, task: str) -> None:
        self.values = list(GRIDS[task].values())
        self.names = list(GRIDS[task])
        with (PLACE / f"{task}.csv").open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        self.curves: dict[tuple[int, ...], np.ndarray] = {}
        for row in rows:
            given = row[: len(self.names)]
            place = tuple(
                list(map(str, known)).index(text)
                for known, text in zip(self.values, given, strict=True)
            )
            self.curves[place] = np.array(row[len(self.names) :], dtype=float)
        self.num_trained = len(self.curves)
        places = np.array(list(self.curves))
        for place in itertools.product(*(range(len(known)) for known in self.values)):
            if place not in self.curves:
                same = places[(places[:, :2] == place[:2]).all(axis=1)]
                nearest = same[np.abs(same - place).sum(axis=1).argmin()]
                self.curves[place] = self.curves[tuple(nearest)]

    def random_best(self, seed: int) -> float:
        """Return the best value of a random search without stopping."""
        rng = np.random.default_rng([seed, 1])
        found = [[int(rng.integers(len(v))) for v in self.values] for _ in range(NUM_TRIALS)]
        return max(float(np.nanmax(self.curves[tuple(place)])) for place in found)


@functools.cache
def landscape_of(task: str) -> Landscape:
    """Return the landscape of a task, read once in each process."""
    return Landscape(task)


@dataclasses.dataclass
class Running:
    """A trial of a replay."""

    number: int
    curve: np.ndarray
    trial: optuna.trial.Trial
    epoch: int = 0


def replay(
    landscape: Landscape, strategy: Strategy, seed: int, target: float, most: int = MOST_TRIALS
) -> tuple[int, float]:
    """Return how many epochs a strategy took to see the target or end all trials, and its best."""
    if strategy.sampler == "tpe":
        sampler: optuna.samplers.BaseSampler = tpe(
            seed,
            startup=strategy.startup,
            multivariate=strategy.multivariate,
            constant_liar=strategy.liar,
        )
    else:
        sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    middle = {n: len(v) // 2 for n, v in zip(landscape.names, landscape.values, strict=True)}
    study.enqueue_trial(middle)
    rungs = Rungs(strategy.rule[0], EPOCHS, strategy.rule[1]) if strategy.rule else None
    running: list[Running] = []
    spent = begun = 0
    best_seen = 0.0
    while begun < most or running:
        while len(running) < CONCURRENT and begun < most:
            if strategy.explore and begun % strategy.explore == strategy.explore - 1:
                study.sampler = optuna.samplers.RandomSampler(seed=seed * MOST_TRIALS + begun)
            else:
                study.sampler = sampler
            trial = study.ask()
            place = tuple(
                trial.suggest_int(name, 0, len(known) - 1)
                for name, known in zip(landscape.names, landscape.values, strict=True)
            )
            running.append(Running(begun, landscape.curves[place], trial))
            begun += 1
        for one in list(running):
            value = float(one.curve[one.epoch])
            one.epoch += 1
            spent += 1
            failed = value != value
            best_seen = best_seen if failed else max(best_seen, value)
            if value >= target:
                return spent, best_seen
            if not failed:
                one.trial.report(value, one.epoch)
            stops = rungs is not None and not failed
            stops = stops and not rungs.goes_on(one.number, one.epoch, (value,))  # type: ignore[union-attr]
            if failed:
                study.tell(one.trial, state=optuna.trial.TrialState.FAIL)
            elif one.epoch == EPOCHS:
                study.tell(one.trial, float(np.max(one.curve)))
            elif stops and strategy.told == "pruned":
                study.tell(one.trial, state=optuna.trial.TrialState.PRUNED)
            elif stops:
                best = float(np.max(one.curve[: one.epoch]))
                study.tell(one.trial, best if strategy.told == "best" else value)
            if failed or stops or one.epoch == EPOCHS:
                running.remove(one)
    return spent, best_seen


def thrown_away(landscape: Landscape, rule: tuple[int, float], seed: int) -> tuple[float, float]:
    """Return what ASHA loses on 24 random trials.

    Returns:
        Whether the trial that would have been best was stopped (0 or 1), and by how much the best
        value found is lower than without stopping.
    """
    rng = np.random.default_rng([seed, 1])
    every = list(landscape.curves.values())
    chosen = [every[k] for k in rng.integers(len(every), size=NUM_TRIALS)]
    rungs = Rungs(rule[0], EPOCHS, rule[1])
    seen, lengths = [], []
    for start in range(0, NUM_TRIALS, CONCURRENT):
        alive = list(range(start, start + CONCURRENT))
        reached = dict.fromkeys(alive, 0)
        for epoch in range(EPOCHS):
            for number in list(alive):
                reached[number] = epoch + 1
                if not rungs.goes_on(number, epoch + 1, (float(chosen[number][epoch]),)):
                    alive.remove(number)
        lengths += [reached[number] for number in reached]
        seen += [float(np.nanmax(chosen[number][: reached[number]])) for number in reached]
    full = [float(np.nanmax(curve)) for curve in chosen]
    winner = int(np.argmax(full))
    return float(lengths[winner] < EPOCHS), max(full) - max(seen)


def run(job: tuple[str, Strategy, float, int, int]) -> tuple[int, float]:
    """Run one replay in a process of its own."""
    task, strategy, target, most, seed = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return replay(landscape_of(task), strategy, seed, target, most)


def compare_short(
    report: Report, task: str, num_seeds: int, pool: multiprocessing.pool.Pool
) -> None:
    """Add what short studies miss of the best configuration, against random trials."""
    top = max(float(np.nanmax(curve)) for curve in landscape_of(task).curves.values())
    for most in SHORT:
        missed = {}
        for strategy in STARTUPS:
            if strategy.sampler == "tpe" and strategy.startup >= most:
                continue
            jobs = [(task, strategy, float("inf"), most, seed) for seed in range(num_seeds)]
            missed[strategy] = [top - best for _, best in pool.map(run, jobs, chunksize=4)]
        for strategy, each in missed.items():
            what = f"{task}, {most} trials, {strategy}; best below the best of all by, mean"
            report.add(what, mean(each), mean(missed[STARTUPS[-1]]))
            report.note(f"{task}, {most} trials, {strategy}: error of the mean", error(each))


def compare_tpe(report: Report, task: str, num_seeds: int, pool: multiprocessing.pool.Pool) -> None:
    """Add a row for TPE as studies use it and for each alternative."""
    landscape = landscape_of(task)
    target = median(landscape.random_best(seed) for seed in range(1001))
    jobs = [(task, s, target, MOST_TRIALS, seed) for s in TPES for seed in range(num_seeds)]
    results = pool.map(run, jobs, chunksize=4)
    for k, strategy in enumerate(TPES):
        part = slice(k * num_seeds, (k + 1) * num_seeds)
        epochs = [float(spent) for spent, _ in results[part]]
        report.add(f"{task}: {strategy}; mean epochs", mean(epochs))
        report.note(f"{task}: {strategy}: error of the mean", error(epochs))


def error(values: Sequence[float]) -> float:
    """Return the standard error of a mean."""
    return stdev(values) / len(values) ** 0.5


def compare(report: Report, task: str, num_seeds: int, pool: multiprocessing.pool.Pool) -> None:
    """Add a row for every strategy on one task's curves."""
    landscape = landscape_of(task)
    target = median(landscape.random_best(seed) for seed in range(1001))
    jobs = [(task, s, target, MOST_TRIALS, seed) for s in STRATEGIES for seed in range(num_seeds)]
    results = pool.map(run, jobs, chunksize=4)
    epochs = {
        strategy: [float(results[k * num_seeds + seed][0]) for seed in range(num_seeds)]
        for k, strategy in enumerate(STRATEGIES)
    }
    for strategy in STRATEGIES:
        # A ratio of means, not of medians: what a user spends on average.
        report.add(
            f"{task}: {'(default) ' if strategy == DEFAULT else ''}{strategy}; mean epochs",
            mean(epochs[strategy]),
            mean(epochs[STRATEGIES[0]]),
            reach=3.0 if strategy == DEFAULT else None,
        )
    lost = {}
    for rule in RULES:
        losses = [thrown_away(landscape, rule, seed) for seed in range(500)]
        lost[f"grace {rule[0]} factor {rule[1]:g}"] = {
            "winner stopped": mean(stopped for stopped, _ in losses),
            "best lower by": mean(loss for _, loss in losses),
        }
    report.note(
        f"{task} landscape",
        {
            "configurations": len(landscape.curves),
            "of which trained": landscape.num_trained,
            "target": target,
            "best of all": max(float(np.nanmax(c)) for c in landscape.curves.values()),
        },
    )
    report.note(f"{task}: 24 random trials with ASHA", lost)
    report.note(f"{task}: epochs of every seed", {str(s): e for s, e in epochs.items()})


def main(argv: Sequence[str] | None = None) -> None:
    """Replay all."""
    parser: argparse.ArgumentParser = out_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--short", action="store_true", help="short studies alone")
    parser.add_argument("--tpe", action="store_true", help="TPE's arguments alone")
    args = parser.parse_args(argv)
    name = "searchers_short" if args.short else "searchers_tpe" if args.tpe else "searchers"
    report = Report(name, args.out)
    report.note("seeds", args.seeds)
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for task in GRIDS:
            if args.tpe:
                compare_tpe(report, task, args.seeds, pool)
                continue
            compare_short(report, task, args.seeds, pool)
            if not args.short:
                compare(report, task, args.seeds, pool)
    report.note("seconds", time.monotonic() - began)
    report.write()


if __name__ == "__main__":
    main()
