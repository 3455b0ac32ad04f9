"""Check of one machine, run there: data, storage, disk space, GPUs, versions."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
import uuid
from pathlib import Path

import study
from study.cluster.resources import local_cpus, local_gpus, unused_gpu
from study.cluster.session import missing_program
from study.datasets.source import DataSource
from study.errors import InputError, StorageError
from study.storage.paths import AnyPath, as_path
from study.system.cgroup import memory_limit
from study.task import load_task

# Packages that change numbers or files if their versions differ between machines.
PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "scipy",
    "optuna",
    "mlflow",
    "safetensors",
    "pyarrow",
    "filelock",
)
FREE_BYTES = 2 * 2**30  # for caches and Ray's files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to check on a machine.

    Attributes:
        task: Task whose data set is checked; None for no data set.
        dataset: `real` or `sample`.
        data_dir: Absolute path.
        cache_dir: Absolute path.
        storage: Folder of this check in the studies' folder, which contains the file `driver`
            written by the driver; None if the driver cannot write there.
        gpus: Number of GPUs that Ray counts on this machine.
    """

    task: str | None
    dataset: str
    data_dir: str
    cache_dir: str
    storage: str | None
    gpus: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeReport:
    """Result of the check of a machine.

    Attributes:
        host: Hostname.
        python: Python version.
        versions: Package versions by name; None for a missing package.
        code: Fingerprint of this project's modules.
        cpus: Cores available to a process.
        memory: Memory in bytes.
        gpus: Names of the GPUs that torch can use, if Ray counts any.
        checksum: Checksum of the data set; None if it was not checked or is missing.
        wrote: Name of the file that the machine wrote to storage; None if it could not.
        probe: Content of that file.
        problems: Messages that say what to do.
        notes: Messages about what does not keep a study from running.
    """

    host: str
    python: str
    versions: dict[str, str | None]
    code: str
    cpus: int
    memory: int
    gpus: tuple[str, ...]
    checksum: str | None
    wrote: str | None
    probe: str
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check_node(request: Request) -> NodeReport:
    """Check this machine."""
    checksum, no_data = _checksum(request)
    probe = uuid.uuid4().hex
    name = f"{socket.gethostname()}-{probe[:8]}"
    not_stored = None
    if request.storage is not None:
        not_stored = _storage_problem(as_path(request.storage), name, probe)
    gpus = _gpus(request.gpus)
    folders = {tempfile.gettempdir(), request.cache_dir if request.task else "/"}
    problems = [
        no_data,
        missing_program(),
        not_stored,
        *map(_space_problem, folders),
        _gpu_problem(request.gpus, len(gpus)),
    ]
    return NodeReport(
        host=socket.gethostname(),
        python=platform.python_version(),
        versions={package: _version(package) for package in PACKAGES},
        code=code_fingerprint(),
        cpus=local_cpus(),
        memory=int(min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit())),
        gpus=gpus,
        checksum=checksum,
        wrote=name if request.storage is not None and not_stored is None else None,
        probe=probe,
        problems=tuple(filter(None, problems)),
        notes=tuple(filter(None, [unused_gpu()])),
    )


def _checksum(request: Request) -> tuple[str | None, str | None]:
    """Return the checksum of the data set, or why it is missing; both None without a task."""
    if request.task is None:
        return None, None
    source = DataSource(
        dataset=request.dataset,  # type: ignore[arg-type]
        data_dir=Path(request.data_dir),
        cache_dir=Path(request.cache_dir),
    )
    try:
        return str(load_task(request.task).identity(source)["checksum"]), None
    except (InputError, StorageError, OSError) as error:
        return None, str(error)


def _storage_problem(folder: AnyPath, name: str, probe: str) -> str | None:
    """Write a file and read it back; return a message if that fails."""
    studies = folder.parent
    try:
        there = (folder / "driver").exists()
    except StorageError as error:
        return f"{error} Allow this machine to read and write there."
    if not there:
        return (
            f"files that the driver writes to {studies} do not appear here: the folder is not "
            "shared. Choose a shared one (NFS, s3://bucket/studies) with --studies-dir."
        )
    try:
        (folder / name).write_bytes(probe.encode())
        read = (folder / name).read_bytes().decode()
    except (OSError, StorageError) as error:
        reason = getattr(error, "strerror", None) or error
        return (
            f"cannot write {studies} ({reason}); fix it, or choose another folder "
            "with --studies-dir."
        )
    if read != probe:
        return f"{studies} returns other content than was written; fix the storage."
    return None


def _space_problem(folder: str) -> str | None:
    place = next(p for p in (Path(folder), *Path(folder).parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < FREE_BYTES:
        return f"only {free / 2**30:.1f} GiB free in {folder}; free some space."
    return None


def _gpus(counted: float) -> tuple[str, ...]:
    """Return the names of the GPUs that torch can use, if Ray counts any."""
    if not counted and not local_gpus():
        return ()  # avoids importing torch
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _gpu_problem(counted: float, found: int) -> str | None:
    if found >= counted:
        return None
    return (
        f"Ray counts {counted:g} GPUs, but torch can use {found}; fix the GPU driver, "
        f"install a matching build of torch, or start Ray there with --num-gpus {found} "
        "(training does not use Apple's GPUs)."
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_fingerprint() -> str:
    """Return a short hash of the project's modules; if it differs, so may the training."""
    digest = hashlib.sha256()
    root = Path(study.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
