"""Safe unpacking of zip archives: complete or not at all, within limits and inside one folder."""

from __future__ import annotations

import contextlib
import errno
import lzma
import shutil
import stat
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from study.errors import InputError

MOST_BYTES = 8 * 2**30  # total size of all members, unpacked
MOST_MEMBERS = 200_000
MOST_RATIO = 200  # unpacked to packed size, for archives above `SMALL`; about 1 for images
SMALL = 100 * 2**20  # bytes

READABLE = {0: "stored", 8: "deflate", 12: "bzip2", 14: "lzma"}  # what zipfile always supports
OTHERS = {9: "Deflate64", 93: "zstd", 95: "xz", 98: "PPMd", 99: "AES"}
ENCRYPTED = 0x1  # flag bits of a member
UTF_8 = 0x800
KINDS = {  # first bytes -> name of the format
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a folder as it is, or a zip unpacked into a temporary folder.

    Raises:
        InputError: The path is neither a folder nor a valid zip, or the zip exceeds the limits or
            has a member that is encrypted, a link, outside the folder or a duplicate. The message
            names the archive, the member and what to do.
    """
    if path.is_dir():
        yield path
        return
    if not path.exists():
        raise InputError(f"there is no {path}.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is neither a folder nor a zip archive{_what_it_is(path)}.")
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        root = Path(scratch).resolve()
        with _opened(path) as archive:
            targets = _targets(path, archive)
            room = shutil.disk_usage(root).free
            size = sum(member.file_size for member in targets.values())
            if size > room:
                raise InputError(
                    f"{path} needs {size:,} bytes unpacked, but {root.parent} has only {room:,} "
                    "free; set TMPDIR to a folder with more space."
                )
            for target, member in targets.items():
                _unpack(path, archive, member, root / target)
        yield root


def _what_it_is(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        return f" ({error.strerror})"
    kind = next((kind for magic, kind in KINDS.items() if head.startswith(magic)), None)
    kind = "tar" if head[257:262] == b"ustar" else kind
    return f" (it is {kind}; unpack it and name the folder)" if kind else ""


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        try:
            return zipfile.ZipFile(path, metadata_encoding="utf-8")
        except UnicodeDecodeError:  # names in an unknown encoding
            archive = zipfile.ZipFile(path)
            print(f"{path}: file names in it are not UTF-8; some may look odd", file=sys.stderr)
            return archive
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: file names in it are marked as UTF-8 but are not; unpack it yourself and "
            "name the folder."
        ) from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise InputError(f"{path} is corrupted ({error}); download it again.") from None


def _targets(path: Path, archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the target of each file of an archive, after all checks that need no unpacking."""
    members = archive.infolist()
    size, packed = sum(member.file_size for member in members), path.stat().st_size
    if len(members) > MOST_MEMBERS or size > MOST_BYTES or size > max(SMALL, MOST_RATIO * packed):
        raise InputError(
            f"{path} would unpack to {size:,} bytes in {len(members):,} files, {size // packed} "
            f"times its size; refused above {MOST_BYTES:,} bytes, {MOST_MEMBERS:,} files or "
            f"{MOST_RATIO} times. If you trust it, unpack it yourself and name the folder."
        )
    targets: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for member in members:
        shown = _shown(member)
        name = member.filename.replace("\\", "/")  # some Windows programs write backslashes
        target = PurePosixPath(name)
        if target.is_absolute() or ".." in target.parts or name[1:2] == ":":
            raise InputError(
                f"{path} would write outside its folder ({shown}); refused, nothing was unpacked."
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(
                f"{path}: {shown} is a symbolic link, which is refused; pack the files themselves."
            )
        if member.flag_bits & ENCRYPTED:
            raise InputError(
                f"{path}: {shown} is encrypted; unpack it yourself, with its password, "
                "and name the folder."
            )
        if member.compress_type not in READABLE:
            number = member.compress_type
            raise InputError(
                f"{path}: {shown} is compressed with {OTHERS.get(number, 'a method')} "
                f"(number {number}) that Python cannot unpack; unpack it yourself and name the "
                "folder, or pack it with deflate."
            )
        if name.endswith("/"):
            continue
        if target in targets:
            raise InputError(f"{path} contains {shown} twice; pack it again.")
        targets[target] = member
    return targets


def _unpack(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    shown = _shown(member)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as packed, target.open("xb") as file:
            shutil.copyfileobj(packed, file)
    except NotImplementedError as error:
        raise InputError(
            f"{path}: {shown} cannot be unpacked by Python ({error}); unpack it yourself "
            "and name the folder."
        ) from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error) as error:
        raise InputError(f"{path} is corrupted ({shown}: {error}); download it again.") from None
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "set TMPDIR to a folder with more space"
        else:
            what = "unpack it yourself and name the folder"
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(f"{path}: {shown} cannot be unpacked ({reason}); {what}.") from None


def _shown(member: zipfile.ZipInfo) -> str:
    """Return a member's name for a message, without control characters."""
    return member.filename if member.filename.isprintable() else ascii(member.filename)
