"""Limits of control groups, in file systems as Linux shows them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from study.system.cgroup import cpu_quota, memory_limit

CASES = {
    "version 2, a container": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"},
        2.5,
        math.inf,
    ),
    "version 2, a slice above": (
        {
            "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
            "sys/fs/cgroup/user.slice/user-1000.slice/cpu.max": "150000 50000",
            "sys/fs/cgroup/user.slice/user-1000.slice/memory.max": str(3 * 2**30),
            "sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope/cpu.max": "max 100000",
            "sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope/memory.max": "max",
        },
        3.0,
        3 * 2**30,
    ),
    "version 1, a container": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/8f\n7:memory:/docker/8f\n0::/docker/8f",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**30),
        },
        0.5,
        2**30,
    ),
    "version 1, a batch job": (
        {
            "proc/self/cgroup": "11:memory:/slurm/job_7\n3:cpu,cpuacct:/slurm/job_7",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": str(2**33),
        },
        4.0,
        2**33,
    ),
    "none": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, *2 * (math.inf,)),
    "no Linux": ({}, *2 * (math.inf,)),
    "nonsense": (
        {"proc/self/cgroup": "x\n0::/../..", "sys/fs/cgroup/cpu.max": "?"},
        *2 * (math.inf,),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_limits(tmp_path: Path, case: str) -> None:
    files, cores, memory = CASES[case]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (cores, memory)
