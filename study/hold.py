"""Holding a study, so that one driver at a time writes it.

On a disk, also a shared one, the operating system locks a file. An object store has no locks: there
the driver renews a small object, `.lease`, and whoever finds that it does not change for
`LEASE_SECONDS` may take the study over. A driver that was taken for dead and comes back finds
another's name in the lease and stops.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from study.errors import HoldLost, InputError, StorageError
from study.files import write_text
from study.object_path import AnyPath, ObjectPath

RENEW_SECONDS = 5.0
LEASE_SECONDS = 20.0
# A machine that died holds its lock on a shared disk until the server notices.
OTHER_HOST_SECONDS = 100.0


class Hold(Protocol):
    """A study that is held."""

    def check(self) -> None:
        """Make sure that it still is, before writing.

        Raises:
            HoldLost: Another driver may have it by now.
        """

    def release(self) -> None:
        """Let go of it."""


class _Locked:
    """A file that the operating system keeps locked as long as this process lives."""

    def __init__(self, lock: FileLock) -> None:
        self.release = lock.release

    def check(self) -> None:
        """Do nothing: the system keeps the lock."""


def hold(folder: AnyPath, lost: Callable[[str], None]) -> Hold:
    """Hold a study's folder, which exists, or fail.

    Args:
        folder: Of the study.
        lost: Called from another thread, with a sentence, if another driver takes the study over.

    Raises:
        InputError: Another driver runs the study; says which.
        OSError: The folder cannot be written.
    """
    if isinstance(folder, ObjectPath):
        try:
            return _Lease(folder / ".lease", lost)
        except StorageError as error:
            raise InputError(f"{error} Or name another with --studies-dir.") from None
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _read(folder / "driver.json")
        if holder.get("host") in (None, socket.gethostname()):
            raise _taken(folder, holder) from None
        print(
            f"the study was being run on {holder['host']}; waiting up to "
            f"{OTHER_HOST_SECONDS:.0f} s to learn whether it still is",
            file=sys.stderr,
        )
        try:
            lock.acquire(timeout=OTHER_HOST_SECONDS)
        except Timeout:
            raise _taken(folder, holder) from None
    driver = {"host": socket.gethostname(), "pid": os.getpid()}
    write_text(folder / "driver.json", json.dumps(driver))
    return _Locked(lock)


def driver_of(folder: AnyPath) -> dict[str, Any]:
    """Return who runs a study, without touching it: `host`, `pid`, `alive` and `heard`.

    `alive` is None if that cannot be told from this machine; `heard` are the seconds since the
    driver's own last sign, None if it leaves none.

    Raises:
        StorageError: The store does not answer.
    """
    if isinstance(folder, ObjectPath):
        holder = _read(folder / ".lease")
        if not holder:
            return {"host": None, "pid": None, "alive": False, "heard": None}
        heard = max(0.0, time.time() - (folder / ".lease").modified())
        lives = heard < LEASE_SECONDS and not _died_here(holder)
        who = {"host": holder.get("host"), "pid": holder.get("pid")}
        return {**who, "alive": lives, "heard": heard}
    holder = _read(folder / "driver.json")
    alive = _is_locked(folder / ".lock")
    if not alive and holder and holder.get("host") != socket.gethostname():
        alive = None  # that host's locks may not show here
    who = {"host": holder.get("host"), "pid": holder.get("pid")}
    return {**who, "alive": alive, "heard": None}


def _is_locked(path: Path) -> bool | None:
    """Return whether a process of this machine holds a file's lock; None if nobody knows.

    Trying to lock it, if only for a moment, would refuse a driver that starts in this moment.
    """
    try:
        inode = path.stat().st_ino
        known = Path("/proc/locks").read_text().splitlines()
    except FileNotFoundError:
        return None if not Path("/proc/locks").exists() else False
    except OSError:
        return None
    # 1: FLOCK  ADVISORY  WRITE 812 08:01:1234 0 EOF
    held = [words for line in known if (words := line.split())[1:2] == ["FLOCK"]]
    return any(words[5].rpartition(":")[2] == str(inode) for words in held)


class _Lease:
    """An object that is renewed as long as its driver lives."""

    def __init__(self, path: ObjectPath, lost: Callable[[str], None]) -> None:
        self.path = path
        self.lost = lost
        self.content: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "processes": _process_space(),
            "renewed": 0,
        }
        self._sure = time.monotonic()
        self._wait_for_free()
        self._write()
        time.sleep(0.5)  # another command may have found it free in the same moment: the last wins
        holder = _read(path)
        if holder.get("id") != self.content["id"]:
            raise _taken(path.parent, holder)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _wait_for_free(self) -> None:
        holder = seen = _read(self.path)
        until = time.monotonic() + LEASE_SECONDS
        while seen and not _died_here(seen):
            if seen != holder:
                raise _taken(self.path.parent, seen)
            if time.monotonic() > until:
                return
            time.sleep(1.0)
            seen = _read(self.path)

    def _write(self) -> None:
        began = time.monotonic()
        self.path.write_bytes(json.dumps(self.content).encode())
        self._sure = began

    def check(self) -> None:
        """Refuse to write after a silence in which another driver may have taken the study."""
        silent = time.monotonic() - self._sure
        if silent > LEASE_SECONDS - RENEW_SECONDS:
            raise HoldLost(
                f"{self.path} could not be renewed for {silent:.0f} s, so another driver may have "
                "taken the study over. Nothing recorded is lost: the same command goes on."
            )

    def _renew(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            # A store that is away takes no other driver's lease either.
            with suppress(StorageError):
                holder = _read(self.path)
                if holder and holder.get("id") != self.content["id"]:
                    self.lost(
                        f"another driver has taken the study over ({_name(holder)}), this one "
                        "having been silent for too long"
                    )
                    return
                self.content["renewed"] += 1
                self._write()

    def release(self) -> None:
        """Let go of it, if it is still ours."""
        self._released.set()
        self._thread.join(RENEW_SECONDS)
        with suppress(StorageError):  # then it runs out
            if _read(self.path).get("id") == self.content["id"]:
                self.path.unlink(missing_ok=True)


def _read(path: AnyPath) -> dict[str, Any]:
    """Return who holds, empty if nobody or nobody knows."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _died_here(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that is gone."""
    here = _process_space()
    if not here or (holder.get("host"), holder.get("processes")) != (socket.gethostname(), here):
        return False
    return not Path(f"/proc/{holder.get('pid')}").exists()


def _process_space() -> str:
    """Name the numbering that process ids of this process belong to, empty if unknown.

    Containers may share a host's name, and machines that were copied too.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _name(holder: dict[str, Any]) -> str:
    return f"host {holder.get('host', 'unknown')}, pid {holder.get('pid', 'unknown')}"


def _taken(folder: AnyPath, holder: dict[str, Any]) -> InputError:
    return InputError(
        f"the study in {folder} is being run by another process ({_name(holder)}); wait for it, or "
        "choose another --name."
    )
