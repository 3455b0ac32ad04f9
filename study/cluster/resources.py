"""Resources per trial: how many trials fit at a time; fails early if none can."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from study.errors import InputError
from study.records.run_options import ResourceOptions
from study.system.cgroup import cpu_quota

# GPU device files in /dev, and the platform of the torch build they need.
GPU_FILES = (
    ("nvidia[0-9]*", "CUDA"),
    ("dxg", "CUDA"),  # Windows Subsystem for Linux
    ("nvhost-gpu", "CUDA"),  # Jetson
    ("kfd", "ROCm"),  # AMD
)
# Resources of a trial's Tune actor when the workers are other processes. Every cluster's head node
# has 1 of this resource, so no core is taken from workers: on 2 cores, even 0.01 CPU for the actor
# would leave room for one worker only.
DRIVER = {"node:__internal_head__": 0.001}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A machine.

    Attributes:
        cpus: Cores that Ray may use.
        gpus: GPUs that Ray may use.
        host: Name and address for messages.
        id: Ray's node id, in a cluster.
    """

    cpus: float
    gpus: float = 0
    host: str = "this machine"
    id: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of each trial of a study.

    Attributes:
        workers: Training processes per trial; a single one is the Tune actor itself.
        cpus_per_worker: Cores, and threads, per worker.
        gpus_per_worker: GPUs per worker; a fraction only with one worker.
        concurrent: Number of trials at a time.
    """

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    concurrent: int

    def describe(self) -> str:
        """Return a phrase for messages."""
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        each = f"{self.cpus_per_worker} CPU{gpus}"
        if self.workers > 1:
            each = f"{self.workers} workers with {each} each"
        return f"{self.concurrent} at a time, each with {each}"


def local_cpus() -> int:
    """Return the number of cores that this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(max(1, min(cpus, cpu_quota())))


def this_machine() -> Node:
    """Return the cores and GPUs of this machine that this process may use."""
    return Node(cpus=local_cpus(), gpus=local_gpus())


def local_gpus(devices: Path = Path("/dev")) -> int:
    """Return the number of GPUs that torch can use here."""
    if not _gpu_files(devices) and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return 0  # avoids importing torch
    import torch

    return torch.cuda.device_count()


def unused_gpu(devices: Path = Path("/dev")) -> str | None:
    """Return a message about a GPU of this machine that training does not use; None without one.

    Args:
        devices: The folder of device files; another one in tests.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None  # hidden on purpose
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "Apple's GPU is not used: training runs on the CPU here (or on CUDA and ROCm GPUs)."
    found = _gpu_files(devices)
    if not found or local_gpus(devices):
        return None
    build = importlib.metadata.version("torch")
    name, kind = found[0]
    return (
        f"there is a GPU ({name}), but torch {build} cannot use it: install the build of torch for "
        f"{kind} (https://pytorch.org/get-started/locally) and a matching driver, and check that "
        f"this user may open {name}."
    )


def _gpu_files(devices: Path) -> list[tuple[Path, str]]:
    return [(file, kind) for name, kind in GPU_FILES for file in sorted(devices.glob(name))]


def allocate(nodes: Sequence[Node], options: ResourceOptions) -> Resources:
    """Divide a machine or cluster among trials.

    By default every GPU, or without GPUs every core, runs one worker; if fewer trials run at a
    time, because of their number or `--max-concurrent`, the cores are divided among them. A worker
    has its cores and GPUs on one node; the workers of a trial may be on several.

    Args:
        nodes: The machines.
        options: The requested resources, checked.

    Raises:
        InputError: The request can never fit.
    """
    workers = options.workers_per_trial
    gpus = options.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if sum(node.gpus for node in nodes) >= workers else 0.0
    cpus = options.cpus_per_worker or 1
    _check_totals(nodes, workers, cpus, gpus)
    trials = options.num_samples
    most = int(min(trials, options.max_concurrent or trials, _num_fit(nodes, workers, cpus, gpus)))
    if not most:
        each = f"{cpus} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise InputError(
            f"{workers} workers with {each} on one node each do not fit on the nodes "
            f"({', '.join(f'{node.cpus:g} CPUs and {node.gpus:g} GPUs' for node in nodes)}); lower "
            "--cpus-per-worker, --gpus-per-worker or --workers-per-trial."
        )
    while options.cpus_per_worker is None and _num_fit(nodes, workers, cpus + 1, gpus) >= most:
        cpus += 1
    return Resources(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, concurrent=most)


def _check_totals(nodes: Sequence[Node], workers: int, cpus: int, gpus: float) -> None:
    """Refuse a trial whose workers need more than all nodes have together."""
    total_cpus, total_gpus = (sum(getattr(node, k) for node in nodes) for k in ("cpus", "gpus"))
    if gpus * workers > total_gpus:
        raise InputError(
            f"a trial asks for {gpus * workers:g} GPUs, but there are {total_gpus:g}; lower "
            "--gpus-per-worker (0 for CPU only) or --workers-per-trial."
        )
    if total_cpus < 1:
        raise InputError(
            "no node of the cluster can run a trial yet; start nodes, or request them with "
            "--wait N."
        )
    if cpus * workers > total_cpus:
        raise InputError(
            f"a trial asks for {cpus * workers} CPUs ({workers} workers with {cpus} each), but "
            f"there are {total_cpus:g}; lower --cpus-per-worker or --workers-per-trial."
        )


def _num_fit(nodes: Sequence[Node], workers: int, cpus: int, gpus: float) -> int:
    """Return how many trials run at a time with these cores and GPUs per worker."""
    slots = [min(node.cpus // cpus, int(node.gpus / gpus) if gpus else node.cpus) for node in nodes]
    return int(sum(slots)) // workers
