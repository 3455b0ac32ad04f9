"""Import of the CMP Facade Database (Tylecek and Sara, GCPR 2013) with mini-facade's 5 classes.

The database has two archives, base (378 facades) and extended (228), each with `NAME.jpg` and a
palette `NAME.png` whose values 1 to 12 are classes. They are not downloaded: no checksum of them is
published, so the download could not be verified. The facades in the given archives are counted, and
the archives' SHA-256 is stored with the set. Mapping to mini-facade's classes:

    facade 2 -> facade, pillar 11 -> pillar, window 3 -> window, balcony 7 -> balcony,
    background, door, cornice, sill, blind, deco, molding, shop -> others

The masks of the published starter set use the same mapping: cornices, sills and closed blinds are
"others". Images are resized to 256x256, photographs by area averaging, masks by nearest label. A
seeded tenth of the buildings becomes the test split, so scores cannot be compared with those on the
starter set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from study.datasets.archive import unpacked
from study.datasets.mask import Color, read_mask
from study.datasets.near_duplicates import connect, look_alikes
from study.datasets.pairs import Pairs, find_pairs
from study.datasets.photo import BadImage, read_photo
from study.datasets.unused_files import UnusedFiles
from study.errors import InputError

URL = "https://cmp.felk.cvut.cz/~tylecr1/facade/"
# Part of the database -> its archive, pattern of its file names, number of facades.
PARTS = {
    "base": ("CMP_facade_DB_base.zip", re.compile(r"cmp_b\d{4}"), 378),
    "extended": ("CMP_facade_DB_extended.zip", re.compile(r"cmp_x\d{4}"), 228),
}
HOW_TO_GET = (
    "Import a starter set with `python -m study.data facade --from PATH`, or get "
    + " and ".join(archive for archive, _, _ in PARTS.values())
    + f" from {URL} (not downloaded for you: no checksum is published) and pass "
    "both with --from, or try the drawn data with --dataset sample."
)
SOURCES = "sources.json"  # beside the two folders: the archives they were built from
TEST_SHARE = 0.1

# The database's labels, their colours, and mini-facade's class.
LABELS: tuple[tuple[str, Color, int], ...] = (
    ("background", (0, 0, 170), 0),
    ("facade", (0, 0, 255), 1),
    ("window", (0, 85, 255), 3),
    ("door", (0, 170, 255), 0),
    ("cornice", (0, 255, 255), 0),
    ("sill", (85, 255, 170), 0),
    ("balcony", (170, 255, 85), 4),
    ("blind", (255, 255, 0), 0),
    ("deco", (255, 170, 0), 0),
    ("molding", (255, 85, 0), 0),
    ("pillar", (255, 0, 0), 2),
    ("shop", (170, 0, 0), 0),
)
NAMES = {label: name for label, (name, _, _) in enumerate(LABELS, start=1)}
COLORS = {color: label for label, (_, color, _) in enumerate(LABELS, start=1)}
CLASS_OF_LABEL = np.array([0, *(number for _, _, number in LABELS)], np.uint8)
# Colours of the starter set's masks.
PALETTE_BYTES = bytes([0, 0, 0, 0, 128, 255, 128, 255, 128, 255, 128, 0, 255, 0, 0])


def build(paths: Sequence[Path], target: Path, size: int = 256) -> None:
    """Write `train` and `test_dev` folders in mini-facade's layout.

    Args:
        paths: Zips or folders with the database's pairs of `NAME.jpg` and `NAME.png`.
        target: Parent of the two folders, which are replaced only when everything is built.
        size: Height and width in pixels.

    Raises:
        InputError: There are no such pairs, a name appears twice, or a pair is unusable; the
            message names the file.
    """
    with contextlib.ExitStack() as stack:
        found = {path: find_pairs(stack.enter_context(unpacked(path))) for path in paths}
        pairs = _usable(found)
        sources = [_source(path, len(one.pairs)) for path, one in found.items()]
        print(f"building mini-facade from {len(pairs)} CMP facades", file=sys.stderr)
        read = [_read_pair(photo, mask, size) for photo, mask in pairs]
    photos = np.stack([np.asarray(photo) for photo, _ in read])
    groups = connect(len(photos), look_alikes(photos.transpose(0, 3, 1, 2)))
    buildings = np.random.default_rng(0).permutation(groups.max() + 1)
    held_out = set(buildings[: max(1, round(TEST_SHARE * len(buildings)))].tolist())
    drafts = {split: target / f".{split}.draft" for split in ("train", "test_dev")}
    for draft in drafts.values():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    for (source, _), (photo, mask), group in zip(pairs, read, groups.tolist(), strict=True):
        draft = drafts["test_dev" if group in held_out else "train"]
        photo.save(draft / f"{source.stem}.jpg", quality=95)
        mask.save(draft / f"{source.stem}.png")
    for split in drafts:  # never mix the training split of one set with the test split of another
        shutil.rmtree(target / split, ignore_errors=True)
    for split, draft in drafts.items():
        draft.rename(target / split)
    (target / SOURCES).write_text(json.dumps({"built_from": sources}, indent=1))


def _usable(found: Mapping[Path, Pairs]) -> list[tuple[Path, Path]]:
    """Return the pairs of all archives, without duplicates; list unused files on stderr."""
    pairs = [pair for one in found.values() for pair in one.pairs]
    unused = UnusedFiles()
    for one in found.values():
        unused.update(one.unused)
        for file, missing, _ in one.without:
            unused.add(f"without a {missing}", file.name)
    if not pairs:
        named = f"; {unused}" if unused else ""
        raise InputError(
            f"{', '.join(map(str, found))}: neither a starter set (folders train and test_dev) "
            f"nor archives of the CMP Facade Database (NAME.jpg beside NAME.png){named}."
        )
    seen: dict[str, Path] = {}
    twice = [second for one in found.values() for _, second in one.twice]
    twice += [photo for photo, _ in pairs if seen.setdefault(photo.stem, photo) != photo]
    if twice:
        raise InputError(f"{twice[0].name} appears twice; pass each part of the database once.")
    for path, one in found.items():
        _say_what_is_there(path, [photo.stem for photo, _ in one.pairs])
    if unused:
        print(unused, file=sys.stderr)
    return pairs


def _say_what_is_there(path: Path, stems: list[str]) -> None:
    """Report on stderr which part of the database is incomplete."""
    for part, (_, pattern, num) in PARTS.items():
        here = sum(bool(pattern.fullmatch(stem)) for stem in stems)
        if here and here != num:
            print(f"{path}: {here} of the {num} facades of part {part}", file=sys.stderr)


def _source(path: Path, num: int) -> dict[str, Any]:
    """Return what identifies an archive: name, number of facades and, for a file, SHA-256."""
    known = {"name": path.name, "facades": num}
    if path.is_file():
        with path.open("rb") as file:
            known["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return known


def _read_pair(photo_path: Path, mask_path: Path, size: int) -> tuple[Image.Image, Image.Image]:
    try:
        whole = Image.fromarray(read_photo(photo_path).pixels)
    except BadImage as error:
        raise InputError(f"{photo_path}: {error}; replace the file.") from None
    try:
        labels, _ = read_mask(mask_path, NAMES, COLORS)
    except InputError as error:
        raise InputError(f"{mask_path} is not a CMP mask: {error}") from None
    if labels.shape != whole.size[::-1]:
        height, width = labels.shape
        raise InputError(
            f"{mask_path} is {width}x{height} pixels, but its photograph is "
            f"{whole.width}x{whole.height}."
        )
    nearest = Image.Resampling.NEAREST
    mask = Image.fromarray(CLASS_OF_LABEL[labels]).resize((size, size), nearest)
    mask.putpalette(PALETTE_BYTES)
    return whole.resize((size, size), Image.Resampling.BOX), mask
