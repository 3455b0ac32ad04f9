"""What a trial takes, how many fit at once, and an error at once when none ever will."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from study.cgroup import cpu_quota
from study.errors import InputError
from study.run_options import ResourceOptions

# What GPUs are in /dev, and what a build of torch for them is for.
GPU_FILES = (
    ("nvidia[0-9]*", "CUDA"),
    ("dxg", "CUDA"),  # Windows Subsystem for Linux
    ("nvhost-gpu", "CUDA"),  # Jetson
    ("kfd", "ROCm"),  # AMD
)
# What a trial takes whose workers are other processes. Every cluster's head node has 1 of it, so no
# worker's core is touched: of 2 cores 0.01 for a driver would leave room for one worker only.
DRIVER = {"node:__internal_head__": 0.001}
MOST_TRIALS = 10**15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A machine.

    Attributes:
        cpus: Cores that Ray may use.
        gpus: The same.
        host: Name and address, for people.
        id: Ray's, in a cluster.
    """

    cpus: float
    gpus: float = 0
    host: str = "this machine"
    id: str = ""


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
    return int(max(1, min(cpus, cpu_quota())))


def local_gpus(devices: Path = Path("/dev")) -> int:
    """Return the number of GPUs that torch can use here."""
    if not _gpu_files(devices) and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return 0  # spares importing torch
    import torch

    return torch.cuda.device_count()


def unused_gpu(devices: Path = Path("/dev")) -> str | None:
    """Return a sentence about a GPU of this machine that training does not use; None without one.

    Args:
        devices: The folder of devices; another one in tests.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None  # hidden on purpose
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "Apple's GPU is not used: training computes on the CPU here, and on CUDA or ROCm."
    found = _gpu_files(devices)
    if not found or local_gpus(devices):
        return None
    build = importlib.metadata.version("torch")
    name, kind = found[0]
    return (
        f"there is a GPU ({name}), but torch {build} cannot use it: install the build of torch for "
        f"{kind} (https://pytorch.org/get-started/locally) and a driver that fits, and make sure "
        f"that this user may open {name}."
    )


def _gpu_files(devices: Path) -> list[tuple[Path, str]]:
    return [(file, kind) for name, kind in GPU_FILES for file in sorted(devices.glob(name))]


def plan(
    nodes: Sequence[Node],
    *,
    num_samples: float,
    workers: int,
    cpus_per_worker: int | None,
    gpus_per_worker: float | None,
    max_concurrent: int | None,
) -> Resources:
    """Divide a machine or cluster among trials.

    By default every GPU, or without GPUs every core, runs one worker; if there are fewer trials
    than that needs, or fewer are allowed at a time, the cores are shared out among those. A worker
    has its cores and GPUs on one node; the workers of a trial may be on several.

    Args:
        nodes: The machines.
        num_samples: Trials of the study; infinity without limit.
        workers: Of each trial.
        cpus_per_worker: Cores of each; None to share them out.
        gpus_per_worker: GPUs of each; None for one if there are enough, else none.
        max_concurrent: Trials at a time; None for what fits.

    Raises:
        InputError: A request can never fit.
    """
    total_cpus, total_gpus = (sum(getattr(node, k) for node in nodes) for k in ("cpus", "gpus"))
    gpus = gpus_per_worker
    if gpus is None:
        gpus = 1.0 if total_gpus >= workers else 0.0
    if gpus * workers > total_gpus:
        raise InputError(
            f"a trial asks for {gpus * workers:g} GPUs, but there are {total_gpus:g}; lower "
            "--gpus-per-worker (0 for CPU only) or --workers-per-trial."
        )
    if total_cpus < 1:
        raise InputError(
            "no node of the cluster can run a trial yet; start nodes, or have --wait N ask for "
            "them."
        )

    def fit(cpus: int) -> int:
        """Return how many trials run at once if each worker has so many cores."""
        slots = [
            min(node.cpus // cpus, int(node.gpus / gpus) if gpus else node.cpus) for node in nodes
        ]
        return int(sum(slots)) // workers

    least = cpus_per_worker or 1
    if least * workers > total_cpus:
        raise InputError(
            f"a trial asks for {least * workers} CPUs ({workers} workers with {least} each), but "
            f"there are {total_cpus:g}; lower --cpus-per-worker or --workers-per-trial."
        )
    most = int(min(num_samples, max_concurrent or num_samples, fit(least)))
    if not most:
        each = f"{least} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise InputError(
            f"{workers} workers with {each} on one node each do not fit on the nodes "
            f"({', '.join(f'{node.cpus:g} CPUs and {node.gpus:g} GPUs' for node in nodes)}); lower "
            "--cpus-per-worker, --gpus-per-worker or --workers-per-trial."
        )
    cpus = least
    while cpus_per_worker is None and fit(cpus + 1) >= most:
        cpus += 1
    return Resources(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, concurrent=most)


def add_resource_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a study runs on, and how many trials."""
    parser.add_argument(
        "--num-samples",
        metavar="N",
        type=_num_samples,
        default=10,
        help="run until the study has "
        "N ended trials; inf: until --time-budget or Ctrl-C ends it (default: %(default)s)",
    )
    add_machine_flags(parser)


