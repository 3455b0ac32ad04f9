"""Limits under which Ray would hang are raised, or refused in a sentence that names them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading

import pytest
from environments import AS_USER, can_be_other_user

from study.errors import InputError
from study.system import limits

PROBE = """
import resource, sys
from study.errors import InputError
from study.system.limits import raise_limits
try:
    raise_limits(2)
    print("good", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
except InputError as error:
    print(error)
"""


def check(shell: str, *before: str) -> str:
    command = [*before, "bash", "-c", f'{shell}; exec "$0" "$@"', sys.executable, "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("shell", "answer"),
    [
        ("true", "good"),
        ("ulimit -S -n 64", "good"),  # raised to the hard limit
        ("ulimit -n 64", "ulimit -n allows a process 64 open files, but Ray needs 512"),
        ("ulimit -f 1000", "ulimit -f limits a file to 1000 KiB, but Ray needs"),
        ("ulimit -v 4000000", "ulimit -v limits the memory of a process to 4000000 KiB"),
    ],
)
def test_limits(shell: str, answer: str) -> None:
    assert check(shell).startswith(answer)


def test_open_files_are_raised_to_what_is_allowed() -> None:
    assert check("ulimit -S -n 64; ulimit -H -n 5000") == "good 5000"


@pytest.mark.skipif(not can_be_other_user(), reason="needs root, whom -u does not bind")
def test_threads_of_a_user() -> None:
    told = check("ulimit -u 100", *AS_USER)
    assert told.startswith("ulimit -u allows this user 100 threads, ")
    assert check("ulimit -u 5000", *AS_USER).startswith("good")
    assert check("ulimit -u 100").startswith("good"), "root is exempt"


def test_threads_are_counted() -> None:
    before, stop = limits._num_threads(), threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(50)]
    for thread in threads:
        thread.start()
    counted = len(os.listdir("/proc/self/task"))
    assert limits._num_threads() >= counted >= 51 and before >= 1
    stop.set()


def test_nothing_is_refused_here() -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        pytest.skip("limited")
    try:
        limits.raise_limits(1)
    except InputError as error:
        pytest.fail(str(error))
