"""Segments a photo of any size with a network that takes squares of one size.

A long photo is covered with overlapping squares, so nothing is squeezed; their logits are upsampled
bilinearly to the photo's own size, as in evaluation, and averaged where they overlap. This is done
in strips, so that memory does not grow with the height.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from study.datasets.photo import averaged

if TYPE_CHECKING:
    from torch import Tensor

SQUEEZE = 0.1  # fraction by which one side may be longer and still be squeezed into a square
MOST_WINDOWS = 8  # for a longer photo, the windows are no longer square
STRIP_VALUES = 4_000_000  # float32, of one strip's logits


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a photo, pixels."""

    left: int
    top: int
    width: int
    height: int


def windows(width: int, height: int) -> list[Window]:
    """Return the windows that cover a photo: one, or overlapping squares along its length."""
    long, short = max(width, height), min(width, height)
    number = max(1, min(MOST_WINDOWS, math.ceil(long / short - SQUEEZE)))
    if number == 1:
        return [Window(0, 0, width, height)]
    side = max(short, math.ceil(long / number))
    begins = [round(n * (long - side) / (number - 1)) for n in range(number)]
    if width >= height:
        return [Window(begin, 0, side, height) for begin in begins]
    return [Window(0, begin, width, side) for begin in begins]


def network_inputs(pixels: np.ndarray, found: list[Window], width: int, height: int) -> np.ndarray:
    """Return the windows of a photo `(H, W, 3)` uint8 as `(n, height, width, 3)` uint8."""
    image = Image.fromarray(pixels)
    boxes = [(w.left, w.top, w.left + w.width, w.top + w.height) for w in found]
    return np.stack([np.asarray(averaged(image, width, height, box)) for box in boxes])


def label_strips(
    logits: Tensor, found: list[Window], width: int, height: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the classes of a photo's pixels in strips, from top to bottom.

    Args:
        logits: Of the windows, `(n, K, h, w)` float32.
        found: The windows.
        width: Of the photo, pixels.
        height: Of the photo, pixels.

    Yields:
        The first row of a strip, and class indices `(rows, width)` uint8.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    num_classes = logits.shape[1]
    grids = []
    for window, grid in zip(found, logits, strict=True):
        # For a photo smaller than the network's output, average instead of sampling.
        size = (min(grid.shape[1], window.height), min(grid.shape[2], window.width))
        grids.append(adaptive_avg_pool2d(grid, size))
    rows = max(1, STRIP_VALUES // (num_classes * width))
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        total = torch.zeros(num_classes, bottom - top, width)
        for window, grid in zip(found, grids, strict=True):
            begin, end = max(top, window.top), min(bottom, window.top + window.height)
            if begin >= end:
                continue
            part = _between(grid, 1, begin - window.top, end - window.top, window.height)
            part = _between(part, 2, 0, window.width, window.width)
            weight = _tent(begin - window.top, end - window.top, window.height)[:, None]
            weight = weight * _tent(0, window.width, window.width)
            right = window.left + window.width
            total[:, begin - top : end - top, window.left : right] += part.mul_(weight)
        # Dividing by the sum of the weights would not change the argmax.
        yield top, total.argmax(dim=0).to(torch.uint8).numpy()


def _between(grid: Tensor, axis: int, begin: int, end: int, size: int) -> Tensor:
    """Return positions `begin` to `end` of one axis upsampled bilinearly to `size`.

    Matches `torch.nn.functional.interpolate` with `align_corners=False`.
    """
    import torch

    number = grid.shape[axis]
    places = (torch.arange(begin, end) + 0.5) * (number / size) - 0.5
    places = places.clamp(0, number - 1)
    below = places.long()
    above = (below + 1).clamp(max=number - 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    first, second = grid.index_select(axis, below), grid.index_select(axis, above)
    return first.lerp_(second, (places - below).view(shape).expand_as(first))


def _tent(begin: int, end: int, size: int) -> Tensor:
    """Return a window's weights: lowest at its edges, where it sees one side only."""
    import torch

    places = torch.arange(begin, end) + 0.5
    return torch.minimum(places, size - places)
