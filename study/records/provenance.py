"""The origin of a result: data set, code version, package versions, machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import study
from study.datasets.source import DataSource

PACKAGES = ("torch", "ray", "optuna", "mlflow", "numpy")


def facts(identity: dict[str, Any], source: DataSource) -> dict[str, str]:
    """Return facts by dotted name, as written to checkpoints and MLflow tags."""
    return {
        "data.dataset": source.dataset,
        "data.name": str(identity["dataset"]),
        "data.checksum": str(identity["checksum"]),
        **code_and_machine(),
    }


@functools.cache
def code_and_machine() -> dict[str, str]:
    """Return the versions of code and packages, and facts about the machine."""
    return {
        "code.version": study.__version__,
        "code.commit": _commit(),
        "machine.host": socket.gethostname(),
        "machine.cpus": str(os.cpu_count()),
        "machine.system": f"{platform.system()} {platform.machine()}",
        "machine.python": platform.python_version(),
        **{f"version.{name}": version for name, version in versions().items()},
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages in `PACKAGES`."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _commit() -> str:
    """Return the git commit of a checkout, marked as dirty if files differ from it."""
    root = Path(study.__file__).parent.parent
    if not (root / ".git").exists():
        return "installed package"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
