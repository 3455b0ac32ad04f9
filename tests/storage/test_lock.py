"""One driver at a time: locks on a disk, claims in an object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_for

from study.errors import InputError
from study.storage.claim import CLAIMS
from study.storage.lock import driver_of, hold
from study.storage.paths import as_path, children


def test_one_driver_at_a_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.storage.claim.RENEW_SECONDS", 0.3)
    folder = as_path(f"{bucket}/held")
    first = hold(folder, print)
    with pytest.raises(InputError, match=f"another process .*pid {os.getpid()}"):
        hold(folder, print)
    first.release()
    assert driver_of(folder)["alive"] is False
    hold(folder, print).release()


def test_a_driver_that_died_here_is_not_waited_for(bucket: str) -> None:
    folder = f"{bucket}/died"
    code = (
        "import os; from study.storage.lock import hold; from study.storage.paths import as_path; "
        f"hold(as_path({folder!r}), print); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    held = as_path(folder)
    assert children(held / CLAIMS) and driver_of(held)["alive"] is False
    began = time.monotonic()
    hold(held, print).release()
    assert time.monotonic() - began < 10


def test_a_lock_of_another_host_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """As on a shared disk whose server has yet to notice that a machine is gone."""
    monkeypatch.setattr("study.storage.lock.OTHER_HOST_SECONDS", 20.0)
    code = (
        "import pathlib, sys, time; from study.storage.lock import hold; "
        "held = hold(pathlib.Path(sys.argv[1]), print); time.sleep(4)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path]) as first:
        wait_for((tmp_path / "driver.json").exists)
        with pytest.raises(InputError, match=f"pid {first.pid}"):
            hold(tmp_path, print)  # one that runs here is not waited for
        (tmp_path / "driver.json").write_text(json.dumps({"host": "elsewhere", "pid": 7}))
        hold(tmp_path, print).release()
    assert "was being run on elsewhere; waiting up to 20 s" in capsys.readouterr().err


SAME_NUMBER = """
import pathlib, subprocess, sys
from filelock import FileLock
from study.storage.lock import driver_of
place = pathlib.Path(sys.argv[1])
for name in ("one", "other"):
    (place / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place / name], check=True)
    (place / name / "x").write_text("")
    (place / name / ".lock").write_text("")
numbers = {(place / name / ".lock").stat().st_ino for name in ("one", "other")}
with FileLock(place / "one" / ".lock"):
    print(len(numbers), driver_of(place / "one")["alive"], driver_of(place / "other")["alive"])
"""


def test_a_lock_of_another_disk_is_not_ours(tmp_path: Path) -> None:
    """Two file systems number their files alike."""
    words = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    done = subprocess.run(
        [*words, sys.executable, "-c", SAME_NUMBER, tmp_path], capture_output=True, text=True
    )
    assert done.stdout == "1 True False\n", done.stderr
