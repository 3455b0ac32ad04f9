"""The score of the worst class as a metric, e.g. `min_ap`."""

from __future__ import annotations

from collections.abc import Mapping

from study.task import Task, class_key


def worst_class(task: Task, scores: Mapping[str, float]) -> dict[str, float]:
    """Return the minimum of a task's per-class metric, e.g. `min_ap`; empty if no class is present.

    Args:
        task: Defines the metric and the classes.
        scores: Metrics by name without the split; absent classes are missing.
    """
    names = (f"{task.class_metric}/{class_key(name)}" for name in task.classes)
    present = [scores[name] for name in names if name in scores]
    return {f"min_{task.class_metric}": min(present)} if present else {}
