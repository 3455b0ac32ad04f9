"""The folder of an export: the user's files stay, and at every moment there is a whole one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from study.errors import InputError, StorageError
from study.export import folder as export_folder
from study.export.folder import OWN, draft_of, make_ready, publish


def write_export(folder: Path, version: str) -> None:
    """Write the files of an export, each of this version."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in OWN:
        (folder / name).write_text(version)
    (folder / "figures" / "test").mkdir(parents=True)
    (folder / "figures" / "test" / f"{version}.png").write_text(version)


def export_to(folder: Path, version: str) -> None:
    target = make_ready(folder)
    with draft_of(target) as draft:
        write_export(draft, version)
        publish(draft, target)


def versions(folder: Path) -> set[str]:
    figures = [path.name for path in (folder / "figures" / "test").glob("*.png")]
    return {(folder / name).read_text() for name in OWN} | {name[:-4] for name in figures}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export with what a user has put there."""
    folder = tmp_path / "export" / "facade"
    write_export(folder, "old")
    (folder / "notes.txt").write_text("notes")
    (folder / "predictions" / "deep").mkdir(parents=True)
    (folder / "predictions" / "deep" / "mask.png").write_text("mask")
    (folder / "predictions").chmod(0o700)
    (folder / "empty").mkdir()
    (folder / "figures" / "mine.png").write_text("mine")
    (folder / "link").symlink_to("notes.txt")
    (folder / "linked").symlink_to("predictions")
    return folder


def assert_kept(folder: Path) -> None:
    assert (folder / "notes.txt").read_text() == "notes"
    assert (folder / "predictions" / "deep" / "mask.png").read_text() == "mask"
    assert (folder / "predictions").stat().st_mode & 0o777 == 0o700
    assert (folder / "figures" / "mine.png").read_text() == "mine"
    assert (folder / "empty").is_dir()
    assert os.readlink(folder / "link") == "notes.txt" and (folder / "linked").is_symlink()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing is left over"


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_what_is_not_the_export_s_own_stays(folder: Path, monkeypatch, at_once, links) -> None:
    if not at_once:  # as on a network drive
        monkeypatch.setattr(export_folder, "_exchange_at_once", lambda *paths: False)
    if not links:
        monkeypatch.setattr(export_folder, "_link", lambda *paths: None)
    for version in ("new", "newer"):
        export_to(folder, version)
        assert versions(folder) == {version}
        assert_kept(folder)


def test_what_the_user_writes_meanwhile_stays(folder: Path, monkeypatch) -> None:
    exchange = export_folder._exchange

    def slow(draft: Path, target: Path) -> None:
        (target / "predictions" / "late.png").write_text("late")
        (target / "edited").write_text("edited")
        os.replace(target / "edited", target / "notes.txt")  # as editors save
        exchange(draft, target)

    monkeypatch.setattr(export_folder, "_exchange", slow)
    export_to(folder, "new")
    assert versions(folder) == {"new"}
    assert (folder / "predictions" / "late.png").read_text() == "late"
    assert (folder / "notes.txt").read_text() == "edited"


def test_a_link_to_a_folder_stays_one(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(folder)
    export_to(link, "new")
    assert link.is_symlink() and versions(folder) == {"new"}
    assert_kept(folder)
    ahead = tmp_path / "ahead"
    ahead.symlink_to(tmp_path / "not" / "there" / "yet")
    export_to(ahead, "first")
    assert ahead.is_symlink() and versions(tmp_path / "not" / "there" / "yet") == {"first"}


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from study.export import folder as export_folder
export_to = runpy.run_path(sys.argv[1])["export_to"]

calls = int(sys.argv[3])

def count(event, args):
    global calls
    if event in ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir"):
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def counted(one, other, exchange=export_folder._exchange_at_once):
    count("os.rename", ())
    done = exchange(one, other) if len(sys.argv) < 5 else False
    count("os.rename", ())
    return done

export_folder._exchange_at_once = counted
sys.addaudithook(count)
export_to(Path(sys.argv[2]), "new")
"""


@pytest.mark.parametrize("system", [(), ("two renames",)])
def test_a_kill_at_any_moment_leaves_one_whole_export(folder: Path, system: tuple) -> None:
    seen = set()
    for calls in range(200):
        command = [sys.executable, "-c", KILLED, __file__, str(folder), str(calls), *system]
        done = subprocess.run(command, capture_output=True, text=True)
        if not folder.exists():
            assert system, "only where two folders are not exchanged in one step"
            make_ready(folder)  # the next command finds it
        assert versions(folder) in ({"old"}, {"new"})
        seen |= versions(folder)
        assert (folder / "notes.txt").read_text() == "notes"
        assert (folder / "predictions" / "deep" / "mask.png").read_text() == "mask"
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if versions(folder) == {"new"}:
            export_to(folder, "old")
    assert seen == {"old", "new"} and calls > 10


def test_what_a_kill_has_left_is_taken_up_later(folder: Path) -> None:
    left = folder.with_name(".facade.draft-12345678")  # killed after the exchange
    write_export(left, "older")
    (left / "unlinked.txt").write_text("kept")
    (left / "notes.txt").write_text("of then")
    export_to(folder, "new")
    assert left.exists(), "perhaps another command is at work there"
    os.utime(left, (0, 0))
    export_to(folder, "new")
    assert (folder / "unlinked.txt").read_text() == "kept" and not left.exists()
    assert_kept(folder)


def test_what_cannot_be_kept_is_told(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(export_folder, "_link", lambda *paths: None)
    exchange = export_folder._exchange

    def and_a_folder_in_the_way(draft: Path, target: Path) -> None:
        exchange(draft, target)
        (target / "notes.txt").mkdir()

    monkeypatch.setattr(export_folder, "_exchange", and_a_folder_in_the_way)
    with pytest.raises(
        StorageError,
        match=r"notes.txt, which was there before, could not be kept .*: it is in (.*)[.]$",
    ) as told:
        export_to(folder, "new")
    assert versions(folder) == {"new"}
    kept = Path(str(told.value).rpartition(" ")[2][:-1])
    assert (kept / "notes.txt").read_text() == "notes"


def test_a_failed_export_leaves_the_old_one(folder: Path) -> None:
    target = make_ready(folder)
    with pytest.raises(KeyboardInterrupt), draft_of(target) as draft:
        write_export(draft, "new")
        raise KeyboardInterrupt
    assert versions(folder) == {"old"}
    assert_kept(folder)


def test_a_target_that_cannot_be_one_is_refused(folder: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "work").touch()
    for name, why in {
        "file": "is a file; name a folder",
        "file/below": "cannot write",
        "loop": "cannot write",
        "other": "is not an earlier export",
    }.items():
        with pytest.raises(InputError, match=why):
            make_ready(tmp_path / name)
    with pytest.raises(InputError, match="cannot write /proc/export"):
        make_ready(Path("/proc/export"))
    with pytest.raises(InputError, match="is not an earlier export|is a mount point"):
        make_ready(Path("/proc"))
    monkeypatch.chdir(folder / "predictions")
    with pytest.raises(InputError, match="contains, the current directory"):
        make_ready(Path(".."))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_without_permission_is_refused(folder: Path) -> None:
    for place in (folder, folder.parent, folder / "predictions"):
        mode = place.stat().st_mode
        place.chmod(0o500 if place != folder / "predictions" else 0)
        try:
            with pytest.raises(InputError, match="Permission denied"):
                make_ready(folder)
        finally:
            place.chmod(mode)
