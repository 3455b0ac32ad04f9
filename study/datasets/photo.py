"""Reading of users' images: any size, mode and orientation, in the formats of `FORMATS`.

photo = read_photo(Path("IMG_0042.jpg"))    # upright, 8-bit RGB
averaged(Image.fromarray(photo.pixels), 64, 64)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from study.errors import InputError

# Room for phones with 108 megapixels; larger images are accidents or attacks.
MOST_PIXELS = 128_000_000
WHITE = (255, 255, 255)
TURNED = "rotated as its EXIF data say"
# Pixel formats only: Pillow reads more, and starts external programs for some (EPS).
FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "TIFF",
    "BMP",
    "GIF",
    "AVIF",
    "JPEG2000",
    "PPM",
)
RAW = frozenset(
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .raf .orf .rw2 .pef .srw .3fr .iiq .x3f .raw "
    ".rwl .kdc .dcr .erf .mef .mos".split()
)
PICTURES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .dib .gif .avif .avifs .jp2 .j2k .jpx .jpf "
    ".ppm .pgm .pbm .pnm .heic .heif .hif .jxl .psd .svg .eps .ico .tga .xcf .wmf .emf".split()
)
OTHER_FORMAT = "{}, which is not supported; save it as JPEG or PNG"
OTHERS = {  # unsupported formats: offset in the file and the bytes there
    "a HEIC image": [
        (4, b"ftyp" + brand)
        for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
    ],
    "a raw camera image": [
        (4, b"ftypcrx"),
        (0, b"FUJIFILMCCD-RAW"),
        (0, b"IIRO"),
        (0, b"IIRS"),
        (0, b"MMOR"),
        (0, b"IIU\0"),
        (0, b"FOVb"),
    ],
    "an EPS or PostScript file": [(0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6")],
    "a PDF file": [(0, b"%PDF")],
    "a Windows metafile": [(0, b"\xd7\xcd\xc6\x9a"), (40, b" EMF")],
    "a Photoshop file": [(0, b"8BPS")],
    "an SVG drawing": [(0, b"<svg"), (0, b"<?xml")],
    "a JPEG XL image": [(0, b"\xff\x0a"), (4, b"JXL ")],
}
DNG_VERSION, KIND_OF_PAGE, REDUCED = 50706, 254, 1  # two TIFF tags, and a bit of the second


class BadImage(ValueError):
    """A file cannot be read as an image; the message does not name the file."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """An image as displayed.

    Attributes:
        pixels: `(H, W, 3)` uint8, upright; transparent parts are white.
        solid: `(H, W)` bool, False where transparent; None if nothing is.
        notes: Conversions applied, as phrases.
    """

    pixels: np.ndarray
    solid: np.ndarray | None
    notes: tuple[str, ...] = ()


def read_photo(path: Path) -> Photo:
    """Read an image; of an animation, the first frame.

    Raises:
        BadImage: The file is not a readable image, or the image is too large.
    """
    with opened(path) as image:
        return _upright_colours(image)


@contextlib.contextmanager
def opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image. All code that reads image files goes through here.

    The format is detected by content and must be one of `FORMATS`.

    Raises:
        BadImage: No such file, unsupported format, corrupted, or too large.
    """
    if isinstance(source, Path):
        if not os.path.exists(source):
            raise BadImage("there is no such file")
        if not os.path.isfile(source):
            raise BadImage("not a file")
        if source.suffix.lower() in RAW:
            raise BadImage(OTHER_FORMAT.format("a raw camera image"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are checked here; corrupted EXIF
            with Image.open(source, formats=_formats()) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadImage(_too_large(f"{image.width}x{image.height} pixels"))
                if _is_raw(image):
                    raise BadImage(OTHER_FORMAT.format("a raw camera image"))
                yield image
    except (BadImage, InputError):
        raise
    except Image.DecompressionBombError:
        raise BadImage(_too_large("far too many pixels")) from None
    except UnidentifiedImageError:
        raise BadImage(_no_image(source)) from None
    except MemoryError:
        raise BadImage("not enough memory to read it; make it smaller") from None
    except PermissionError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever Pillow raises for a corrupted file
        raise BadImage(f"cannot be decoded ({type(error).__name__}: {error})") from None


def looks_like_picture(path: Path) -> bool:
    """Return whether a file is an image by its suffix or, failing that, by its content.

    It may still be unreadable; `opened` then says why.
    """
    if path.suffix.lower() in PICTURES | RAW:
        return True
    try:
        with opened(path):
            return True
    except BadImage:
        return False


def upright(image: Image.Image) -> Image.Image:
    """Return an image rotated according to its EXIF data."""
    orientation = _orientation(image)
    return image if orientation is None else image.transpose(orientation)


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # some builds lack AVIF


def _is_raw(image: Image.Image) -> bool:
    """Return whether a TIFF is a raw camera image, of which Pillow would read a small preview."""
    tags = getattr(image, "tag_v2", {})
    return DNG_VERSION in tags or bool(int(tags.get(KIND_OF_PAGE, 0)) & REDUCED)


def _no_image(source: Path | BinaryIO) -> str:
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(64)
        for kind, marks in OTHERS.items():
            for place, mark in marks:
                if head[place : place + len(mark)] == mark:
                    return OTHER_FORMAT.format(kind)
    return f"not an image in a supported format ({', '.join(_formats())})"


def averaged(
    image: Image.Image, width: int, height: int, box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """Return an image, or a box of it, resized by area averaging.

    Training images are resized in the same way.
    """
    return image.resize((width, height), Image.Resampling.BOX, box)


def _too_large(what: str) -> str:
    return f"{what}, but the limit is {MOST_PIXELS // 10**6} million; make it smaller"


def _upright_colours(image: Image.Image) -> Photo:
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # those are photos with an embedded preview
        notes.append(f"the first of {frames} frames")
    image.load()
    orientation = _orientation(image)
    if orientation is not None:
        notes.append(TURNED)
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
        notes.append("CMYK converted to RGB")
    image = _lab_to_rgb(image) if image.mode == "LAB" else image.convert("RGB")
    if orientation is not None:
        image = image.transpose(orientation)
        if solid is not None:
            turned = Image.fromarray(solid.astype(np.uint8)).transpose(orientation)
            solid = np.asarray(turned).astype(bool)
    return Photo(np.asarray(image), solid, tuple(notes))


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return how to rotate an image; None if it is upright or its EXIF data are corrupted."""
    turns = Image.Transpose
    known = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }
    try:
        return known.get(image.getexif().get(0x0112, 1))
    except Exception:  # the image itself is still readable
        return None


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Return grey levels of more than 8 bits as uint8.

    Integers range up to 65,535, as in a 16-bit PNG. Floats range up to 1, 255 or 65,535: the first
    that covers all values.
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
