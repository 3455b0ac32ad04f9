"""What a study will take, for `study.tune --dry-run`: epochs, networks, time and price.

Configurations are drawn as the search would draw them, some are measured in the real loop, as many
at a time as trials will run, and the study is simulated with what they took (`study.simulation`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from study.plan import StudyPlan
from study.probe import Cost, Size, measure_all, size_of
from study.sampler import NUM_RANDOM, draw
from study.setting import Value, build_config
from study.simulation import Outlook, Runner, ranks, simulate
from study.space import SearchSpace
from study.task import Task
from study.trial_record import TrialRecord, now
from study.warm_start import Earlier

# Measured on two cores, MLflow in SQLite: seconds from the command to the first trial's first step
# (Ray, MLflow's tables, the trial's imports), from the last epoch to the command's end, between two
# epochs, and between two trials.
START_SECONDS, END_SECONDS = 9.0, 4.0
REPORT_SECONDS, NEXT_SECONDS = 0.02, 0.1
WORKERS_SECONDS = 10.0  # to start the workers of a trial that has several
# Settings that change what is computed, but not how long it takes.
NOT_TIMED = frozenset(
    ("learning_rate", "weight_decay", "momentum", "schedule", "warm_up", "label_smoothing", "seed")
)
NUM_DRAWN = 200  # configurations; the trials of a larger study take them in turns

Point = tuple[dict[str, Value], Size]  # settings of a whole configuration, and how large it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the trials that a study still lacks will take.

    Attributes:
        left: How many they are; of a study without limit, some.
        first: Number of the first new one.
        drawn: Hyperparameters of new ones: first those that the study will draw, then what the
            search would draw without further results.
        certain: How many are the former.
        seconds: Of an epoch of each of those.
        extremes: Smallest, baseline and largest network, of each family: size, cost, seconds of an
            epoch.
        outlook: How far trials get, and seconds from the command to its end; None if no
            configuration runs.
        measured: How many configurations were.
        failures: Why others were not.
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
    """Measure, and estimate what the trials that a study still lacks will take.

    Raises:
        InputError: The study under this name is another one.
    """
    resources = study.resources
    assert resources is not None
    study.refuse_changed_metrics()
    record = study.begun()
    trials = record.trials() if record is not None else []
    ended = sum(trial.state != "running" for trial in trials)
    asked = study.options.num_samples
    left = NUM_DRAWN if math.isinf(asked) else int(asked) - ended
    if left <= 0:
        return Estimate(left=0)
    cut_off = [trial for trial in trials if trial.state == "running"][:left]
    drawn, certain = to_come(study, trials, min(NUM_DRAWN, left - len(cut_off)))
    config = build_config(study.task.config_class, {**study.settings, **study.space.baseline})
    splits = study.task.load_splits(study.source, config)
    shape = splits.train.images.shape[1:]
    ends = extremes(study.task, study.space, study.settings, shape)
    going = [(_settings(study, trial.params), trial) for trial in cut_off]
    coming = [_settings(study, values) for values in drawn]
    points = [*ends.values(), *(_point(study.task, s, shape) for s, _ in going)]
    points += [_point(study.task, settings, shape) for settings in coming]
    wanted = [(settings, size.multiply_adds) for settings, size in points]
    unique = [n for n, entry in enumerate(wanted) if not _known(entry, wanted[:n])]
    promised = sum(n < len(ends) for n in unique)
    measured, alone = measure_all(
        study.task, study.source, resources, [wanted[n] for n in unique], promised
    )
    answers = [
        measured[next(k for k, n in enumerate(unique) if _known(wanted[n], [entry]))]
        for entry in wanted
    ]
    costs = completed(points, answers)
    failures = tuple(sorted({answer for answer in measured if isinstance(answer, str)}))
    if not costs:
        return Estimate(left=left, failures=failures)
    numbers = (len(splits.train), len(splits.val))
    epochs = [
        _epoch(p[0], c, numbers, resources.workers) for p, c in zip(points, costs, strict=True)
    ]
    begin = NEXT_SECONDS + sorted(cost.begin for cost in costs)[len(costs) // 2]
    begin += WORKERS_SECONDS if resources.workers > 1 else 0.0
    places = ranks(trials, study.goal.objectives[0].mode)
    runners = [
        Runner(begin=begin, epoch=seconds, done=trial.epochs, rank=places.get(trial.number))
        for (_, trial), seconds in zip(going, epochs[len(ends) :], strict=False)
    ]
    new = epochs[len(ends) + len(going) :]
    runners += [Runner(begin=begin, epoch=seconds) for seconds in new]
    outlook = simulate(
        runners,
        more=left - len(runners),
        epochs=study.epochs,
        concurrent=resources.concurrent,
        rule=study.asha,
        past=[(t.epochs, places[t.number]) for t in trials if t.state != "running" and t.epochs],
        alone=alone,
    )
    around = START_SECONDS + END_SECONDS
    times = {key: getattr(outlook, key) + around for key in ("seconds", "low", "high")}
    sides = zip(ends.items(), answers, epochs, strict=False)
    return Estimate(
        left=left,
        first=len(trials),
        drawn=tuple(drawn),
        certain=certain,
        seconds=tuple(new),
        extremes={
            name: (size, cost if isinstance(cost, Cost) else None, seconds)
            for (name, (_, size)), cost, seconds in sides
        },
        outlook=dataclasses.replace(outlook, **times),
        measured=sum(isinstance(answer, Cost) for answer in measured),
        failures=failures,
    )


def extremes(
    task: Task, space: SearchSpace, settings: Mapping[str, Value], shape: Sequence[int]
) -> dict[str, Point]:
    """Return the smallest, the baseline and the largest configuration, by multiply-adds.

    One parameter after another is set to the end of its range, or to the choice, that makes the
    network smallest or largest; the others stay as in the baseline. Where families of networks
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
    """Return the cost of every configuration, of those not measured from their sizes.

    Seconds per image are fitted as a sum of a constant, multiply-adds and activations, none of
    them negative, with equal relative errors. Empty if nothing was measured.
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
    """Return configurations of trials to come, and how many of them are certain.

    Certain are those that do not depend on what trials give that have not ended yet: while TPE
    draws at random, those that start beside the trials that run now, and all of random search.

    Args:
        study: The study.
        trials: All that it has.
        number: Of new ones.
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
        if len(drawn) < certain:  # then it runs when the next is drawn
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


def _settings(study: StudyPlan, values: Mapping[str, Value]) -> dict[str, Value]:
    return {**study.settings, **values}


def _point(task: Task, settings: dict[str, Value], shape: Sequence[int]) -> Point:
    return settings, size_of(task, build_config(task.config_class, settings), shape)


def _known(
    entry: tuple[dict[str, Value], int], others: Sequence[tuple[dict[str, Value], int]]
) -> bool:
    """Return whether one of the others costs the same, rates and penalties aside."""
    return any(_shape(entry[0]) == _shape(other[0]) for other in others)


def _shape(settings: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in settings.items() if name not in NOT_TIMED}


def _epoch(
    settings: Mapping[str, Value], cost: Cost, numbers: tuple[int, int], workers: int
) -> float:
    """Return the seconds of an epoch; an incomplete last batch is not trained."""
    batch = int(settings["batch_size"])
    train = max(min(batch, numbers[0]), numbers[0] // batch * batch)
    computed = (cost.training * train + cost.validation * numbers[1]) / workers
    return computed + cost.save + REPORT_SECONDS
