"""Predictions of an exported model for images of any size, and the folder of results.

results = Results(Path("predictions"))
files, failed, unused = expand(["shoe.jpg", "photos/"])
for entry in predict_each(model, model.load(), files, results):
    ...                                     # one of `predictions.json`, or a file that failed
results.save(model)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from study.datasets.photo import BadImage, Photo, looks_like_picture, read_photo
from study.datasets.unused_files import SYSTEM, UnusedFiles, is_systems
from study.errors import InputError
from study.inference.cutout import cut_out
from study.inference.exported_model import ExportedModel, Network
from study.inference.tiling import label_strips, network_inputs, windows
from study.storage.files import replacing, write_text
from study.task import OBJECT

if TYPE_CHECKING:
    from torch import Tensor

NUM_TOP = 3
JPEG_SIDE = 65_500  # pixels; the format's limit is 65,535
OVERLAY_ROWS = 256  # blended at a time


def expand(names: Sequence[str]) -> tuple[list[Path], list[dict[str, str]], UnusedFiles]:
    """Return the named image files without duplicates, the invalid names, and unused files."""
    files: list[Path] = []
    failed = []
    unused = UnusedFiles()
    for name in names:
        if "://" in name:
            reason = "a URL; download the image and name the file"
            failed.append({"file": name, "reason": reason})
        elif os.path.isdir(name):
            found = []
            try:
                here = sorted(Path(name).iterdir())
            except OSError as error:
                failed.append({"file": name, "reason": f"cannot be read ({error.strerror})"})
                continue
            for path in here:
                if is_systems(path.name):
                    unused.add(SYSTEM, path)
                elif path.is_dir():
                    unused.add("a subfolder; name it to include it", path)
                elif looks_like_picture(path):
                    found.append(path)
                else:
                    unused.add("not an image", path)
            files += found
            if not found:
                failed.append({"file": name, "reason": "a folder without images"})
        else:
            files.append(Path(name))
    return list(dict.fromkeys(files)), failed, unused


def predict_each(
    model: ExportedModel, network: Network, files: Sequence[Path], results: Results
) -> Iterator[dict[str, Any]]:
    """Yield the prediction for each file; for an unreadable image, `file` and `reason`.

    Raises:
        InputError: The model's output is neither class scores nor a segmentation map.
    """
    for file in files:
        try:
            photo = read_photo(file)
        except BadImage as error:
            yield {"file": str(file), "reason": str(error)}
        else:
            yield predict(model, network, photo, file, results)


def predict(
    model: ExportedModel, network: Network, photo: Photo, file: Path, results: Results
) -> dict[str, Any]:
    """Apply the model to one photo, write its files, and return its entry.

    Raises:
        InputError: The model's output is neither class scores nor a segmentation map.
    """
    height, width = photo.pixels.shape[:2]
    found = windows(width, height)
    notes = list(photo.notes)
    if model.shows == OBJECT:
        grey, done = cut_out(photo, model.width, model.height)
        notes += done
        inputs = np.repeat(grey[None, :, :, None], 3, axis=3)
    else:
        inputs = network_inputs(photo.pixels, found, model.width, model.height)
    logits = network.logits(inputs)
    name = results.name_for(file)
    entry: dict[str, Any] = {"file": str(file), "path": os.path.abspath(file), "name": name}
    entry |= {"size": [width, height], "notes": notes}
    if logits.shape[1:] == (len(model.classes),):
        # Average over all windows of a long photo.
        probabilities = logits.softmax(dim=1).mean(dim=0).tolist()
        order = sorted(range(len(model.classes)), key=lambda k: -probabilities[k])[:NUM_TOP]
        entry["top"] = [{"class": model.classes[k], "probability": probabilities[k]} for k in order]
        entry["input"] = results.write_image(f"{name}.input.png", inputs[0])
    elif logits.ndim == 4 and logits.shape[1] == len(model.classes) and model.shows != OBJECT:
        labels, counts, overlay = _segmented(model, photo.pixels, logits)
        shares = (counts / labels.size).tolist()
        entry["shares"] = dict(zip(model.classes, shares, strict=True))
        entry["classes"] = results.write_image(f"{name}.classes.png", labels, model.colors)
        suffix = "jpg" if max(width, height) <= JPEG_SIDE else "png"
        entry["overlay"] = results.write_image(f"{name}.overlay.{suffix}", overlay)
    else:
        shape = tuple(logits.shape[1:])
        raise InputError(
            f"{model.path}: an output of shape {shape} is neither class scores nor a "
            "segmentation map."
        )
    results.new.append(entry)
    return entry


def _segmented(
    model: ExportedModel, pixels: np.ndarray, logits: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return classes `(H, W)` uint8, the pixel count of each, and the blended photo."""
    height, width = pixels.shape[:2]
    labels = np.empty((height, width), np.uint8)
    counts = np.zeros(len(model.classes), np.int64)
    for top, strip in label_strips(logits, windows(width, height), width, height):
        labels[top : top + len(strip)] = strip
        counts += np.bincount(strip.ravel(), minlength=len(counts))
    colors = np.array(model.colors, np.uint16)
    overlay = np.empty_like(pixels)
    for top in range(0, height, OVERLAY_ROWS):
        rows = slice(top, top + OVERLAY_ROWS)
        overlay[rows] = (pixels[rows] + colors[labels[rows]]) // 2
    return labels, counts, overlay


