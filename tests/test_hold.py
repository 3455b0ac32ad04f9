"""One driver at a time: locks on a disk, leases in an object store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_for

from study.errors import HoldLost, InputError
from study.hold import hold
from study.object_path import ObjectPath, as_path


def test_one_driver_at_a_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.hold.RENEW_SECONDS", 0.3)
    monkeypatch.setattr("study.hold.LEASE_SECONDS", 3.0)
    folder = as_path(f"{bucket}/held")
    lost: list[str] = []
    first = hold(folder, lost.append)
    with pytest.raises(InputError, match=f"another process .*pid {os.getpid()}"):
        hold(folder, lost.append)
    first.release()
    second = hold(folder, lost.append)

    # One on another machine that went silent; its place is taken after a while.
    other = {"id": "x", "host": "elsewhere", "pid": 1, "renewed": 7}
    assert isinstance(folder, ObjectPath)
    (folder / ".lease").write_bytes(json.dumps(other).encode())
    wait_for(lambda: lost, 10)
    assert "host elsewhere, pid 1" in lost[0]
    second.release()
    # One of this host's name and a number no process here has, in another container.
    (folder / ".lease").write_bytes(
        json.dumps({**other, "host": socket.gethostname(), "pid": 2**22 + 1}).encode()
    )
    began = time.monotonic()
    third = hold(folder, lost.append)
    assert time.monotonic() - began >= 3 and len(lost) == 1
    third.release()
    assert not (folder / ".lease").exists()


def test_a_driver_that_was_silent_writes_no_more(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.hold.RENEW_SECONDS", 30.0)  # as of a process that was suspended
    monkeypatch.setattr("study.hold.LEASE_SECONDS", 31.0)
    held = hold(as_path(f"{bucket}/silent"), print)
    held.check()
    time.sleep(1.5)
    with pytest.raises(HoldLost, match="another driver may have taken the study over"):
        held.check()
    held.release()


def test_a_driver_that_died_here_is_not_waited_for(bucket: str) -> None:
    folder = f"{bucket}/died"
    code = (
        "import os; from study.hold import hold; from study.object_path import as_path; "
        f"hold(as_path({folder!r}), print); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    held = as_path(folder)
    assert (held / ".lease").exists()
    began = time.monotonic()
    hold(held, print).release()
    assert time.monotonic() - began < 10


def test_a_lock_of_another_host_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """As on a shared disk whose server has yet to notice that a machine is gone."""
    monkeypatch.setattr("study.hold.OTHER_HOST_SECONDS", 20.0)
    code = (
        "import pathlib, sys, time; from study.hold import hold; "
        "held = hold(pathlib.Path(sys.argv[1]), print); time.sleep(4)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path]) as first:
        wait_for((tmp_path / "driver.json").exists)
        with pytest.raises(InputError, match=f"pid {first.pid}"):
            hold(tmp_path, print)  # one that runs here is not waited for
        (tmp_path / "driver.json").write_text(json.dumps({"host": "elsewhere", "pid": 7}))
        hold(tmp_path, print).release()
    assert "was being run on elsewhere; waiting up to 20 s" in capsys.readouterr().err
