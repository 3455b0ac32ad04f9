"""Figures of images with a network's predictions, and of its filters, composed on sheets.

`study.figures.plots` has the curves and tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from study.figures.canvas import Sheet, enlarged, text_width
from study.figures.plots import RIGHT_COLOR, WRONG_COLOR, color_map

ERROR_COLOR = (204, 0, 140)  # in no data set's palette; drawn over a pale image


def right_and_wrong(
    right: tuple[np.ndarray, np.ndarray],
    wrong: tuple[np.ndarray, np.ndarray, np.ndarray],
    classes: Sequence[str],
    note: str,
) -> Figure:
    """Draw, for each class, images that were classified correctly and wrongly.

    Args:
        right: Images `(K, n, H, W)` uint8 and confidences `(K, n)`; nan where there is none.
        wrong: The same, and the predicted classes `(K, n)`.
        classes: Class names.
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
    """Return the factor by which to enlarge an image with this many pixels on a side."""
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
            tile = color_map("RdBu", weight.mean(axis=0) / (2 * limit) + 0.5)
        top, left = index // columns * step, index % columns * step
        sheet.paste(enlarged(tile, side, side), left + 10, top + 4)
    if channels != 3:
        left, height = columns * step + 20, max(rows * step, 120) - 40
        scale = color_map("RdBu", np.linspace(1, 0, height)[:, None])
        sheet.paste(enlarged(scale, 16, height), left, 20)
        sheet.box(left, 20, 16, height, outline="black")
        for value, y in ((limit, 20.0), (0.0, 20 + height / 2), (-limit, 20.0 + height)):
            sheet.text(f"{value:.2f}".replace("-", "\u2212"), left + 22, y, anchor="lm", points=9)
        sheet.text("weight", left + 76, 20 + height / 2, turned=90)
    return sheet.figure()


def segmentations(
    images: np.ndarray,
    targets: np.ndarray,
    predictions: np.ndarray,
    scores: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    classes: Sequence[str],
    note: str,
) -> Figure:
    """Draw rows of input, target, output and errors in the data set's colours.

    Args:
        images: `(n, 3, H, W)` uint8.
        targets: `(n, H, W)` class indices.
        predictions: `(n, H, W)` class indices.
        scores: Label of each row.
        palette: Red, green, blue of each class, 0 to 255.
        classes: Class names for the legend.
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
        errors = np.where(wrong, np.array(ERROR_COLOR, np.uint8), pale)
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
    """Draw a centred legend of class names and colours."""
    widths = [text_width(name, points=8) + 56 for name in classes]
    left = (sheet.width - sum(widths)) / 2
    for name, color, width in zip(classes, palette, widths, strict=True):
        sheet.box(left, y - 4, 24, 9, fill=color, outline="gray")
        sheet.text(name, left + 32, y, anchor="lm", points=8)
        left += width