def describe(entry: dict[str, Any]) -> str:
    """Return a prediction as lines of text."""
    file = entry["file"].encode(errors="replace").decode()
    width, height = entry["size"]
    shares = [(best["class"], best["probability"]) for best in entry.get("top", [])]
    shares += sorted(entry.get("shares", {}).items(), key=lambda share: -share[1])
    lines = [f"{file}  {width}x{height}"]
    if entry["notes"]:
        lines[0] += "  (" + "; ".join(entry["notes"]) + ")"
    lines.append("    " + "  ".join(f"{name} {100 * share:.1f} %" for name, share in shares))
    return "\n".join(lines)


class Results:
    """The folder of results; results of other images in it are never replaced.

    Raises:
        InputError: It cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.new: list[dict[str, Any]] = []
        self._file = folder / "predictions.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            before = json.loads(self._file.read_bytes())["images"] if self._file.exists() else []
            self._before = {entry["path"]: entry for entry in before}
            # Stem of results, in lower case for case-insensitive disks -> path of the image.
            self._names = {entry["name"].lower(): entry["path"] for entry in before}
        except OSError as error:
            raise InputError(f"cannot write --out {folder} ({error.strerror}).") from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InputError(
                f"{self._file} was not written by this command; name another folder with --out."
            ) from None

    def name_for(self, file: Path) -> str:
        """Return the stem of an image's results, unique among all images."""
        path = os.path.abspath(file)
        if path in self._before:
            return str(self._before[path]["name"])
        stem, number = file.stem, 1
        while self._names.setdefault(stem.lower(), path) != path:
            number += 1
            stem = f"{file.stem}-{number}"
        return stem

    def write_image(
        self, name: str, pixels: np.ndarray, palette: Sequence[tuple[int, int, int]] = ()
    ) -> str:
        """Write `(H, W, 3)` colours, or `(H, W)` palette indices; return the file's name."""
        image = Image.fromarray(pixels)
        if palette:
            image.putpalette([value for color in palette for value in color])
        with replacing(self.folder / name, durable=False) as file:
            if name.endswith(".jpg"):
                image.save(file, "JPEG", quality=90)
            else:
                image.save(file, "PNG")
        return name

    def save(self, model: ExportedModel) -> None:
        """Write `predictions.json`, and a legend of the classes if maps were written."""
        entries = {**self._before, **{entry["path"]: entry for entry in self.new}}
        content = {"export": str(model.path.absolute()), "images": list(entries.values())}
        write_text(self._file, json.dumps(content, indent=1))
        if any("shares" in entry for entry in self.new):
            self.write_image("legend.png", _legend(model))


def _legend(model: ExportedModel) -> np.ndarray:
    """Return an image of the class names with their colours, `(H, W, 3)` uint8."""
    font = ImageFont.load_default(16)
    width = 60 + max(round(font.getlength(name)) for name in model.classes)
    image = Image.new("RGB", (width, 12 + 26 * len(model.classes)), "white")
    draw = ImageDraw.Draw(image)
    for place, (name, color) in enumerate(zip(model.classes, model.colors, strict=True)):
        top = 10 + 26 * place
        draw.rectangle((10, top, 40, top + 16), color, "gray")
        draw.text((50, top + 8), name, "black", font, "lm")
    return np.asarray(image)
