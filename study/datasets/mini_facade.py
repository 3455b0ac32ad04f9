"""mini-facade: 256x256 photographs of facades and their 5-class masks.

`<data-dir>/facade/starter_set/{train,test_dev}/NAME.jpg` with a palette `NAME.png` beside it, whose
pixel values are class indices.

The training split of the published starter set is 302 facades, each cropped three times: images
i, i+302 and i+604 show one building. `groups` says which images belong together, and the split
keeps a group on one side.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from study.cache import Entry, cached, checksum, file_stamps
from study.data import DataSource
from study.datasets import cmp_facade
from study.datasets.archive import unpacked
from study.errors import InputError
from study.likeness import connect, look_alikes
from study.photo import averaged

CLASSES = ("others", "facade", "pillar", "window", "balcony")
# The data set's own colours, from the palette of its masks.
PALETTE = ((0, 0, 0), (0, 128, 255), (128, 255, 128), (255, 128, 0), (255, 0, 0))
SIZE = 256  # pixels, height and width
SPLITS = {"train": "train", "test_dev": "test"}  # folder -> name in the cache

LAYOUT = 2  # of what the cache holds; another number has it made anew

# The published starter set: SHA-256 over names and contents of its training pairs.
STARTER_SET_CHECKSUM = "1c17f13f84ec41966a4e4ae0825060df8f493fe6c22bf6e72742df1baefd222a"
STARTER_SET_FACADES = 302  # image i shows the facade i mod 302


def folder(source: DataSource) -> Path:
    """Return the folder that holds `train` and `test_dev`."""
    return source.data_dir / "facade" / "starter_set"


def find_pairs(root: Path) -> list[tuple[Path, Path]]:
    """Return the pairs of photograph and mask in a folder, by name.

    Raises:
        InputError: A photograph without its mask or the other way round, or no pair at all.
    """
    # Files that begin with a dot belong to the system that packed them.
    photos = {path.stem: path for path in sorted(root.glob("[!.]*.jpg"))}
    masks = {path.stem: path for path in sorted(root.glob("[!.]*.png"))}
    for stem, path in photos.items():
        if stem not in masks:
            raise InputError(f"{path} has no mask: {path.with_suffix('.png')} is missing.")
    for stem, path in masks.items():
        if stem not in photos:
            raise InputError(f"{path} has no photograph: {path.with_suffix('.jpg')} is missing.")
    if not photos:
        raise InputError(f"{root} holds no pair of NAME.jpg and NAME.png.")
    return [(photos[stem], masks[stem]) for stem in sorted(photos)]


def read_photo(path: Path) -> np.ndarray:
    """Decode a photograph: `(3, 256, 256)` uint8.

    Raises:
        InputError: Damaged, or of another size.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} cannot be decoded ({error}); get it again.") from None
    if pixels.shape[:2] != (SIZE, SIZE):
        height, width = pixels.shape[:2]
        raise InputError(f"{path} is {width}x{height} pixels, but must be {SIZE}x{SIZE}.")
    return pixels.transpose(2, 0, 1)


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask: `(256, 256)` uint8 class indices.

    Raises:
        InputError: Damaged, of another size, or with a label that is no class.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise InputError(
                    f"{path} has mode {image.mode}, but a mask is a palette or grey PNG whose "
                    "pixel values are class indices."
                )
            labels = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} cannot be decoded ({error}); get it again.") from None
    if labels.shape != (SIZE, SIZE):
        height, width = labels.shape
        raise InputError(f"{path} is {width}x{height} pixels, but its photograph is {SIZE}x{SIZE}.")
    if labels.max() >= len(CLASSES):
        raise InputError(
            f"{path} has the label {labels.max()}, but classes are 0 to {len(CLASSES) - 1} "
            f"({', '.join(CLASSES)})."
        )
    return labels


def acquire(source: DataSource, paths: Sequence[Path]) -> None:
    """Import a starter set, or build one from the CMP Facade Database.

    Args:
        source: Says where to put it.
        paths: One folder or zip with `train` and `test_dev` in it, or the two CMP archives
            (zips or unpacked folders); if empty and nothing is there yet, the two official
            archives are downloaded.

    Raises:
        InputError: Nothing usable in `paths`, or no network.
    """
    target = folder(source)
    if not paths:
        if all((target / split).is_dir() for split in SPLITS):
            return
        paths = cmp_facade.fetch(source.data_dir / "facade" / "download")
    roots: list[Path] = []
    if len(paths) == 1:
        with unpacked(paths[0]) as root:
            roots = [parent.parent for parent in sorted(root.rglob("test_dev")) if parent.is_dir()]
            roots = [found for found in roots if (found / "train").is_dir()]
            roots = [found for found in roots if "__MACOSX" not in found.parts]
            if roots:
                _import_starter_set(roots[0], target)
                return
    cmp_facade.build(paths, target)


def _import_starter_set(root: Path, target: Path) -> None:
    for split in SPLITS:
        for photo, mask in find_pairs(root / split):
            read_photo(photo)
            read_mask(mask)
    drafts = {split: target / f".{split}.draft" for split in SPLITS}
    for split, draft in drafts.items():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for photo, mask in find_pairs(root / split):
            shutil.copyfile(photo, draft / photo.name)
            shutil.copyfile(mask, draft / mask.name)
    for split in SPLITS:  # never the training split of one set beside the test split of another
        shutil.rmtree(target / split, ignore_errors=True)
    for split, draft in drafts.items():
        draft.rename(target / split)


