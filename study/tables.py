"""Text tables for terminals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study.task import Task, class_key


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows aligned under a header: first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def per_class_table(task: Task, metrics: Mapping[str, float], split: str = "val") -> str:
    """Return every per-class metric of a split as a table, with its mean or total below."""
    keys = [class_key(name) for name in task.classes]
    parts = [name.split("/") for name in metrics]
    found = [part[1] for part in parts if len(part) == 3 and part[0] == split and part[2] in keys]
    kinds = list(dict.fromkeys([task.class_metric, *found]))
    rows = [
        [name, *(_number(metrics.get(f"{split}/{kind}/{key}")) for kind in kinds)]
        for name, key in zip(task.classes, keys, strict=True)
    ]
    totals = [metrics.get(f"{split}/{kind}", metrics.get(f"{split}/mean_{kind}")) for kind in kinds]
    rows.append(["all", *map(_number, totals)])
    return table(["class", *kinds], rows)


def metric_line(task: Task, metrics: Mapping[str, float], epoch: int, epochs: int) -> str:
    """Return one epoch as one line."""
    shown = dict.fromkeys(["train/loss", "val/loss", "val/accuracy", task.metric])
    numbers = "  ".join(f"{name} {_number(metrics.get(name))}" for name in shown)
    return f"epoch {epoch}/{epochs}  {numbers}  {metrics['epoch_seconds']:.1f} s"


def duration(seconds: float) -> str:
    """Return a time span as people write it, e.g. `1 h 05 min`, `3 min 20 s`, `9 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a curve as one line of at most so many characters, from its least to its largest."""
    if not values:
        return ""
    num = min(width, len(values))
    shown = [values[(place + 1) * len(values) // num - 1] for place in range(num)]
    low, high = min(shown), max(shown)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) * scale)] for value in shown)


def printable(text: str) -> str:
    """Return a text in one line, without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
