"""Estimate for `study.tune --dry-run`: epochs, networks, time and price.

Configurations are drawn as the search would draw them. Some are measured in the real loop, as many
at a time as trials will run, and the study is simulated with the measured times
(`study.search.simulation`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from study.config import Value, build_config
from study.dry_run.cost import Cost, Size, measure_all, size_of
from study.records.trial_record import TrialRecord, now
from study.runner.plan import StudyPlan
from study.search.sampler import NUM_RANDOM, draw
from study.search.simulation import Outlook, Runner, ranks, simulate
from study.search.warm_start import Earlier
from study.search_space import SearchSpace
from study.task import Task

# Measured on two cores with MLflow in SQLite: seconds from the command to the first trial's first
# step (Ray, MLflow's tables, imports), from the last epoch to the command's end, between two
# epochs, and between two trials.
START_SECONDS, END_SECONDS = 9.0, 4.0
REPORT_SECONDS, NEXT_SECONDS = 0.02, 0.1
WORKERS_SECONDS = 10.0  # to start several workers of a trial
# Settings that change what is computed, but not how long it takes.
NOT_TIMED = frozenset(
    ("learning_rate", "weight_decay", "momentum", "schedule", "warm_up", "label_smoothing", "seed")
)
NUM_DRAWN = 200  # configurations; a larger study repeats them

Point = tuple[dict[str, Value], Size]  # settings of a full configuration, size of its network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimate for the remaining trials of a study.

    Attributes:
        left: Number of remaining trials; a fixed number if the study has no limit.
        first: Number of the first new trial.
        drawn: Hyperparameters of new trials: first those that the study is certain to draw, then
            those that the search would draw without further results.
        certain: How many of `drawn` are certain.
        seconds: Seconds of an epoch, for each of `drawn`.
        extremes: Smallest, baseline and largest network, per family: size, cost, seconds per epoch.
        outlook: Epochs reached, and seconds from the command to its end; None if no configuration
            runs.
        measured: Number of configurations measured.
        failures: Error messages of configurations that failed.
    """

    left: int
    first: int = 0
    drawn: tuple[dict[str, Value], ...] = ()
    certain: int = 0
    seconds: tuple[float, ...] = ()
    extremes: dict[str, tuple[Size, Cost | None, float]] = dataclasses.field(default_factory=dict)
    outlook: Outlook | None = None
    measured: int = 0
    failures: tuple[str, ...] = ()