def load(source: DataSource) -> Entry:
    """Return the cached arrays of the data set.

    They are `{train,test}_images` `(N, 3, 256, 256)` uint8, `{train,test}_targets` `(N, 256, 256)`
    uint8, `train_alike` `(P, 2)` int64, pairs that look alike, `{train,test}_groups` `(N,)` int64,
    and `train_shares` `(N, 5)` float64, the share of each class in the pixels of each image.

    Raises:
        InputError: Missing or damaged; the message names the file.
    """
    root = folder(source)
    for split in SPLITS:
        if not (root / split).is_dir():
            raise InputError(
                f"there is no facade data set: {root / split} is missing. Import it with `python "
                "-m study.data facade --from PATH` (a starter_set folder or zip, or the CMP "
                "archives), name another folder with --data-dir, or try the drawn data with "
                "--dataset sample."
            )
    pairs = {split: find_pairs(root / split) for split in SPLITS}
    files = [path for found in pairs.values() for pair in found for path in pair]

    def build(draft: Path) -> dict[str, Any]:
        print("facade: verifying and caching the images, once on this machine", file=sys.stderr)
        counts = {}
        with ThreadPoolExecutor() as pool:
            for split, name in SPLITS.items():
                images = np.stack(list(pool.map(read_photo, [pair[0] for pair in pairs[split]])))
                targets = np.stack(list(pool.map(read_mask, [pair[1] for pair in pairs[split]])))
                np.save(draft / f"{name}_images.npy", images)
                np.save(draft / f"{name}_targets.npy", targets)
                counts[name] = len(images)
        train_checksum = checksum(path for pair in pairs["train"] for path in pair)
        images = np.load(draft / "train_images.npy")
        print("facade: looking for crops of the same building", file=sys.stderr)
        alike = look_alikes(images)
        groups, grouped_by = find_groups(len(images), alike, train_checksum)
        test_alike = look_alikes(np.load(draft / "test_images.npy"))
        np.save(draft / "test_groups.npy", connect(counts["test"], test_alike))
        np.save(draft / "train_alike.npy", alike)
        np.save(draft / "train_groups.npy", groups)
        np.save(draft / "train_shares.npy", class_shares(np.load(draft / "train_targets.npy")))
        known = train_checksum == STARTER_SET_CHECKSUM
        return {
            "dataset": "mini-facade starter set" if known else "facade folder",
            "checksum": checksum(files),
            **counts,
            "facades": int(groups.max()) + 1,
            "grouped_by": grouped_by,
            "verified": "the published starter set" if known else "decodes, sizes, labels",
        }

    return cached(source.cache_dir, "facade", [LAYOUT, *file_stamps(files)], build)


def find_groups(num: int, alike: np.ndarray, train_checksum: str) -> tuple[np.ndarray, str]:
    """Return which facade each training image shows, and how that was found.

    Args:
        num: Number of training images.
        alike: Pairs of images that look alike, `(P, 2)`.
        train_checksum: Tells the published starter set, whose numbering is then used as well.

    Returns:
        Group numbers `(N,)` int64 from 0, and a phrase.
    """
    pairs = alike
    grouped_by = "the images (phase correlation)"
    if train_checksum == STARTER_SET_CHECKSUM:
        rule = [(i, i % STARTER_SET_FACADES) for i in range(STARTER_SET_FACADES, num)]
        pairs = np.concatenate([pairs, np.array(rule)])
        grouped_by = "the set's numbering (i mod 302) and the images (phase correlation)"
    return connect(num, pairs), grouped_by


def class_shares(targets: np.ndarray) -> np.ndarray:
    """Return the share of each class in the pixels of each image: `(N, 5)` float64."""
    flat = targets.reshape(len(targets), -1)
    return np.stack([(flat == label).mean(axis=1) for label in range(len(CLASSES))], axis=1)


def resized(entry: Entry, source: DataSource, size: int) -> Entry:
    """Return the cached arrays at another image size in pixels.

    Photographs are averaged over the area of each new pixel, masks take the nearest label.
    """
    if entry.array("train_images").shape[-1] == size:
        return entry

    def build(draft: Path) -> dict[str, Any]:
        for name in SPLITS.values():
            images = entry.array(f"{name}_images").transpose(0, 2, 3, 1)
            targets = entry.array(f"{name}_targets")
            nearest = Image.Resampling.NEAREST
            small = [averaged(Image.fromarray(image), size, size) for image in images]
            labels = [Image.fromarray(mask).resize((size, size), nearest) for mask in targets]
            stacked = np.stack([np.asarray(image) for image in small])
            np.save(draft / f"{name}_images.npy", stacked.transpose(0, 3, 1, 2).copy())
            np.save(draft / f"{name}_targets.npy", np.stack([np.asarray(m) for m in labels]))
        return entry.meta

    return cached(source.cache_dir, f"facade-{size}", [entry.folder.name, size], build)
