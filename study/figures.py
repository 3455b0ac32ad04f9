"""Pictures people look at, as matplotlib figures that need no display and no pyplot state.

Every figure carries a note below its title: what was evaluated, on which data, at which epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's colour-blind safe palette, where the data set prescribes no colours.
TRAIN_COLOR, VAL_COLOR = "#E69F00", "#0072B2"
RIGHT_COLOR, WRONG_COLOR = "#009E73", "#D55E00"
DPI = 110


def _titled(title: str, note: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=11)
    return figure


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
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
            values = [row.get(f"{split}/{panel}", np.nan) for row in history]
            if not np.isnan(values).all():
                label = {"train": "training", "val": "validation"}[split]
                axes.plot(epochs, values, marker="o", markersize=3, color=color, label=label)
        axes.set(xlabel="epoch", ylabel=panel.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], note: str) -> Figure:
    """Draw confusion counts `(K, K)` as shares of each target class, in percent."""
    num = len(classes)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _titled("Confusion matrix: rows add up to 100 %", note, (1.8 + 0.62 * num,) * 2)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(num), classes, rotation=45, ha="right")
    axes.set_yticks(range(num), classes)
    axes.set(xlabel="taken for", ylabel="is")
    for row, column in np.ndindex(num, num):
        if shares[row, column] >= 0.05:
            color = "white" if shares[row, column] > 50 else "black"
            text = f"{shares[row, column]:.1f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return figure


def class_bars(values: Sequence[float], classes: Sequence[str], label: str, note: str) -> Figure:
    """Draw one bar per class, with the mean as a line; nan is left out."""
    figure = _titled(f"{label} per class", note, (6.4, 0.34 * len(classes) + 1.6))
    axes = figure.subplots()
    axes.barh(range(len(classes)), values, color=VAL_COLOR)
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    axes.set(xlabel=label, xlim=(0, 1.1))
    for index, value in enumerate(values):
        axes.text(value + 0.01, index, f"{value:.3f}", va="center", fontsize=8)
    mean = float(np.nanmean(values))
    axes.axvline(mean, color=WRONG_COLOR, linewidth=1, label=f"mean {mean:.3f}")
    figure.legend(loc="outside lower right", frameon=False)
    return figure


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
    height, width = right[0].shape[2:]
    # One picture of all tiles: an axes for each would take seconds to draw.
    tile_height, tile_width = height + 9, width + 4  # room for a line of text, and a frame
    tiles = np.full((num_classes * tile_height, 2 * num * tile_width + 6, 3), 255, np.uint8)
    figure = _titled("Recognised (left) and mistaken (right)", note, (13.0, 1.12 * num_classes))
    axes = figure.subplots()
    for label, column in np.ndindex(num_classes, 2 * num):
        is_right, place = column < num, column % num
        images, confidences = (right if is_right else wrong)[:2]
        confidence = confidences[label, place]
        if np.isnan(confidence):
            continue
        color = RIGHT_COLOR if is_right else WRONG_COLOR
        top, left = label * tile_height + 7, column * tile_width + (0 if is_right else 6)
        frame = tiles[top : top + height + 2, left : left + width + 2]
        frame[:] = np.array([round(255 * part) for part in to_rgb(color)], np.uint8)
        frame[1:-1, 1:-1] = images[label, place][..., None]
        name = classes[label if is_right else int(wrong[2][label, place])]
        text = f"{name} {100 * confidence:.0f} %"
        middle = left + width / 2
        axes.text(middle, top - 1, text, fontsize=6.5, color=color, ha="center", va="bottom")
    axes.imshow(tiles, interpolation="nearest")
    middles = [label * tile_height + 8 + height / 2 for label in range(num_classes)]
    axes.set_yticks(middles, classes)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def filters(weights: np.ndarray, note: str) -> Figure:
    """Draw the filters of a first layer `(N, C, k, k)`, one or three channels."""
    num, channels, kernel = weights.shape[:3]
    columns = min(8, num)
    rows = -(-num // columns)
    figure = _titled("First-layer filters", note, (0.8 * columns + 0.8, 0.8 * rows + 0.8))
    limit = float(np.abs(weights).max()) or 1.0
    step = kernel + 1
    tiles = np.full((rows * step, columns * step, channels), np.nan, np.float32)
    for index, weight in enumerate(weights):
        top, left = index // columns * step, index % columns * step
        tiles[top : top + kernel, left : left + kernel] = weight.transpose(1, 2, 0)
    axes = figure.subplots()
    axes.set_axis_off()
    if channels == 3:
        axes.imshow(np.nan_to_num(tiles / (2 * limit) + 0.5, nan=1.0), interpolation="nearest")
    else:
        shown = axes.imshow(
            tiles.mean(axis=2), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        figure.colorbar(shown, ax=axes, label="weight", shrink=0.8)
    return figure


def precision_recall(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    precisions: Sequence[float],
    classes: Sequence[str],
    colors: Sequence[str],
    note: str,
) -> Figure:
    """Draw the precision-recall curve of each class, with its area in the legend."""
    figure = _titled("Precision and recall, one class against the rest", note, (6.8, 4.6))
    axes = figure.subplots()
    for (precision, recall), area, name, color in zip(
        curves, precisions, classes, colors, strict=True
    ):
        axes.plot(
            recall, precision, color=_darker(color), linewidth=1.8, label=f"{name}  AP {area:.3f}"
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
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
    figure = _titled("Input, target, output", note, (8.6, 2.05 * len(images) + 1.0))
    grid = figure.subplots(len(images), len(titles), squeeze=False)
    for row, image, target, prediction, score in zip(
        grid, images, targets, predictions, scores, strict=True
    ):
        wrong = (target != prediction)[..., None]
        pale = (image.transpose(1, 2, 0) // 3 + 160).astype(np.uint8)
        errors = np.where(wrong, np.array((213, 94, 0), np.uint8), pale)
        panels = (image.transpose(1, 2, 0), colors[target], colors[prediction], errors)
        for axes, panel in zip(row, panels, strict=True):
            axes.imshow(panel, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(score, fontsize=8)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    _class_legend(figure, classes, palette)
    return figure


def _class_legend(
    figure: Figure, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> None:
    patches = [
        Patch(facecolor=hex_color(color), edgecolor="gray", label=name)
        for name, color in zip(classes, palette, strict=True)
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=len(classes), frameon=False, fontsize=8
    )


def _darker(color: str) -> tuple[float, float, float]:
    """Return a colour dark enough for a thin line on white."""
    red, green, blue = to_rgb(color)
    return 0.8 * red, 0.8 * green, 0.8 * blue


def hex_color(color: tuple[int, int, int]) -> str:
    """Return a colour as `#rrggbb`."""
    return "#" + "".join(f"{value:02x}" for value in color)
