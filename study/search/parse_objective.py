"""Parsing of objectives and constraints, checked against a task's metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from study.errors import InputError, did_you_mean
from study.objective import COSTS, Constraint, Goal, Objective, read_constraint
from study.task import Task
from study.training.worst_class import worst_class


def known_metrics(task: Task) -> list[str]:
    """Return the full names of a task's validation metrics, and those of `COSTS`.

    They come from a meter that has seen one item of each class: nothing else lists them.
    """
    import torch

    one_of_each = torch.arange(len(task.classes))
    logits = torch.eye(len(task.classes))
    meter = task.build_meter(torch.device("cpu"))
    try:
        meter.update(logits, one_of_each)
    except (ValueError, RuntimeError, IndexError):  # it expects images: one pixel each
        meter = task.build_meter(torch.device("cpu"))
        meter.update(logits[:, :, None, None], one_of_each[:, None, None])
    scores = meter.compute()
    scores |= worst_class(task, scores)
    return [f"val/{name}" for name in ("loss", *scores)] + list(COSTS)


def parse_goal(task: Task, objective: str | None, require: Sequence[str]) -> Goal:
    """Parse `--objective` and `--require`.

    Raises:
        InputError: A metric is unknown (the nearest is suggested) or not allowed.
    """
    goal = Goal.of_task(task)
    if objective is not None:
        names = [_resolve("--objective", task, word) for word in objective.split(",")]
        if len(names) > 2 or len(set(names)) < len(names):
            raise InputError(f"--objective {objective}: give one metric, or two different ones.")
        if names[0] in COSTS:
            raise InputError(
                f"--objective {objective}: the first metric decides which epoch of a trial counts; "
                "it must be a validation metric."
            )
        goal = Goal(tuple(Objective(name, _mode(task, name)) for name in names))
    return dataclasses.replace(goal, constraints=parse_constraints(task, require))


def parse_constraints(task: Task, require: Sequence[str]) -> tuple[Constraint, ...]:
    """Parse `--require`.

    Raises:
        InputError: A text is not `METRIC>=VALUE` or `METRIC<=VALUE`, or its metric is unknown.
    """
    constraints = []
    for text in require:
        try:
            constraint = read_constraint(text)
        except ValueError:
            raise InputError(
                f"--require takes METRIC>=VALUE or METRIC<=VALUE in quotes, but got {text!r}."
            ) from None
        constraints.append(
            dataclasses.replace(constraint, metric=_resolve("--require", task, constraint.metric))
        )
    return tuple(sorted(set(constraints), key=str))


def _resolve(flag: str, task: Task, word: str) -> str:
    known = known_metrics(task)
    word = word.strip()
    full = {"worst_class": f"val/min_{task.class_metric}"}.get(word.removeprefix("val/"), word)
    for name in (full, f"val/{full}"):
        if name in known:
            return name
    short = [*(name.removeprefix("val/") for name in known), "worst_class"]
    near = did_you_mean(word.removeprefix("val/"), short)
    raise InputError(f"{flag}: {task.name} has no metric {word!r}{near}")


def _mode(task: Task, name: str) -> str:
    if name == task.metric:
        return task.mode
    return COSTS.get(name, "min" if name.endswith("/loss") else "max")
