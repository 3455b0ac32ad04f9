"""Download, import, verify and cache the data set of a task.

    python -m study.data fashion                     # verify, downloading what is missing
    python -m study.data facade --from starter_set   # import a folder or a zip
    python -m study.data facade --check              # only verify

A data set is searched in `--data-dir`, else `$STUDY_DATA_DIR`, else `data/`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from study.cache import cache_home
from study.command import add_data_flags, command_parser, run_command
from study.errors import InputError
from study.task import Task, load_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """Which data set, and where: all paths absolute, so that it holds in any process."""

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
    """Some images of a memory-mapped set, chosen by index.

    Attributes:
        images: `(N, C, H, W)` uint8, all images of the file.
        targets: `(N,)` or `(N, H, W)` uint8 class indices.
        indices: `(n,)` int64, which of the N belong to this set.
        groups: `(N,)` int64, what each image shows; None if each shows something else.
    """

    images: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    groups: np.ndarray | None = None

    @property
    def shown(self) -> np.ndarray:
        """What each image of this set shows, `(n,)` int64."""
        return self.indices if self.groups is None else self.groups[self.indices]

    def __len__(self) -> int:
        return len(self.indices)


@dataclasses.dataclass(frozen=True)
class Splits:
    """Training and validation part of the training split."""

    train: ImageSet
    val: ImageSet


def prepare(task: Task, source: DataSource) -> dict[str, Any]:
    """Verify and cache a task's data set, downloading it if the task allows; return its identity.

    Raises:
        InputError: Missing or damaged; the message names the file and the ways out.
    """
    if source.dataset == "real" and task.downloads:
        task.acquire(source, [])
    return task.identity(source)


def check_classes(task: Task, splits: Splits) -> None:
    """Say which classes training or validation has nothing of.

    Raises:
        InputError: Validation has a single class, so that every network scores 1.
    """
    say_absent(task, splits.train, "training")
    present = say_absent(task, splits.val, "validation")
    if len(present) == 1 and len(task.classes) > 1:
        raise InputError(
            f"validation has one class only, {present[0]} (of {len(task.classes)}): every network "
            "would be scored perfect. Add images with other classes, or check how the targets were "
            "written."
        )


def say_absent(task: Task, images: ImageSet, where: str) -> list[str]:
    """Say on stderr which classes an image set has nothing of; return those that it has."""
    counts = np.zeros(256, np.int64)
    for places in np.array_split(images.indices, max(1, len(images) // 64)):
        counts += np.bincount(images.targets[places].ravel(), minlength=256)[:256]
    absent = [name for name, count in zip(task.classes, counts, strict=False) if not count]
    if absent:
        print(
            f"{task.name}: {where} has nothing of {', '.join(absent)}; no score tells of "
            f"{'it' if len(absent) == 1 else 'them'}, and means are over the other "
            f"{len(task.classes) - len(absent)} classes",
            file=sys.stderr,
        )
    return [name for name in task.classes if name not in absent]


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.data`."""
    parser = command_parser("data")
    parser.add_argument("task", metavar="TASK", help="fashion, facade, ...")
    parser.add_argument(
        "--from",
        dest="paths",
        metavar="PATH",
        action="append",
        type=Path,
        default=[],
        help="import from this folder or zip; may be given twice, for data sets in two archives",
    )
    parser.add_argument(
        "--check", action="store_true", help="only verify; download and import nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_data_flags(parser)
    args = parser.parse_args(argv)
    task = load_task(args.task)
    source = DataSource.find(args.dataset, args.data_dir)
    if args.check and args.paths:
        raise InputError("--check only verifies; leave out --from or --check.")
    if not args.check and source.dataset == "real":
        task.acquire(source, args.paths)
    identity = task.identity(source)
    if args.json:
        print(json.dumps(identity, indent=1))
    else:
        print(describe(identity))
    return 0


def describe(identity: dict[str, Any]) -> str:
    """Return the identity of a data set as lines for people."""
    return "\n".join(f"{key:<12} {value}" for key, value in identity.items())


if __name__ == "__main__":
    sys.exit(run_command(main))
