"""Turns a photo of one object into an image like Fashion-MNIST's: light on black, small, square.

Xiao et al. 2017 (arXiv:1708.07747): photos on a light background, trimmed to the object, the longer
edge scaled to 28 pixels, the shorter one padded on both sides, negated, greyscale. Measured on
3,000 images: the longer edge is 28 pixels in 99 %, and the bounding box is centred (to 0.3 pixels),
not the centre of mass (which is off by 1.4).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from study.datasets.photo import Photo, averaged

WORKING_SIZE = 1000  # longer edge, pixels, of the image in which the object is searched
BORDER = 0.02  # of the shorter edge: assumed to be background
TRIM = 13  # levels of 255 by which an object differs at least: the data set's 5 %
SPECK = 0.05  # of the object's largest part: smaller parts are dirt
LEAST = 0.001  # of the image: smallest object


def cut_out(photo: Photo, width: int, height: int) -> tuple[np.ndarray, list[str]]:
    """Return the object in a photo, `(height, width)` uint8, and notes on what was done.

    A photo with a light border is negated. One that already has the target size is not cropped.
    """
    image = Image.fromarray(photo.pixels)
    small = image.reduce(max(1, max(image.size) // WORKING_SIZE))
    pixels = np.asarray(small).astype(np.int16)
    frame = _frame(pixels.shape[:2])
    background = np.median(pixels[frame], axis=0)
    grey = np.asarray(small.convert("L")).astype(np.float32)
    dark = float(np.median(grey[frame]))
    notes = []
    if dark > 127:
        grey, dark = 255 - grey, 255 - dark
        notes.append("dark on light: inverted")
    if image.size == (width, height):
        return grey.round().astype(np.uint8), notes
    if photo.solid is not None:
        solid = Image.fromarray(photo.solid).resize(small.size, Image.Resampling.NEAREST)
        mask = np.asarray(solid)
    else:
        distance = np.abs(pixels - background).max(axis=2)
        # Up to a quarter of the border may belong to the object, and the rest may be uneven.
        mask = distance > TRIM + np.percentile(distance[frame], 75)
    mask = _without_specks(mask)
    if mask.mean() < LEAST:
        notes.append("nothing stands out from the background: whole image used")
        mask = np.ones_like(mask)
    else:
        # Black stays black, and the background becomes black.
        grey = np.where(mask, (grey - dark) * (255 / (255 - dark)), 0).clip(0, 255)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    if (bottom - top, right - left) != mask.shape:
        scale = image.width / small.width
        size = f"{round((right - left) * scale)}x{round((bottom - top) * scale)}"
        notes.append(f"cropped to {size} pixels")
    return _centred(grey[top:bottom, left:right].round().astype(np.uint8), width, height), notes


def _frame(shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask of the border of an image, `(H, W)` bool."""
    frame = np.ones(shape, bool)
    edge = max(1, round(BORDER * min(shape)))
    frame[edge:-edge, edge:-edge] = False
    return frame


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Return the large connected parts of a mask."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept: np.ndarray = (sizes >= max(1.0, SPECK * sizes.max(initial=0)))[labels]
    return kept


def _centred(object_: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return grey levels `(h, w)` scaled to fit and centred on black `(height, width)`."""
    scale = min(height / object_.shape[0], width / object_.shape[1])
    new_height, new_width = (max(1, round(scale * side)) for side in object_.shape)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    canvas = np.zeros((height, width), np.uint8)
    scaled = averaged(Image.fromarray(object_), new_width, new_height)
    canvas[top : top + new_height, left : left + new_width] = np.asarray(scaled)
    return canvas
