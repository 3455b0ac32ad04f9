"""A driver's claim to a study where locks are unavailable: a small file or object that it renews.

Each driver writes only its own file, `.drivers/ID.json`. It starts in state "asks": of two drivers
that ask at the same time at least one sees the other, and only the one with the smaller id
continues. A driver holds the study once all other claims are gone or unchanged for `LEASE_SECONDS`;
if one of them changes meanwhile, it gives up.

A holder renews its claim and then looks for other holders. If the last renewal is older than
`SURE_SECONDS`, it stops writing; a write already under way then has `SLOW_SECONDS` to finish before
another driver can hold the study. The clock keeps running while the machine sleeps.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from study.errors import HoldLost, InputError, StorageError
from study.storage.files import write_text
from study.storage.paths import AnyPath, children, modified

CLAIMS = ".drivers"
RENEW_SECONDS = 5.0
SURE_SECONDS = 15.0
SLOW_SECONDS = 60.0  # for the slowest write: the client gives up after nine seconds, three times
LEASE_SECONDS = SURE_SECONDS + SLOW_SECONDS
POLL_SECONDS = 1.0  # between looks at other claims


def clock() -> float:
    """Return the seconds of a clock that keeps running while the machine sleeps."""
    kind = getattr(time, "CLOCK_BOOTTIME", None)  # Linux, whose monotonic clock stops then
    return time.monotonic() if kind is None else time.clock_gettime(kind)


class Claim:
    """A study held by a claim.

    Args:
        folder: The study's folder.
        on_taken_over: Called from another thread, with a message, if another driver takes over the
            study.

    Attributes:
        took_over: Whether the study was taken over from a driver that had not released it.

    Raises:
        InputError: Another driver runs the study; the message names it.
        StorageError: The store does not respond.
    """

    def __init__(self, folder: AnyPath, on_taken_over: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_taken_over = on_taken_over
        self._content: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "processes": _process_space(),
            "state": "asks",
            "renewed": 0,
        }
        self._file = folder / CLAIMS / f"{self._content['id']}.json"
        self._over: dict[str, dict[str, Any]] = {}  # claims of drivers that are gone
        self._sure = -math.inf  # when this was last certain to be the only holder
        self._released = threading.Event()
        self._taken = ""  # the message, once another driver took over
        (folder / CLAIMS).mkdir(exist_ok=True)
        try:
            self._ask()
            self._take()
        except BaseException:
            with suppress(StorageError, OSError):  # the first error says more
                self._file.unlink(missing_ok=True)
            raise
        self._thread = threading.Thread(target=self._renew, name="claim", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        self._content["renewed"] += 1
        write_text(self._file, json.dumps(self._content), durable=False)

    def _ask(self) -> None:
        """Wait until all other claims have expired, or give up."""
        seen: dict[str, tuple[float, dict[str, Any]]] = {}  # time of its last change
        while True:
            self._write()
            waits = False
            for name, content in _claims(self._folder, but=self._file.name).items():
                since, before = seen.setdefault(name, (clock(), content))
                if content != before:
                    if content["state"] == "holds" or name < self._file.name:
                        raise taken(self._folder, content)
                    seen[name] = (clock(), content)  # it is asking, too, and will give up
                if _died_here(content) or clock() - since > LEASE_SECONDS:
                    self._over[name] = content
                else:
                    waits = True
            if not waits:
                return
            time.sleep(POLL_SECONDS)

    def _take(self) -> None:
        """Hold the study, unless another driver holds it after all."""
        self._content["state"] = "holds"
        began = clock()
        self._write()
        for name, content in _claims(self._folder, but=self._file.name).items():
            if content != self._over.get(name) and content["state"] == "holds":
                raise taken(self._folder, content)
        self._sure = began
        self.took_over = bool(self._over)
        for name in self._over:
            (self._folder / CLAIMS / name).unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `HoldLost` if another driver may have taken over since the last renewal."""
        if self._taken:
            raise HoldLost(self._taken)
        silent = clock() - self._sure
        if silent > SURE_SECONDS:
            raise HoldLost(
                f"{self._file} could not be renewed for {silent:.0f} s, so another driver may have "
                "taken over the study. Nothing recorded is lost: run the same command again to "
                "resume."
            )

    def _renew(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            # A store that does not respond accepts no other driver's claim either.
            with suppress(StorageError, OSError):
                began = clock()
                self._write()
                for name, content in _claims(self._folder, but=self._file.name).items():
                    # A holder believed dead that is not sees this claim after its own, and stops.
                    if content["state"] == "holds" and name not in self._over:
                        self._taken = (
                            f"another driver has taken over the study ({_name(content)}) because "
                            "this one was silent for too long"
                        )
                        self._on_taken_over(self._taken)
                        return
                self._sure = began

    def release(self) -> None:
        """Release the study."""
        self._released.set()
        self._thread.join(RENEW_SECONDS)
        with suppress(StorageError, OSError):  # then the claim expires
            self._file.unlink(missing_ok=True)


def claimant(folder: AnyPath) -> dict[str, Any] | None:
    """Return the holder of a claim, in the form of `study.storage.lock.driver_of`, or None.

    Raises:
        StorageError: The store does not answer.
    """
    holding = {n: c for n, c in _claims(folder).items() if c["state"] == "holds"}
    if not holding:
        return None
    written = {name: modified(folder / CLAIMS / name) for name in holding}
    name = max(written, key=written.__getitem__)
    content, heard = holding[name], time.time() - written[name]
    lives = heard < LEASE_SECONDS and not _died_here(content)
    who = {"host": content.get("host"), "pid": content.get("pid")}
    return {**who, "alive": lives, "heard": max(0.0, heard)}


def _claims(folder: AnyPath, but: str = "") -> dict[str, dict[str, Any]]:
    """Return the contents of the claims to a study by file name, except one."""
    paths = [path for path in children(folder / CLAIMS) if path.name != but]
    found = {path.name: read_holder(path) for path in paths if not path.name.startswith(".")}
    return {name: content for name, content in found.items() if "state" in content}


def read_holder(path: AnyPath) -> dict[str, Any]:
    """Return a driver's file; empty if it is missing or unreadable."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def taken(folder: AnyPath, holder: dict[str, Any]) -> InputError:
    """Return the error for a study that another driver runs."""
    return InputError(
        f"the study in {folder} is being run by another process ({_name(holder)}); wait for it, or "
        "choose another --name."
    )


def _died_here(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine and has ended."""
    here = _process_space()
    if not here or (holder.get("host"), holder.get("processes")) != (socket.gethostname(), here):
        return False
    try:
        state = Path(f"/proc/{holder.get('pid')}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # a zombie: ended, but not reaped


def _process_space() -> str:
    """Return the boot and PID namespace of this process; empty if unknown.

    A host name is not enough: containers, and copies of a machine, may share it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _name(holder: dict[str, Any]) -> str:
    return f"host {holder.get('host', 'unknown')}, pid {holder.get('pid', 'unknown')}"
