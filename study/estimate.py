"""What a study will take, for `study.tune --dry-run`: epochs, networks, time and price.

Configurations are drawn as the search would draw them, some are measured in the real loop, as many
at a time as trials will run, and the study is simulated with what they took (`study.rungs`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from study.plan import StudyPlan
from study.probe import Cost, Size, measure_all, size_of
from study.rungs import Outlook, Runner, ranks, simulate
from study.sampling import draw
from study.space import SearchSpace
from study.task import Task, Value, build_config
from study.trial_record import TrialRecord
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
        left: How many they are.
        first: Number of the first new one.
        drawn: Hyperparameters of new ones, as the search draws them without further results.
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
    left = study.args.num_samples - sum(trial.state != "running" for trial in trials)
    if left <= 0:
        return Estimate(left=0)
    cut_off = [trial for trial in trials if trial.state == "running"][:left]
    drawn = _drawn(study, trials, min(NUM_DRAWN, left - len(cut_off)))
    config = build_config(study.task.config_class, {**study.settings, **study.space.baseline})
    splits = study.task.load_splits(study.source, config)
    shape = splits.train.images.shape[1:]
    ends = extremes(study.task, study.space, study.settings, shape)
    going = [(_settings(study, trial.values), trial) for trial in cut_off]
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
    runners += [Runner(begin=begin, epoch=new[n % len(new)]) for n in range(left - len(going))]
    asha = study.args.scheduler == "asha"
    outlook = simulate(
        runners,
        epochs=study.epochs,
        concurrent=resources.concurrent,
        rule=(study.args.grace_period, study.args.reduction_factor) if asha else None,
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


def _drawn(study: StudyPlan, trials: list[TrialRecord], number: int) -> list[dict[str, Value]]:
    earlier = Earlier.of(study.manifest())
    known = [t for t in trials if t.state != "running"]
    return [
        draw(
            study.space,
            [*earlier.trials, *known],
            number=len(trials) + n,
            seed=study.args.seed,
            sampler=study.args.sampler,
            goal=study.goal,
            first=[study.space.baseline, *earlier.first],
        )
        for n in range(number)
    ]


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
