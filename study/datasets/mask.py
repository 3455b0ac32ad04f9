"""Masks: image files that give each pixel a class, by number or by colour.

Numbers alone are ambiguous, since programs may number the classes differently. Palettes are
therefore compared with the classes' colours, and masks that remain ambiguous are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from study.datasets.photo import BadImage, opened, upright
from study.errors import InputError

Color = tuple[int, int, int]
NUMBERS = ("L", "I", "I;16", "I;16B", "I;16L")  # modes whose values are numbers
COLORS = ("RGB", "RGBA")


def read_mask(
    path: Path, names: Mapping[int, str], colors: Mapping[Color, int]
) -> tuple[np.ndarray, bool]:
    """Read a mask: `(H, W)` uint8 labels, and whether they were found by colour.

    Palette and colour images are read by colour. Grey images, and palettes that map each number to
    the same shade of grey, are read by number.

    Args:
        path: A PNG, TIFF or another lossless image file.
        names: Class name by label.
        colors: Label by colour, red, green, blue.

    Raises:
        InputError: Not decodable, lossy, or with values or colours that belong to no class.
    """
    mode, values, palette = _decoded(path)
    if mode == "P":
        labels = _by_palette(path, values, palette, names, colors)
        if labels is not None:
            return labels, bool((labels != values).any())
    elif mode in COLORS:
        labels = _by_color(path, values, names, colors)
        if labels is not None:
            return labels, True
        values = values[..., 0]
    elif mode not in NUMBERS:
        raise InputError(f"{path} has mode {mode}; " + _how_to(names, colors))
    unknown = [value for value in np.unique(values).tolist() if value not in names]
    if unknown:
        raise InputError(
            f"{path} has the label {unknown[-1]}, but the classes are {min(names)} to {max(names)} "
            f"({', '.join(names.values())}); " + _how_to(names, colors)
        )
    return values.astype(np.uint8), False


def _decoded(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Return an image's mode, its values in upright orientation, and its palette `(n, 3)` uint8."""
    try:
        with opened(path) as image:
            if image.format in ("JPEG", "MPO"):
                raise BadImage("JPEG changes colours and numbers; save masks as PNG")
            image.load()
            image = upright(image)
            palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
            return image.mode, np.asarray(image), palette
    except BadImage as error:
        raise InputError(f"{path}: {error}; replace the file.") from None


def _by_palette(
    path: Path,
    values: np.ndarray,
    palette: np.ndarray,
    names: Mapping[int, str],
    colors: Mapping[Color, int],
) -> np.ndarray | None:
    """Return labels by palette colour; None if the palette maps numbers to equal greys."""
    used = np.unique(values)
    if used.max() >= len(palette):
        raise InputError(
            f"{path} uses palette index {used.max()}, but its palette ends at {len(palette) - 1}; "
            + _how_to(names, colors)
        )
    if np.array_equal(palette[used], np.repeat(used[:, None], 3, axis=1)):
        return None
    table = np.zeros(256, np.uint8)
    table[used] = _labels(path, palette[used], names, colors)
    labels: np.ndarray = table[values]
    return labels


def _by_color(
    path: Path, values: np.ndarray, names: Mapping[int, str], colors: Mapping[Color, int]
) -> np.ndarray | None:
    """Return labels by colour `(H, W, 3 or 4)`; None for greys that are no class colours."""
    if values.shape[2] == 4 and values[..., 3].min() < 255:
        raise InputError(f"{path} is transparent in places; " + _how_to(names, colors))
    shown, where = np.unique(values[..., :3].reshape(-1, 3), axis=0, return_inverse=True)
    if (shown == shown[:, :1]).all() and not all(tuple(c.tolist()) in colors for c in shown):
        return None
    labels: np.ndarray = _labels(path, shown, names, colors)[where.reshape(-1)]
    return labels.reshape(values.shape[:2])


def palette_of(colors: Sequence[Color]) -> dict[Color, int]:
    """Return labels by colour, for classes in the order of their colours."""
    return {(red, green, blue): label for label, (red, green, blue) in enumerate(colors)}


def _labels(
    path: Path, shown: np.ndarray, names: Mapping[int, str], colors: Mapping[Color, int]
) -> np.ndarray:
    """Return the label of each colour `(n, 3)`."""
    found = [colors.get((int(r), int(g), int(b))) for r, g, b in shown]
    unknown = [
        tuple(color.tolist()) for color, label in zip(shown, found, strict=True) if label is None
    ]
    if unknown:
        more = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise InputError(
            f"{path} has the colour {_hex(unknown[0])}{more}, which belongs to no class; "
            f"{_how_to(names, colors)}"
        )
    return np.array(found, np.uint8)


def _how_to(names: Mapping[int, str], colors: Mapping[Color, int]) -> str:
    known = {label: _hex(color) for color, label in colors.items()}
    classes = ", ".join(
        f"{label} or {known[label]} {name}" if label in known else f"{label} {name}"
        for label, name in names.items()
    )
    return (
        "save it as a grey PNG of class numbers, or as a PNG in the classes' colours, "
        f"without smoothing: {classes}."
    )


def _hex(color: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)
