"""Masks by number and by colour: the same labels however the palette is ordered, or an error."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from study.datasets.mask import palette_of, read_mask
from study.datasets.mini_facade import CLASSES, PALETTE
from study.errors import InputError

LABELS = np.random.default_rng(0).integers(0, 5, (12, 16), np.uint8)
NAMES, COLORS = dict(enumerate(CLASSES)), palette_of(PALETTE)


def read(path: Path) -> tuple[np.ndarray, bool]:
    return read_mask(path, NAMES, COLORS)


def in_palette(labels: np.ndarray, order: tuple[int, ...], path: Path) -> Path:
    """Write labels as a palette image in which class `order[i]` has the number i."""
    numbers = np.argsort(order).astype(np.uint8)[labels]
    image = Image.fromarray(numbers).convert("P")
    image.putdata(numbers.ravel())
    image.putpalette([value for label in order for value in PALETTE[label]])
    image.save(path)
    return path


def test_every_order_of_the_palette_gives_the_same_labels(tmp_path: Path) -> None:
    for number, order in enumerate(itertools.permutations(range(5))):
        labels, by_color = read(in_palette(LABELS, order, tmp_path / f"{number}.png"))
        assert np.array_equal(labels, LABELS), order
        assert by_color == (order != (0, 1, 2, 3, 4))


def test_a_palette_may_hold_a_part_of_the_classes(tmp_path: Path) -> None:
    image = Image.fromarray((LABELS == 3).astype(np.uint8)).convert("P")
    image.putdata((LABELS == 3).astype(np.uint8).ravel())
    image.putpalette([*PALETTE[1], *PALETTE[3]])
    image.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png")[0], np.where(LABELS == 3, 3, 1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_read_as_colours(tmp_path: Path, mode: str) -> None:
    Image.fromarray(np.array(PALETTE, np.uint8)[LABELS]).convert(mode).save(tmp_path / "a.png")
    labels, by_color = read(tmp_path / "a.png")
    assert np.array_equal(labels, LABELS) and by_color


def test_numbers_are_read_as_numbers(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "grey.png")
    Image.fromarray(LABELS.astype(np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(np.repeat(LABELS[..., None], 3, axis=2)).save(tmp_path / "three.png")
    shades = Image.fromarray(LABELS).convert("P")  # whose palette is shades of grey
    shades.save(tmp_path / "shades.png")
    for name in ("grey", "sixteen", "three", "shades"):
        labels, by_color = read(tmp_path / f"{name}.png")
        assert np.array_equal(labels, LABELS) and labels.dtype == np.uint8 and not by_color


def unknown_palette(path: Path) -> None:
    in_palette(LABELS, (0, 1, 2, 3, 4), path)
    with Image.open(path) as image:
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128])
        image.save(path)


def short_palette(path: Path) -> None:
    """A number beyond the palette's end, which Pillow does not write by itself."""
    image = Image.new("P", (4, 4), 4)
    image.putpalette([value for color in PALETTE for value in color])
    image.save(path)
    data = path.read_bytes()
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    body = b"PLTE" + bytes([0, 0, 0, 0, 128, 255])
    chunk = (6).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    path.write_bytes(data[:start] + chunk + data[end:])


def smoothed(path: Path) -> None:
    image = Image.fromarray(np.array(PALETTE, np.uint8)[LABELS])
    image.resize((31, 23), Image.Resampling.BILINEAR).save(path)


def transparent(path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unknown_palette, "has the colour #800000 and 3 others, which belongs to no class"),
        (short_palette, "uses palette index 4, but its palette ends at 1"),
        (smoothed, "others, which belongs to no class"),
        (transparent, "is transparent in places"),
        (
            lambda p: Image.fromarray(LABELS * 50).save(p),
            "has the label 200, but the classes are 0 to 4",
        ),
        (lambda p: Image.fromarray(LABELS == 1).save(p), "has mode 1"),
        (lambda p: Image.fromarray(LABELS).save(p, "JPEG"), "JPEG changes colours"),
        (lambda p: p.write_text("no"), "not an image"),
    ],
)
def test_what_cannot_be_told_is_refused_and_says_how(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(InputError) as caught:
        read(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    if "classes" in message or "belongs to no class" in message:
        assert "0 or #000000 others, 1 or #0080ff facade" in str(caught.value)
