"""Reading pictures of every kind; what they must show is known."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import study
from study.datasets import photo
from study.datasets.photo import BadImage, averaged, read_photo

# Upper half red, lower half blue but for a green corner: no turn leaves it as it is.
SCENE = np.zeros((30, 20, 3), np.uint8)
SCENE[:15, :, 0], SCENE[15:, :, 2] = 255, 255
SCENE[20:, 10:] = (0, 255, 0)
GREY = np.linspace(0, 255, 256).round().astype(np.uint8).reshape(16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(tmp_path: Path, orientation: int) -> None:
    turns = Image.Transpose
    stored = {
        **{2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM},
        **{5: turns.TRANSPOSE, 6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270},
    }
    image = Image.fromarray(SCENE)
    if orientation > 1:
        image = image.transpose(stored[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "phone.png", exif=exif)
    read = read_photo(tmp_path / "phone.png")
    assert np.array_equal(read.pixels, SCENE) and read.solid is None
    assert ("rotated as its EXIF data say" in read.notes) == (orientation > 1)


def test_damaged_exif_data_do_no_harm(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(read_photo(tmp_path / "a.png").pixels, SCENE)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.png")
    read = read_photo(tmp_path / "a.png")
    assert np.array_equal(read.pixels[..., 0], GREY) and read.notes == ("16 bits scaled to 8",)
    Image.fromarray(GREY.astype(np.int32) * 257).save(tmp_path / "a.tif")
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels[..., 1], GREY)


def png_of_16_bits(pixels: np.ndarray, color_type: int) -> bytes:
    """Return a PNG, which Pillow cannot write with more than one channel of 16 bits."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_sixteen_bits_of_every_color_type(tmp_path: Path, color_type: int, channels: int) -> None:
    pixels = np.repeat(GREY[..., None].astype(np.uint16) * 257, channels, axis=2)
    if channels in (2, 4):
        pixels[..., -1] = 65_535  # opaque
    (tmp_path / "a.png").write_bytes(png_of_16_bits(pixels, color_type))
    read = read_photo(tmp_path / "a.png")
    assert np.array_equal(read.pixels[..., 0], GREY) and read.solid is None


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_floats_count_to_the_first_scale_that_holds_them(tmp_path: Path, full: float) -> None:
    values = GREY.astype(np.float32) / 255 * full
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels[..., 2], GREY)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels[1:, :, 2], GREY[1:])


def test_a_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((3, 1), 1)
    image.save(tmp_path / "a.png", transparency=1)
    read = read_photo(tmp_path / "a.png")
    assert read.pixels[0, 0].tolist() == [255, 0, 0] and read.pixels[1, 3].tolist() == [255] * 3
    assert read.solid is not None and read.solid.sum() == 7 and not read.solid[1, 3]
    assert read.notes == ("transparent parts on white",)


def test_half_transparent_pixels_are_mixed(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").pixels[0, 0].tolist() == [127] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp", "bmp"])
def test_every_mode_and_format(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.new("RGB", (16, 16), "white")
    if mode == "LAB":
        image = Image.new("LAB", (16, 16), (255, 128, 128))
    try:
        image.convert(mode).save(tmp_path / f"a.{suffix}")
    except (OSError, ValueError):
        pytest.skip("this format has no such mode")
    pixels = read_photo(tmp_path / f"a.{suffix}").pixels
    assert pixels.shape == (16, 16, 3) and abs(pixels.astype(int) - 255).max() < 9


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    Image.fromarray(np.kron(SCENE, np.ones((8, 8, 1), np.uint8))).convert("CMYK").save(
        tmp_path / "a.jpg", quality=95
    )
    read = read_photo(tmp_path / "a.jpg")
    assert read.notes == ("CMYK converted to RGB",)
    assert np.array_equal(read.pixels[4::8, 4::8] > 128, SCENE > 128)


def test_of_a_moving_picture_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    read = read_photo(tmp_path / "a.gif")
    assert read.pixels[0, 0].tolist() == [255, 0, 0] and read.notes == ("the first of 3 frames",)


def cut_short(path: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:-2000])


