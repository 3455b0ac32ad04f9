"""Figures of image tiles and many short labels, composed in pixels with Pillow.

A label takes matplotlib more than a millisecond and Pillow a thirtieth of that, and a figure of
examples has a hundred. The font is matplotlib's, so both kinds of figures look alike.

    sheet = Sheet("Title", "note", 300, 200)        # below the title
    sheet.paste(pixels, 10, 10)
    sheet.text("label", 20, 5, anchor="mm")
    sheet.figure()
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image, ImageDraw, ImageFont

DPI = 110
TITLE_HEIGHT = round(0.52 * DPI)  # pixels
TITLE_POINTS = 11.0

Color = str | tuple[int, int, int]


@cache
def _font(points: float) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, points * DPI / 72, layout_engine=ImageFont.Layout.BASIC)


def text_width(*texts: str, points: float = 10.0) -> float:
    """Return the width of the widest of these one-line texts in pixels."""
    return max((_font(points).getlength(text) for text in texts), default=0.0)


class Sheet:
    """A white sheet with a title; coordinates are in pixels, with y from below the title.

    Args:
        title: First line.
        note: Second line; left out if empty.
        width: Width in pixels.
        height: Height in pixels, without the title.
    """

    def __init__(self, title: str, note: str, width: float, height: float) -> None:
        lines = [title, note] if note else [title]
        width = max(width, text_width(*lines, points=TITLE_POINTS) + 16)
        self.width, self.height = round(width), round(height)
        size = (self.width, self.height + TITLE_HEIGHT)
        self._image = Image.new("RGB", size, "white")
        self._draw = ImageDraw.Draw(self._image)
        middle = (self.width // 2, TITLE_HEIGHT // 2)
        self._draw.multiline_text(
            middle, "\n".join(lines), "black", _font(TITLE_POINTS), "mm", align="center"
        )

    def paste(self, pixels: np.ndarray, left: float, top: float) -> None:
        """Paste pixels `(H, W, 3)` uint8 at this position."""
        self._image.paste(Image.fromarray(pixels), (round(left), round(top) + TITLE_HEIGHT))

    def box(
        self,
        left: float,
        top: float,
        width: float,
        height: float,
        *,
        fill: Color | None = None,
        outline: Color | None = None,
    ) -> None:
        """Draw a rectangle, unless it is less than half a pixel wide or high."""
        x, y = round(left), round(top) + TITLE_HEIGHT
        if round(width) and round(height):
            corner = (x + round(width) - 1, y + round(height) - 1)
            self._draw.rectangle((x, y, *corner), fill, outline)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        anchor: str = "mm",
        points: float = 10.0,
        color: Color = "black",
        turned: float = 0.0,
    ) -> None:
        """Write one line.

        Args:
            text: The text.
            x: Position of the anchor, pixels from the left.
            y: Position of the anchor, pixels from below the title.
            anchor: Horizontal and vertical anchor in Pillow's notation.
            points: Font size.
            color: Text colour.
            turned: Rotation about the anchor, degrees counter-clockwise.
        """
        place = (x, y + TITLE_HEIGHT)
        if not turned:
            self._draw.text(place, text, color, _font(points), anchor)
            return
        half = round(text_width(text, points=points) + 2 * points)
        mask = Image.new("L", (2 * half, 2 * half))
        ImageDraw.Draw(mask).text((half, half), text, 255, _font(points), anchor)
        mask = mask.rotate(turned, Image.Resampling.BICUBIC)
        self._image.paste(color, (round(place[0]) - half, round(place[1]) - half), mask)

    def figure(self) -> Figure:
        """Return the sheet as a figure."""
        figure = Figure((self._image.width / DPI, self._image.height / DPI), dpi=DPI)
        figure.add_axes((0, 0, 1, 1)).set_axis_off()  # notebooks do not show figures without axes
        figure.add_artist(_Pixels(np.asarray(self._image.convert("RGBA"))))
        return figure


class _Pixels(Artist):
    """Fills a figure with pixels `(H, W, 4)` uint8, unlike matplotlib's images not resampled."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__()
        self.pixels = np.ascontiguousarray(pixels[::-1])

    def get_window_extent(self, renderer: RendererBase | None = None) -> Bbox:
        """Return the whole figure."""
        figure = self.get_figure(root=True)
        assert figure is not None
        return figure.bbox  # type: ignore[return-value]  # matplotlib's own stub says less

    def draw(self, renderer: RendererBase) -> None:
        """Draw the pixels."""
        context = renderer.new_gc()
        left, bottom = self.get_window_extent().p0
        renderer.draw_image(context, left, bottom, self.pixels)
        context.restore()


def enlarged(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Enlarge `(h, w, 3)` uint8 to `(height, width, 3)` by nearest neighbour."""
    size = (width, height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST))
