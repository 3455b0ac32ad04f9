"""mini-facade: 256x256 photographs of facades and their 5-class masks.

Each `<data-dir>/facade/starter_set/{train,test_dev}/NAME.jpg` has a mask `NAME.png` beside it,
whose pixels are class indices (grey) or class colours (palette or RGB).

The training split of the published starter set has 302 facades, each cropped three times: images
i, i+302 and i+604 show the same building. `groups` says which images belong together, and the split
never divides a group.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from study.datasets import cmp_facade, pairs
from study.datasets.archive import unpacked
from study.datasets.mask import palette_of, read_mask
from study.datasets.near_duplicates import connect, look_alikes
from study.datasets.pairs import Pairs
from study.datasets.photo import TURNED, BadImage, averaged, read_photo
from study.datasets.source import DataSource
from study.datasets.unused_files import UnusedFiles, is_systems
from study.errors import InputError
from study.storage.cache import Entry, cached, checksum, file_stamps

CLASSES = ("others", "facade", "pillar", "window", "balcony")
# Class colours, from the palette of the data set's masks.
PALETTE = ((0, 0, 0), (0, 128, 255), (128, 255, 128), (255, 128, 0), (255, 0, 0))
SIZE = 256  # pixels, height and width
SPLITS = {"train": "train", "test_dev": "test"}  # folder -> name in the cache

LAYOUT = 3  # of the cached arrays; a different number rebuilds them

# SHA-256 of the names and contents of the published starter set's training pairs.
STARTER_SET_CHECKSUM = "1c17f13f84ec41966a4e4ae0825060df8f493fe6c22bf6e72742df1baefd222a"
STARTER_SET_FACADES = 302  # image i shows the facade i mod 302


def folder(source: DataSource) -> Path:
    """Return the folder that holds `train` and `test_dev`."""
    return source.data_dir / "facade" / "starter_set"


def find_pairs(root: Path) -> Pairs:
    """Return the pairs of photograph and mask in a folder, by name.

    Raises:
        InputError: A photograph or mask has no partner, a name appears twice, or there are no
            pairs.
    """
    found = pairs.find_pairs(root)
    for first, second in found.twice:
        raise InputError(f"{first} and {second.name} have the same name; remove or rename one.")
    if found.without:
        file, missing, wanted = found.without[0]
        num = len(found.without)
        more = f" {num} files of {num + 2 * len(found.pairs)} have no partner." if num > 1 else ""
        raise InputError(f"{file} has no {missing}: {wanted} is missing.{more}")
    if not found.pairs:
        named = f" ({found.unused})" if found.unused else ""
        raise InputError(f"{root} contains no pair of NAME.jpg and NAME.png{named}.")
    return found


def read_pair(pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decode a photograph `(3, 256, 256)` and its mask `(256, 256)` of class indices, uint8.

    Returns:
        Both, and the processing steps that older versions did not apply.

    Raises:
        InputError: Corrupted, of the wrong size, or with a label or colour that belongs to no
            class.
    """
    path, mask_path = pair
    try:
        photo = read_photo(path)
    except BadImage as error:
        raise InputError(f"{path}: {error}; replace the file.") from None
    if photo.pixels.shape[:2] != (SIZE, SIZE):
        height, width = photo.pixels.shape[:2]
        raise InputError(f"{path} is {width}x{height} pixels, but must be {SIZE}x{SIZE}.")
    labels, by_color = read_mask(mask_path, dict(enumerate(CLASSES)), palette_of(PALETTE))
    if labels.shape != (SIZE, SIZE):
        height, width = labels.shape
        raise InputError(
            f"{mask_path} is {width}x{height} pixels, but its photograph is {SIZE}x{SIZE}."
        )
    done = ["photographs turned as their EXIF data say"] if TURNED in photo.notes else []
    done += ["masks read by their colours"] if by_color else []
    return photo.pixels.transpose(2, 0, 1), labels, done


def acquire(source: DataSource, paths: Sequence[Path]) -> None:
    """Import a starter set, or build one from the CMP Facade Database.

    Args:
        source: Destination.
        paths: One folder or zip that contains `train` and `test_dev`, or the two CMP archives
            (zips or unpacked folders). If empty, an existing set is left as it is.

    Raises:
        InputError: `paths` contain nothing usable, or there are neither paths nor a set.
    """
    target = folder(source)
    if not paths:
        if not any((target / split).is_dir() for split in SPLITS):
            raise InputError(f"there is no facade data set in {target}. {cmp_facade.HOW_TO_GET}")
        return
    if len(paths) == 1:
        with unpacked(paths[0]) as root:
            found = _starter_sets(paths[0], root)
            if len(found) > 1:
                named = ", ".join(f"{one.relative_to(root)}/" for one in found)
                raise InputError(
                    f"{paths[0]} contains {len(found)} data sets ({named}); choose one."
                )
            if found:
                _import_starter_set(found[0], target)
                return
    cmp_facade.build(paths, target)


def _starter_sets(path: Path, root: Path) -> list[Path]:
    """Return all folders inside `root` that contain `train` and `test_dev`."""
    holders: dict[Path, set[str]] = {}
    for place, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_systems(name))
        if here := SPLITS.keys() & set(folders):
            holders[Path(place)] = here
            folders[:] = [name for name in folders if name not in here]
    for holder, here in holders.items():
        if missing := SPLITS.keys() - here:
            raise InputError(
                f"{path} has a folder {min(here)}, but no {min(missing)} beside it "
                f"(in {holder.relative_to(root)}/); a starter set has both."
            )
    return list(holders)