def bomb(width: int, height: int) -> bytes:
    """Return a BMP that says it is large and holds nothing."""
    small = io.BytesIO()
    Image.new("L", (1, 1)).save(small, "BMP")
    content = bytearray(small.getvalue())
    content[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(content)


def test_bad_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "bomb.bmp").write_bytes(bomb(60_000, 60_000))
    (tmp_path / "large.bmp").write_bytes(bomb(13_000, 10_000))
    cut_short(tmp_path / "short.jpg")
    for name, why in {
        "text.jpg": "not an image",
        "empty.png": "not an image",
        "short.jpg": "truncated",
        "bomb.bmp": "far too many pixels, but the limit is 128 million",
        "large.bmp": "13000x10000 pixels, but the limit is 128 million",
        "absent.jpg": "no such file",
        ".": "not a file",
    }.items():
        with pytest.raises(BadImage, match=why):
            read_photo(tmp_path / name)


@pytest.mark.parametrize("suffix", ["eps", "jpg", ""])
def test_eps_is_refused_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    """Pillow reads it by starting Ghostscript."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(SCENE).save(path, "EPS")
    with pytest.raises(
        BadImage, match="an EPS or PostScript file, which is not supported; save it as"
    ):
        read_photo(path)


@pytest.mark.parametrize("name", ["PDF", "ICO", "TGA", "PCX", "SGI", "IM", "XBM", "ICNS"])
def test_only_formats_of_the_list_are_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(SCENE).convert("1" if name == "XBM" else "RGB").save(path, name)
    with pytest.raises(BadImage, match="is not supported|not an image in a supported format"):
        read_photo(path)


def raw_tiff(path: Path, tag: int, value: bytes | int) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    info = ImageFileDirectory_v2()
    info[tag] = value
    Image.fromarray(SCENE).save(path, "TIFF", tiffinfo=info)


def test_a_raw_picture_is_refused_and_not_its_preview_taken(tmp_path: Path) -> None:
    raw_tiff(tmp_path / "a.tif", 50706, b"\1\4\0\0")  # DNGVersion
    raw_tiff(tmp_path / "b.tif", 254, 1)  # a reduced picture comes first
    Image.fromarray(SCENE).save(tmp_path / "c.NEF", "TIFF")
    (tmp_path / "d.jpg").write_bytes(b"\0\0\0\x18ftypcrx " + bytes(40))
    for name in ("a.tif", "b.tif", "c.NEF", "d.jpg"):
        with pytest.raises(
            BadImage, match="a raw camera image, which is not supported; save it as"
        ):
            read_photo(tmp_path / name)
    (tmp_path / "e.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(
        BadImage, match="a HEIC image, which is not supported; save it as JPEG or PNG"
    ):
        read_photo(tmp_path / "e.jpg")


def test_one_function_opens_pictures() -> None:
    """Wherever the package reads one, formats, sizes, turns and damage are seen to."""
    package = Path(study.__file__).parent
    readers = [f.name for f in package.rglob("*.py") if "Image.open(" in f.read_text()]
    assert readers == ["photo.py"]


WHOLE: dict[str, bytes] = {}
for kind in ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"):
    buffer = io.BytesIO()
    Image.fromarray(SCENE).save(buffer, kind)
    WHOLE[kind] = buffer.getvalue()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 200),
)
def test_any_damage_gives_a_picture_or_says_why(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(WHOLE[kind])
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: len(content) - cut] if cut > 100 else content)
    try:
        read = read_photo(path)
    except BadImage as error:
        assert str(error)
    else:
        assert read.pixels.ndim == 3 and read.pixels.dtype == np.uint8


def test_making_smaller_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8), np.uint8)
    small = np.asarray(averaged(Image.fromarray(pixels), 4, 4))
    means = pixels.reshape(4, 3, 4, 2).mean(axis=(1, 3))
    assert abs(small - means).max() <= 1
    assert photo.MOST_PIXELS > 6000 * 4000
