"""A task's metrics in a terminal: a table by class, and a line per epoch."""

from __future__ import annotations

from collections.abc import Mapping

from study.formatting import score, table
from study.task import Task, class_key


def per_class_table(task: Task, metrics: Mapping[str, float], split: str = "val") -> str:
    """Return all per-class metrics of a split as a table, with the mean or total below."""
    keys = [class_key(name) for name in task.classes]
    parts = [name.split("/") for name in metrics]
    found = [part[1] for part in parts if len(part) == 3 and part[0] == split and part[2] in keys]
    kinds = list(dict.fromkeys([task.class_metric, *found]))
    rows = [
        [name, *(score(metrics.get(f"{split}/{kind}/{key}")) for kind in kinds)]
        for name, key in zip(task.classes, keys, strict=True)
    ]
    totals = [metrics.get(f"{split}/{kind}", metrics.get(f"{split}/mean_{kind}")) for kind in kinds]
    rows.append(["all", *map(score, totals)])
    return table(["class", *kinds], rows)


def metric_line(task: Task, metrics: Mapping[str, float], epoch: int, epochs: int) -> str:
    """Return the line of an epoch."""
    shown = dict.fromkeys(["train/loss", "val/loss", "val/accuracy", task.metric])
    numbers = "  ".join(f"{name} {score(metrics.get(name))}" for name in shown)
    return f"epoch {epoch}/{epochs}  {numbers}  {metrics['epoch_seconds']:.1f} s"
