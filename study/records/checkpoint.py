"""Checkpoints: written atomically, verified on loading, free of code.

A checkpoint is a zip archive written by `torch.save`. Its checksums are verified on loading, so a
truncated or altered file is detected, and only tensors and plain values are unpickled.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import Any

import torch

from study.errors import DamagedFile
from study.storage.files import replacing
from study.storage.paths import AnyPath


def save(state: dict[str, Any], *paths: AnyPath) -> None:
    """Write nested dicts of tensors and plain values to files, in this order.

    Raises:
        StorageError: A file cannot be written; the old one is unchanged.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for path in paths:
        with replacing(path) as file:
            file.write(buffer.getbuffer())


def load(path: AnyPath) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        DamagedFile: The file is missing or damaged.
    """
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        raise DamagedFile(f"{path} is missing.") from None
    except OSError as error:
        raise DamagedFile(f"{path} is corrupted ({error}).") from error
    try:
        with zipfile.ZipFile(content) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise DamagedFile(f"{path} is corrupted: checksum mismatch in {damaged}.")
        content.seek(0)
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except DamagedFile:
        raise
    except Exception as error:  # a damaged archive makes the readers raise anything
        raise DamagedFile(f"{path} is corrupted ({type(error).__name__}: {error}).") from error
    return state


def digest(path: AnyPath) -> str:
    """Return the SHA-256 of a checkpoint file.

    Raises:
        DamagedFile: The file is missing.
    """
    if not path.exists():
        raise DamagedFile(f"{path} is missing.")
    return hashlib.sha256(path.read_bytes()).hexdigest()
