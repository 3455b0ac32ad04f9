"""Search the hyperparameters of a task; the same command again resumes the study.

    python -m study.tune facade --num-samples 50
    python -m study.tune facade --dataset sample --num-samples 4     # a drawn data set, minutes

The same command resumes an interrupted study and does nothing if the study is complete; a larger
--num-samples extends it. On Ctrl-C, SIGTERM and at the end of --time-budget, trials save first.
"""

from __future__ import annotations

import argparse
import sys

from study.cli import (
    add_data_flags,
    add_goal_flags,
    add_resource_flags,
    add_studies_flag,
    add_tracking_flag,
    check_price,
    command_parser,
    parse_time,
    run_command,
)
from study.cluster.resources import unused_gpu
from study.errors import InputError
from study.records.run_options import RunOptions
from study.runner.plan import make_plan
from study.search.sampler import SAMPLERS
from study.system.redaction import command_line


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `study.tune`."""
    parser = command_parser("tune")
    add = parser.add_argument
    add("task", metavar="TASK", help="name of the task: fashion, facade, ...")
    add("--name", help="name of the study (default: TASK)")
    add_data_flags(parser)
    add_goal_flags(parser)
    add_resource_flags(parser)
    _add_search_flags(parser)
    _add_stopping_flags(parser)
    add(
        "--warm-start-from",
        metavar="NAME",
        help="study of the same task to start from: its trials count if their values are "
        "comparable, otherwise its best configurations are tried first",
    )
    add(
        "--seed",
        metavar="N",
        type=int,
        default=RunOptions.seed,
        help="seed of the search; trial i is trained with seed N + i (default: %(default)s)",
    )
    add_studies_flag(parser)
    add_tracking_flag(parser)
    add(
        "--system-metrics",
        action="store_true",
        help="log this machine's CPU, memory, GPU, disk and network usage to the study's run "
        "(needs psutil)",
    )
    add(
        "--dry-run",
        action="store_true",
        help="check everything, time a few training steps, show what would run and how long it"
        " would take, and exit",
    )
    add(
        "--price-per-hour",
        metavar="USD",
        type=float,
        help="with --dry-run: price of this machine in US dollars per hour",
    )
    return parser


def _add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide which configurations are tried."""
    add = parser.add_argument
    add(
        "--search-space",
        metavar="FILE",
        help="YAML file, or the name of a search space shipped with study, e.g. facade-cpu "
        "(default: TASK)",
    )
    add("--epochs", metavar="N", type=int, help="epochs of a full trial (default: the task's)")
    add(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="fix a setting for all trials instead of searching it; may be repeated",
    )
    add(
        "--scheduler",
        choices=["asha", "none"],
        default=RunOptions.scheduler,
        help="asha: stop poor trials early; none: train every trial to the end (default: "
        "%(default)s)",
    )
    add(
        "--sampler",
        choices=SAMPLERS,
        default=RunOptions.sampler,
        help="tpe: learn from the trials so far (Optuna's TPE); random: do not learn, for "
        "comparison (default: %(default)s)",
    )


def _add_stopping_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide when trials and the study stop, and what is kept."""
    add = parser.add_argument
    add(
        "--grace-period",
        metavar="N",
        type=int,
        help="epochs before a trial may be stopped: the first rung (default: a fifth of the "
        "epochs)",
    )
    add(
        "--reduction-factor",
        metavar="F",
        type=float,
        default=RunOptions.reduction_factor,
        help="one trial in F passes each rung (default: %(default)g)",
    )
    add(
        "--time-budget",
        metavar="TIME",
        help="stop after this time, e.g. 90s, 30m or 8h (default: never)",
    )
    add(
        "--trial-timeout",
        metavar="TIME",
        default="1h",
        help="restart a trial that has reported no epoch for this time (default: %(default)s)",
    )
    add(
        "--max-failures",
        metavar="N",
        type=int,
        default=RunOptions.max_failures,
        help="if a trial's process or machine fails, restart it from its checkpoint, up to N "
        "times per epoch (default: %(default)s)",
    )
    add(
        "--keep-weights",
        metavar="N",
        type=int,
        default=RunOptions.keep_weights,
        help="keep the weights of the best N ended trials (default: %(default)s)",
    )


def options_of(args: argparse.Namespace) -> RunOptions:
    """Return the options from parsed flags.

    Raises:
        InputError: A time cannot be parsed.
    """
    times = {}
    if args.time_budget is not None:
        times["time_budget"] = parse_time("--time-budget", args.time_budget)
    times["trial_timeout"] = parse_time("--trial-timeout", args.trial_timeout)
    return RunOptions.of({**vars(args), **times})


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.tune`."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    _check_price(args)
    study = make_plan(options_of(args))
    manifest = study.manifest()
    if args.dry_run:
        from study.dry_run.estimate import estimate
        from study.dry_run.text import describe, describe_estimate

        print(describe(study), flush=True)
        if study.resources is not None:
            print(describe_estimate(study, estimate(study), args.price_per_hour))
        return 0
    if args.address is None and (note := unused_gpu()) is not None:
        print(note, file=sys.stderr)
    from study.runner.run import run

    return run(study, manifest, command_line("tune", argv))


def _check_price(args: argparse.Namespace) -> None:
    """Refuse a price if no cost is estimated."""
    price = args.price_per_hour
    check_price(price)
    if price is not None and args.address is not None:
        raise InputError("--price-per-hour: the cost on a cluster is not estimated; leave it out.")
    if price is not None and not args.dry_run:
        raise InputError("--price-per-hour needs --dry-run, which estimates the cost; add it.")


if __name__ == "__main__":
    sys.exit(run_command(main))
