"""A data set in memory: its source, its images, and its training and validation parts."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from study.errors import InputError
from study.storage.cache import cache_home


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """Which data set, and where; paths are absolute, so that they are valid in any process."""

    dataset: Literal["real", "sample"] = "real"
    data_dir: Path
    cache_dir: Path

    @staticmethod
    def find(dataset: str = "real", data_dir: str | os.PathLike[str] | None = None) -> DataSource:
        """Resolve flags and environment variables to a source."""
        assert dataset in ("real", "sample")
        folder = data_dir or os.environ.get("STUDY_DATA_DIR") or "data"
        return DataSource(
            dataset=dataset,  # type: ignore[arg-type]
            data_dir=Path(folder).expanduser().absolute(),
            cache_dir=cache_home(),
        )


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A subset of a memory-mapped set of images, selected by index.

    Attributes:
        images: `(N, C, H, W)` uint8, all images of the set.
        targets: `(N,)` or `(N, H, W)` uint8 class indices.
        indices: `(n,)` int64, which of the N belong to this set.
        groups: `(N,)` int64, group of each image (the thing it shows); None if all differ.
    """

    images: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    groups: np.ndarray | None = None

    @property
    def shown(self) -> np.ndarray:
        """Group of each image of this subset, `(n,)` int64."""
        return self.indices if self.groups is None else self.groups[self.indices]

    def __len__(self) -> int:
        return len(self.indices)


@dataclasses.dataclass(frozen=True)
class Splits:
    """Training and validation parts of the training split."""

    train: ImageSet
    val: ImageSet


def check_classes(task: str, classes: Sequence[str], splits: Splits) -> None:
    """Report which of a task's classes are absent from training or validation.

    Raises:
        InputError: Validation has a single class, so that every network scores 1.
    """
    say_absent(task, classes, splits.train, "training")
    present = say_absent(task, classes, splits.val, "validation")
    if len(present) == 1 and len(classes) > 1:
        raise InputError(
            f"validation has only one class, {present[0]} (of {len(classes)}), so every network "
            "would get a perfect score. Add images of other classes, or check how the targets were "
            "written."
        )


def say_absent(task: str, classes: Sequence[str], images: ImageSet, where: str) -> list[str]:
    """Report on stderr which classes are absent from an image set; return the others."""
    counts = np.zeros(256, np.int64)
    for places in np.array_split(images.indices, max(1, len(images) // 64)):
        counts += np.bincount(images.targets[places].ravel(), minlength=256)[:256]
    absent = [name for name, count in zip(classes, counts, strict=False) if not count]
    if absent:
        print(
            f"{task}: {where} has no {', '.join(absent)}; "
            f"{'it has' if len(absent) == 1 else 'they have'} no score, and means are over the "
            f"other {len(classes) - len(absent)} classes",
            file=sys.stderr,
        )
    return [name for name in classes if name not in absent]
