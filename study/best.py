"""Rank the trials of a study; confirm, test, export or register the best.

python -m study.best                    # the study last run
python -m study.best facade --top 10
python -m study.best facade --importance   # which hyperparameter moves which metric
python -m study.best facade --confirm 5 # retrain the best three: other folds, other seeds
python -m study.best facade --export    # evaluates the test split, writes export/facade
python -m study.best facade --register  # the confirmed winner as a version of an MLflow model
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from study.cli import (
    add_machine_flags,
    add_require_flag,
    add_studies_flag,
    add_study_name,
    add_tracking_flag,
    command_parser,
    run_command,
)
from study.errors import DamagedFile, InputError, TrialError
from study.records.manifest import changed_metrics, find_study
from study.records.run_options import RunOptions
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.reporting.leaderboard import as_json, describe
from study.search.parse_objective import parse_constraints
from study.selection.confirmation import Confirmation, find, others_confirmed
from study.storage.paths import as_path
from study.system.redaction import command_line
from study.task import load_task


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `study.best`."""
    parser = command_parser("best")
    add = parser.add_argument
    add_study_name(parser)
    add(
        "--top",
        metavar="N",
        type=int,
        default=5,
        help="number of trials to show (default: %(default)s)",
    )
    add_require_flag(parser, "constraint that replaces the study's")
    add(
        "--importance",
        action="store_true",
        help="show how much each hyperparameter matters for the objective and for each class",
    )
    add("--json", action="store_true", help="print JSON")
    _add_winner_flags(parser)
    add(
        "--data-dir",
        metavar="DIR",
        help="folder with the data sets (default: $STUDY_DATA_DIR, or data)",
    )
    add_studies_flag(parser)
    add_tracking_flag(parser)
    add_machine_flags(parser.add_argument_group("resources for --confirm"))
    return parser


def _add_winner_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that act on the winner: confirm, export, register."""
    add = parser.add_argument
    add(
        "--export",
        metavar="DIR",
        nargs="?",
        const="",
        help="evaluate the winner (or --trial) once on the held-out test split and write it to"
        " DIR (default: export/NAME)",
    )
    add(
        "--confirm",
        metavar="SEEDS",
        type=int,
        help="train the best 3 again, with SEEDS seeds each, on folds that the search did not "
        "validate on, and test each training",
    )
    add(
        "--register",
        metavar="MODEL",
        nargs="?",
        const="",
        help="register the winner (or --trial) as a version of an MLflow model (default: "
        "NAME); the best confirmed version becomes its champion",
    )
    add(
        "--trial",
        metavar="N",
        type=int,
        help="with --export or --register: use trial N instead of the winner",
    )
    add(
        "--force",
        action="store_true",
        help="with --trial: allow a trial that has not ended (noted in the record of the test)",
    )


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.best`."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    _refuse_contradictions(args)
    record = _open(args)
    ranking = record.ranking()
    chosen = None
    if args.export is not None or args.register is not None:
        from study.export.handover import choose

        chosen = choose(record, ranking, args.trial)
    if args.confirm is not None and (code := _confirm(record, ranking, args, argv)):
        return code
    confirmation = find(record, ranking)
    if confirmation is None and (others := others_confirmed(record, ranking)):
        print(others, file=sys.stderr)
    result = _show(record, ranking, confirmation, args)
    trouble = None
    if chosen is not None:
        try:
            done, trouble = _hand_over(record, chosen, confirmation, args)
        except (TrialError, DamagedFile) as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
        result |= done
    if chosen is not None or args.confirm is not None:
        from study.export.handover import renew_report

        trouble = renew_report(record, args.tracking_uri) or trouble
    if args.json:
        print(json.dumps(result, indent=1))
    if trouble is not None:
        print(f"failed: {trouble}", file=sys.stderr)
        return 1
    return 0


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other.

    Raises:
        InputError: Some do.
    """
    if args.top < 1:
        raise InputError(f"--top must be at least 1, but got {args.top}.")
    if args.trial is not None and args.export is None and args.register is None:
        raise InputError(
            "--trial N is the trial to export or register; add --export or --register."
        )
    if args.force and args.trial is None:
        raise InputError("--force needs --trial N, the trial that has not ended.")


def _open(args: argparse.Namespace) -> StudyRecord:
    """Return the study, with the requested constraints; print anything unusual about it."""
    folder = find_study(as_path(args.studies_dir), args.study)
    if args.export is not None or args.register is not None or args.confirm is not None:
        from study.tracking.store import resolve_uri

        StudyRecord.settle(folder, resolve_uri(args.tracking_uri))
    record = StudyRecord.read(folder)
    for text in record.repaired:
        print(text, file=sys.stderr)
    if args.require:
        constraints = parse_constraints(load_task(record.manifest["task"]), args.require)
        record.goal = dataclasses.replace(record.goal, constraints=constraints)
    for metric in changed_metrics(record.manifest, record.goal.metrics):
        print(
            f"in this old study {metric} is each trial's own training loss, including label "
            "smoothing and class weights: trials that differ in these cannot be compared by it.",
            file=sys.stderr,
        )
    return record


def _confirm(
    record: StudyRecord, ranking: list[TrialRecord], args: argparse.Namespace, argv: list[str]
) -> int:
    from study.runner.confirm import confirm

    known = record.manifest
    about = {"task": known["task"], "name": record.path.name, "dataset": known["dataset"]}
    options = RunOptions.of({**vars(args), **about, "require": ()})
    return confirm(record, ranking, args.confirm, options, command_line("best", argv))


def _show(
    record: StudyRecord,
    ranking: list[TrialRecord],
    confirmation: Confirmation | None,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Print the best trials unless `--json` is given; return them as a JSON object."""
    task = load_task(record.manifest["task"])
    result = as_json(record, ranking[: args.top])
    texts = [describe(task, record, ranking, args.top)]
    if confirmation is not None:
        result["confirmation"] = confirmation.as_json()
        texts.append(confirmation.describe())
    if args.importance:
        from study.search.importance import importance

        found = importance(task, record)
        result["importance"] = found.as_json()
        texts.append(f"\n{found.describe(task)}")
    if not args.json:
        print("\n".join(texts), flush=True)
    return result


def _hand_over(
    record: StudyRecord,
    chosen: TrialRecord,
    confirmation: Confirmation | None,
    args: argparse.Namespace,
) -> tuple[dict[str, Any], str | None]:
    from study.export.handover import Order, Winner, hand_over

    name = record.path.name
    order = Order(
        folder=None if args.export is None else Path(args.export or Path("export") / name),
        model=None if args.register is None else args.register or name,
        force=args.force,
        quiet=args.json,
        data_dir=args.data_dir,
        tracking_uri=args.tracking_uri,
    )
    winner = Winner.of(record, chosen, confirmation, given=args.trial is not None)
    return hand_over(load_task(record.manifest["task"]), winner, order)


if __name__ == "__main__":
    sys.exit(run_command(main))
