"""The `sample` data set of the facade task: buildings drawn by the program, with exact masks.

Deterministic by seed. As in the real set, each building is cropped three times (from one larger
drawing), so the split by facade matters here, too.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

VERSION = 1  # increase it when the drawing changes, to invalidate cached sets
OTHERS, FACADE, PILLAR, WINDOW, BALCONY = range(5)
CANVAS = 320  # pixels
CROPS = 3


@dataclasses.dataclass
class Canvas:
    """A photograph and its mask, drawn together."""

    photo: ImageDraw.ImageDraw
    mask: ImageDraw.ImageDraw

    def box(self, box: tuple[float, ...], color: tuple[int, ...], label: int | None) -> None:
        """Fill a rectangle; without a label, only in the photograph."""
        self.photo.rectangle(box, fill=color)
        if label is not None:
            self.mask.rectangle(box, fill=label)


def draw_set(num_buildings: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw some buildings and crop each three times.

    Args:
        num_buildings: Number of different buildings.
        seed: The same seed gives the same pixels.
        size: Height and width of the crops in pixels, at most `CANVAS`.

    Returns:
        Images `(N, 3, size, size)` uint8, masks `(N, size, size)` uint8 and the building of each
        image `(N,)` int64, with N three times `num_buildings`.
    """
    images, masks, groups = [], [], []
    for building in range(num_buildings):
        rng = np.random.default_rng([seed, building])
        photo, mask = draw_building(rng)
        for _ in range(CROPS):
            side = int(rng.integers(256, CANVAS - 8))
            left, top = rng.integers(0, CANVAS - side, 2).tolist()
            area = (left, top, left + side, top + side)
            crop = photo.crop(area).resize((size, size), Image.Resampling.BOX)
            noisy = np.asarray(crop, np.float32) + rng.normal(0, 7, (size, size, 3))
            images.append(noisy.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
            masks.append(np.asarray(mask.crop(area).resize((size, size), Image.Resampling.NEAREST)))
            groups.append(building)
    return np.stack(images), np.stack(masks), np.array(groups)


def draw_building(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw one building with sky, street and light, and its mask."""
    photo, mask = Image.new("RGB", (CANVAS, CANVAS)), Image.new("L", (CANVAS, CANVAS), OTHERS)
    canvas = Canvas(ImageDraw.Draw(photo), ImageDraw.Draw(mask))
    sky = rng.integers((110, 140, 170), (190, 210, 250))
    for y in range(CANVAS):  # sky, paler towards the horizon
        canvas.photo.line([(0, y), (CANVAS, y)], fill=_color(sky + y / 8))
    street = int(rng.integers(275, 305))
    gray = int(rng.integers(70, 120))
    canvas.box((0, street, CANVAS, CANVAS), (gray, gray, gray + 5), OTHERS)
    for x in (0, CANVAS - int(rng.integers(20, 45))):  # the neighbours' walls
        neighbour = rng.integers(60, 160, 3)
        canvas.box((x, int(rng.integers(30, 110)), x + 45, street), _color(neighbour), OTHERS)
    left, right = int(rng.integers(18, 45)), CANVAS - int(rng.integers(18, 45))
    top = int(rng.integers(15, 60))
    wall = rng.integers((110, 95, 80), (230, 205, 185))
    canvas.box((left, top, right, street), _color(wall), FACADE)
    canvas.box((left, top, right, top + 5), _color(wall * 0.75), FACADE)  # cornice
    _draw_floors(canvas, rng, (left, top + 8, right, street), wall)
    _draw_tree(canvas, rng, street)
    start, end = rng.uniform(0.65, 1.15, 2).tolist()
    light = np.linspace(start, end, CANVAS)[None, :, None]
    lit = np.asarray(photo, np.float32) * light
    soft = Image.fromarray(lit.clip(0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)))
    )
    return soft, mask


def _draw_floors(
    canvas: Canvas, rng: np.random.Generator, area: tuple[int, int, int, int], wall: np.ndarray
) -> None:
    left, top, right, bottom = area
    num_floors, num_columns = int(rng.integers(3, 6)), int(rng.integers(3, 7))
    height, width = (bottom - top) / num_floors, (right - left) / num_columns
    glass = rng.integers((25, 35, 45), (95, 110, 125))
    has_pillars, has_balconies = rng.random() < 0.6, rng.random() < 0.7
    share = rng.uniform(0.42, 0.62)  # of a bay's width that is window
    for floor in range(num_floors):
        y = top + floor * height
        balcony_floor = has_balconies and 0 < floor < num_floors - 1 and rng.random() < 0.7
        shop = floor == num_floors - 1 and rng.random() < 0.5
        for column in range(num_columns):
            x = left + (column + (1 - share) / 2) * width
            window = (x, y + 0.2 * height, x + share * width, y + 0.82 * height)
            if shop and column % 2:  # a door belongs to "others"
                canvas.box((window[0], window[1], window[2], bottom), (60, 45, 35), OTHERS)
                continue
            frame = tuple(v + d for v, d in zip(window, (-2, -2, 2, 2), strict=True))
            canvas.box(frame, _color(wall * 1.15), FACADE)
            pane = glass + rng.normal(0, 14, 3)
            if rng.random() < 0.12:  # a drawn blind
                pane = wall * 0.9
            canvas.box(window, _color(pane), WINDOW)
            middle = (window[0] + window[2]) / 2
            canvas.box((middle - 1, window[1], middle + 1, window[3]), _color(wall), None)
            if balcony_floor:
                railing = rng.integers(20, 90)
                rail = (x - 0.12 * width, y + 0.6 * height, window[2] + 0.12 * width, y + height)
                canvas.box(rail, _color(wall * 0.55), BALCONY)
                for bar in np.arange(rail[0], rail[2], 4):
                    canvas.photo.line([(bar, rail[1]), (bar, rail[3])], fill=(int(railing),) * 3)
    if has_pillars:
        thickness = rng.uniform(4, 9)
        for column in range(0, num_columns + 1, int(rng.integers(1, 3))):
            x = min(max(left + column * width - thickness / 2, left), right - thickness)
            pillar = (x, top, x + thickness, bottom)
            canvas.box(pillar, _color(wall * 1.12), PILLAR)
            canvas.photo.line([(x, top), (x, bottom)], fill=_color(wall * 0.7))


def _draw_tree(canvas: Canvas, rng: np.random.Generator, street: int) -> None:
    if rng.random() < 0.35:
        x, radius = int(rng.integers(30, CANVAS - 30)), int(rng.integers(12, 30))
        box = (x - radius, street - 2 * radius, x + radius, street)
        canvas.photo.ellipse(box, fill=_color(rng.integers((20, 50, 15), (70, 110, 50))))
        canvas.mask.ellipse(box, fill=OTHERS)


def _color(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(values, 0, 255))
