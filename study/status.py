"""Show how a study is doing, from any terminal.

python -m study.status              # the study last run
python -m study.status facade --watch
python -m study.status --json

Only reads the study's folder and takes no lock, so it neither disturbs nor waits for the driver.
The remaining time is simulated: the trials to come under the study's own stopping rule, with the
median time of its epochs so far and as many trials at a time as now.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from study.cli import add_studies_flag, add_study_name, command_parser, run_command
from study.errors import InputError
from study.storage.paths import AnyPath, as_path
from study.system.streams import reader_gone

WATCH_SECONDS = 2.0
REMOTE_WATCH_SECONDS = 10.0  # for an object store, where every trial costs a request


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.status`."""
    parser = command_parser("status")
    add = parser.add_argument
    add_study_name(parser)
    add("--watch", action="store_true", help="keep updating until no driver runs the study")
    add(
        "--every",
        metavar="SECONDS",
        type=float,
        help=f"with --watch: seconds between updates (default: {WATCH_SECONDS:g}, "
        f"{REMOTE_WATCH_SECONDS:g} for an object store)",
    )
    add("--json", action="store_true", help="print JSON; with --watch, one object per line")
    add_studies_flag(parser)
    args = parser.parse_args(argv)
    if args.every is not None and not 0.1 <= args.every <= 86_400:
        raise InputError(f"--every must be 0.1 to 86400 seconds, but got {args.every:g}.")
    if args.every is not None and not args.watch:
        raise InputError("--every needs --watch; add it.")
    from study.records.manifest import find_study

    folder = find_study(as_path(args.studies_dir), args.study)
    if not args.watch:
        state = read_status(folder)
        print(json.dumps(state, indent=1) if args.json else "\n".join(describe(state, _width())))
        return 0
    usual = WATCH_SECONDS if isinstance(folder, Path) else REMOTE_WATCH_SECONDS
    watch(folder, args.every or usual, args.json)
    return 0


def watch(folder: AnyPath, seconds: float, as_json: bool) -> None:
    """Show a study's status repeatedly, until no driver runs it."""
    from study.reporting.live_table import Block, moves_cursor

    block = Block(sys.stdout) if moves_cursor(sys.stdout) and not as_json else None
    while True:
        state = read_status(folder)
        if as_json:
            print(json.dumps(state), flush=True)
        elif block is not None:
            block.draw(describe(state, block.size()[0]))
        else:
            print("\n".join(describe(state, _width())), end="\n\n", flush=True)
        count = state["trials"]
        ended = sum(count.values()) - count["running"]
        done = state["num_samples"] is not None and ended >= state["num_samples"]
        if state["driver"]["alive"] is False or (done and not state["driver"]["alive"]):
            return
        if reader_gone(sys.stdout):
            return
        time.sleep(seconds)


def read_status(folder: AnyPath) -> dict[str, Any]:
    """Return the status of a study and its driver as a JSON object.

    Raises:
        InputError: There is no study, or a file is corrupted beyond repair.
        StorageError: The store does not answer.
    """
    from study.records.study_record import StudyRecord
    from study.reporting.snapshot import snapshot, time_left
    from study.search.stopping_rule import StoppingRule
    from study.storage.lock import driver_of

    record = StudyRecord.read(folder)
    asked = StoppingRule.of_last_start(record.manifest)
    driver = driver_of(folder)
    outlook = None
    if driver["alive"] is not False:
        outlook = time_left(record, asked)
    elif asked is not None:
        asked = dataclasses.replace(asked, budget=None)  # that of a run that has ended
    return {**snapshot(record, asked, outlook), "driver": driver}


def describe(state: dict[str, Any], width: int) -> list[str]:
    """Return the status of a study as readable lines."""
    from study.formatting import duration
    from study.reporting.snapshot import lines

    driver = state["driver"]
    where = f"host {driver['host']}, pid {driver['pid']}"
    last = [state["last_report"]] if state["last_report"] is not None else []
    last += [driver["heard"]] if driver["heard"] is not None else []
    text = {
        True: f"driver   running ({where})",
        False: "driver   not running",
        None: f"driver   possibly running on another machine ({where})",
    }[driver["alive"]]
    if last:
        text += f"; last activity {duration(min(last))} ago"
    first, *rest = lines(state, width)
    return [first, text[:width], *rest]


def _width() -> int:
    """Return the number of terminal columns, or 120 for a log."""
    return shutil.get_terminal_size((120, 24)).columns


if __name__ == "__main__":
    sys.exit(run_command(main))
