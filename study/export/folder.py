"""The folder of an export: a draft beside it takes its place when it is whole.

    target = make_ready(Path("export/facade"))  # before anything costs time, or opens the test
    with draft_of(target) as draft:
        ...                                     # write the files of OWN
        publish(draft, target)

Both are exchanged in one step, so that a kill leaves the old export or the new one. What a user has
put there stays: it is linked into the draft before, and what came meanwhile is moved after.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from study.errors import InputError, StorageError

OWN = ("model.pt2", "weights.safetensors", "meta.json", "README.md")
FIGURES = (("figures", "test"), ("figures", "validation"))  # their pictures are ours
STALE_SECONDS = 24 * 3600  # after which a draft is one that a kill left


def make_ready(folder: Path) -> Path:
    """Make a folder ready for an export, and return where it is: where links lead.

    Folders above it are made, and what a command that was killed has left is cleared up.

    Raises:
        InputError: It is no folder, holds something else than an earlier export, or cannot be
            replaced.
    """
    try:
        target = folder.expanduser().resolve()
        if target.exists() and not target.is_dir():
            raise InputError(f"--export {folder} is a file; name a folder.")
        _mend(target)
        if target.exists():
            _check_earlier(folder, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(target):
            pass
    except (OSError, RuntimeError) as error:  # the second for a link that leads to itself
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {folder} ({why}); name another folder.") from None
    return target


def _check_earlier(folder: Path, target: Path) -> None:
    """Refuse a folder that an export may not replace, or cannot.

    Raises:
        InputError: It is one.
        OSError: It cannot be read or written.
    """
    earlier = all((target / name).exists() for name in ("model.pt2", "meta.json"))
    if not earlier and any(target.iterdir()):
        raise InputError(
            f"{target} is not empty and is not an earlier export; name an empty folder."
        )
    if target in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"--export {folder} is, or contains, the current directory; name another folder, or "
            "change directory."
        )
    if os.path.ismount(target):
        raise InputError(f"--export {folder} is a mount point; name a folder inside it.")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    for _ in _walk(target):  # all that is to stay can be read
        pass


def _mend(target: Path) -> None:
    """Finish what a command that was killed while it put its export in place has left."""
    for old in sorted(target.parent.glob(f"{_hidden(target)}.old-*")):
        if not target.exists():
            old.rename(target)
    for left in target.parent.glob(f"{_hidden(target)}.draft-*"):
        with suppress(FileNotFoundError):  # it belongs to a command that is just done
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                if target.exists():
                    _bring_over(left, target, _move_if_missing)
                shutil.rmtree(left)


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target, which is gone afterwards.

    Raises:
        OSError: It cannot be made.
    """
    draft = target.parent / f"{_hidden(target)}.draft-{uuid.uuid4().hex[:8]}"
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _hidden(target: Path) -> str:
    return f".{target.name[:60]}"


def publish(draft: Path, target: Path) -> None:
    """Put a whole draft in the place of the target, and keep there what is not an export's own.

    Raises:
        StorageError: It cannot be put there, or not all that was there could be kept; says where
            that is.
    """
    try:
        if not target.exists():
            draft.rename(target)
            return
        shutil.copymode(target, draft)
        _bring_over(target, draft, _link)
        _exchange(draft, target)
    except OSError as error:
        raise StorageError(
            f"cannot move the export to {target} ({error.strerror}), which is unchanged; name "
            "another folder. The test is not repeated."
        ) from None
    try:
        _bring_over(draft, target, os.replace)
    except OSError as error:
        kept = target.with_name(f"{target.name}.kept-{draft.name[-8:]}")
        draft.rename(kept)
        raise StorageError(
            f"the export is in {target}, but {error.filename}, which was there before, could not "
            f"be kept ({error.strerror}): it is in {kept}."
        ) from None


def _bring_over(source: Path, goal: Path, bring: Callable[[Path, Path], None]) -> None:
    """Bring what is not an export's own from one folder to another, unless it is there already."""
    for below, files in list(_walk(source)):  # as it was before anything is moved
        if not files:
            _make_like(source / below, goal / below)
        for name in files:
            here, there = source / below / name, goal / below / name
            if not _is_own(below / name) and not _is_same(here, there):
                _make_like(here.parent, there.parent)
                bring(here, there)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below one that holds files or nothing, with its files and links.

    Raises:
        OSError: One cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        if files or links or not folders:
            yield Path(place).relative_to(folder), [*files, *links]


def _make_like(here: Path, there: Path) -> None:
    """Make a folder, with those that it is in, as private as the one that is there already."""
    if not there.exists():
        _make_like(here.parent, there.parent)
        there.mkdir()
        shutil.copymode(here, there)


def _move_if_missing(here: Path, there: Path) -> None:
    if not os.path.lexists(there):
        here.rename(there)


def _is_own(path: Path) -> bool:
    """Return whether a file is an export's own; the path is below its folder."""
    if path.parent.parts in FIGURES:
        return path.suffix == ".png"
    return str(path) in OWN


def _is_same(one: Path, other: Path) -> bool:
    with suppress(FileNotFoundError):
        first, second = one.lstat(), other.lstat()
        return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
    return False


def _link(here: Path, there: Path) -> None:
    """Have a file in both folders; one that cannot be is moved once the draft is in place."""
    with suppress(OSError):
        os.link(here, there, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders that lie in one; in one step, where the system can.

    Raises:
        OSError: They cannot be exchanged.
    """
    if _exchange_at_once(one, other):
        return
    aside = other.with_name(f"{_hidden(other)}.old-{one.name[-8:]}")  # `_mend` looks for it
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Exchange two folders by Linux's renameat2 or macOS's renamex_np; return whether it did."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of stdio.h
        return bool(libc.renameat2(here, paths[0], here, paths[1], exchange) == 0)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        swap = 2  # RENAME_SWAP of stdio.h
        return bool(libc.renamex_np(*paths, swap) == 0)
    return False
