"""The `sample` data set of the fashion task: garments drawn by the program.

Deterministic by seed. As in the real set, upper garments resemble each other, and so do shoes: only
sleeves, buttons, heels and straps distinguish them, under varying size, slant, brightness, texture
and noise.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

VERSION = 1  # increase it when the drawing changes, to invalidate cached sets
SIZE = 28  # pixels
SCALE = 4  # factor by which drawings are larger before averaging

Point = tuple[float, float]


def draw_set(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw garments of all ten classes in turn.

    Returns:
        Images `(N, 1, 28, 28)` uint8, dark background, and class indices `(N,)` uint8.
    """
    labels = (np.arange(num_images) % 10).astype(np.uint8)
    images = [draw(int(label), np.random.default_rng([seed, i])) for i, label in enumerate(labels)]
    return np.stack(images)[:, None], labels


class _Pen:
    """Fills polygons at a random size, slant, position and brightness, fixed per garment."""

    def __init__(self, image: Image.Image, rng: np.random.Generator) -> None:
        self.draw = ImageDraw.Draw(image)
        self.side = image.width
        self.tone = int(rng.integers(110, 240))
        self.stretch, self.slant = rng.uniform(0.82, 1.12, 2), rng.normal(0, 0.06)
        self.shift = rng.normal(0, 0.02, 2)

    def fill(self, points: list[Point], brightness: float = 1.0) -> None:
        """Fill a polygon given in coordinates from 0 to 1."""
        placed = [
            (
                self.side
                * (0.5 + self.shift[0] + (x - 0.5) * self.stretch[0] + self.slant * (y - 0.5)),
                self.side * (0.5 + self.shift[1] + (y - 0.5) * self.stretch[1]),
            )
            for x, y in points
        ]
        self.draw.polygon(placed, fill=int(min(255, self.tone * brightness)))


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one garment of a class: `(28, 28)` uint8."""
    image = Image.new("L", (SIZE * SCALE, SIZE * SCALE))
    pen = _Pen(image, rng)
    if label in (0, 2, 4, 6):
        _upper_garment(label, pen, rng)
    elif label == 1:
        _trouser(pen, rng)
    elif label == 3:
        _dress(pen, rng)
    elif label == 8:
        _bag(pen, rng)
    else:
        _shoe(label, pen, rng)
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)
    inside = pixels > 0
    if rng.random() < 0.4:  # stripes or checks
        stripes = np.indices((SIZE, SIZE))[int(rng.integers(2))] % int(rng.integers(3, 7)) < 2
        pixels = np.where(inside & stripes, pixels * rng.uniform(0.5, 0.9), pixels)
    pixels += inside * rng.normal(0, 16, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def _trouser(pen: _Pen, rng: np.random.Generator) -> None:
    gap = rng.uniform(0.02, 0.06)
    pen.fill([(0.33, 0.06), (0.67, 0.06), (0.7, 0.95), (0.5 + gap, 0.95), (0.5, 0.35)])
    pen.fill([(0.33, 0.06), (0.55, 0.06), (0.5, 0.35), (0.5 - gap, 0.95), (0.3, 0.95)])


def _dress(pen: _Pen, rng: np.random.Generator) -> None:
    waist, hem = rng.uniform(0.08, 0.13), rng.uniform(0.15, 0.28)
    pen.fill(
        [
            (0.4, 0.05),
            (0.6, 0.05),
            (0.5 + waist, 0.42),
            (0.5 + hem, 0.96),
            (0.5 - hem, 0.96),
            (0.5 - waist, 0.42),
        ]
    )
    if rng.random() < 0.4:
        _sleeves(pen, length=0.3, width=0.08, shoulder=0.12)


def _bag(pen: _Pen, rng: np.random.Generator) -> None:
    top = rng.uniform(0.35, 0.5)
    pen.fill([(0.12, top), (0.88, top), (0.92, 0.9), (0.08, 0.9)])
    for x in (0.28, 0.66):
        pen.fill([(x, 0.14), (x + 0.06, 0.14), (x + 0.06, top), (x, top)], 0.8)
    pen.fill([(0.28, 0.14), (0.72, 0.14), (0.72, 0.2), (0.28, 0.2)], 0.8)


def _upper_garment(label: int, pen: _Pen, rng: np.random.Generator) -> None:
    width = {0: 0.21, 2: 0.22, 4: 0.23, 6: 0.2}[label] + rng.normal(0, 0.015)
    hem = {0: 0.85, 2: 0.85, 4: 0.95, 6: 0.9}[label] + rng.normal(0, 0.02)
    long_sleeves = {0: 0.05, 2: 0.95, 4: 1.0, 6: 0.55}[label]
    length = 0.72 if rng.random() < long_sleeves else 0.32
    _sleeves(pen, length=length + rng.normal(0, 0.03), width=0.12, shoulder=width)
    pen.fill(
        [
            (0.5 - width, 0.12),
            (0.42, 0.08),
            (0.5, 0.13),
            (0.58, 0.08),
            (0.5 + width, 0.12),
            (0.5 + width, hem),
            (0.5 - width, hem),
        ]
    )
    if label == 4:  # the coat's open front
        pen.fill([(0.49, 0.13), (0.52, 0.13), (0.53, hem), (0.48, hem)], 0.35)
    if label == 6:  # the shirt's collar and buttons
        pen.fill([(0.43, 0.08), (0.5, 0.2), (0.57, 0.08), (0.5, 0.12)], 1.3)
        for y in np.arange(0.25, hem - 0.05, 0.12):
            pen.fill([(0.49, y), (0.52, y), (0.52, y + 0.03), (0.49, y + 0.03)], 0.5)


def _sleeves(pen: _Pen, *, length: float, width: float, shoulder: float) -> None:
    for side in (-1, 1):
        inner, outer = 0.5 + side * shoulder, 0.5 + side * (shoulder + 0.18)
        pen.fill(
            [
                (inner, 0.12),
                (outer, 0.12 + length),
                (outer - side * width, 0.15 + length),
                (inner, 0.35),
            ],
            0.92,
        )


def _shoe(label: int, pen: _Pen, rng: np.random.Generator) -> None:
    top = rng.uniform(0.42, 0.52)
    if label == 9:  # ankle boot: a shaft above the foot, perhaps a heel
        pen.fill([(0.1, 0.12), (0.45, 0.12), (0.48, 0.5), (0.9, 0.65), (0.92, 0.8), (0.1, 0.8)])
        heel = 0.92 if rng.random() < 0.6 else 0.84
        pen.fill([(0.1, 0.78), (0.3, 0.78), (0.28, heel), (0.1, heel)], 0.7)
    elif label == 7:  # sneaker: low, with a pale sole
        pen.fill(
            [(0.06, top), (0.3, top + 0.05), (0.5, top), (0.93, 0.66), (0.95, 0.76), (0.06, 0.76)]
        )
        pen.fill([(0.06, 0.74), (0.95, 0.74), (0.95, 0.82), (0.06, 0.82)], 1.3)
    else:  # sandal: a sole and straps
        heel = rng.uniform(0.72, 0.9)
        pen.fill([(0.06, 0.7), (0.5, 0.74), (0.95, 0.74), (0.95, 0.8), (0.4, 0.82), (0.06, heel)])
        for x in np.linspace(0.12, 0.7, int(rng.integers(2, 5))):
            pen.fill([(x, top), (x + 0.06, top), (x + 0.2, 0.76), (x + 0.12, 0.76)], 0.9)
