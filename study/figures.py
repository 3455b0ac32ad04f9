"""Pictures people look at, as matplotlib figures that need no display and no pyplot state.

Curves are matplotlib's; what consists of tiles and labels is put together on a `study.sheet`.
Every figure carries a note below its title: what was evaluated, on which data, at which epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.sheet import DPI, Sheet, enlarged, text_width

# Okabe and Ito's colour-blind safe palette, where the data set prescribes no colours.
TRAIN_COLOR, VAL_COLOR = "#E69F00", "#0072B2"
RIGHT_COLOR, WRONG_COLOR = "#009E73", "#D55E00"


def _titled(title: str, note: str, size: tuple[float, float]) -> Figure:
    """Return a figure with its title; `size` and all margins in inches, since a layout is slow."""
    figure = Figure(figsize=size, dpi=DPI)
    figure.text(0.5, 1 - 0.08 / size[1], f"{title}\n{note}".strip(), ha="center", va="top", size=11)
    return figure


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes; inches from the lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def learning_curves(history: Sequence[Mapping[str, float]], metric: str, note: str) -> Figure:
    """Draw loss, accuracy and the study's metric over epochs, training and validation.

    Args:
        history: One mapping of metrics for each epoch, each with `epoch`.
        metric: The study's metric, e.g. `val/mean_ap`.
        note: Line below the title.
    """
    panels = ["loss", "accuracy"]
    if metric.split("/", 1)[1] not in panels:
        panels.append(metric.split("/", 1)[1])
    figure = _titled("Learning curves", note, (4.2 * len(panels), 3.6))
    epochs = [row["epoch"] for row in history]
    for number, panel in enumerate(panels):
        axes = _place(figure, 4.2 * number + 0.75, 0.5, 3.3, 2.55)
        for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
            values = [row.get(f"{split}/{panel}", np.nan) for row in history]
            if not np.isnan(values).all():
                label = {"train": "training", "val": "validation"}[split]
                axes.plot(epochs, values, marker="o", markersize=3, color=color, label=label)
        axes.set(xlabel="epoch", ylabel=panel.replace("_", " "))
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
        "Confusion matrix: rows add up to 100 %", note, left + num * cell + 24, num * cell + below
    )
    colors = _colors("Blues", shares / 100)
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
    sheet.text("is", 14, num * cell / 2, turned=90)
    sheet.text("taken for", left + num * cell / 2, num * cell + below - 14)
    return sheet.figure()


def class_bars(values: Sequence[float], classes: Sequence[str], label: str, note: str) -> Figure:
    """Draw one bar per class, with the mean as a line; nan is left out."""
    step, unit, tick = 38, 500, 5  # pixels of a bar with its gap, and of the value 1
    left, height = text_width(*classes) + 24, step * len(classes) + 12
    sheet = Sheet(f"{label} per class", note, left + 1.1 * unit + 16, height + 80)
    mean = float(np.nanmean(values))
    for index, (name, value) in enumerate(zip(classes, values, strict=True)):
        middle = step * (index + 0.5) + 6
        sheet.text(name, left - tick - 4, middle, anchor="rm")
        sheet.box(left - tick, middle, tick, 1, fill="black")
        if not np.isnan(value):
            sheet.box(left, middle - 15, value * unit, 30, fill=VAL_COLOR)
            sheet.text(f"{value:.3f}", left + value * unit + 5, middle, anchor="lm", points=8)
    sheet.box(left + mean * unit, 0, 2, height, fill=WRONG_COLOR)
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        sheet.box(left + share * unit, height, 1, tick, fill="black")
        sheet.text(f"{share:.1f}", left + share * unit, height + 16)
    sheet.box(left, 0, 1.1 * unit, height, outline="black")
    sheet.text(label, left + 0.55 * unit, height + 38)
    text = f"mean {mean:.3f}"
    right = left + 1.1 * unit
    sheet.text(text, right, height + 64, anchor="rm")
    sheet.box(right - text_width(text) - 42, height + 63, 32, 2, fill=WRONG_COLOR)
    return sheet.figure()


def right_and_wrong(
    right: tuple[np.ndarray, np.ndarray],
    wrong: tuple[np.ndarray, np.ndarray, np.ndarray],
    classes: Sequence[str],
    note: str,
) -> Figure:
    """Draw, for each class, images that were recognised and images that were not.

    Args:
        right: Images `(K, n, H, W)` uint8 and confidences `(K, n)`; nan where there is none.
        wrong: The same, and the classes they were taken for `(K, n)`.
        classes: Names.
        note: Line below the title.
    """
    num_classes, num = right[1].shape
    height, width = (_enlargement(side) * side for side in right[0].shape[2:])
    column_width, row_height = width + 12, height + 28  # room for a frame and a line of text
    first, gap = text_width(*classes) + 20, 20
    sheet = Sheet(
        "Recognised (left) and mistaken (right)",
        note,
        first + 2 * num * column_width + gap + 8,
        num_classes * row_height + 8,
    )
    for label, name in enumerate(classes):
        sheet.text(name, first - 10, label * row_height + 18 + height / 2, anchor="rm")
    for label, column in np.ndindex(num_classes, 2 * num):
        is_right, place = column < num, column % num
        images, confidences = (right if is_right else wrong)[:2]
        confidence = confidences[label, place]
        if np.isnan(confidence):
            continue
        color = RIGHT_COLOR if is_right else WRONG_COLOR
        left, top = first + column * column_width + (0 if is_right else gap), label * row_height
        sheet.box(left, top + 15, width + 6, height + 6, fill=color)
        tile = np.repeat(images[label, place][..., None], 3, axis=2)
        sheet.paste(enlarged(tile, width, height), left + 3, top + 18)
        name = classes[label if is_right else int(wrong[2][label, place])]
        text = f"{name} {100 * confidence:.0f} %"
        middle = left + 3 + width / 2
        sheet.text(text, middle, top + 6, points=6.5, color=color)
    return sheet.figure()


def _enlargement(side: int) -> int:
    """Return how often to repeat the pixels of an image with this many on a side."""
    return max(1, round(90 / side))


def filters(weights: np.ndarray, note: str) -> Figure:
    """Draw the filters of a first layer `(N, C, k, k)`, one or three channels."""
    num, channels, kernel = weights.shape[:3]
    columns = min(8, num)
    rows = -(-num // columns)
    side = kernel * max(1, round(70 / kernel))  # pixels
    step = side + 14
    limit = float(np.abs(weights).max()) or 1.0
    sheet = Sheet("First-layer filters", note, columns * step + 110, max(rows * step, 120))
    for index, weight in enumerate(weights):
        if channels == 3:
            tile = (255 * (weight.transpose(1, 2, 0) / (2 * limit) + 0.5)).astype(np.uint8)
        else:
            tile = _colors("RdBu", weight.mean(axis=0) / (2 * limit) + 0.5)
        top, left = index // columns * step, index % columns * step
        sheet.paste(enlarged(tile, side, side), left + 10, top + 4)
    if channels != 3:
        left, height = columns * step + 20, max(rows * step, 120) - 40
        scale = _colors("RdBu", np.linspace(1, 0, height)[:, None])
        sheet.paste(enlarged(scale, 16, height), left, 20)
        sheet.box(left, 20, 16, height, outline="black")
        for value, y in ((limit, 20.0), (0.0, 20 + height / 2), (-limit, 20.0 + height)):
            sheet.text(f"{value:.2f}".replace("-", "\u2212"), left + 22, y, anchor="lm", points=9)
        sheet.text("weight", left + 76, 20 + height / 2, turned=90)
    return sheet.figure()


def precision_recall(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    precisions: Sequence[float],
    classes: Sequence[str],
    colors: Sequence[str],
    note: str,
) -> Figure:
    """Draw the precision-recall curve of each class, with its area in the legend."""
    labels = [f"{n}  AP {area:.3f}" for n, area in zip(classes, precisions, strict=True)]
    size = (5.3 + text_width(*labels) / DPI, 4.6)
    figure = _titled("Precision and recall, one class against the rest", note, size)
    axes = _place(figure, 0.65, 0.5, 4.0, 3.55)
    for (precision, recall), label, color in zip(curves, labels, colors, strict=True):
        axes.plot(recall, precision, color=_darker(color), linewidth=1.8, label=label)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def segmentations(
    images: np.ndarray,
    targets: np.ndarray,
    predictions: np.ndarray,
    scores: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    classes: Sequence[str],
    note: str,
) -> Figure:
    """Draw rows of input, target, output and errors in the data set's own colours.

    Args:
        images: `(n, 3, H, W)` uint8.
        targets: `(n, H, W)` class indices.
        predictions: `(n, H, W)` class indices.
        scores: One phrase for each row.
        palette: Red, green, blue of each class, 0 to 255.
        classes: Names, for the legend.
        note: Line below the title.
    """
    colors = np.array(palette, np.uint8)
    titles = ("input", "target", "output", "errors")
    width, margin = 225, 26  # pixels of a panel, and left of the first
    height = round(width * targets.shape[1] / targets.shape[2])
    step, down = width + 10, height + 10
    sheet = Sheet("Input, target, output", note, margin + 4 * step, 22 + len(images) * down + 30)
    for column, title in enumerate(titles):
        sheet.text(title, margin + column * step + width / 2, 10, points=9)
    rows = zip(images, targets, predictions, scores, strict=True)
    for index, (image, target, prediction, score) in enumerate(rows):
        wrong = (target != prediction)[..., None]
        shown = np.ascontiguousarray(image.transpose(1, 2, 0))
        pale = (shown // 3 + 160).astype(np.uint8)
        errors = np.where(wrong, np.array((213, 94, 0), np.uint8), pale)
        top = 22 + index * down
        for column, panel in enumerate((shown, colors[target], colors[prediction], errors)):
            left = margin + column * step
            sheet.paste(enlarged(panel, width, height), left, top)
            sheet.box(left, top, width, height, outline="black")
        sheet.text(score, 13, top + height / 2, points=8, turned=90)
    _class_legend(sheet, classes, palette, 22 + len(images) * down + 12)
    return sheet.figure()


def _class_legend(
    sheet: Sheet, classes: Sequence[str], palette: Sequence[tuple[int, int, int]], y: float
) -> None:
    """Write the classes' names beside boxes of their colours, in the middle of the sheet."""
    widths = [text_width(name, points=8) + 56 for name in classes]
    left = (sheet.width - sum(widths)) / 2
    for name, color, width in zip(classes, palette, widths, strict=True):
        sheet.box(left, y - 4, 24, 9, fill=color, outline="gray")
        sheet.text(name, left + 32, y, anchor="lm", points=8)
        left += width


def _colors(name: str, shares: np.ndarray) -> np.ndarray:
    """Return values `(H, W)` in [0, 1] as colours `(H, W, 3)` uint8 of a map of matplotlib's."""
    colors: np.ndarray = colormaps[name](shares, bytes=True)
    return np.ascontiguousarray(colors[..., :3])


def _darker(color: str) -> tuple[float, float, float]:
    """Return a colour dark enough for a thin line on white."""
    red, green, blue = to_rgb(color)
    return 0.8 * red, 0.8 * green, 0.8 * blue


def hex_color(color: tuple[int, int, int]) -> str:
    """Return a colour as `#rrggbb`."""
    return "#" + "".join(f"{value:02x}" for value in color)
