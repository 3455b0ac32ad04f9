"""Sheets: what is put on one is in its picture, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from study.figures.canvas import TITLE_HEIGHT, Sheet, enlarged, text_width


def picture(figure: Figure, tmp_path: Path) -> np.ndarray:
    figure.savefig(tmp_path / "sheet.png")
    return np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))


def test_pixels_are_in_the_picture_unchanged(tmp_path: Path) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    sheet = Sheet("title", "", 301, 203)
    sheet.paste(tile, 17, 23)
    found = picture(sheet.figure(), tmp_path)
    assert found.shape == (203 + TITLE_HEIGHT, 301, 3)
    top = 23 + TITLE_HEIGHT
    assert np.array_equal(found[top : top + 31, 17 : 17 + 47], tile)
    assert (found[top + 31 :] == 255).all() and (found[:TITLE_HEIGHT] < 255).any()


@pytest.mark.parametrize(("left", "width"), [(1.5, 1), (2.5, 1), (10, 0.2), (10, 30)])
def test_a_box_has_its_size(left: float, width: float, tmp_path: Path) -> None:
    sheet = Sheet("", "", 60, 20)
    sheet.box(left, 5, width, 10, fill=(1, 2, 3))
    found = picture(sheet.figure(), tmp_path)[TITLE_HEIGHT:]
    assert (found == (1, 2, 3)).all(axis=2).sum() == round(width) * 10


def test_a_turned_text_takes_the_height_that_a_level_one_takes_in_width(tmp_path: Path) -> None:
    columns = []
    for turned in (0, 90):
        sheet = Sheet("", "", 200, 200)
        sheet.text("Ankle boot", 100, 100, turned=turned)
        dark = (picture(sheet.figure(), tmp_path)[TITLE_HEIGHT:] < 128).any(axis=2)
        columns.append(np.flatnonzero(dark.any(axis=0 if turned == 0 else 1)))
    level, upright = (found[-1] - found[0] for found in columns)
    assert abs(int(level) - int(upright)) <= 2
    assert abs(level - text_width("Ankle boot")) <= 4


def test_a_long_title_widens_the_sheet() -> None:
    assert Sheet("t", "a note " * 40, 100, 100).width > text_width("a note " * 40)


def test_enlarging_repeats_pixels() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(enlarged(small, 6, 4), small.repeat(2, axis=0).repeat(3, axis=1))
