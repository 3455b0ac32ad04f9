"""Files that are whole or not there, and JSON documents that know whether they were altered.

A document carries the SHA-256 of its own content: `json.dumps(content, sort_keys=True)`, where
the content is the object without its key `sha256`.
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

# The file system asks for an object's size and then for so many bytes, so that of one that another
# command replaces in between a part is read. The checksum tells, and the object is read again.
TORN_READS = 3


@contextmanager
def replacing(path: AnyPath, *, durable: bool = True, shared: bool = False) -> Iterator[BinaryIO]:
    """Write a file beside its place and move it there; readers see the old one or the new one.

    Args:
        path: The file.
        durable: Whether to wait until it is on the disk, where a loss of power cannot harm it.
        shared: Whether another process may write the same file at the same time.

    Raises:
        StorageError: It cannot be written, for want of space for one; the old file is as it was.
    """
    if isinstance(path, ObjectPath):
        buffer = io.BytesIO()
        yield buffer
        path.write_bytes(buffer.getvalue())
        return
    own = f".{os.getpid()}.{threading.get_ident()}" if shared else ""
    draft = path.with_name(f".{path.name}{own}.draft")  # one that a kill left is written over
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):  # the first error says more
            draft.unlink(missing_ok=True)  # a part of a file would fill the disk still more
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}); free some space or fix the "
            "disk. Nothing recorded so far is lost: run the same command again to resume."
        ) from error


def write_text(path: AnyPath, text: str, *, durable: bool = True, shared: bool = False) -> None:
    """Write a text file whole or not at all; see `replacing`."""
    with replacing(path, durable=durable, shared=shared) as file:
        file.write(text.encode())


def write_document(path: AnyPath, content: dict[str, Any], *, shared: bool = False) -> None:
    """Write a JSON object with its checksum; see `replacing`."""
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
    write_text(path, text, shared=shared)


def read_document(path: AnyPath) -> dict[str, Any]:
    """Read what `write_document` wrote.

    Raises:
        DamagedFile: It is missing, cannot be read, or is not what was written.
    """
    for left in reversed(range(TORN_READS if isinstance(path, ObjectPath) else 1)):
        try:
            return _parsed(path, path.read_bytes())
        except FileNotFoundError:
            raise DamagedFile(f"{path} is missing.") from None
        except OSError as error:
            raise DamagedFile(f"{path} is damaged ({type(error).__name__}: {error}).") from None
        except DamagedFile:
            if not left:
                raise
    raise AssertionError


def _parsed(path: AnyPath, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
        digest = content.pop("sha256")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({type(error).__name__}: {error}).") from None
    if digest != _digest(content):
        raise DamagedFile(f"{path} is damaged: its content does not match its checksum.")
    assert isinstance(content, dict)
    return content


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """Yield the file itself, or of one in an object store a copy under the same name.

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
    """Return whether files in a folder can be locked; on some network drives none can.

    Raises:
        OSError: The folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where all can
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
    """Return the lock of a file, or nothing where there are no locks.

    `filelock` by itself makes a file there that outlives its process, and waits for it for ever.

    Args:
        path: The file, in a folder that exists.
        timeout: Seconds to wait for it; negative for ever.

    Raises:
        OSError: The folder cannot be written.
    """
    return FileLock(path, timeout=timeout) if can_lock(path.parent) else nullcontext()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
