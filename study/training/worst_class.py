"""The worst class of an evaluation: its score is a metric of its own, e.g. `min_ap`."""

from __future__ import annotations

from collections.abc import Mapping

from study.task import Task, class_key


def worst_class(task: Task, scores: Mapping[str, float]) -> dict[str, float]:
    """Return the smallest of a task's per-class metric, e.g. `min_ap`; without classes nothing.

    Args:
        task: Says which metric that is.
        scores: Metrics without the split. A class that is absent is not among them.
    """
    names = (f"{task.class_metric}/{class_key(name)}" for name in task.classes)
    present = [scores[name] for name in names if name in scores]
    return {f"min_{task.class_metric}": min(present)} if present else {}
