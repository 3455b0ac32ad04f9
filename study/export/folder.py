"""The folder of an export: written as a draft beside it, which replaces it when complete.

    target = make_ready(Path("export/facade"))  # before anything slow, and before the test
    with draft_of(target) as draft:
        ...                                     # write the files of OWN
        publish(draft, target)

The two are exchanged atomically, so that a kill leaves either the old export or the new one. A
user's own files are kept: they are linked into the draft before, and late ones are moved after.
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
STALE_SECONDS = 24 * 3600  # an older draft was left by a killed command


def make_ready(folder: Path) -> Path:
    """Prepare a folder for an export, and return its path with links resolved.

    Parent folders are created, and leftovers of a killed command are cleaned up.

    Raises:
        InputError: It is not a folder, contains something other than an earlier export, or cannot
            be replaced.
    """
    try:
        target = folder.expanduser().resolve()
        if target.exists() and not target.is_dir():
            raise InputError(f"--export {folder} is a file; name a folder.")
        _recover(target)
        if target.exists():
            _check_earlier(folder, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(target):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {folder} ({why}); name another folder.") from None
    return target


def _check_earlier(folder: Path, target: Path) -> None:
    """Refuse a folder that an export must not or cannot replace.

    Raises:
        InputError: The folder is refused.
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
    for _ in _walk(target):  # check that everything to keep is readable
        pass


def _recover(target: Path) -> None:
    """Complete or clean up what a killed command has left while replacing an export."""
    for old in sorted(target.parent.glob(f"{_hidden(target)}.old-*")):
        if not target.exists():
            old.rename(target)
    for left in target.parent.glob(f"{_hidden(target)}.draft-*"):
        with suppress(FileNotFoundError):  # its command has just finished
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                if target.exists():
                    _bring_over(left, target, _move_if_missing)
                shutil.rmtree(left)


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target; remove it afterwards.

    Raises:
        OSError: It cannot be created.
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
    """Replace the target with a complete draft, keeping the files that are not an export's own.

    Raises:
        StorageError: It cannot be replaced, or not all other files could be kept; says where they
            are.
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
    """Bring files that are not an export's own from one folder to another, if missing there."""
    for below, files in list(_walk(source)):  # listed before anything is moved
        if not files:
            _make_like(source / below, goal / below)
        for name in files:
            here, there = source / below / name, goal / below / name
            if not _is_own(below / name) and not _is_same(here, there):
                _make_like(here.parent, there.parent)
                bring(here, there)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each subfolder that has files or is empty, with its files and links.

    Raises:
        OSError: A folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        if files or links or not folders:
            yield Path(place).relative_to(folder), [*files, *links]


def _make_like(here: Path, there: Path) -> None:
    """Create a folder and its parents with the same modes as the existing ones."""
    if not there.exists():
        _make_like(here.parent, there.parent)
        there.mkdir()
        shutil.copymode(here, there)


def _move_if_missing(here: Path, there: Path) -> None:
    if not os.path.lexists(there):
        here.rename(there)


def _is_own(path: Path) -> bool:
    """Return whether a file is an export's own; the path is relative to its folder."""
    if path.parent.parts in FIGURES:
        return path.suffix == ".png"
    return str(path) in OWN


def _is_same(one: Path, other: Path) -> bool:
    with suppress(FileNotFoundError):
        first, second = one.lstat(), other.lstat()
        return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
    return False


def _link(here: Path, there: Path) -> None:
    """Link a file into the other folder; one that cannot be linked is moved after the exchange."""
    with suppress(OSError):
        os.link(here, there, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders with the same parent, atomically if the system can.

    Raises:
        OSError: They cannot be exchanged.
    """
    if _exchange_at_once(one, other):
        return
    aside = other.with_name(f"{_hidden(other)}.old-{one.name[-8:]}")  # `_recover` looks for it
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Exchange two folders with Linux's renameat2 or macOS's renamex_np; return if it succeeded."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of stdio.h
        return bool(libc.renameat2(here, paths[0], here, paths[1], exchange) == 0)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        swap = 2  # RENAME_SWAP of stdio.h
        return bool(libc.renamex_np(*paths, swap) == 0)
    return False
