"""One object from a photograph, against where it was put."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from study.datasets.photo import Photo
from study.inference.cutout import cut_out


def colours(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def shirt(light: float, dark: float, noise: float = 0.0) -> np.ndarray:
    """A rectangle of 100 rows and 60 columns, off the middle, its lower half twice as strong."""
    grey = np.full((300, 400), float(light))
    grey[30:130, 40:100] = (light + dark) / 2
    grey[80:130, 40:100] = dark
    grey += np.random.default_rng(0).normal(0, noise, grey.shape)
    return grey.clip(0, 255)


@pytest.mark.parametrize(("light", "dark"), [(255, 0), (230, 20), (0, 255), (30, 240)])
@pytest.mark.parametrize("noise", [0, 5])
def test_an_object_fills_the_square_light_on_black(light: int, dark: int, noise: int) -> None:
    found, notes = cut_out(Photo(colours(shirt(light, dark, noise)), None), 28, 28)
    assert ("dark on light: inverted" in notes) == (light > dark)
    assert any(
        note.startswith(("cropped to 60x100", "cropped to 61x", "cropped to 62x")) for note in notes
    )
    lit = found > 60
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    assert rows[[0, -1]].tolist() == [0, 27]
    assert columns[[0, -1]].tolist() == [5, 21]  # 17 of 28 columns, in the middle
    assert not found[:, :4].any() and not found[:, 23:].any()
    upper, lower = np.median(found[2:12, 8:20]), np.median(found[16:26, 8:20])
    assert abs(lower - 2 * upper) < 12, "the background is zero"


def test_an_image_of_the_network_s_size_is_left_as_it_is() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    grey[[0, -1]] = 0
    grey[:, [0, -1]] = 0
    found, notes = cut_out(Photo(colours(grey), None), 28, 28)
    assert np.array_equal(found, grey) and notes == []
    found, notes = cut_out(Photo(255 - colours(grey), None), 28, 28)
    assert np.array_equal(found, grey) and notes == ["dark on light: inverted"]


def test_dirt_is_left_out_and_a_pair_is_kept() -> None:
    grey = np.full((200, 300), 250.0)
    grey[80:120, 60:130] = grey[80:120, 160:230] = 40  # two shoes
    grey[5:8, 290:293] = 0  # dirt
    _, notes = cut_out(Photo(colours(grey), None), 28, 28)
    assert "cropped to 170x40 pixels" in notes


def test_what_is_transparent_is_no_part_of_the_object() -> None:
    pixels = np.full((50, 50, 3), 255, np.uint8)  # white on white: only its outline is known
    solid = np.zeros((50, 50), bool)
    solid[10:40, 20:30] = True
    _, notes = cut_out(Photo(pixels, solid), 28, 28)
    assert "cropped to 10x30 pixels" in notes


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 2), (40, 60)])
def test_where_nothing_stands_out_the_whole_is_taken(shape: tuple[int, int]) -> None:
    found, notes = cut_out(Photo(np.full((*shape, 3), 77, np.uint8), None), 28, 28)
    assert found.shape == (28, 28)
    assert "nothing stands out from the background: whole image used" in notes


def test_a_large_photograph_is_the_small_one_enlarged() -> None:
    small = shirt(255, 0)
    large = np.asarray(Image.fromarray(small.astype(np.uint8)).resize((4000, 3000), 0))
    one, _ = cut_out(Photo(colours(small), None), 28, 28)
    other, notes = cut_out(Photo(colours(large), None), 28, 28)
    assert "cropped to 600x1000 pixels" in notes
    assert abs(one.astype(int) - other.astype(int)).mean() < 2
