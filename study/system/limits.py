"""Process limits (`ulimit`): if too low, Ray hangs or fails with misleading errors.

    raise_limits(cores)     # raises InputError for one that is too low

Soft limits are raised where allowed; limits that remain too low are refused before anything starts.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from study.errors import InputError

OPEN_FILES = 512
MOST_OPEN_FILES = 65_536
# A study with two workers on 2 cores had at most 233 threads (measured, 10 processes).
THREADS, THREADS_PER_CORE = 190, 25
STORE_SHARE = 0.3  # of memory, mapped by Ray for its object store
ADDRESS_BYTES = 6 * 2**30  # mapped in addition by Ray's processes and torch


def raise_limits(cores: int) -> None:
    """Raise soft limits, and check that Ray can start.

    Args:
        cores: CPU cores that trials will use.

    Raises:
        InputError: A limit is too low; the message names it.
    """
    _raise_open_files()
    store = STORE_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for kind, flag, least, what in (
        (resource.RLIMIT_FSIZE, "-f", store, "a file"),
        (resource.RLIMIT_AS, "-v", store + ADDRESS_BYTES, "the memory of a process"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < least:
            raise InputError(
                f"ulimit {flag} limits {what} to {limit >> 10} KiB, but Ray needs "
                f"{int(least) >> 10} KiB on this machine; raise it (`ulimit {flag} unlimited`)."
            )
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is exempt
        used, least = _num_threads(), THREADS + THREADS_PER_CORE * cores
        if limit - used < least:
            raise InputError(
                f"ulimit -u allows this user {limit} threads, {used} of them in use, but a study "
                f"on {cores} cores needs at least {least}; raise it."
            )


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        raise InputError(
            f"ulimit -n allows a process {soft} open files, but Ray needs {OPEN_FILES}; raise it."
        )


def _num_threads() -> int:
    """Return the number of threads of this user."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.geteuid():
                count += len(os.listdir(folder / "task"))
        except OSError:  # it has ended
            continue
    return count
