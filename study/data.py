"""Download, import, verify and cache the data set of a task.

    python -m study.data fashion                     # verify, downloading what is missing
    python -m study.data facade --from starter_set   # import a folder or a zip
    python -m study.data facade --check              # only verify

Data sets are looked up in `--data-dir`, else `$STUDY_DATA_DIR`, else `data/`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from study.cli import add_data_flags, command_parser, run_command
from study.datasets.source import DataSource, ImageSet, Splits
from study.errors import InputError
from study.task import load_task

__all__ = ["DataSource", "ImageSet", "Splits"]  # task files for version 0.1 import these from here


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.data`."""
    parser = command_parser("data")
    parser.add_argument("task", metavar="TASK", help="name of the task: fashion, facade, ...")
    parser.add_argument(
        "--from",
        dest="paths",
        metavar="PATH",
        action="append",
        type=Path,
        default=[],
        help="import this folder or zip file; give it twice for a data set in two archives",
    )
    parser.add_argument(
        "--check", action="store_true", help="verify only; download and import nothing"
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
    """Return the identity of a data set as readable lines."""
    return "\n".join(f"{key:<12} {value}" for key, value in identity.items())


if __name__ == "__main__":
    sys.exit(run_command(main))
