"""Building mini-facade's 5 classes from the CMP Facade Database (Tylecek and Sara, GCPR 2013).

The database has two archives, base (378 facades) and extended (228), each with `NAME.jpg` and a
palette `NAME.png` whose values 1 to 12 are classes. Mapping to mini-facade's classes:

    facade 2 -> facade, pillar 11 -> pillar, window 3 -> window, balcony 7 -> balcony,
    background, door, cornice, sill, blind, deco, molding, shop -> others

as the masks of the published starter set show: cornices, sills and closed blinds are "others".
Images are resized to 256x256, photographs by area, masks by the nearest label. A seeded tenth of
the buildings becomes the test split, so scores are not comparable with the starter set's.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from study.datasets.archive import download, unpacked
from study.errors import InputError
from study.likeness import connect, look_alikes

URL = "https://cmp.felk.cvut.cz/~tylecr1/facade"
ARCHIVES = ("CMP_facade_DB_base.zip", "CMP_facade_DB_extended.zip")
TEST_SHARE = 0.1

# The database's label -> mini-facade's class index; labels that are absent here are "others".
NUM_LABELS = 12
CLASS_OF_LABEL = {2: 1, 11: 2, 3: 3, 7: 4}
# The colours of the starter set's masks.
PALETTE_BYTES = bytes([0, 0, 0, 0, 128, 255, 128, 255, 128, 255, 128, 0, 255, 0, 0])


def fetch(target: Path) -> list[Path]:
    """Download the two official archives into a folder, keeping those that are there."""
    return [download(f"{URL}/{name}", target / name) for name in ARCHIVES]


def build(paths: Sequence[Path], target: Path, size: int = 256) -> None:
    """Write `train` and `test_dev` folders in mini-facade's layout.

    Args:
        paths: Zips or folders with pairs of `NAME.jpg` and `NAME.png` of the database.
        target: Where to put the two folders; replaced only when all is built.
        size: Height and width in pixels.

    Raises:
        InputError: No such pairs, or a pair that cannot be used; the message names the file.
    """
    drafts = {split: target / f".{split}.draft" for split in ("train", "test_dev")}
    with contextlib.ExitStack() as stack:
        roots = [stack.enter_context(unpacked(path)) for path in paths]
        pairs = [
            (photo, photo.with_suffix(".png"))
            for root in roots
            for photo in sorted(root.rglob("[!.]*.jpg"))
            if photo.with_suffix(".png").exists()
        ]
        if not pairs:
            raise InputError(
                f"{', '.join(map(str, paths))}: neither a starter set (folders train and test_dev) "
                "nor archives of the CMP Facade Database (NAME.jpg beside NAME.png)."
            )
        print(f"building mini-facade from {len(pairs)} CMP facades", file=sys.stderr)
        read = [_read_pair(photo, mask, size) for photo, mask in pairs]
        photos = np.stack([np.asarray(photo) for photo, _ in read])
        groups = connect(len(photos), look_alikes(photos.transpose(0, 3, 1, 2)))
        buildings = np.random.default_rng(0).permutation(groups.max() + 1)
        held_out = set(buildings[: max(1, round(TEST_SHARE * len(buildings)))].tolist())
        for draft in drafts.values():
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        for (source, _), (photo, mask), group in zip(pairs, read, groups.tolist(), strict=True):
            draft = drafts["test_dev" if group in held_out else "train"]
            photo.save(draft / f"{source.stem}.jpg", quality=95)
            mask.save(draft / f"{source.stem}.png")
    for split in drafts:  # never the training split of one set beside the test split of another
        shutil.rmtree(target / split, ignore_errors=True)
    for split, draft in drafts.items():
        draft.rename(target / split)


def _read_pair(photo_path: Path, mask_path: Path, size: int) -> tuple[Image.Image, Image.Image]:
    try:
        with Image.open(photo_path) as image:
            photo = image.convert("RGB").resize((size, size), Image.Resampling.BOX)
        with Image.open(mask_path) as image:
            whole, labels = image.size, np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{photo_path} or its mask cannot be decoded ({error}).") from None
    lookup = np.full(256, 255, np.uint8)
    lookup[1 : NUM_LABELS + 1] = 0
    lookup[list(CLASS_OF_LABEL)] = list(CLASS_OF_LABEL.values())
    if labels.shape != whole[::-1] or lookup[labels].max() == 255:
        raise InputError(f"{mask_path} is no CMP mask: its labels are not all 1 to 12.")
    mask = Image.fromarray(lookup[labels]).resize((size, size), Image.Resampling.NEAREST)
    mask.putpalette(PALETTE_BYTES)
    return photo, mask
