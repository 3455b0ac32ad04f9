"""Pairs of photograph and mask: `NAME.jpg` and `NAME.png` in the same folder.

Suffixes are case-insensitive, `.jpeg` is allowed, too, and subfolders are searched.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from study.datasets.unused_files import SYSTEM, UnusedFiles, is_systems
from study.errors import InputError

PHOTOS, MASKS = (".jpg", ".jpeg"), (".png",)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The files of a folder.

    Attributes:
        pairs: Photograph and mask, sorted by name.
        without: For each file without a partner: the file, the missing kind ("mask") and the
            expected file.
        twice: Two files of the same folder, name and kind.
        unused: All other files.
    """

    pairs: list[tuple[Path, Path]]
    without: list[tuple[Path, str, Path]]
    twice: list[tuple[Path, Path]]
    unused: UnusedFiles


def find_pairs(root: Path) -> Pairs:
    """Return the pairs in a folder and its subfolders, and all files that are not in a pair.

    Raises:
        InputError: One of the folders cannot be read.
    """
    photos: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    twice = []
    unused = UnusedFiles()
    for place, folders, files in os.walk(root, onerror=_refuse):
        for name in list(folders):
            if is_systems(name):
                unused.add(SYSTEM, name)
                folders.remove(name)
            elif os.path.islink(os.path.join(place, name)):
                unused.add("link to a folder", Path(place, name).relative_to(root))
        for name in sorted(files):
            path = Path(place, name)
            suffix = path.suffix.lower()
            if is_systems(name):
                unused.add(SYSTEM, name)
            elif not path.is_file():
                unused.add("broken link", path.relative_to(root))
            elif suffix not in PHOTOS + MASKS:
                unused.add("neither JPEG nor PNG by their names", path.relative_to(root))
            else:
                found = photos if suffix in PHOTOS else masks
                other = found.setdefault(str(path.relative_to(root).with_suffix("")), path)
                if other != path:
                    twice.append((other, path))
    without = [
        (path, "mask", path.with_suffix(".png"))
        for name, path in photos.items()
        if name not in masks
    ]
    without += [
        (path, "photograph", path.with_suffix(".jpg"))
        for name, path in masks.items()
        if name not in photos
    ]
    pairs = [(photos[name], masks[name]) for name in sorted(photos.keys() & masks.keys())]
    return Pairs(pairs, sorted(without), twice, unused)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}).")
