"""Lock of a study, so that only one driver at a time writes to it.

On a local or shared disk the operating system locks a file. Object stores and some network drives
(Lustre mounted without locks) have none: there each driver renews a small file of its own in
`.drivers`, its claim (`study.storage.claim`).
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from study.errors import InputError, StorageError
from study.storage.claim import CLAIMS, Claim, claimant, read_holder, taken
from study.storage.files import can_lock, write_text
from study.storage.paths import AnyPath, ObjectPath, children

# A dead machine keeps its lock on a shared disk until the file server notices.
OTHER_HOST_SECONDS = 100.0


class Hold(Protocol):
    """A study held by this process.

    Attributes:
        took_over: Whether the study was taken over from a driver that had not released it.
    """

    took_over: bool

    def check(self) -> None:
        """Check before writing that the study is still held.

        Raises:
            HoldLost: Another driver may have taken over the study.
        """

    def release(self) -> None:
        """Release the study."""


class _Locked:
    """A file locked by the operating system as long as this process lives."""

    took_over = False  # the previous driver is gone, and so are its writes

    def __init__(self, lock: FileLock) -> None:
        self.release = lock.release

    def check(self) -> None:
        """Do nothing: the system keeps the lock."""


def hold(folder: AnyPath, on_taken_over: Callable[[str], None]) -> Hold:
    """Hold a study, or fail.

    Args:
        folder: The study's folder, which exists.
        on_taken_over: Called from another thread, with a message, if another driver takes over the
            study.

    Raises:
        InputError: Another driver runs the study; the message names it.
        OSError: The folder is not writable.
    """
    try:
        if isinstance(folder, ObjectPath) or not can_lock(folder):
            return Claim(folder, on_taken_over)
        if children(folder / CLAIMS):  # from a machine where this disk has no locks
            Claim(folder, on_taken_over).release()
    except StorageError as error:
        raise InputError(f"{error} Or name another with --studies-dir.") from None
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = read_holder(folder / "driver.json")
        if holder.get("host") in (None, socket.gethostname()):
            raise taken(folder, holder) from None
        print(
            f"the study was being run on {holder['host']}; waiting up to "
            f"{OTHER_HOST_SECONDS:.0f} s to see whether it still is",
            file=sys.stderr,
        )
        try:
            lock.acquire(timeout=OTHER_HOST_SECONDS)
        except Timeout:
            raise taken(folder, holder) from None
    driver = {"host": socket.gethostname(), "pid": os.getpid()}
    write_text(folder / "driver.json", json.dumps(driver))
    return _Locked(lock)


def driver_of(folder: AnyPath) -> dict[str, Any]:
    """Return the driver of a study as `host`, `pid`, `alive` and `heard`; only reads.

    `alive` is None if this machine cannot tell; `heard` is the number of seconds since the driver's
    last renewal, None if it holds a lock instead of a claim.

    Raises:
        StorageError: The store does not respond.
    """
    claimed = claimant(folder)
    if claimed is not None:
        return claimed
    if isinstance(folder, ObjectPath):
        return {"host": None, "pid": None, "alive": False, "heard": None}
    holder = read_holder(folder / "driver.json")
    alive = _is_locked(folder / ".lock")
    if not alive and holder and holder.get("host") != socket.gethostname():
        alive = None  # locks of that host may not be visible here
    who = {"host": holder.get("host"), "pid": holder.get("pid")}
    return {**who, "alive": alive, "heard": None}


def _is_locked(path: Path) -> bool | None:
    """Return whether a process of this machine holds a file's lock; None if unknown.

    Trying the lock, even briefly, could make a driver fail that starts at the same moment.
    """
    try:
        known = Path("/proc/locks").read_text().splitlines()
        devices, inode = _devices(path), path.stat().st_ino
    except FileNotFoundError:
        return None if not Path("/proc/locks").exists() else False
    except OSError:
        return None
    # 1: FLOCK  ADVISORY  WRITE 812 08:01:1234 0 EOF
    held = [words[5] for line in known if (words := line.split())[1:2] == ["FLOCK"]]
    return any(f"{device}:{inode}" in held for device in devices)


def _devices(path: Path) -> set[str]:
    """Return the device numbers a file may have in /proc/locks, such as `08:01`.

    That is the number of its mount; on Btrfs and overlays `stat` shows a different one.
    """
    number = path.stat().st_dev
    found = {(os.major(number), os.minor(number))}
    file = os.open(path, os.O_PATH)
    try:
        rows = Path(f"/proc/self/fdinfo/{file}").read_text().splitlines()
    finally:
        os.close(file)
    (mount,) = (row.split()[1] for row in rows if row.startswith("mnt_id:"))
    for row in Path("/proc/self/mountinfo").read_text().splitlines():
        words = row.split()  # 36 35 98:0 /mnt1 /mnt2 rw,noatime ...
        if words[0] == mount:
            major, _, minor = words[2].partition(":")
            found.add((int(major), int(minor)))
    return {f"{major:02x}:{minor:02x}" for major, minor in found}
