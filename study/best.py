"""The best trials of a study, and the winner tested once and exported.

python -m study.best                    # the study last run
python -m study.best facade --top 10
python -m study.best facade --confirm 5 # the three best again, on other folds with other seeds
python -m study.best facade --export    # evaluates the test split, writes export/facade
python -m study.best facade --register  # the confirmed winner as a version of an MLflow model
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from study.command import add_place_flags, run_command
from study.confirmed import Confirmation, find
from study.data import DataSource
from study.errors import DamagedFile, InputError, TrialError
from study.manifest import find_study
from study.object_path import as_path
from study.progress import trial_table
from study.record import StudyRecord
from study.resources import add_machine_flags
from study.tables import per_class_table
from study.task import Task, load_task
from study.tested import describe_test, result_of
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
    add("--json", action="store_true", help="print JSON")
    add(
        "--export",
        metavar="DIR",
        nargs="?",
        const="",
        help="evaluate the winner on the closed test split, once, and write it to DIR "
        "(default: export/NAME)",
    )
    add(
        "--confirm", metavar="SEEDS", type=int, help="train the 3 best again with so many seeds, "
        "on folds that did not choose them, and test each training",
    )  # fmt: skip
    add(
        "--register", metavar="MODEL", nargs="?", const="", help="export the winner as a "
        "version of an MLflow model (default: NAME); the best confirmed one is its champion",
    )  # fmt: skip
    add("--data-dir", metavar="DIR", help="folder of data sets (default: $STUDY_DATA_DIR, or data)")
    add_place_flags(parser)
    add_machine_flags(parser.add_argument_group("what --confirm runs on"))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.best`."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    if args.top < 1:
        raise InputError(f"--top must be at least 1, but got {args.top}.")
    record = StudyRecord.read(find_study(as_path(args.studies_dir), args.study))
    for text in record.mended:
        print(text, file=sys.stderr)
    task = load_task(record.manifest["task"])
    ranking = record.ranking()
    if args.confirm is not None:
        from study.confirmation import confirm

        command = "python -m study.best " + shlex.join(argv)
        if code := confirm(record, ranking, args.confirm, args, command):
            return code
    confirmation = find(record, ranking)
    result = as_json(record, ranking[: args.top])
    if confirmation is not None:
        result["confirmation"] = confirmation.as_json()
    if not args.json:
        print(show(task, record, ranking[: args.top]))
        if confirmation is not None:
            print(confirmation.describe())
    if args.export is not None or args.register is not None:
        if not ranking:
            raise InputError(f"study {record.path.name} has no trial with a result to export yet.")
        with tempfile.TemporaryDirectory(prefix="study-export-") as scratch:
            target = Path(args.export or Path("export") / record.path.name).expanduser().absolute()
            if args.export is None:  # only what is registered stays
                target = Path(scratch) / "export"
            try:
                exported = export_winner(task, record, ranking[0], target, args, confirmation)
                if args.export is not None:
                    result["export"] = exported
                if args.register is not None:
                    result["registered"] = register(task, record, target, args)
            except (TrialError, DamagedFile) as error:
                print(f"failed: {error}", file=sys.stderr)
                return 1
    if args.json:
        print(json.dumps(result, indent=1))
    return 0


def as_json(record: StudyRecord, best: list[TrialRecord]) -> dict[str, Any]:
    """Return the study and its best trials as a JSON object."""
    manifest = record.manifest
    return {
        **{key: manifest[key] for key in ("study", "task", "dataset", "metric", "mode")},
        "trials": counts(record.trials()),
        "best": [
            {
                "trial": trial.number,
                "run_id": record.run_folder(trial.number).run_id,
                "value": trial.value,
                "epoch": trial.epoch,
                "params": record.params(trial),
                "metrics": trial.metrics,
            }
            for trial in best
        ],
    }


def show(task: Task, record: StudyRecord, best: list[TrialRecord]) -> str:
    """Return the table of the best trials, and the winner per class."""
    manifest = record.manifest
    states = ", ".join(f"{n} {state}" for state, n in counts(record.trials()).items() if n)
    sample = "" if manifest["dataset"] == "real" else "   SAMPLE DATA (drawn, not real)"
    lines = [f"study {manifest['study']} ({manifest['task']}): {states}{sample}"]
    if not best:
        return "\n".join([*lines, "no trial has a result yet"])
    winner = best[0]
    size = record.params(winner).get("image_size")
    pixels = f" at {size}x{size} pixels" if size else ""
    return "\n".join(
        [
            *lines,
            trial_table(task, best, manifest["epochs"]),
            f"\ntrial {winner.number}, validation{pixels}, chosen as the best of "
            f"{len(record.ranking())} on the same images: optimistic; epoch {winner.epoch}, MLflow "
            f"run {record.run_folder(winner.number).run_id}:",
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
    task: Task,
    record: StudyRecord,
    winner: TrialRecord,
    target: Path,
    args: argparse.Namespace,
    confirmation: Confirmation | None = None,
) -> dict[str, Any]:
    """Test the winner once, export it, and record both; return what was done.

    Of a confirmation that is the best training of the configuration that won it.
    """
    from study import export, tracking_store
    from study.closed_split import test_once

    source = DataSource.find(record.manifest["dataset"], args.data_dir)
    identity = task.identity(source)
    if identity["checksum"] != record.manifest["checksum"]:
        raise InputError(
            f"the data set in {source.data_dir} is not the one of the study (its checksum "
            "differs); name the right folder with --data-dir."
        )
    _check_target(target)
    client = tracking_store.connect(tracking_store.resolve_uri(args.tracking_uri))
    confirmed = confirmation.as_origin() if confirmation else None
    print(f"exporting trial {confirmed['trial'] if confirmed else winner.number}", file=sys.stderr)
    if confirmation is not None:
        record, winner = confirmation.record, confirmation.winning_training
    test = test_once(task, source, record, winner, "export")
    difference = export.export(task, source, record, winner, test, target, confirmed)
    tests = {name: value for name, value in test["metrics"].items() if name.startswith("test/")}
    run_id = record.run_folder(winner.number).run_id
    if run_id is not None:
        tracking_store.record_test(
            client, run_id, result_of(task, test), test["size"], test.get("why", "export")
        )
        tracking_store.record_export(client, run_id, target)
    if not args.json:
        place = "exported" if args.export is None else f"exported to {target}"
        print(
            f"\n{describe_test(task, test)}\n{per_class_table(task, tests, 'test')}"
            f"\n\n{place}; the reloaded model.pt2 differs from the trained model by "
            f"at most {difference:.1e} in a logit"
        )
    return {
        "dir": str(target),
        "test": tests,
        "intervals": test.get("intervals", {}),
        "size": test["size"],
        "difference": difference,
    }


def register(
    task: Task, record: StudyRecord, target: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Register an export as a version of an MLflow model; return which, and the champion."""
    from study import tracking_registry, tracking_store
    from study.export import example_images

    name = args.register or record.path.name
    uri = tracking_store.resolve_uri(args.tracking_uri)
    meta = json.loads((target / "meta.json").read_text())
    images = example_images(task, DataSource.find(meta["dataset"], args.data_dir), meta["params"])
    done = tracking_registry.register(uri, name, target, images, task.mode)
    if not args.json:
        print(f"\nmodel {name}: {done['why']}")
        if done["champion"] == done["version"]:
            print(f"  mlflow models serve -m models:/{name}@champion --env-manager local")
    return done


if __name__ == "__main__":
    sys.exit(run_command(main))
