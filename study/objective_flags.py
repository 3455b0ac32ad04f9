"""`--objective` and `--require`: their flags, and what they say of a task's metrics."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from study.errors import InputError, did_you_mean
from study.objective import COSTS, Floor, Goal, Objective, read_floor
from study.task import Task
from study.worst_class import worst_class


def known_metrics(task: Task) -> list[str]:
    """Return the full names of what a task measures in validation, and of `COSTS`.

    They are asked of a meter that has seen one item of each class: nothing else lists them.
    """
    import torch

    one_of_each = torch.arange(len(task.classes))
    logits = torch.eye(len(task.classes))
    meter = task.build_meter(torch.device("cpu"))
    try:
        meter.update(logits, one_of_each)
    except (ValueError, RuntimeError, IndexError):  # it wants images: one pixel each
        meter = task.build_meter(torch.device("cpu"))
        meter.update(logits[:, :, None, None], one_of_each[:, None, None])
    scores = meter.compute()
    scores |= worst_class(task, scores)
    return [f"val/{name}" for name in ("loss", *scores)] + list(COSTS)


def add_goal_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--objective` and `--require`."""
    parser.add_argument(
        "--objective",
        metavar="METRIC[,METRIC]",
        help="what to improve, e.g. accuracy, ap/pillar or worst_class; with a second one, "
        "num_params or images_per_second perhaps, a Pareto front (default: the task's)",
    )
    add_require_flag(parser, "what a good trial must keep at its best epoch")


def add_require_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--require`."""
    parser.add_argument(
        "--require",
        metavar="'METRIC>=VALUE'",
        action="append",
        default=[],
        help=f"{what}, e.g. 'ap/window>=0.8' or 'num_params<=1e5'; may be repeated",
    )


def parse_goal(task: Task, objective: str | None, require: Sequence[str]) -> Goal:
    """Return what `--objective` and `--require` say.

    Raises:
        InputError: There is no such metric (the nearest is suggested), or it cannot serve.
    """
    goal = Goal.of_task(task)
    if objective is not None:
        names = [_resolve("--objective", task, word) for word in objective.split(",")]
        if len(names) > 2 or len(set(names)) < len(names):
            raise InputError(f"--objective {objective}: name one metric, or two different ones.")
        if names[0] in COSTS:
            raise InputError(
                f"--objective {objective}: the first metric decides which epoch of a trial counts; "
                "name one of validation there."
            )
        goal = Goal(tuple(Objective(name, _mode(task, name)) for name in names))
    return dataclasses.replace(goal, floors=parse_floors(task, require))


def parse_floors(task: Task, require: Sequence[str]) -> tuple[Floor, ...]:
    """Return what `--require` says.

    Raises:
        InputError: It is no `METRIC>=VALUE`, or there is no such metric.
    """
    floors = []
    for text in require:
        try:
            floor = read_floor(text)
        except ValueError:
            raise InputError(
                f"--require takes METRIC>=VALUE or METRIC<=VALUE in quotes, but got {text!r}."
            ) from None
        floors.append(dataclasses.replace(floor, metric=_resolve("--require", task, floor.metric)))
    return tuple(sorted(set(floors), key=str))


def _resolve(flag: str, task: Task, word: str) -> str:
    known = known_metrics(task)
    word = word.strip()
    full = {"worst_class": f"val/min_{task.class_metric}"}.get(word.removeprefix("val/"), word)
    for name in (full, f"val/{full}"):
        if name in known:
            return name
    short = [*(name.removeprefix("val/") for name in known), "worst_class"]
    near = did_you_mean(word.removeprefix("val/"), short)
    raise InputError(f"{flag}: there is no metric {word!r} of {task.name}{near}")


def _mode(task: Task, name: str) -> str:
    if name == task.metric:
        return task.mode
    return COSTS.get(name, "min" if name.endswith("/loss") else "max")
