"""Plots as matplotlib figures that need no display and no pyplot state.

Curves are drawn by matplotlib; plots of tiles and labels are composed on a `study.figures.canvas`.
Every figure has a note below its title: what was evaluated, on which data, at which epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.figures.canvas import DPI, Sheet, enlarged, text_width
from study.formatting import metric_name
from study.task import best_row

# Okabe and Ito's colour-blind safe palette, unless the data set has its own colours.
TRAIN_COLOR, VAL_COLOR = "#E69F00", "#0072B2"
RIGHT_COLOR, WRONG_COLOR = "#009E73", "#D55E00"
MEAN_COLOR = "#CC008C"
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))  # for the colour-blind


def _titled(title: str, note: str, size: tuple[float, float]) -> Figure:
    """Return a figure with a title; `size` and margins in inches, since layout engines are slow."""
    figure = Figure(figsize=size, dpi=DPI)
    figure.text(0.5, 1 - 0.08 / size[1], f"{title}\n{note}".strip(), ha="center", va="top", size=11)
    return figure


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a position in inches from the lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def learning_curves(
    history: Sequence[Mapping[str, float]], metric: str, note: str, mode: str = "max"
) -> Figure:
    """Draw training and validation curves of loss, accuracy and the study's metric.

    Args:
        history: One mapping of metrics per epoch, each with `epoch`.
        metric: The study's metric, e.g. `val/mean_ap`.
        note: Line below the title.
        mode: Whether the metric is best when largest (`max`) or smallest (`min`).
    """
    panels = ["loss", "accuracy"]
    if metric_name(metric) not in panels:
        panels.append(metric_name(metric))
    figure = _titled("Learning curves", note, (4.2 * len(panels), 3.6))
    epochs = [row["epoch"] for row in history]
    best = best_row(history, metric, mode)["epoch"] if history and metric in history[0] else None
    for number, panel in enumerate(panels):
        axes = _place(figure, 4.2 * number + 0.75, 0.5, 3.3, 2.55)
        for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
            values = [row.get(f"{split}/{panel}", np.nan) for row in history]
            if not np.isnan(values).all():
                label = {"train": "training", "val": "validation"}[split]
                if panel == "loss":  # the training loss may have label smoothing or class weights
                    label += {"train": ", as trained on", "val": ", cross-entropy"}[split]
                marker = "o" if len(epochs) < 40 else ""
                axes.plot(epochs, values, marker=marker, markersize=3, color=color, label=label)
        if best is not None:
            axes.axvline(best, color="gray", linestyle=":", linewidth=1.2, label="best epoch")
        axes.set(xlabel="epoch", ylabel=panel.replace("_", " ").replace(" ap", " AP"))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], note: str) -> Figure:
    """Draw confusion counts `(K, K)` as shares of each target class, in percent."""
    num, cell, tick = len(classes), 68, 5
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    widest = text_width(*classes)
    left, below = 36 + widest, 0.71 * widest + 52
    sheet = Sheet(
        "Confusion matrix: each row sums to 100 %", note, left + num * cell + 24, num * cell + below
    )
    colors = color_map("Blues", shares / 100)
    sheet.paste(enlarged(colors, num * cell, num * cell), left, 0)
    sheet.box(left, 0, num * cell, num * cell, outline="black")
    for row, column in np.ndindex(num, num):
        if shares[row, column] >= 0.05:
            color = "white" if shares[row, column] > 50 else "black"
            place = (left + (column + 0.5) * cell, (row + 0.5) * cell)
            sheet.text(f"{shares[row, column]:.1f}", *place, points=8, color=color)
    for index, name in enumerate(classes):
        middle = (index + 0.5) * cell
        sheet.box(left - tick, middle, tick, 1, fill="black")
        sheet.text(name, left - tick - 4, middle, anchor="rm")
        sheet.box(left + middle, num * cell, 1, tick, fill="black")
        sheet.text(name, left + middle + 4, num * cell + tick + 5, anchor="rm", turned=45)
    sheet.text("true class", 14, num * cell / 2, turned=90)
    sheet.text("predicted class", left + num * cell / 2, num * cell + below - 14)
    return sheet.figure()


def class_bars(
    values: Sequence[float],
    classes: Sequence[str],
    label: str,
    note: str,
    colors: Sequence[str] | None = None,
) -> Figure:
    """Draw one bar per class, with the mean as a line; nan is left out.

    Args:
        values: In [0, 1], by class.
        classes: Class names.
        label: Name of the metric.
        note: Line below the title.
        colors: Colours of the classes; None for a single colour.
    """
    step, unit, tick = 38, 500, 5  # pixels of a bar with its gap, and of the value 1
    left, height = text_width(*classes) + 24, step * len(classes) + 12
    title = f"{label[0].upper()}{label[1:]} per class"
    sheet = Sheet(title, note, left + 1.1 * unit + 16, height + 80)
    mean = float(np.nanmean(values))
    for index, (name, value) in enumerate(zip(classes, values, strict=True)):
        middle = step * (index + 0.5) + 6
        sheet.text(name, left - tick - 4, middle, anchor="rm")
        sheet.box(left - tick, middle, tick, 1, fill="black")
        if not np.isnan(value):
            color = colors[index] if colors else VAL_COLOR
            sheet.box(left, middle - 15, value * unit, 30, fill=color)
    sheet.box(left + mean * unit, 0, 2, height, fill=MEAN_COLOR)
    for index, value in enumerate(values):  # over the line, each on a white background
        if not np.isnan(value):
            text, middle = f"{value:.3f}", step * (index + 0.5) + 6
            place = left + value * unit + 5
            sheet.box(place - 1, middle - 8, text_width(text, points=8) + 2, 16, fill="white")
            sheet.text(text, place, middle, anchor="lm", points=8)
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        sheet.box(left + share * unit, height, 1, tick, fill="black")
        sheet.text(f"{share:.1f}", left + share * unit, height + 16)
    sheet.box(left, 0, 1.1 * unit, height, outline="black")
    sheet.text(label, left + 0.55 * unit, height + 38)
    text = f"mean {mean:.3f}"
    right = left + 1.1 * unit
    sheet.text(text, right, height + 64, anchor="rm")
    sheet.box(right - text_width(text) - 42, height + 63, 32, 2, fill=MEAN_COLOR)
    return sheet.figure()


def precision_recall(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    precisions: Sequence[float],
    classes: Sequence[str],
    colors: Sequence[str],
    note: str,
) -> Figure:
    """Draw the precision-recall curve of each class, with the area under it in the legend."""
    labels = [f"{n}  AP {area:.3f}" for n, area in zip(classes, precisions, strict=True)]
    size = (5.3 + text_width(*labels) / DPI, 4.6)
    figure = _titled("Precision and recall, one class against the rest", note, size)
    axes = _place(figure, 0.65, 0.5, 4.0, 3.55)
    for number, ((precision, recall), label) in enumerate(zip(curves, labels, strict=True)):
        color, dash = _darker(colors[number]), DASHES[number % len(DASHES)]
        axes.plot(recall, precision, color=color, linestyle=dash, linewidth=1.8, label=label)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def color_map(name: str, shares: np.ndarray) -> np.ndarray:
    """Map values `(H, W)` in [0, 1] to colours `(H, W, 3)` uint8 by a matplotlib colour map."""
    colors: np.ndarray = colormaps[name](shares, bytes=True)
    return np.ascontiguousarray(colors[..., :3])


def _darker(color: str) -> tuple[float, float, float]:
    """Return a colour dark enough for a thin line on white."""
    red, green, blue = to_rgb(color)
    return 0.8 * red, 0.8 * green, 0.8 * blue


def hex_color(color: tuple[int, int, int]) -> str:
    """Return a colour as `#rrggbb`."""
    return "#" + "".join(f"{value:02x}" for value in color)
