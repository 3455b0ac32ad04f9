"""Check on every machine that everything a study needs is there.

    python -m study.doctor                           # this machine
    python -m study.doctor facade --address auto     # every node of the cluster
    python -m study.doctor facade --address auto --wait 5

Checks Python and package versions, the data set, writing and reading in the studies' folder, CPUs,
GPUs and memory, the tracking store (from this machine only, since only the driver writes to it)
and, without a cluster, that Ray starts. Shows how many trials fit at a time. Exit code 1 if there
is a problem; each problem says what to change.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from typing import Any

from study.cli import (
    add_data_flags,
    add_resource_flags,
    add_studies_flag,
    add_tracking_flag,
    command_parser,
    run_command,
)
from study.cluster.node_check import NodeReport
from study.cluster.nodes import wait_for_nodes
from study.cluster.resources import allocate, this_machine
from study.cluster.session import join_ray, try_ray
from study.cluster.survey import Survey, survey
from study.datasets.source import DataSource
from study.errors import InputError
from study.formatting import table
from study.records.run_options import ResourceOptions
from study.storage.paths import as_path
from study.task import load_task


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `study.doctor`."""
    parser = command_parser("doctor")
    add = parser.add_argument
    add("task", metavar="TASK", nargs="?", help="also check the data set of this task")
    add_data_flags(parser)
    add_studies_flag(parser)
    add_tracking_flag(parser)
    add_resource_flags(parser)
    add("--json", action="store_true", help="print JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.doctor`."""
    args = build_parser().parse_args(argv)
    task = load_task(args.task).name if args.task else None
    wanted = ResourceOptions.of(vars(args))
    wanted.check()
    source = DataSource.find(args.dataset, args.data_dir)
    studies = as_path(args.studies_dir)
    nodes = None
    with ThreadPoolExecutor(1) as pool:
        tracking = pool.submit(_tracking_problem, args.tracking_uri)
        with redirect_stdout(sys.stderr):  # Ray prints news of its nodes there
            if args.address is not None:
                join_ray(args.address)
                nodes = wait_for_nodes(wanted)
            found = survey(studies, task, source, nodes)
            problems = list(found.problems)
            resources = None
            try:
                resources = allocate(nodes or [this_machine()], wanted)
            except InputError as error:
                problems.append(("", str(error)))
            if nodes is None and (problem := try_ray(resources)) is not None:
                problems.append(("", problem))
        if (problem := tracking.result()) is not None:
            problems.append(("", problem))
    fits = resources.describe() if resources else None
    if args.json:
        print(json.dumps(as_json(found, problems, fits), indent=1))
    else:
        print(show(found, problems, fits))
    return 1 if problems else 0


def _tracking_problem(flag: str | None) -> str | None:
    from study.tracking import store

    try:
        store.check(store.resolve_uri(flag))
    except InputError as error:
        return f"{error} Start it, or name another store with --tracking-uri."
    return None


def as_json(found: Survey, problems: list[tuple[str, str]], fits: str | None) -> dict[str, Any]:
    """Return the result as a JSON object."""
    return {
        "ok": not problems,
        "nodes": {
            host: report and dataclasses.asdict(report) for host, report in found.reports.items()
        },
        "fits": fits,
        "problems": [{"host": host, "problem": problem} for host, problem in problems],
    }


def show(found: Survey, problems: list[tuple[str, str]], fits: str | None) -> str:
    """Return the result as readable text."""
    header = ("machine", "Python", "torch", "Ray", "CPUs", "memory", "GPUs", "data")
    lines = [table(header, [_row(host, report) for host, report in found.reports.items()])]
    if fits:
        lines.append(f"\nfits: {fits}")
    lines += [
        f"note: {host}: {note}"
        for host, report in found.reports.items()
        for note in (report.notes if report else ())
    ]
    if not problems:
        return "\n".join([*lines, "no problems found"])
    lines.append("\nproblems:")
    told: dict[str, list[str]] = {}
    for host, problem in problems:  # a problem of several machines is shown once
        told.setdefault(problem, []).append(host)
    for problem, hosts in told.items():
        where = ", ".join(filter(None, hosts))
        lines.append(f"  {where}: {problem}" if where else f"  {problem}")
    return "\n".join(lines)


def _row(host: str, report: NodeReport | None) -> tuple[str, ...]:
    if report is None:
        return (host, *("-" for _ in range(7)))
    return (
        host,
        report.python,
        report.versions["torch"] or "-",
        report.versions["ray"] or "-",
        str(report.cpus),
        f"{report.memory / 2**30:.0f} GiB",
        ", ".join(report.gpus) or "-",
        (report.checksum or "-")[:12],
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
