"""Archives that are sound, damaged, hostile or only strange: unpacked, or refused in one line."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.datasets import archive
from study.datasets.archive import unpacked
from study.errors import InputError


def content(path: Path) -> dict[str, bytes]:
    """Return what an archive gives."""
    with unpacked(path) as root:
        files = [file for file in root.rglob("*") if file.is_file()]
        return {str(file.relative_to(root)): file.read_bytes() for file in files}


def write(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in members.items():
            file.writestr(name, body)
    return path


def patched(path: Path, old: bytes, new: bytes) -> Path:
    """Change bytes of all headers of an archive."""
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def with_method(path: Path, number: int) -> Path:
    """Say that the members are compressed by another method."""
    data = bytearray(write(path, a=b"a" * 100).read_bytes())
    struct.pack_into("<H", data, 8, number)  # of the member's own header
    struct.pack_into("<H", data, data.index(b"PK\1\2") + 10, number)
    path.write_bytes(data)
    return path


def with_flags(path: Path, flags: int) -> Path:
    """Set bits in the headers of a member."""
    data = bytearray(write(path, secret=b"a" * 100).read_bytes())
    data[6] |= flags
    data[data.index(b"PK\1\2") + 8] |= flags
    path.write_bytes(data)
    return path


def test_a_sound_archive_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", **{"x/ä.jpg": b"1", "y.png": b"2" * 1000, "empty/": b""})
    assert content(path) == {"x/ä.jpg": b"1", "y.png": b"2" * 1000}


def test_names_of_other_systems_are_understood(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "a.zip", **{"d_x.jpg": b"1", "ae.png": b"2"})
    patched(path, b"d_x.jpg", b"d\\x.jpg")  # as some programs on Windows write
    patched(path, b"ae.png", "ä.png".encode())  # UTF-8 that does not say so: the Finder's
    assert content(path) == {"d/x.jpg": b"1", "ä.png": b"2"} and not capsys.readouterr().err
    patched(path, "ä.png".encode(), b"\x81x.png")  # of a code page
    assert len(content(path)) == 2 and "file names in it are not UTF-8" in capsys.readouterr().err


def link(path: Path) -> Path:
    member = zipfile.ZipInfo("link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, "/etc/passwd")
    return path


def twice(path: Path) -> Path:
    write(path, **{"a_": b"1", "a-": b"2"})
    patched(path, b"a_", b"aa")
    return patched(path, b"a-", b"aa")


def lying_name(path: Path) -> Path:
    """Names that say they are UTF-8 and are not."""
    return patched(write(path, **{"ä.png": b"1"}), "ä".encode(), b"\xff\xfe")


def damaged(path: Path) -> Path:
    data = bytearray(write(path, a=bytes(range(256)) * 50).read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    return path


def bomb(path: Path) -> Path:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("zeros", "w") as member,
    ):
        for _ in range(120):
            member.write(bytes(2**20))
    return path


def many(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for number in range(30):
            file.writestr(f"{number}", b"")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: with_method(p, 9),
            "a is compressed with Deflate64 .*unpack it yourself and name",
        ),
        (lambda p: with_method(p, 93), "a is compressed with zstd"),
        (lambda p: with_method(p, 77), "a is compressed with a method .number 77."),
        (
            lambda p: with_flags(p, 0x1),
            "secret is encrypted; unpack it yourself, with its password",
        ),
        (lambda p: with_flags(p, 0x20), "secret cannot be unpacked by Python"),
        (lambda p: write(p, **{"../x": b""}), r"outside its folder \(../x\)"),
        (lambda p: write(p, **{"/x": b""}), r"outside its folder \(/x\)"),
        (lambda p: write(p, **{"C:/x": b""}), r"outside its folder"),
        (lambda p: write(p, **{"a\\..\\..\\x": b""}), r"outside its folder"),
        (link, "link is a symbolic link"),
        (twice, "contains aa twice"),
        (lying_name, "file names in it are marked as UTF-8 but are not"),
        (damaged, "is corrupted .a: "),
        (bomb, r"would unpack to 125,829,120 bytes in 1 files, \d{3,} times its size"),
        (many, "in 30 files"),
        (lambda p: write(p, **{"n" * 300: b""}), "n cannot be unpacked .File name too long"),
        (lambda p: write(p, **{"a": b"", "a/b": b""}), "a/b cannot be unpacked"),
    ],
)
def test_what_cannot_be_unpacked_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make, message: str
) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 20)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(archive.tempfile, "tempdir", str(scratch))
    path = make(tmp_path / "set.zip")
    with pytest.raises(InputError, match=message) as caught:
        content(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(scratch.iterdir()) == [] and not (tmp_path / "x").exists()


def test_a_disk_without_room_is_told_before(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.zip", a=bytes(1000))
    usage = archive.shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(InputError, match=r"needs 1,000 bytes .* has only 999 free; set TMPDIR"):
        content(path)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x1f\x8b", "gzip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!", "rar"),
        (bytes(257) + b"ustar", "tar"),
    ],
)
def test_another_archive_is_named(tmp_path: Path, head: bytes, kind: str) -> None:
    (tmp_path / "a").write_bytes(head + bytes(600))
    with pytest.raises(InputError, match=f"it is {kind}; unpack it and name the folder"):
        content(tmp_path / "a")


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 420), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 40),
)
def test_any_damage_is_one_line(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    path = write(tmp_path / "a.zip", **{"ä/x.jpg": bytes(range(90)), "y.png": b"2" * 99})
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut] if cut > 20 else data))
    try:
        content(path)
    except InputError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
