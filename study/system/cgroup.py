"""Resource limits set by control groups, as in containers, systemd slices and batch jobs.

Versions 1 and 2 are supported. Every group from that of this process up to the root may set limits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cpu_quota(root: Path = ROOT) -> float:
    """Return the number of cores this process may use; inf without a limit.

    Args:
        root: Root of the file system; tests pass another one.
    """
    cores = math.inf
    for folder in _groups(root, "cpu"):
        # Microseconds per period. Version 2 has both in one file, "max 100000" for no limit.
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        quota = quota or _read(folder / "cpu.cfs_quota_us")
        period = period or _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # version 1 has -1 for no limit
            cores = min(cores, int(quota) / int(period))
    return cores


def memory_limit(root: Path = ROOT) -> float:
    """Return the number of bytes this process may use; inf without a limit."""
    limit = math.inf
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text.isdigit():
                limit = min(limit, int(text))  # version 1 has 2^63 - 4096 for no limit
    return limit


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups for a controller, up to the root."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"]
        else:
            continue
        for mount in mounts:
            # In a container the group may have the host's name but be mounted as the root.
            inside = Path(group.lstrip("/"))
            for part in (inside, *inside.parents):
                if ".." not in part.parts and os.path.isdir(folder := root / mount / part):
                    yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
