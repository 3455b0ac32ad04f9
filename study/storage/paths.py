"""Paths in an object store (S3, Google Cloud Storage), for studies whose nodes share no disk.

`as_path("s3://bucket/studies")` returns an `ObjectPath`, which has the methods of `pathlib.Path`
that a study's folder needs. Objects are replaced atomically, so readers never see partial content.
Credentials and endpoint come from the usual places (environment, profile, the machine's role);
options can also be given in a query: `s3://bucket/studies?region=eu-central-1`.

Why not fsspec or universal-pathlib: they would replace the eight methods that call Arrow, but not
the code around them (final answers, one-line errors, the write guard). With s3fs a read takes two
to three times as long, a list up to four times; and it needs an older botocore than boto3, which
Ray uses.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

from study.errors import InputError, StorageError
from study.system.redaction import redacted

SCHEMES = ("s3", "gs")
RETRY_SECONDS = (1.0, 4.0)  # in addition to the file system's own retries
# The store's answer in messages of Arrow's file systems: its error code, or the HTTP status if
# there is none ("AWS Error UNKNOWN (HTTP status 400) during PutObject"). All have the same type.
ANSWER = re.compile(
    r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during|google::cloud::Status\((\w+)"
)
# Answers for which a retry is useless.
HOPELESS = frozenset(
    (
        "ACCESS_DENIED",
        "INVALID_ACCESS_KEY_ID",
        "INVALID_CLIENT_TOKEN_ID",
        "INVALID_SIGNATURE",
        "SIGNATURE_DOES_NOT_MATCH",
        "INCOMPLETE_SIGNATURE",
        "MISSING_AUTHENTICATION_TOKEN",
        "UNRECOGNIZED_CLIENT",
        "OPT_IN_REQUIRED",
        "REQUEST_EXPIRED",
        "REQUEST_TIME_TOO_SKEWED",
        "NO_SUCH_BUCKET",
        "NO_SUCH_KEY",
        "RESOURCE_NOT_FOUND",
        "INVALID_OBJECT_STATE",
        "INVALID_ACTION",
        "INVALID_PARAMETER_VALUE",
        "INVALID_QUERY_PARAMETER",
        "VALIDATION",
        "INVALID_PARAMETER_COMBINATION",
        "MISSING_PARAMETER",
        "MISSING_ACTION",
        "301",
        "400",
        "401",
        "403",
        "404",
        "405",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    )
)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ObjectPath:
    """A path in an object store; folders exist only as prefixes of names.

    Attributes:
        scheme: `s3` or `gs`.
        key: Bucket and name, `bucket/studies/facade`.
        query: Options for the file system, as in a URI.
        guard: Called before every attempt to write or delete this path or one below it; raises an
            error if that is no longer allowed.
    """

    scheme: str
    key: str
    query: str = ""
    guard: Callable[[], None] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> ObjectPath:
        return dataclasses.replace(self, key=f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The last component."""
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> ObjectPath:
        """The parent path."""
        return dataclasses.replace(self, key=str(PurePosixPath(self.key).parent))

    def exists(self) -> bool:
        """Return whether there is an object with this name or below it."""
        info = self._ask("look for", lambda files: files.get_file_info(self.key))
        return bool(info.type.name != "NotFound")

    def modified(self) -> float:
        """Return the object's modification time in seconds since 1970."""
        info = self._ask("look for", lambda files: files.get_file_info(self.key))
        return float(info.mtime_ns or 0) / 1e9

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield the direct children; nothing if there are none."""
        from pyarrow.fs import FileSelector

        below = FileSelector(self.key, allow_not_found=True)
        found = self._ask("list", lambda files: files.get_file_info(below))
        return (self / info.base_name for info in found)

    def read_bytes(self) -> bytes:
        """Return the content.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: The store does not respond, or refuses.
        """

        def read(files: Any) -> bytes:
            with files.open_input_stream(self.key) as stream:
                return bytes(stream.read())

        return self._ask("read", read)

    def write_bytes(self, content: bytes) -> None:
        """Replace the content.

        Raises:
            StorageError: The store does not respond, or refuses; the old content is unchanged.
        """

        def write(files: Any) -> None:
            with files.open_output_stream(self.key) as stream:
                stream.write(content)

        self._ask("write", write)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            self._ask("delete", lambda files: files.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists as soon as it contains something."""

    def rmdir(self) -> None:
        """Delete the marker of an empty folder; a store may leave one where an object was."""
        self._ask("delete", lambda files: files.delete_dir(self.key))

    def _ask(self, verb: str, call: Callable[[Any], T]) -> T:
        """Call the file system; retry unless the answer is final."""
        bucket = self.key.partition("/")[0]
        for pause in (*RETRY_SECONDS, None):
            if self.guard is not None and verb in ("write", "delete"):
                self.guard()
            try:
                return call(_file_system(self.scheme, bucket, self.query))
            except FileNotFoundError:
                raise
            except (OSError, ValueError) as error:
                if pause is not None and not is_hopeless(error, self.key):
                    time.sleep(pause)
                    continue
                raise StorageError(
                    f"cannot {verb} {self} ({' '.join(str(error).split())}). Nothing recorded so "
                    "far is lost: run the same command again to resume."
                ) from error
        raise AssertionError


def is_hopeless(error: Exception, key: str) -> bool:
    """Return whether a retry is useless, judging by the error's type or the store's answer.

    Args:
        error: The file system's exception.
        key: Bucket and name of the request; they are ignored even if they look like error codes.
    """
    if isinstance(error, ValueError):  # an invalid URI or name
        return True
    bucket, _, name = key.partition("/")
    text = str(error)
    for part in (key, name, bucket):
        text = text.replace(f"'{part}'", "")
    answer = ANSWER.search(text)
    if answer is None:
        return False
    aws, status, google = answer.groups()
    return (status or aws or google) in HOPELESS


AnyPath: TypeAlias = Path | ObjectPath


def modified(path: AnyPath) -> float:
    """Return the modification time of a file or object in seconds since 1970."""
    return path.stat().st_mtime if isinstance(path, Path) else path.modified()


def children(folder: AnyPath) -> list[AnyPath]:
    """Return the contents of a folder sorted by name; empty if there is no such folder."""
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
    """Return the absolute path, or the path in an object store, named by a text.

    Raises:
        InputError: The text is another kind of URI, or contains a password.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text).expanduser().absolute()
    key, _, query = rest.partition("?")
    if redacted(text) != text or "@" in key.split("/")[0]:
        raise InputError(
            f"{redacted(text)!r} contains keys, which would be stored with the study; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in AWS_PROFILE."
        )
    if scheme not in SCHEMES or not all(key.strip("/").split("/")):
        raise InputError(
            f"{text!r} is not a folder; use a folder, or a URI like s3://bucket/studies (gs:// "
            "works too)."
        )
    return ObjectPath(scheme, key.strip("/"), query)
