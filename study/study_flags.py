"""The flags of `study.tune`, and the options that they make."""

from __future__ import annotations

import argparse

from study.command import (
    add_data_flags,
    add_resource_flags,
    add_studies_flag,
    add_tracking_flag,
    command_parser,
    parse_time,
)
from study.objective_flags import add_goal_flags
from study.run_options import RunOptions
from study.sampler import SAMPLERS


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `study.tune`."""
    parser = command_parser("tune")
    add = parser.add_argument
    add("task", metavar="TASK", help="fashion, facade, ...")
    add("--name", help="name of the study (default: TASK)")
    add_data_flags(parser)
    add_goal_flags(parser)
    add_resource_flags(parser)
    add(
        "--search-space",
        metavar="FILE",
        help="YAML file, or the name of one that comes along, facade-cpu for one (default: TASK)",
    )
    add("--epochs", metavar="N", type=int, help="epochs of a full trial (default: the task's)")
    add(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="a setting for all trials, no longer searched; may be repeated",
    )
    add(
        "--scheduler",
        choices=["asha", "none"],
        default="asha",
        help="stop poor trials early, or train all to the end (default: %(default)s)",
    )
    add(
        "--sampler",
        choices=SAMPLERS,
        default="tpe",
        help="learn from the trials so far (Optuna's "
        "TPE), or draw at random, to compare with (default: %(default)s)",
    )
    add(
        "--grace-period",
        metavar="N",
        type=int,
        help="epochs before the first trial may be stopped (default: a fifth of them)",
    )
    add(
        "--reduction-factor",
        metavar="F",
        type=float,
        default=3.0,
        help="one in F goes on at each rung (default: %(default)g)",
    )
    add("--time-budget", metavar="TIME", help="stop after this time: 90s, 30m, 8h (default: never)")
    add(
        "--trial-timeout",
        metavar="TIME",
        default="1h",
        help="a trial that reports no epoch for "
        "this time hangs: its process is ended and started again (default: %(default)s)",
    )
    add(
        "--max-failures",
        metavar="N",
        type=int,
        default=2,
        help="start a trial whose process or "
        "machine fails again, from its checkpoint, up to N times in the same epoch (default: "
        "%(default)s)",
    )
    add(
        "--keep-weights",
        metavar="N",
        type=int,
        default=5,
        help="keep the weights of the N best ended trials (default: %(default)s)",
    )
    add(
        "--warm-start-from",
        metavar="NAME",
        help="a study of the same task that the new search "
        "is to know; if its values compare, its trials count, else its best are tried first",
    )
    add("--seed", metavar="N", type=int, default=0, help="of the search; trial i gets N + i")
    add_studies_flag(parser)
    add_tracking_flag(parser)
    add(
        "--system-metrics",
        action="store_true",
        help="log cores, memory, GPUs, disk and network "
        "of this machine to the study's run; needs psutil",
    )
    add(
        "--dry-run",
        action="store_true",
        help="check everything, measure some steps, say what "
        "would run and how long it would take, and end",
    )
    add(
        "--price-per-hour",
        metavar="USD",
        type=float,
        help="with --dry-run: US dollars for an hour of this machine",
    )
    return parser


def options_of(args: argparse.Namespace) -> RunOptions:
    """Return the options that parsed flags ask for.

    Raises:
        InputError: One is no time.
    """
    times = {}
    if args.time_budget is not None:
        times["time_budget"] = parse_time("--time-budget", args.time_budget)
    times["trial_timeout"] = parse_time("--trial-timeout", args.trial_timeout)
    return RunOptions.of({**vars(args), **times})