def estimate(study: StudyPlan) -> Estimate:
    """Measure configurations, and estimate the remaining trials of a study.

    Raises:
        InputError: A different study exists under this name.
    """
    assert study.resources is not None
    study.refuse_changed_metrics()
    rest = _Rest.of(study)
    if rest.left <= 0:
        return Estimate(left=0)
    task = study.task
    config = build_config(task.config_class, {**study.settings, **study.space.baseline})
    splits = task.load_splits(study.source, config)
    shape = splits.train.images.shape[1:]
    ends = extremes(task, study.space, study.settings, shape)
    trials = [*(trial.params for trial in rest.cut_off), *rest.drawn]
    points = [_point(task, {**study.settings, **params}, shape) for params in trials]
    found = _measure(study, [*ends.values(), *points], promised=len(ends))
    if not found.costs:
        return Estimate(left=rest.left, failures=found.failures)
    sizes = len(splits.train), len(splits.val)
    timed = iter(found.timed(sizes, study.resources.workers))
    by_name = {name: next(timed) for name in ends}
    going = [next(timed).seconds for _ in rest.cut_off]
    new = [one.seconds for one in timed]
    return Estimate(
        left=rest.left,
        first=len(rest.trials),
        drawn=rest.drawn,
        certain=rest.certain,
        seconds=tuple(new),
        extremes={name: (one.size, one.measured, one.seconds) for name, one in by_name.items()},
        outlook=_outlook(study, rest, found, going, new),
        measured=found.number,
        failures=found.failures,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rest:
    """Remaining trials of a study.

    Attributes:
        trials: All trials so far.
        left: Number of remaining trials; a fixed number if the study has no limit.
        cut_off: Interrupted trials, which resume.
        drawn: Hyperparameters of new trials.
        certain: How many of these the study is certain to draw.
    """

    trials: Sequence[TrialRecord]
    left: int
    cut_off: Sequence[TrialRecord]
    drawn: tuple[dict[str, Value], ...]
    certain: int

    @staticmethod
    def of(study: StudyPlan) -> _Rest:
        record = study.begun()
        trials = record.trials() if record is not None else []
        running = [trial for trial in trials if trial.state == "running"]
        asked = study.options.num_samples
        ended = len(trials) - len(running)
        left = NUM_DRAWN if math.isinf(asked) else max(0, int(asked) - ended)
        cut_off = running[:left]
        drawn, certain = to_come(study, trials, min(NUM_DRAWN, left - len(cut_off)))
        return _Rest(trials=trials, left=left, cut_off=cut_off, drawn=tuple(drawn), certain=certain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Timed:
    """Time per epoch of a configuration.

    Attributes:
        size: Size of its network.
        measured: Its cost; None if not measured.
        seconds: Seconds of an epoch.
    """

    size: Size
    measured: Cost | None
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Measured:
    """Measured costs of configurations.

    Attributes:
        points: The configurations.
        answers: For each its cost, an error message, or None if there was no time.
        costs: The cost of each, completed by `completed`; empty if nothing was measured.
        alone: Speed-up of a trial that runs alone.
        number: Number of different configurations measured.
        failures: Error messages of configurations that failed.
    """

    points: Sequence[Point]
    answers: Sequence[Cost | str | None]
    costs: Sequence[Cost]
    alone: float
    number: int
    failures: tuple[str, ...]

    def timed(self, sizes: tuple[int, int], workers: int) -> list[_Timed]:
        """Return the time per epoch of each; `sizes` counts training and validation images."""
        return [
            _Timed(
                size=size,
                measured=answer if isinstance(answer, Cost) else None,
                seconds=_epoch(settings, cost, sizes, workers),
            )
            for (settings, size), answer, cost in zip(
                self.points, self.answers, self.costs, strict=True
            )
        ]


def _measure(study: StudyPlan, points: Sequence[Point], promised: int) -> _Measured:
    """Measure configurations, those of equal cost once; the first `promised` in any case."""
    assert study.resources is not None
    different: dict[tuple[tuple[str, Value], ...], Point] = {}
    for point in points:
        different.setdefault(_timing(point[0]), point)
    num_promised = len({_timing(settings) for settings, _ in points[:promised]})
    wanted = [(settings, size.multiply_adds) for settings, size in different.values()]
    measured, alone = measure_all(study.task, study.source, study.resources, wanted, num_promised)
    answer_of = dict(zip(different, measured, strict=True))
    answers = [answer_of[_timing(settings)] for settings, _ in points]
    return _Measured(
        points=points,
        answers=answers,
        costs=completed(points, answers),
        alone=alone,
        number=sum(isinstance(answer, Cost) for answer in measured),
        failures=tuple(sorted({answer for answer in measured if isinstance(answer, str)})),
    )


def _timing(settings: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """Return the settings that determine the duration: all but rates and penalties."""
    return tuple(sorted((name, v) for name, v in settings.items() if name not in NOT_TIMED))


def _outlook(
    study: StudyPlan, rest: _Rest, found: _Measured, going: Sequence[float], new: Sequence[float]
) -> Outlook:
    """Simulate the rest of a study, from the command to its end.

    Args:
        study: The study.
        rest: Its remaining trials.
        found: Measured costs.
        going: Seconds per epoch of each interrupted trial.
        new: Seconds per epoch of each new trial.
    """
    assert study.resources is not None
    begins = sorted(cost.begin for cost in found.costs)
    begin = NEXT_SECONDS + begins[len(begins) // 2]
    begin += WORKERS_SECONDS if study.resources.workers > 1 else 0.0
    places = ranks(rest.trials, study.goal.objectives[0].mode)
    runners = [
        Runner(begin=begin, epoch=seconds, done=trial.epochs, rank=places.get(trial.number))
        for trial, seconds in zip(rest.cut_off, going, strict=True)
    ]
    runners += [Runner(begin=begin, epoch=seconds) for seconds in new]
    ended = [trial for trial in rest.trials if trial.state != "running" and trial.epochs]
    outlook = simulate(
        runners,
        more=rest.left - len(runners),
        epochs=study.epochs,
        concurrent=study.resources.concurrent,
        rule=study.asha,
        past=[(trial.epochs, places[trial.number]) for trial in ended],
        alone=found.alone,
    )
    around = START_SECONDS + END_SECONDS
    return dataclasses.replace(
        outlook,
        seconds=outlook.seconds + around,
        low=outlook.low + around,
        high=outlook.high + around,
    )


def extremes(
    task: Task, space: SearchSpace, settings: Mapping[str, Value], shape: Sequence[int]
) -> dict[str, Point]:
    """Return the smallest, the baseline and the largest configuration, by multiply-adds.

    One parameter after another is set to the end of its range, or to the choice, that makes the
    network smallest or largest; the others stay as in the baseline. If several network families
    are searched, each has a smallest and a largest one.
    """
    base = {**settings, **space.fixed, **space.baseline}
    choices = [value for p in space.parameters if p.name == "model" for value in p.choices]
    found = {}
    for family in choices or [""]:
        for name, sign in (("smallest", 1), ("baseline", 0), ("largest", -1)):
            values = {**base, "model": family} if choices else base
            for parameter in space.parameters if sign else ():
                if parameter.name == "model" or not parameter.active(values):
                    continue
                ends = parameter.choices or (parameter.low, parameter.high)
                options = [
                    values,
                    *({**values, parameter.name: end} for end in ends if end is not None),
                ]
                values = min(options, key=lambda v: _order(_point(task, v, shape)[1], sign))
            if sign:
                found[f"{name} {family}" if choices else name] = values
            elif values == base:
                found[name] = values
    return {name: _point(task, values, shape) for name, values in found.items()}


def _order(size: Size, sign: int) -> tuple[int, int]:
    return sign * size.multiply_adds, sign * size.parameters


def completed(points: Sequence[Point], answers: Sequence[Cost | str | None]) -> list[Cost]:
    """Return the cost of every configuration; costs not measured are fitted from the sizes.

    Seconds per image are a non-negative linear function of multiply-adds and activations, plus a
    constant, fitted with equal relative errors. Empty if nothing was measured.
    """
    import numpy as np
    from scipy.optimize import nnls

    known = [(p[1], c) for p, c in zip(points, answers, strict=True) if isinstance(c, Cost)]
    if not known:
        return []

    def row(size: Size) -> list[float]:
        return [1.0, float(size.multiply_adds), float(size.activations)]

    fits = {}
    for phase in ("training", "validation"):
        seconds = np.array([getattr(cost, phase) for _, cost in known])
        rows = np.array([row(size) for size, _ in known])
        scale = rows.max(axis=0).clip(min=1.0)
        fits[phase] = nnls(rows / scale / seconds[:, None], np.ones(len(known)))[0] / scale
    begin, save = (float(np.median([getattr(c, k) for _, c in known])) for k in ("begin", "save"))
    images = known[0][1].images
    return [
        answer
        if isinstance(answer, Cost)
        else Cost(
            training=float(np.dot(row(size), fits["training"])),
            validation=float(np.dot(row(size), fits["validation"])),
            begin=begin,
            save=save,
            images=images,
        )
        for (_, size), answer in zip(points, answers, strict=True)
    ]


def to_come(
    study: StudyPlan, trials: Sequence[TrialRecord], number: int
) -> tuple[list[dict[str, Value]], int]:
    """Return the configurations of new trials, and how many of them are certain.

    Certain ones do not depend on results of unfinished trials: those drawn while TPE still draws at
    random, those that start beside the trials running now, and all of a random search.

    Args:
        study: The study.
        trials: All trials so far.
        number: Number of new trials.
    """
    assert study.resources is not None
    manifest = study.manifest() if (record := study.begun()) is None else record.manifest
    earlier = Earlier.of(manifest)
    first = [study.space.baseline, *earlier.first]
    running = sum(trial.state == "running" for trial in trials)
    ended = len(earlier.trials) + sum(trial.informs for trial in trials)
    certain = max(NUM_RANDOM - ended - running, study.resources.concurrent - running, 0)
    certain = number if study.options.sampler == "random" else min(number, certain)
    known = [*earlier.trials, *trials]
    drawn: list[dict[str, Value]] = []
    for place in range(len(trials), len(trials) + number):
        values = draw(
            study.space,
            known,
            number=place,
            seed=study.options.seed,
            sampler=study.options.sampler,
            goal=study.goal,
            first=first,
        )
        if len(drawn) < certain:  # so it is running when the next is drawn
            objective = study.goal.objectives[0]
            known.append(
                TrialRecord(
                    number=place,
                    metric=objective.metric,
                    mode=objective.mode,
                    params=values,
                    begun=now(),
                )
            )
        drawn.append(values)
    return drawn, certain


def _point(task: Task, settings: dict[str, Value], shape: Sequence[int]) -> Point:
    return settings, size_of(task, build_config(task.config_class, settings), shape)


def _epoch(
    settings: Mapping[str, Value], cost: Cost, numbers: tuple[int, int], workers: int
) -> float:
    """Return the seconds of an epoch; an incomplete last batch is not trained."""
    batch = int(settings["batch_size"])
    train = max(min(batch, numbers[0]), numbers[0] // batch * batch)
    computed = (cost.training * train + cost.validation * numbers[1]) / workers
    return computed + cost.save + REPORT_SECONDS
