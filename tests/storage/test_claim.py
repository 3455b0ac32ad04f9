"""Claims: how drivers keep each other out where there are no locks, in a store that is slow too."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from begun import begin
from conftest import wait_for
from recorded import MANIFEST

from study.errors import HoldLost, InputError
from study.records.study_record import StudyRecord
from study.storage import claim
from study.storage.claim import CLAIMS, Claim
from study.storage.lock import driver_of, hold
from study.storage.paths import AnyPath, as_path, children

OTHER = {"id": "x", "host": "elsewhere", "pid": 1, "state": "holds", "renewed": 7}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds instead of a minute."""
    times = {"RENEW": 0.3, "SURE": 1.5, "LEASE": 3.0, "POLL": 0.2}
    for name, seconds in times.items():
        monkeypatch.setattr(claim, f"{name}_SECONDS", seconds)


def write(folder: AnyPath, content: dict[str, object]) -> AnyPath:
    """Write a claim as another machine does."""
    (folder / CLAIMS).mkdir(parents=True, exist_ok=True)
    path = folder / CLAIMS / f"{content['id']}.json"
    path.write_bytes(json.dumps(content).encode())
    return path


def test_a_driver_that_is_silent_is_taken_over_and_one_that_lives_is_not(
    bucket: str, quick: None
) -> None:
    folder, lost = as_path(f"{bucket}/silent"), list[str]()
    path = write(folder, OTHER)
    began = time.monotonic()
    held = Claim(folder, lost.append)
    assert time.monotonic() - began >= 3 and held.took_over and not path.exists()
    assert driver_of(folder)["pid"] == os.getpid() and driver_of(folder)["alive"]
    # It wakes up: its next sign comes after this claim, so that it is the one to stop.
    write(folder, {**OTHER, "renewed": 8})
    time.sleep(1)
    assert not lost
    held.check()
    held.release()

    # One of this host's name and a number no process here has, in another container.
    alive = {**OTHER, "host": socket.gethostname(), "pid": 2**22 + 1}
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.2):
            alive["renewed"] = int(str(alive["renewed"])) + 1
            write(folder, alive)

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(InputError, match=f"pid {2**22 + 1}"):
        Claim(folder, print)
    stop.set()
    thread.join()
    assert [path.name for path in children(folder / CLAIMS)] == ["x.json"]


def test_whoever_finds_another_holding_stops_for_good(bucket: str, quick: None) -> None:
    folder, lost = as_path(f"{bucket}/found"), list[str]()
    held = Claim(folder, lost.append)
    write(folder, OTHER)
    wait_for(lambda: lost, 20)
    assert "taken over the study (host elsewhere, pid 1)" in lost[0]
    with pytest.raises(HoldLost, match="host elsewhere, pid 1"):
        held.check()
    held.release()


