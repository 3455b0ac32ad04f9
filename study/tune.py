"""Search the hyperparameters of a task; the same command again resumes the study.

    python -m study.tune facade --num-samples 50
    python -m study.tune facade --dataset sample --num-samples 4     # a drawn data set, minutes

The same command line continues a study that was cut off, and does nothing when it is complete; a
larger --num-samples extends it. Ctrl-C, SIGTERM and --time-budget let the trials save first.
"""

from __future__ import annotations

import argparse
import sys

from study.command import check_price, run_command
from study.errors import InputError
from study.plan import make_plan
from study.redaction import command_line
from study.resources import unused_gpu
from study.study_flags import build_parser, options_of


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.tune`."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    _check_price(args)
    study = make_plan(options_of(args))
    manifest = study.manifest()
    if args.dry_run:
        from study.dry_run import describe, describe_estimate
        from study.estimate import estimate

        print(describe(study), flush=True)
        if study.resources is not None:
            print(describe_estimate(study, estimate(study), args.price_per_hour))
        return 0
    if args.address is None and (note := unused_gpu()) is not None:
        print(note, file=sys.stderr)
    from study.run import run

    return run(study, manifest, command_line("tune", argv))


def _check_price(args: argparse.Namespace) -> None:
    """Refuse a price where nothing is estimated."""
    price = args.price_per_hour
    check_price(price)
    if price is not None and args.address is not None:
        raise InputError("--price-per-hour: what runs on a cluster is not estimated; leave it out.")
    if price is not None and not args.dry_run:
        raise InputError("--price-per-hour belongs to --dry-run, which estimates; add it.")


if __name__ == "__main__":
    sys.exit(run_command(main))
