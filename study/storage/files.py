"""Atomic file writes, and JSON documents with a checksum.

A document contains the SHA-256 of `json.dumps(content, sort_keys=True)`, where the content is the
object without its key `sha256`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from study.errors import DamagedFile, StorageError
from study.storage.paths import AnyPath, ObjectPath

# The file system reads an object's size and then that many bytes, so an object that is replaced in
# between is read in part. The checksum reveals it, and the object is read again.
TORN_READS = 3


@contextmanager
def replacing(path: AnyPath, *, durable: bool = True, shared: bool = False) -> Iterator[BinaryIO]:
    """Write a draft and rename it to the file, so that readers see the old or the new content.

    Args:
        path: The file.
        durable: Whether to flush to disk, so that the file survives a power loss.
        shared: Whether another process may write the same file at the same time.

    Raises:
        StorageError: The file cannot be written (disk full, say); the old one is unchanged.
    """
    if isinstance(path, ObjectPath):
        buffer = io.BytesIO()
        yield buffer
        path.write_bytes(buffer.getvalue())
        return
    own = f".{os.getpid()}.{threading.get_ident()}" if shared else ""
    draft = path.with_name(f".{path.name}{own}.draft")  # overwrites one left by a killed process
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):  # the first error says more
            draft.unlink(missing_ok=True)  # it would only use more space
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}); free some space or fix the "
            "disk. Nothing recorded so far is lost: run the same command again to resume."
        ) from error


def write_text(path: AnyPath, text: str, *, durable: bool = True, shared: bool = False) -> None:
    """Write a text file atomically; see `replacing`."""
    with replacing(path, durable=durable, shared=shared) as file:
        file.write(text.encode())


def write_document(path: AnyPath, content: dict[str, Any], *, shared: bool = False) -> None:
    """Write a JSON object with its checksum; see `replacing`."""
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
    write_text(path, text, shared=shared)


def read_document(path: AnyPath) -> dict[str, Any]:
    """Read a document written by `write_document`.

    Raises:
        DamagedFile: The file is missing, unreadable or corrupted.
    """
    for left in reversed(range(TORN_READS if isinstance(path, ObjectPath) else 1)):
        try:
            return _parsed(path, path.read_bytes())
        except FileNotFoundError:
            raise DamagedFile(f"{path} is missing.") from None
        except OSError as error:
            raise DamagedFile(f"{path} is corrupted ({type(error).__name__}: {error}).") from None
        except DamagedFile:
            if not left:
                raise
    raise AssertionError


def _parsed(path: AnyPath, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
        digest = content.pop("sha256")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path} is corrupted ({type(error).__name__}: {error}).") from None
    if digest != _digest(content):
        raise DamagedFile(f"{path} is corrupted: its content does not match its checksum.")
    assert isinstance(content, dict)
    return content


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """Yield a local file itself, or a copy of an object under the same name.

    Raises:
        FileNotFoundError: There is no such object.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        copy = Path(scratch) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


def can_lock(folder: Path) -> bool:
    """Return whether files in a folder can be locked; some network drives have no locks.

    Raises:
        OSError: The folder is not writable.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where locks always work
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            return False
    return True


def lock(path: Path, timeout: float = -1) -> AbstractContextManager[object]:
    """Return a file lock, or a null context where locks are unavailable.

    There, `filelock` would create a file that outlives its process, and wait for it forever.

    Args:
        path: The lock file, in an existing folder.
        timeout: Seconds to wait; negative: forever.

    Raises:
        OSError: The folder is not writable.
    """
    return FileLock(path, timeout=timeout) if can_lock(path.parent) else nullcontext()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
