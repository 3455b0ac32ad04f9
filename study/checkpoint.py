"""Checkpoints: written whole or not at all, checked before they are believed, free of code.

A checkpoint is what `torch.save` writes, a zip archive. Its checksums are verified on loading, so
a truncated or altered file is found out, and only tensors and plain values are unpickled.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from study.errors import TrialError


class CheckpointError(TrialError):
    """A checkpoint is missing, truncated or altered; the message names the file."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts of tensors and plain values; readers see the old file or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: The file is missing or not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} differs.")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except Exception as error:  # whatever a damaged archive makes the readers raise
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    return state


def digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's file.

    Raises:
        CheckpointError: It is missing.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is missing.")
    return hashlib.sha256(path.read_bytes()).hexdigest()
