"""The model card of an export: its README.md, rendered from the template beside this file."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from study.export.meta import Meta
from study.formatting import metric_name, with_interval
from study.reporting.tables import per_class_table
from study.task import Task

TEMPLATE = "model_card.md.j2"


def model_card(task: Task, meta: Meta, chosen_by: str) -> str:
    """Return the model card, Markdown; `chosen_by` is the study's metric, e.g. `val/mean_ap`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    metric, confirmed = metric_name(chosen_by), meta.confirmed
    scores = {
        split: with_interval(
            meta.metrics[f"{split}/{metric}"], meta.intervals.get(f"{split}/{metric}")
        )
        for split in ("test", "val")
    }
    means = {
        name: with_interval(confirmed[split]["mean"], confirmed[split]["interval"])
        for name, split in (("validation", "val"), ("test", "test"))
        if confirmed
    }
    return environment.get_template(TEMPLATE).render(
        title=task.title,
        meta=meta,
        metric=metric,
        test=scores["test"],
        val=scores["val"],
        confirmed=confirmed,
        means=means,
        classes=per_class_table(task, meta.metrics, "test"),
    )
