"""Formatting for readers: numbers, durations, sizes, tables, and the mark of sample data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SAMPLE_DATA = "SAMPLE DATA (drawn, not real)"


def number(value: int | float | str | bool) -> str:
    """Return the value of a setting; floats with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def settings_line(values: Mapping[str, int | float | str | bool]) -> str:
    """Return settings on one line."""
    return " ".join(f"{name}={number(value)}" for name, value in values.items())


def score(value: float | None) -> str:
    """Return a score with four decimals; `-` if there is none."""
    return "-" if value is None else f"{value:.4f}"


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """Return a score with its interval in brackets, if there is one."""
    return score(value) + (f" [{score(interval[0])}, {score(interval[1])}]" if interval else "")


def metric_value(value: float) -> str:
    """Return the value of any metric: a score, or a count such as parameters or images."""
    return score(value) if abs(value) < 100 else f"{value:,.0f}"


def metric_name(metric: str) -> str:
    """Return a metric's name without its split: `mean_ap` of `val/mean_ap`."""
    return metric.partition("/")[2] or metric


def dollars(value: float) -> str:
    """Return an amount of money."""
    return f"${value:,.2f}" if value >= 0.1 else f"${value:.4f}"


def pixels(height: object, width: object = None) -> str:
    """Return the size of an image, square if there is no width."""
    return f"{height}x{height if width is None else width} pixels"


def sample_mark(dataset: str) -> str:
    """Return the mark of results on sample data; empty for real data."""
    return "" if dataset == "real" else SAMPLE_DATA


def duration(seconds: float) -> str:
    """Return a time span as people write it, e.g. `1 h 05 min`, `3 min 20 s`, `9 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows aligned under a header: first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a curve as one line of at most `width` characters, scaled to its range."""
    if not values:
        return ""
    num = min(width, len(values))
    shown = [values[(place + 1) * len(values) // num - 1] for place in range(num)]
    low, high = min(shown), max(shown)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) * scale)] for value in shown)


def printable(text: str) -> str:
    """Return a text on one line, without characters that move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
