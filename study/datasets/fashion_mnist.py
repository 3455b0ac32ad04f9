"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): IDX files in torchvision's layout.

`<data-dir>/FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from study.datasets.archive import unpacked
from study.datasets.source import DataSource
from study.errors import InputError
from study.storage.cache import Entry, cached, file_stamps

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# File stem -> content, number of items, MD5 of the unpacked original.
FILES = {
    "train-images-idx3-ubyte": ("train_images", 60_000, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": ("train_targets", 60_000, "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": ("test_images", 10_000, "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": ("test_targets", 10_000, "15d484375f8d13e6eb1aabb0c3f46965"),
}
LARGEST = 16 + 60_000 * 28 * 28  # bytes of the largest file


def folder(source: DataSource) -> Path:
    """Return the folder of the IDX files."""
    return source.data_dir / "FashionMNIST" / "raw"


def find_files(raw: Path) -> dict[str, Path]:
    """Return the data set's files in a folder by stem, compressed or not."""
    found = {}
    for stem in FILES:
        for path in (raw / stem, raw / f"{stem}.gz"):
            if path.is_file():
                found[stem] = path
                break
    return found


def acquire(source: DataSource, paths: Sequence[Path]) -> None:
    """Import the files from a folder or zip, or download missing ones with torchvision.

    Raises:
        InputError: A path does not contain Fashion-MNIST, or there is no network.
    """
    raw = folder(source)
    if len(paths) > 1:
        raise InputError("Fashion-MNIST takes a single --from PATH.")
    for path in paths:
        with unpacked(path) as root:
            holders = {file.parent for stem in FILES for file in root.rglob(f"{stem}*")}
            whole = [holder for holder in holders if len(find_files(holder)) == len(FILES)]
            if not whole:
                here = {stem for holder in holders for stem in find_files(holder)}
                raise InputError(
                    f"{path} has no folder with the four files {', '.join(FILES)} or the same with "
                    f".gz; it has {len(here)} of them."
                )
            for file in find_files(whole[0]).values():
                decode(file)  # refuse a corrupted file before replacing anything
            raw.mkdir(parents=True, exist_ok=True)
            for file in find_files(whole[0]).values():
                shutil.copyfile(file, raw / file.name)
        return
    if len(find_files(raw)) == len(FILES):
        return
    from torchvision.datasets import FashionMNIST

    print(f"downloading Fashion-MNIST to {raw}", file=sys.stderr)
    try:
        FashionMNIST(str(source.data_dir), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot download Fashion-MNIST ({error}). With no network, either name a folder that "
            "has it (--data-dir DIR, with DIR/FashionMNIST/raw/*-ubyte.gz inside), or try the "
            "drawn data with --dataset sample."
        ) from None


def load(source: DataSource) -> Entry:
    """Return the cached arrays: `{train,test}_{images,targets}`, images `(N, 1, 28, 28)` uint8.

    Raises:
        InputError: A file is missing or corrupted; the message names it.
    """
    files = find_files(folder(source))
    for stem in FILES:
        if stem not in files:
            raise InputError(
                f"Fashion-MNIST is incomplete: there is no {folder(source) / stem}[.gz]. Run "
                "`python -m study.data fashion` to download it, name another folder with "
                "--data-dir, or try the drawn data with --dataset sample."
            )

    def build(draft: Path) -> dict[str, Any]:
        for stem, path in files.items():
            array = decode(path)
            if array.ndim == 3:
                array = array[:, None]
            np.save(draft / f"{FILES[stem][0]}.npy", array)
        return {
            "dataset": "Fashion-MNIST",
            "checksum": hashlib.sha256("".join(f[2] for f in FILES.values()).encode()).hexdigest(),
            "train": FILES["train-images-idx3-ubyte"][1],
            "test": FILES["t10k-images-idx3-ubyte"][1],
            "verified": "MD5 of all four files, as published",
        }

    return cached(source.cache_dir, "fashion", file_stamps(files.values()), build)


def decode(path: Path) -> np.ndarray:
    """Decode one IDX file: `(N, 28, 28)` or `(N,)` uint8.

    Format: two zero bytes, type 8 (unsigned byte), number of dimensions, each dimension as a
    big-endian 32-bit number, then the items (Y. LeCun's MNIST page).

    Raises:
        InputError: The file is not the published one.
    """
    stem = path.name.removesuffix(".gz")
    _, count, md5 = FILES[stem]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST + 1)  # a longer file has a different MD5
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be unpacked ({error}); delete it and download it again."
        ) from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise InputError(
            f"{path} is not the published file (its MD5 differs); delete it and download it again."
        )
    num_dimensions = content[3]
    shape = np.frombuffer(content, ">u4", num_dimensions, offset=4)
    assert shape[0] == count
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)