def _num_samples(text: str) -> float:
    """Return a whole number of trials, or infinity."""
    if text.strip().lower() in ("inf", "none"):
        return math.inf
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number; for no limit give inf"
        ) from None


def say_trials(number: float) -> str:
    """Return how many trials there are, for people; infinity says what ends the study."""
    return "any number of trials" if math.isinf(number) else f"{number} trials"


def add_machine_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that say what trials run on."""
    add = parser.add_argument
    add("--max-concurrent", metavar="N", type=int, help="trials at a time (default: what fits)")
    add(
        "--workers-per-trial",
        metavar="N",
        type=int,
        default=1,
        help="processes that train one trial together (default: %(default)s)",
    )
    add("--cpus-per-worker", metavar="N", type=int, help="cores of each (default: shared out)")
    add(
        "--gpus-per-worker",
        metavar="N",
        type=float,
        help="GPUs of each, a fraction to share one (default: 1 if there are any)",
    )
    add("--address", help="of a running Ray cluster, or auto (default: Ray on this machine)")
    add(
        "--wait",
        metavar="N",
        type=int,
        help="with --address: wait until the cluster has N nodes, "
        "asking one that grows by itself for them",
    )


def check_resource_flags(args: ResourceOptions) -> None:
    """Check the flags of `add_resource_flags` as far as no machine has to be asked.

    Raises:
        InputError: One can never be right.
    """
    for flag in ("num_samples", "max_concurrent", "workers_per_trial", "cpus_per_worker"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag.replace('_', '-')} must be at least 1, but got {value}.")
    if MOST_TRIALS < args.num_samples < math.inf:
        raise InputError(f"--num-samples {args.num_samples:,} is too many; for no limit give inf.")
    gpus = args.gpus_per_worker or 0.0
    if not 0 <= gpus < float("inf"):
        raise InputError(f"--gpus-per-worker must be 0 or more, but got {gpus:g}.")
    if args.workers_per_trial > 1 and gpus % 1:
        raise InputError(
            f"--gpus-per-worker {gpus:g}: several workers cannot share a GPU; use a whole number, "
            "or --workers-per-trial 1."
        )
    if gpus > 1 and gpus % 1:
        raise InputError(f"--gpus-per-worker {gpus:g}: above 1 it must be a whole number.")
    if args.wait is not None and (args.address is None or args.wait < 1):
        raise InputError(
            f"--wait {args.wait}: give a number of nodes from 1 up, and the cluster's --address."
        )


def plan_for(args: ResourceOptions, nodes: Sequence[Node]) -> Resources:
    """Divide machines as the flags of `add_resource_flags` say, once they are checked.

    Raises:
        InputError: A request can never fit.
    """
    return plan(
        nodes,
        num_samples=args.num_samples,
        workers=args.workers_per_trial,
        cpus_per_worker=args.cpus_per_worker,
        gpus_per_worker=args.gpus_per_worker,
        max_concurrent=args.max_concurrent,
    )