def test_after_a_silence_nothing_is_written(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on while the machine sleeps, which the monotonic one of Linux does not."""
    monkeypatch.setattr(claim, "RENEW_SECONDS", 60.0)
    held = Claim(tmp_path, print)
    held.check()
    gettime, asleep = time.clock_gettime, 0.0
    monkeypatch.setattr(
        time,
        "clock_gettime",
        lambda clock: gettime(clock) + (asleep if clock == time.CLOCK_BOOTTIME else 0.0),
    )
    held.check()
    asleep = 3600.0
    with pytest.raises(HoldLost, match=r"renewed for 360\d s, so another driver may have taken"):
        held.check()
    held.release()


# Holds a study for four seconds or says who does; writes when it was sure to hold it.
DRIVER = """
import sys, time
from study.storage import claim
from study.errors import HoldLost, InputError
from study.storage.lock import hold
from study.storage.paths import as_path
claim.RENEW_SECONDS, claim.POLL_SECONDS = 0.5, 0.2
try:
    held = hold(as_path(sys.argv[1]), print)
except InputError as error:
    sys.exit(f"refused: {error}")
until = time.time() + 4
try:
    while time.time() < until:
        held.check()
        print(time.time(), flush=True)
        time.sleep(0.05)
except HoldLost:
    pass
"""


class SlowWay(socketserver.ThreadingTCPServer):
    """A way to the store on which everything takes its time."""

    daemon_threads = True

    def __init__(self, store: str, delay: float) -> None:
        super().__init__(("127.0.0.1", 0), _Pass)
        host, _, port = store.removeprefix("http://").partition(":")
        self.store, self.delay = (host, int(port)), delay


class _Pass(socketserver.BaseRequestHandler):
    server: SlowWay

    def handle(self) -> None:
        with socket.create_connection(self.server.store) as store:
            back = threading.Thread(target=self.pass_on, args=(store, self.request, 0.0))
            back.start()
            self.pass_on(self.request, store, self.server.delay)
            back.join()

    def pass_on(self, source: socket.socket, target: socket.socket, delay: float) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                time.sleep(delay)
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def slow_store(bucket: str) -> Iterator[str]:
    """The endpoint of the store by a way on which a write takes two seconds or three."""
    server = SlowWay(os.environ["AWS_ENDPOINT_URL"], 0.6)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("ahead", [0.0, 1.0, 2.5])
def test_of_two_drivers_one_holds_however_slow_the_store_is(
    bucket: str, slow_store: str, ahead: float
) -> None:
    """One that began before is overtaken while it writes that it holds the study, or asks to."""
    folder = f"{bucket}/two-{ahead}"
    command = [sys.executable, "-c", DRIVER, folder]
    slow = subprocess.Popen(
        command,
        env={**os.environ, "AWS_ENDPOINT_URL": slow_store},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(ahead)
    fast = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = [process.communicate(timeout=120) for process in (slow, fast)]
    times = [[float(row) for row in out.splitlines()] for out, _ in said]
    both = [t for t in times[0] if times[1] and times[1][0] <= t <= times[1][-1]]
    assert not both, (both, said)
    assert any(times), said
    assert all(err.startswith("refused: the study in") for out, err in said if not out), said


def test_a_late_write_of_a_lost_driver_does_not_last(bucket: str, quick: None) -> None:
    folder = as_path(f"{bucket}/late")
    record = StudyRecord.create_or_continue(folder, MANIFEST, "study.tune")
    begin(record)
    file = record.run_folder(0).path / "trial.json"
    begun = file.read_bytes()
    record.close()
    write(folder, OTHER)  # the driver that wrote it is not heard of any more
    other = StudyRecord.create_or_continue(folder, MANIFEST, "study.tune")
    other.report(0, {"epoch": 1, "val/mean_ap": 0.5}, "stopped")
    ended = file.read_bytes()
    as_path(str(file)).write_bytes(begun)  # what hung in the network
    other.close()
    assert file.read_bytes() == ended != begun


def test_each_attempt_to_write_is_asked_for(bucket: str, quick: None) -> None:
    folder = as_path(f"{bucket}/guarded")
    record = StudyRecord.create_or_continue(folder, MANIFEST, "study.tune")
    begin(record)
    write(folder, OTHER)
    wait_for(lambda: record._hold is not None and record._hold._taken, 20)  # type: ignore[attr-defined]
    for change in (
        lambda: (record.path / "notes.txt").write_bytes(b""),
        lambda: (record.run_folder(0).path / "trial.json").unlink(),
        lambda: record.report(0, {"epoch": 1, "val/mean_ap": 0.5}),
    ):
        with pytest.raises(HoldLost):
            change()
    assert not (folder / "notes.txt").exists()
    assert StudyRecord.read(folder).trial(0).epochs == 0
    record.close(abandoned=True)


# A file system without locks, as Lustre mounted without `-o flock`.
NO_FLOCK = """
import errno, fcntl, os
def flock(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = flock
"""
HOLDER = """
import pathlib, sys, time
from study.storage import claim
claim.RENEW_SECONDS, claim.SURE_SECONDS, claim.LEASE_SECONDS, claim.POLL_SECONDS = 0.3, 1.5, 3, 0.2
from study.errors import InputError
from study.storage.lock import hold
try:
    held = hold(pathlib.Path(sys.argv[1]), print)
except InputError as error:
    sys.exit(str(error))
print("holds", flush=True)
sys.stdin.read()
held.release()
"""


def test_where_no_file_can_be_locked_all_know_one_kind_of_hold(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(NO_FLOCK)
    folder = tmp_path / "studies" / "s"
    folder.mkdir(parents=True)
    (folder / ".lock").write_text("1\nelsewhere\n")  # of filelock's soft locks, before
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "python")}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "holds\n"
        driver = driver_of(folder)
        assert driver["alive"] is True and driver["pid"] == first.pid and driver["heard"] < 3
        second = subprocess.run(command, env=env, input="", capture_output=True, text=True)
        assert second.returncode == 1 and f"another process (host {driver['host']}" in second.stderr
        with pytest.raises(InputError, match=f"pid {first.pid}"):
            hold(folder, print)  # one that can lock, on another machine
        first.kill()
    # The host is lost with it, so nobody can look for its process.
    (path,) = children(folder / CLAIMS)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "host": "elsewhere"}))
    assert driver_of(folder)["alive"] is True  # as far as can be known yet
    wait_for(lambda: driver_of(folder)["alive"] is False, 20)
    again = subprocess.run(command, env=env, input="", capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout == "holds\n", again.stderr
    assert driver_of(folder)["alive"] is False and not children(folder / CLAIMS)
