"""Rank the trials of a study; confirm, test, export or register the best.

python -m study.best                    # the study last run
python -m study.best facade --top 10
python -m study.best facade --importance   # which hyperparameter moves which metric
python -m study.best facade --confirm 5 # the three best again, on other folds with other seeds
python -m study.best facade --export    # evaluates the test split, writes export/facade
python -m study.best facade --register  # the confirmed winner as a version of an MLflow model
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from study.command import (
    add_machine_flags,
    add_require_flag,
    add_studies_flag,
    add_study_name,
    add_tracking_flag,
    command_parser,
    run_command,
)
from study.confirmed import find, others_confirmed
from study.errors import DamagedFile, InputError, TrialError
from study.manifest import changed_metrics, find_study
from study.object_path import as_path
from study.parse_objective import parse_constraints
from study.progress import standings
from study.record import StudyRecord
from study.redaction import command_line
from study.run_options import RunOptions
from study.tables import per_class_table
from study.task import Task, load_task
from study.trial_record import TrialRecord, counts


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
    add_require_flag(parser, "constraint that replaces those of the study")
    add(
        "--importance",
        action="store_true",
        help="show how much each hyperparameter matters for the objective and for each class",
    )
    add("--json", action="store_true", help="print JSON")
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
        help="with --export or --register: take trial N instead of the winner",
    )
    add(
        "--force",
        action="store_true",
        help="with --trial: allow a trial that has not ended; the record of the test says so",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="folder with the data sets (default: $STUDY_DATA_DIR, or data)",
    )
    add_studies_flag(parser)
    add_tracking_flag(parser)
    add_machine_flags(parser.add_argument_group("resources for --confirm"))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.best`."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    if args.top < 1:
        raise InputError(f"--top must be at least 1, but got {args.top}.")
    hands_over = args.export is not None or args.register is not None
    if args.trial is not None and not hands_over:
        raise InputError("--trial says what to hand over; add --export or --register.")
    if args.force and args.trial is None:
        raise InputError("--force belongs to --trial N, a trial that has not ended; name it.")
    folder = find_study(as_path(args.studies_dir), args.study)
    if hands_over or args.confirm is not None:
        from study.tracking_store import resolve_uri

        StudyRecord.settle(folder, resolve_uri(args.tracking_uri))
    record = StudyRecord.read(folder)
    for text in record.mended:
        print(text, file=sys.stderr)
    task = load_task(record.manifest["task"])
    if args.require:
        record.goal = dataclasses.replace(
            record.goal, constraints=parse_constraints(task, args.require)
        )
    for metric in changed_metrics(record.manifest, record.goal.metrics):
        print(
            f"{metric} is each trial's own training loss in this old study, with its label "
            "smoothing and weights: trials that differ in those do not compare by it.",
            file=sys.stderr,
        )
    ranking = record.ranking()
    chosen = choose(record, ranking, args.trial) if hands_over else None
    if args.confirm is not None:
        from study.confirmation import confirm

        about = {"task": task.name, "name": folder.name, "dataset": record.manifest["dataset"]}
        options = RunOptions.of({**vars(args), **about, "require": ()})
        command = command_line("best", argv)
        if code := confirm(record, ranking, args.confirm, options, command):
            return code
    confirmation = find(record, ranking)
    if confirmation is None and (others := others_confirmed(record, ranking)):
        print(others, file=sys.stderr)
    result = as_json(record, ranking[: args.top])
    texts = [show(task, record, ranking, args.top)]
    if confirmation is not None:
        result["confirmation"] = confirmation.as_json()
        texts.append(confirmation.describe())
    if args.importance:
        from study.importance import importance

        found = importance(task, record)
        result["importance"] = found.as_json()
        texts.append(f"\n{found.describe(task)}")
    if not args.json:
        print("\n".join(texts), flush=True)
    if chosen is not None:
        from study.winner import Winner, hand_over

        winner = Winner.of(record, chosen, confirmation, given=args.trial is not None)
        try:
            result |= hand_over(task, winner, args)
        except (TrialError, DamagedFile) as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    trouble = result.pop("trouble", None)
    if chosen is not None or args.confirm is not None:
        trouble = renew_report(record, args) or trouble
    if args.json:
        print(json.dumps(result, indent=1))
    if trouble is not None:
        print(f"failed: {trouble}", file=sys.stderr)
        return 1
    return 0


def renew_report(record: StudyRecord, args: argparse.Namespace) -> str | None:
    """Write the study's page anew with what was confirmed and tested, also in MLflow.

    Returns:
        A sentence if MLflow cannot be told.
    """
    from study import report_page, tracking_results, tracking_store

    record = StudyRecord.read(record.path)  # with its own constraints
    report_page.write(record)

    def tell() -> None:
        uri = tracking_store.resolve_uri(args.tracking_uri)
        tracking_results.record_report(uri, record)

    return tracking_results.told(tell)


def choose(record: StudyRecord, ranking: list[TrialRecord], number: int | None) -> TrialRecord:
    """Return the best trial, or the one of this number.

    Raises:
        InputError: There is no such trial.
    """
    if not ranking:
        raise InputError(f"study {record.path.name} has no trial with a result to export yet.")
    if number is None:
        return ranking[0]
    for trial in ranking:
        if trial.number == number:
            return trial
    raise InputError(f"study {record.path.name} has no trial {number} with a result.")


def as_json(record: StudyRecord, best: list[TrialRecord]) -> dict[str, Any]:
    """Return the study and its best trials as a JSON object.

    With two objectives there are `objectives` and `pareto`, the front by the first of them; with
    constraints `require`, and of each trial `missed`, by how much it misses each, as part of the
    bound.
    """
    goal = record.goal
    keys = ("study", "task", "dataset", "metric", "mode")
    result: dict[str, Any] = {
        **{key: record.manifest[key] for key in keys},
        "trials": counts(record.trials()),
        "best": [_trial_as_json(record, trial) for trial in best],
    }
    if goal.has_two:
        result["objectives"] = [dataclasses.asdict(objective) for objective in goal.objectives]
        result["pareto"] = [_trial_as_json(record, trial) for trial in record.front()]
    if goal.constraints:
        result["require"] = [str(constraint) for constraint in goal.constraints]
    return result


def _trial_as_json(record: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "trial": trial.number,
        "run_id": record.run_folder(trial.number).run_id,
        "value": trial.best_value,
        "epoch": trial.best_epoch,
        "params": record.config(trial),
        "metrics": trial.metrics,
    }
    if record.goal.has_two:
        entry["values"] = record.goal.values(trial)
    if record.goal.constraints:
        entry["missed"] = {k: miss for k, miss in record.goal.misses(trial).items() if miss > 0}
    return entry


def show(task: Task, record: StudyRecord, ranking: list[TrialRecord], top: int) -> str:
    """Return the table of the best trials, or of the Pareto front, and the winner per class."""
    manifest = record.manifest
    states = ", ".join(f"{n} {state}" for state, n in counts(record.trials()).items() if n)
    sample = "" if manifest["dataset"] == "real" else "   SAMPLE DATA (drawn, not real)"
    lines = [f"study {manifest['study']} ({manifest['task']}): {states}{sample}"]
    if not ranking:
        return "\n".join([*lines, "no trial has a result yet"])
    winner = ranking[0]
    size = record.config(winner).get("image_size")
    pixels = f" at {size}x{size} pixels" if size else ""
    return "\n".join(
        [
            *lines,
            standings(record, ranking, top),
            f"\ntrial {winner.number}, validation{pixels}, epoch {winner.best_epoch}, MLflow run "
            f"{record.run_folder(winner.number).run_id}:",
            per_class_table(task, winner.metrics),
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
