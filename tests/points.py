"""Points of several objectives, and the best of them found the slow way."""

from __future__ import annotations

import numpy as np


def brute_force(points: list[tuple[float, ...]]) -> list[int]:
    return [
        place
        for place, point in enumerate(points)
        if not any(
            all(a >= b for a, b in zip(other, point, strict=True)) and other != point
            for other in points
        )
    ]


def drawn(seed: int, number: int) -> list[tuple[float, ...]]:
    """Points with many ties, with few, or of which most are on the front."""
    generator = np.random.default_rng(seed)
    points = generator.integers(0, [6, 100, 2000][seed % 3], (number, 2)).astype(float)
    if seed % 2:
        points[:, 1] = generator.integers(0, 20, number) - points[:, 0]
    return [tuple(map(float, point)) for point in points]
