"""Cache of arrays, built once per machine and memory-mapped by every process that uses them.

An entry is a folder of `.npy` files and a `meta.json`. It is built under a file lock in a draft
folder, which is then renamed: eight trials that start together build it once, and a killed build
leaves nothing that looks complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from study.errors import InputError
from study.storage.files import can_lock, lock
from study.system.environment import user_cache

# Part of every key: increase it when the layout of the arrays changes, to invalidate old entries.
LAYOUT = 1
PATIENCE_SECONDS = 5.0  # before a message about waiting for another process


def cache_home() -> Path:
    """Return the folder of all entries: `$STUDY_CACHE_DIR`, else the user's cache."""
    folder = os.environ.get("STUDY_CACHE_DIR")
    return Path(folder).expanduser().absolute() if folder else user_cache() / "study"


class Entry:
    """A complete cache entry: `array(name)` maps a file, `meta` is a JSON object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())

    def array(self, name: str) -> np.ndarray:
        """Memory-map an array; pages are shared by all processes and copied on write."""
        path = self.folder / f"{name}.npy"
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
        return array


def cached(
    cache_dir: Path, name: str, key: Iterable[object], build: Callable[[Path], dict[str, Any]]
) -> Entry:
    """Return the entry for `key`, building it if this machine does not have it yet.

    Args:
        cache_dir: Folder of all entries; created if missing.
        name: Readable first part of the entry's folder.
        key: Everything the content depends on; hashed into the folder's name.
        build: Writes the `.npy` files into the given folder and returns the metadata.

    Raises:
        InputError: The cache folder cannot be written.
    """
    digest = hashlib.sha256(json.dumps([LAYOUT, *key], default=str).encode()).hexdigest()[:12]
    folder = cache_dir / f"{name}-{digest}"
    if (folder / "meta.json").exists():
        return Entry(folder)
    with ExitStack() as held:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            _wait_for(held, cache_dir / f"{name}-{digest}.lock", name)
            alone = can_lock(cache_dir)
        except OSError as error:
            raise InputError(
                f"cannot write to the cache folder {cache_dir} ({error.strerror}); "
                "set STUDY_CACHE_DIR to a writable folder."
            ) from None
        if not (folder / "meta.json").exists():
            _build(folder, build, alone)
    return Entry(folder)


def _wait_for(held: ExitStack, place: Path, name: str) -> None:
    """Take the lock of an entry; print a message if another process holds it."""
    try:
        held.enter_context(lock(place, PATIENCE_SECONDS))
    except Timeout:
        print(
            f"waiting for another process that is preparing {name} (if it hangs, end it; it "
            f"holds {place})",
            file=sys.stderr,
        )
        held.enter_context(lock(place))


def _build(folder: Path, build: Callable[[Path], dict[str, Any]], alone: bool) -> None:
    """Build an entry in a draft folder and rename it.

    Without locks (`alone` is false) several processes may build the same entry; the first wins.
    """
    own = "" if alone else f"{socket.gethostname()}-{os.getpid()}."
    draft = folder.with_name(f".{folder.name}.{own}draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    meta = build(draft)
    (draft / "meta.json").write_text(json.dumps(meta, indent=1))
    if alone or not (folder / "meta.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(draft, folder)
    except OSError:
        if alone or not (folder / "meta.json").exists():
            raise
        shutil.rmtree(draft, ignore_errors=True)


def file_stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and modification time of files: a key that changes when a file does."""
    stamps = []
    for path in paths:
        stat = path.stat()
        stamps.append((str(path), stat.st_size, stat.st_mtime_ns))
    return stamps


def array_checksum(arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of the contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def checksum(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the names and contents of files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
