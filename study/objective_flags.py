"""`--objective` and `--require`, as flags; `study.parse_objective` reads what they say."""

from __future__ import annotations

import argparse


def add_goal_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--objective` and `--require`."""
    parser.add_argument(
        "--objective",
        metavar="METRIC[,METRIC]",
        help="what to improve, e.g. accuracy, ap/pillar or worst_class; with a second one, "
        "num_params or images_per_second perhaps, a Pareto front (default: the task's)",
    )
    add_require_flag(parser, "what a good trial must keep at its best epoch")


def add_require_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--require`."""
    parser.add_argument(
        "--require",
        metavar="'METRIC>=VALUE'",
        action="append",
        default=[],
        help=f"{what}, e.g. 'ap/window>=0.8' or 'num_params<=1e5'; may be repeated",
    )
