"""Opens an export of `study.best --export` for predictions: `model.pt2` and `meta.json`."""

from __future__ import annotations

import colorsys
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.errors import InputError
from study.task import OBJECT, WHOLE, load_task, task_names

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """An exported model.

    Attributes:
        path: The folder.
        meta: Content of `meta.json`.
        classes: Names of the classes.
        colors: Red, green and blue of each class, 0 to 255.
        channels: Of an image, 1 or 3.
        height: Of an image, pixels.
        width: Of an image, pixels.
        shows: `WHOLE` or `OBJECT`.
    """

    path: Path
    meta: dict[str, Any]
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    channels: int
    height: int
    width: int
    shows: str

    @staticmethod
    def open(path: Path) -> ExportedModel:
        """Read `meta.json`; for an older export, fill in missing values from the task.

        Raises:
            InputError: The folder is not an export, or its model cannot be applied to photos.
        """
        file = path / "meta.json"
        if not file.is_file() or not (path / "model.pt2").is_file():
            raise InputError(
                f"there is no export in {path}; make one with `python -m study.best --export`."
            )
        try:
            meta = json.loads(file.read_text())
            preparation = meta["preprocessing"]
            channels, height, width = map(int, preparation["input"][1:])
            classes = tuple(map(str, meta["classes"]))
            known = load_task(meta["task"]) if meta["task"] in task_names() else None
            colors = meta.get("colors") or getattr(known, "colors", None)
            colors = colors or default_colors(len(classes))
            shows = preparation.get("shows") or getattr(known, "shows", WHOLE)
            palette = tuple((int(r), int(g), int(b)) for r, g, b in colors)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(
                f"{file} is corrupted ({type(error).__name__}: {error}); export again."
            ) from None
        if channels not in (1, 3) or shows not in (WHOLE, OBJECT) or len(palette) != len(classes):
            raise InputError(
                f"{file}: a model with {channels} channels, {len(classes)} classes and "
                f"{len(palette)} colors that shows {shows!r} cannot be applied to photos."
            )
        return ExportedModel(path, meta, classes, palette, channels, height, width, shows)

    def load(self) -> Network:
        """Read `model.pt2`, which takes seconds.

        Raises:
            InputError: It is corrupted, or could run code.
        """
        return Network(load_module(self.path / "model.pt2"), self.channels)


def load_module(file: Path) -> Any:
    """Return an exported model, which takes images `(B, C, H, W)` float32 in [0, 1].

    Raises:
        InputError: It is corrupted, or could run code.
    """
    from study.inference.archive_check import UnsafeArchive, load_program

    try:
        return load_program(file).module()
    except UnsafeArchive as error:
        raise InputError(
            f"{file} is refused: {error}. Only what `study.best --export` writes is loaded, "
            "because other archives can run code; export again."
        ) from None
    except Exception as error:  # whatever the reader raises for a corrupted archive
        raise InputError(
            f"{file} cannot be loaded ({type(error).__name__}); export again."
        ) from None


class Network:
    """Maps 8-bit images to logits."""

    def __init__(self, module: Any, channels: int) -> None:
        self._module = module
        self._channels = channels

    def logits(self, images: np.ndarray) -> Tensor:
        """Return logits `(n, K, ...)` float32 of images `(n, H, W, 3)` uint8, model-sized."""
        import numpy as np
        import torch

        if self._channels == 1:
            # Weights of ITU-R 601-2, as in Pillow.
            grey = images @ np.array([0.299, 0.587, 0.114], np.float32)
            images = grey.round().astype(np.uint8)[..., None]
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
        with torch.inference_mode():
            result: Tensor = self._module(inputs).float()
        return result


def default_colors(number: int) -> list[tuple[int, int, int]]:
    """Return colours for classes without their own, evenly spaced in hue."""
    hues = [colorsys.hsv_to_rgb(n / number, 0.75, 0.95 - 0.35 * (n % 2)) for n in range(number)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]