def _import_starter_set(root: Path, target: Path) -> None:
    found = {split: find_pairs(root / split) for split in SPLITS}
    drafts = {split: target / f".{split}.draft" for split in SPLITS}
    for split, draft in drafts.items():
        shutil.rmtree(draft, ignore_errors=True)
        for pair in found[split].pairs:
            read_pair(pair)  # refuse a corrupted file before replacing anything
            for file in pair:
                copy = draft / file.relative_to(root / split)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        if found[split].unused:
            print(f"{root / split}: {found[split].unused}", file=sys.stderr)
    for split in SPLITS:  # never mix the training split of one set with the test split of another
        shutil.rmtree(target / split, ignore_errors=True)
    for split, draft in drafts.items():
        draft.rename(target / split)
    (target / cmp_facade.SOURCES).unlink(missing_ok=True)


def load(source: DataSource) -> Entry:
    """Return the cached arrays of the data set.

    These are `{train,test}_images` `(N, 3, 256, 256)` uint8, `{train,test}_targets` `(N, 256, 256)`
    uint8, `train_alike` `(P, 2)` int64 (pairs of similar images), `{train,test}_groups` `(N,)`
    int64, and `train_shares` `(N, 5)` float64 (share of each class in an image's pixels).

    Raises:
        InputError: Missing or corrupted; the message names the file.
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
    found = {split: find_pairs(root / split) for split in SPLITS}
    files = [path for split in SPLITS for path in _files(found[split])]
    sources = [root / cmp_facade.SOURCES] if (root / cmp_facade.SOURCES).is_file() else []

    build = functools.partial(_build, found=found, sources=sources)
    entry = cached(source.cache_dir, "facade", [LAYOUT, *file_stamps(files + sources)], build)
    unused = UnusedFiles()
    for pairs_of_split in found.values():
        unused.update(pairs_of_split.unused)
    if unused:
        entry.meta["files"] = str(unused)
    return entry


def _build(draft: Path, *, found: Mapping[str, Pairs], sources: Sequence[Path]) -> dict[str, Any]:
    """Decode, verify and group all images; write the arrays and return the set's identity."""
    print("facade: verifying and caching the images (once per machine)", file=sys.stderr)
    counts, done = {}, Counter[str]()
    for split, name in SPLITS.items():
        counts[name], notes = _decode(found[split], draft, name)
        done.update(notes)
    train_checksum = checksum(_files(found["train"]))
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
    readings = ", ".join(f"{num} {phrase}" for phrase, num in sorted(done.items()))
    if readings:
        print(f"facade: {readings}", file=sys.stderr)
    files = [path for split in SPLITS for path in _files(found[split])]
    identity: dict[str, Any] = {
        "dataset": "mini-facade starter set" if known else "facade folder",
        "checksum": _with_readings(checksum(files), done),
        **counts,
    }
    if readings:
        identity["read"] = readings
    if sources:
        identity |= json.loads(sources[0].read_text())
    identity["facades"] = int(groups.max()) + 1
    identity["grouped_by"] = grouped_by
    identity["verified"] = "the published starter set" if known else "decodes, sizes, labels"
    return identity


def _decode(found: Pairs, draft: Path, name: str) -> tuple[int, list[str]]:
    """Write a split's images and targets; return their number and the steps of `read_pair`."""
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(read_pair, found.pairs))
    np.save(draft / f"{name}_images.npy", np.stack([image for image, _, _ in read]))
    np.save(draft / f"{name}_targets.npy", np.stack([labels for _, labels, _ in read]))
    return len(read), [note for _, _, notes in read for note in notes]


def _files(found: Pairs) -> list[Path]:
    return [path for pair in found.pairs for path in pair]


def _with_readings(checksum_of_files: str, done: Mapping[str, int]) -> str:
    """Return a checksum that also covers how files were read, unless as in older versions."""
    if not done:
        return checksum_of_files
    return hashlib.sha256(json.dumps([checksum_of_files, sorted(done)]).encode()).hexdigest()


def find_groups(num: int, alike: np.ndarray, train_checksum: str) -> tuple[np.ndarray, str]:
    """Return which facade each training image shows, and how this was determined.

    Args:
        num: Number of training images.
        alike: Pairs of images that look alike, `(P, 2)`.
        train_checksum: Identifies the published starter set, whose numbering is then used, too.

    Returns:
        Group numbers `(N,)` int64 from 0, and a phrase for the method.
    """
    pairs = alike
    grouped_by = "the images (phase correlation)"
    if train_checksum == STARTER_SET_CHECKSUM:
        rule = [(i, i % STARTER_SET_FACADES) for i in range(STARTER_SET_FACADES, num)]
        pairs = np.concatenate([pairs, np.array(rule)])
        grouped_by = "the set's numbering (i mod 302) and the images (phase correlation)"
    return connect(num, pairs), grouped_by


def class_shares(targets: np.ndarray) -> np.ndarray:
    """Return each class's share of the pixels of each image: `(N, 5)` float64."""
    flat = targets.reshape(len(targets), -1)
    return np.stack([(flat == label).mean(axis=1) for label in range(len(CLASSES))], axis=1)


def resized(entry: Entry, source: DataSource, size: int) -> Entry:
    """Return the cached arrays at another image size in pixels.

    Photographs are resized by area averaging, masks by nearest label.
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
