"""Check that everything a study needs is there, on every machine.

    python -m study.doctor                           # this machine
    python -m study.doctor facade --address auto     # every node of the cluster
    python -m study.doctor facade --address auto --wait 5

Checks Python and package versions, the data set, that the studies' folder can be written and read
back, CPUs, GPUs and memory, the tracking store from here (only the driver writes it), and without
a cluster that Ray starts as for a study; says what fits at once. Exit code 1 if something is wrong;
each problem names what to change.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from typing import Any

from study import cluster
from study.command import (
    add_data_flags,
    add_studies_flag,
    add_tracking_flag,
    command_parser,
    run_command,
)
from study.datasets.source import DataSource
from study.errors import InputError, StartError
from study.node_check import NodeReport
from study.object_path import as_path
from study.resources import (
    Node,
    Resources,
    add_resource_flags,
    check_resource_flags,
    local_cpus,
    local_gpus,
    plan_for,
)
from study.run_options import ResourceOptions
from study.tables import table
from study.task import load_task

WORKER_SECONDS = 30.0  # for a worker of Ray to start, on a busy machine


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `study.doctor`."""
    parser = command_parser("doctor")
    add = parser.add_argument
    add("task", metavar="TASK", nargs="?", help="check this task's data set too")
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
    check_resource_flags(wanted)
    source = DataSource.find(args.dataset, args.data_dir)
    studies = as_path(args.studies_dir)
    nodes = None
    with ThreadPoolExecutor(1) as pool:
        tracking = pool.submit(_tracking_problem, args.tracking_uri)
        with redirect_stdout(sys.stderr):  # Ray prints there what becomes of nodes
            if args.address is not None:
                cluster.connect(args.address)
                nodes = cluster.nodes_for(wanted)
            survey = cluster.survey(studies, task, source, nodes)
            problems = list(survey.problems)
            resources = None
            try:
                here = [Node(cpus=local_cpus(), gpus=local_gpus())]
                resources = plan_for(wanted, nodes or here)
            except InputError as error:
                problems.append(("", str(error)))
            if nodes is None and (problem := _ray_problem(resources)) is not None:
                problems.append(("", problem))
        if (problem := tracking.result()) is not None:
            problems.append(("", problem))
    fits = resources.describe() if resources else None
    if args.json:
        print(json.dumps(as_json(survey, problems, fits), indent=1))
    else:
        print(show(survey, problems, fits))
    return 1 if problems else 0


def _tracking_problem(flag: str | None) -> str | None:
    from study import tracking_store

    try:
        tracking_store.check(tracking_store.resolve_uri(flag))
    except InputError as error:
        return f"{error} Start it, or name another store with --tracking-uri."
    return None


def _ray_problem(resources: Resources | None) -> str | None:
    """Start Ray as a study does, and have it do something; return what goes wrong."""
    from study.ray_session import shut_down_ray, start_ray

    try:
        start_ray(
            resources or Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0, concurrent=1)
        )
        import ray

        ray.get(ray.remote(num_cpus=0)(_process_id).remote(), timeout=WORKER_SECONDS)
    except (InputError, StartError) as error:
        return str(error)
    except Exception as error:  # Ray's own
        return f"Ray starts, but does nothing ({type(error).__name__}): {error}"
    finally:
        shut_down_ray()
    return None


def _process_id() -> int:
    return os.getpid()


def as_json(
    survey: cluster.Survey, problems: list[tuple[str, str]], fits: str | None
) -> dict[str, Any]:
    """Return the result as a JSON object."""
    return {
        "ok": not problems,
        "nodes": {
            host: report and dataclasses.asdict(report) for host, report in survey.reports.items()
        },
        "fits": fits,
        "problems": [{"host": host, "problem": problem} for host, problem in problems],
    }


def show(survey: cluster.Survey, problems: list[tuple[str, str]], fits: str | None) -> str:
    """Return the result for people."""
    header = ("machine", "Python", "torch", "Ray", "CPUs", "memory", "GPUs", "data")
    lines = [table(header, [_row(host, report) for host, report in survey.reports.items()])]
    if fits:
        lines.append(f"\nfits: {fits}")
    lines += [
        f"note: {host}: {note}"
        for host, report in survey.reports.items()
        for note in (report.notes if report else ())
    ]
    if not problems:
        return "\n".join([*lines, "all is well"])
    lines.append("\nproblems:")
    told: dict[str, list[str]] = {}
    for host, problem in problems:  # one that all machines have is told once
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
