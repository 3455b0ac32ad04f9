"""Paths in an object store (S3, Google Cloud Storage), for studies whose nodes share no disk.

`as_path("s3://bucket/studies")` gives an `ObjectPath`, which has of `pathlib.Path` what a study's
folder needs. An object is replaced whole or not at all, so readers never see a part of one.
Credentials and endpoint come from where the cloud's own tools take them (environment, profile,
the role of the machine); a query may name them too: `s3://bucket/studies?region=eu-central-1`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from study.errors import InputError, StorageError

SCHEMES = ("s3", "gs")


@dataclasses.dataclass(frozen=True)
class ObjectPath:
    """A place in an object store; folders exist only as parts of names.

    Attributes:
        scheme: `s3` or `gs`.
        key: Bucket and name, `bucket/studies/facade`.
        query: Options for the file system, as in a URI.
    """

    scheme: str
    key: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> ObjectPath:
        return dataclasses.replace(self, key=f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> ObjectPath:
        """The place above."""
        return dataclasses.replace(self, key=str(PurePosixPath(self.key).parent))

    def exists(self) -> bool:
        """Return whether there is an object of this name, or below it."""
        with self._asking("look for"):
            return bool(self._files.get_file_info(self.key).type.name != "NotFound")

    def modified(self) -> float:
        """Return when the object was written, in seconds since 1970."""
        with self._asking("look for"):
            return float(self._files.get_file_info(self.key).mtime_ns or 0) / 1e9

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield what is directly below; nothing if there is nothing."""
        from pyarrow.fs import FileSelector

        with self._asking("list"):
            found = self._files.get_file_info(FileSelector(self.key, allow_not_found=True))
        return (self / info.base_name for info in found)

    def read_bytes(self) -> bytes:
        """Return the content.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: The store does not answer, or refuses.
        """
        with self._asking("read"), self._files.open_input_stream(self.key) as stream:
            return bytes(stream.read())

    def write_bytes(self, content: bytes) -> None:
        """Replace the content.

        Raises:
            StorageError: The store does not answer, or refuses; the old content is as it was.
        """
        with self._asking("write"), self._files.open_output_stream(self.key) as stream:
            stream.write(content)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            with self._asking("delete"):
                self._files.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there as soon as something is in it."""

    @property
    def _files(self) -> Any:
        bucket = self.key.partition("/")[0]
        return _file_system(self.scheme, bucket, self.query)

    @contextmanager
    def _asking(self, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = " ".join(str(error).split())
            raise StorageError(
                f"cannot {verb} {self} ({reason}). Nothing recorded so far is lost: the same "
                "command goes on."
            ) from error


AnyPath: TypeAlias = Path | ObjectPath


def modified(path: AnyPath) -> float:
    """Return when a file or object was written, in seconds since 1970."""
    return path.stat().st_mtime if isinstance(path, Path) else path.modified()


def children(folder: AnyPath) -> list[AnyPath]:
    """Return what is directly in a folder, by name; nothing if there is no such folder."""
    found: list[AnyPath] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        found += folder.iterdir()
    return sorted(found, key=lambda path: path.name)


@functools.cache
def _file_system(scheme: str, bucket: str, query: str) -> Any:
    from pyarrow.fs import FileSystem

    uri = f"{scheme}://{bucket}" + (f"?{query}" if query else "")
    return FileSystem.from_uri(uri)[0]


def as_path(text: str) -> AnyPath:
    """Return the absolute path, or the place in an object store, that a text names.

    Raises:
        InputError: It is a URI of another kind.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text).expanduser().absolute()
    key, _, query = rest.partition("?")
    if scheme not in SCHEMES or not key.strip("/"):
        raise InputError(
            f"{text!r} is no folder; name one, or a place like s3://bucket/studies (gs:// works "
            "as well)."
        )
    return ObjectPath(scheme, key.strip("/"), query)
