"""Data sets: where they are, getting, importing, verifying and caching them.

    python -m study.data fashion                     # verify, downloading what is missing
    python -m study.data facade --from starter_set   # import a folder or a zip
    python -m study.data facade --check              # only verify

A data set is searched in `--data-dir`, else `$STUDY_DATA_DIR`, else `data/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from study.cache import cache_home
from study.command import add_data_flags, run_command
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


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.data`."""
    parser = argparse.ArgumentParser(
        prog="python -m study.data",
        description="Get, import, verify and cache the data set of a task.",
    )
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
