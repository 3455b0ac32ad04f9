"""What a trial takes, how many fit at once, and an error at once when none ever will."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from study.errors import InputError

DRIVER_CPUS = 0.01  # of a trial whose workers are other processes; Ray refuses 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What every trial of a study takes.

    Attributes:
        workers: Processes of one trial; one runs in the Tune actor itself.
        cpus_per_worker: Cores, and threads, of each.
        gpus_per_worker: GPUs of each; a fraction only with one worker.
        concurrent: Trials at a time.
    """

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    concurrent: int

    def describe(self) -> str:
        """Return a phrase for people."""
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        each = f"{self.cpus_per_worker} CPU{gpus}"
        if self.workers > 1:
            each = f"{self.workers} workers with {each} each"
        return f"{self.concurrent} at a time, each with {each}"


def local_cpus() -> int:
    """Return the number of cores that this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")  # of a container, in microseconds per period
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cpus = max(1, min(cpus, int(limit) // int(period)))
    return cpus


def local_gpus() -> int:
    """Return the number of GPUs that torch can use here."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return 0  # spares importing torch
    import torch

    return torch.cuda.device_count()


def plan(
    *,
    total_cpus: float,
    total_gpus: float,
    num_samples: int,
    workers: int,
    cpus_per_worker: int | None,
    gpus_per_worker: float | None,
    max_concurrent: int | None,
) -> Resources:
    """Divide a machine or cluster among trials.

    By default every GPU, or without GPUs every core, runs one trial; if there are fewer trials
    than that, or fewer are allowed at a time, the cores are shared out among those.

    Raises:
        InputError: A request can never fit.
    """
    flags = {
        "--workers-per-trial": workers,
        "--cpus-per-worker": cpus_per_worker,
        "--max-concurrent": max_concurrent,
    }
    for flag, value in flags.items():
        if value is not None and value < 1:
            raise InputError(f"{flag} must be at least 1, but got {value}.")
    gpus = gpus_per_worker
    if gpus is None:
        gpus = 1.0 if total_gpus >= workers else 0.0
    if not 0 <= gpus < float("inf"):
        raise InputError(f"--gpus-per-worker must be 0 or more, but got {gpus:g}.")
    if workers > 1 and gpus % 1:
        raise InputError(
            f"--gpus-per-worker {gpus:g}: several workers cannot share a GPU; use a whole number, "
            "or --workers-per-trial 1."
        )
    if gpus > 1 and gpus % 1:
        raise InputError(f"--gpus-per-worker {gpus:g}: above 1 it must be a whole number.")
    if gpus * workers > total_gpus:
        raise InputError(
            f"a trial asks for {gpus * workers:g} GPUs, but there are {total_gpus:g}; lower "
            "--gpus-per-worker (0 for CPU only) or --workers-per-trial."
        )
    if total_cpus < 1:
        raise InputError("the cluster has no CPU; start nodes that have.")
    most = min(num_samples, max_concurrent or num_samples)
    if gpus:
        most = min(most, int(total_gpus / (gpus * workers)))
    cpus = cpus_per_worker or max(1, int(total_cpus / min(most, total_cpus) / workers))
    if cpus * workers > total_cpus:
        raise InputError(
            f"a trial asks for {cpus * workers} CPUs ({workers} workers with {cpus} each), but "
            f"there are {total_cpus:g}; lower --cpus-per-worker or --workers-per-trial."
        )
    most = max(1, min(most, int(total_cpus / (cpus * workers))))
    return Resources(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, concurrent=most)
