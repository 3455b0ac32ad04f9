"""The best trials of a study, and the winner tested once and exported.

python -m study.best                    # the study last run
python -m study.best facade --top 10
python -m study.best facade --export    # evaluates the test split, writes export/facade
python -m study.best facade --importance   # which hyperparameter moves which metric
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from study.command import add_place_flags, run_command
from study.data import DataSource
from study.errors import DamagedFile, InputError, TrialError
from study.manifest import find_study
from study.object_path import as_path
from study.objective_flags import add_require_flag, parse_floors
from study.progress import standings
from study.record import StudyRecord
from study.tables import per_class_table
from study.task import Task, load_task
from study.trial_record import TrialRecord, counts


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `study.best`."""
    parser = argparse.ArgumentParser(
        prog="python -m study.best",
        description="Show the best trials of a study; test and export the winner.",
    )
    add = parser.add_argument
    add("study", metavar="NAME", nargs="?", help="name of the study (default: the one last run)")
    add("--top", metavar="N", type=int, default=5, help="trials to show (default: %(default)s)")
    add_require_flag(parser, "instead of what the study requires: what a good trial must keep")
    add(
        "--importance",
        action="store_true",
        help="say how much each hyperparameter matters for the objective and for each class",
    )
    add("--json", action="store_true", help="print JSON")
    add(
        "--export",
        metavar="DIR",
        nargs="?",
        const="",
        help="evaluate the winner, or --trial, on the closed test split, once, and write it to DIR "
        "(default: export/NAME)",
    )
    add("--trial", metavar="N", type=int, help="with --export: this trial instead of the best")
    add("--data-dir", metavar="DIR", help="folder of data sets (default: $STUDY_DATA_DIR, or data)")
    add_place_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.best`."""
    args = build_parser().parse_args(argv)
    if args.top < 1:
        raise InputError(f"--top must be at least 1, but got {args.top}.")
    record = StudyRecord.read(find_study(as_path(args.studies_dir), args.study))
    for text in record.mended:
        print(text, file=sys.stderr)
    task = load_task(record.manifest["task"])
    if args.require:
        record.goal = dataclasses.replace(record.goal, floors=parse_floors(task, args.require))
    ranking = record.ranking()
    chosen = choose(record, ranking, args)
    result = as_json(record, ranking[: args.top])
    if not args.json:
        print(show(task, record, ranking, args.top))
    if args.importance:
        from study.importance import importance

        found = importance(task, record)
        result["importance"] = found.as_json()
        if not args.json:
            print(f"\n{found.describe(task)}")
    if chosen is not None:
        target = Path(args.export or Path("export") / record.path.name).expanduser().absolute()
        try:
            result["export"] = export_winner(task, record, chosen, target, args)
        except (TrialError, DamagedFile) as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    if args.json:
        print(json.dumps(result, indent=1))
    return 0


def choose(
    record: StudyRecord, ranking: list[TrialRecord], args: argparse.Namespace
) -> TrialRecord | None:
    """Return the trial to export; None if none is asked for.

    Raises:
        InputError: There is no such trial.
    """
    if args.export is None:
        if args.trial is not None:
            raise InputError("--trial says what to export; add --export.")
        return None
    if not ranking:
        raise InputError(f"study {record.path.name} has no trial with a result to export yet.")
    if args.trial is None:
        return ranking[0]
    for trial in ranking:
        if trial.number == args.trial:
            return trial
    raise InputError(f"study {record.path.name} has no trial {args.trial} with a result.")


def as_json(record: StudyRecord, best: list[TrialRecord]) -> dict[str, Any]:
    """Return the study and its best trials as a JSON object.

    With two objectives there are `objectives` and `pareto`, the front by the first of them; with
    floors `require`, and of each trial `missed`, by how much it misses each, as part of the bound.
    """
    goal = record.goal
    keys = ("study", "task", "dataset", "metric", "mode")
    result: dict[str, Any] = {
        **{key: record.manifest[key] for key in keys},
        "trials": counts(record.trials()),
        "best": [_trial_as_json(record, trial) for trial in best],
    }
    if goal.double:
        result["objectives"] = [dataclasses.asdict(objective) for objective in goal.objectives]
        result["pareto"] = [_trial_as_json(record, trial) for trial in record.front()]
    if goal.floors:
        result["require"] = [str(floor) for floor in goal.floors]
    return result


def _trial_as_json(record: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "trial": trial.number,
        "run_id": record.run_folder(trial.number).run_id,
        "value": trial.value,
        "epoch": trial.epoch,
        "params": record.params(trial),
        "metrics": trial.metrics,
    }
    if record.goal.double:
        entry["values"] = record.goal.values(trial)
    if record.goal.floors:
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
    size = record.params(winner).get("image_size")
    pixels = f" at {size}x{size} pixels" if size else ""
    return "\n".join(
        [
            *lines,
            standings(record, ranking, top),
            f"\ntrial {winner.number}, validation{pixels}, epoch {winner.epoch}, MLflow run "
            f"{record.run_folder(winner.number).run_id}:",
            per_class_table(task, winner.metrics),
        ]
    )


def _check_target(target: Path) -> None:
    """Refuse, before the test split is opened, a folder that an export may not replace.

    Raises:
        InputError: It is no folder, is not an earlier export, or cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"--export {target} is a file; name a folder.")
    earlier = all((target / name).exists() for name in ("model.pt2", "meta.json"))
    if target.exists() and not earlier and any(target.iterdir()):
        raise InputError(f"{target} is no earlier export; name an empty folder.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target.parent / f".{target.name}.draft").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {target} ({error.strerror}); name another.") from None


def export_winner(
    task: Task, record: StudyRecord, winner: TrialRecord, target: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Test the winner once, export it, and record both; return what was done."""
    from study import export, tracking_store

    source = DataSource.find(record.manifest["dataset"], args.data_dir)
    identity = task.identity(source)
    if identity["checksum"] != record.manifest["checksum"]:
        raise InputError(
            f"the data set in {source.data_dir} is not the one of the study (its checksum "
            "differs); name the right folder with --data-dir."
        )
    _check_target(target)
    client = tracking_store.connect(tracking_store.resolve_uri(args.tracking_uri))
    print(f"testing trial {winner.number} and exporting it", file=sys.stderr)
    test = export.test_once(task, source, record, winner)
    difference = export.export(task, source, record, winner, test, target)
    tests = {name: value for name, value in test["metrics"].items() if name.startswith("test/")}
    run_id = record.run_folder(winner.number).run_id
    if run_id is not None:
        # Of the per-class metrics only the task's own, and not the smallest of them, which says
        # nothing more: MLflow's page drags with over 30 keys.
        parts = {name: name.split("/") for name in tests}
        shown = [n for n, part in parts.items() if len(part) < 3 or part[1] == task.class_metric]
        shown = [name for name in shown if name != f"test/min_{task.class_metric}"]
        logged = {name: tests[name] for name in shown}
        tracking_store.record_test(client, run_id, logged, test["size"], target)
    if not args.json:
        metric = record.manifest["metric"].split("/", 1)[1]
        value, val = (test["metrics"][f"{split}/{metric}"] for split in ("test", "val"))
        print(
            f"\ntest (evaluated once, {test['size']}): {metric} {value:.4f}; validation at the "
            f"same size {val:.4f}, gap {value - val:+.4f}\n{per_class_table(task, tests, 'test')}"
            f"\n\nexported to {target}; the reloaded model.pt2 differs from the trained model by "
            f"at most {difference:.1e} in a logit"
        )
    return {"dir": str(target), "test": tests, "size": test["size"], "difference": difference}


if __name__ == "__main__":
    sys.exit(run_command(main))
