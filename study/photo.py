"""Pictures that users have: of any size, mode, orientation and format that Pillow reads.

photo = read_photo(Path("IMG_0042.jpg"))    # upright, 8 bits, red, green and blue
averaged(Image.fromarray(photo.pixels), 64, 64)
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

# A phone of 108 megapixels is welcome; what needs more than this is an accident or an attack.
MOST_PIXELS = 128_000_000
WHITE = (255, 255, 255)


class BadImage(ValueError):
    """A file that gives no picture; says why, without the file's name."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """A picture as people see it.

    Attributes:
        pixels: `(H, W, 3)` uint8, upright; what was transparent lies on white.
        solid: `(H, W)` bool, where it was not transparent; None if it was nowhere.
        notes: What was done to it, in phrases for people.
    """

    pixels: np.ndarray
    solid: np.ndarray | None
    notes: tuple[str, ...] = ()


def read_photo(path: Path) -> Photo:
    """Read a picture; of one that moves, the first frame.

    Raises:
        BadImage: There is none in the file, or one too large.
    """
    if not os.path.exists(path):
        raise BadImage("there is no such file")
    if not os.path.isfile(path):
        raise BadImage("not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and damaged EXIF
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadImage(_too_large(f"{image.width}x{image.height} pixels"))
                return _upright_colours(image)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(_too_large("far too many pixels")) from None
    except UnidentifiedImageError:
        raise BadImage("not an image in a format that Pillow reads") from None
    except Exception as error:  # whatever a damaged file makes Pillow's readers raise
        raise BadImage(f"cannot be decoded ({type(error).__name__}: {error})") from None


def averaged(
    image: Image.Image, width: int, height: int, box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """Return an image, or a box of it, at another size: each new pixel averages over its area.

    Training images are made smaller by this too.
    """
    return image.resize((width, height), Image.Resampling.BOX, box)


def _too_large(what: str) -> str:
    return f"{what}, but at most {MOST_PIXELS // 10**6} million can be read; make it smaller"


def _upright_colours(image: Image.Image) -> Photo:
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # those are photos with a preview beside them
        notes.append(f"the first of {frames} frames")
    image.load()
    orientation = _orientation(image)
    if orientation is not None:
        notes.append("turned as its EXIF data say")
    if image.mode == "F" or image.mode.startswith("I"):
        notes.append(f"{'floats' if image.mode == 'F' else '16 bits'} scaled to 8")
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    solid = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() < 255:
            notes.append("transparent parts on white")
            solid = alpha >= 128
            paper = Image.new("RGBA", image.size, (*WHITE, 255))
            image = Image.alpha_composite(paper, image)
    elif image.mode == "CMYK":
        notes.append("CMYK turned to RGB")
    image = _lab_to_rgb(image) if image.mode == "LAB" else image.convert("RGB")
    if orientation is not None:
        image = image.transpose(orientation)
        if solid is not None:
            turned = Image.fromarray(solid.astype(np.uint8)).transpose(orientation)
            solid = np.asarray(turned).astype(bool)
    return Photo(np.asarray(image), solid, tuple(notes))


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn a picture; None if it is upright, or its EXIF data are damaged."""
    turns = Image.Transpose
    known = {
        **{2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM},
        **{5: turns.TRANSPOSE, 6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90},
    }
    try:
        return known.get(image.getexif().get(0x0112, 1))
    except Exception:  # the picture is there all the same
        return None


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Return grey levels of more than 8 bits as uint8.

    Whole numbers count to 65,535, as in a 16-bit PNG. Floats count to 1, 255 or 65,535, the first
    that holds them.
    """
    whole = np.issubdtype(values.dtype, np.integer)
    values = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    highest = float(values.max(initial=0.0))
    full = 65_535.0 if whole or highest > 255.0 else 255.0 if highest > 1.0 else 1.0
    return np.round(values.clip(0, full) * (255 / full)).astype(np.uint8)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    turned = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(lab), ImageCms.ImageCmsProfile(rgb), outputMode="RGB"
    )
    assert turned is not None
    return turned
