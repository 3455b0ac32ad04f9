"""The winner of a study, tested once and handed over: exported, registered, or both.

Of a confirmation that is a training of the configuration that won it, the best compared with others
on its fold, with the mean and interval of all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from study import export, tracking_results, tracking_store
from study.closed_split import test_once
from study.confirmed import Confirmation
from study.data import DataSource
from study.errors import InputError
from study.manifest import refuse_other_data
from study.record import StudyRecord
from study.tables import per_class_table
from study.task import Task
from study.tested import describe_test, result_of, tags_of
from study.trial_record import TrialRecord


@dataclasses.dataclass(frozen=True)
class Winner:
    """What is handed over.

    Attributes:
        searched: The study.
        number: Of its trial whose configuration it is.
        record: Where the weights are: the study, or its confirmation.
        training: The trial there.
        confirmed: What the confirmation says of the configuration; None if it is not confirmed.
    """

    searched: StudyRecord
    number: int
    record: StudyRecord
    training: TrialRecord
    confirmed: dict[str, Any] | None

    @staticmethod
    def of(
        searched: StudyRecord,
        trial: TrialRecord,
        confirmation: Confirmation | None,
        given: bool,
    ) -> Winner:
        """Return what to hand over.

        Args:
            searched: The study.
            trial: Of it, the best one or the one that was asked for.
            confirmation: Of the study's best; None if there is none.
            given: Whether the trial was asked for; else the confirmation's winner takes its place.
        """
        if confirmation is not None:
            one = confirmation.of(trial.number) if given else confirmation.winner
            if one is not None and one.trainings:
                training = confirmation.best_training(one)
                origin = confirmation.as_origin(one)
                return Winner(searched, one.trial.number, confirmation.record, training, origin)
        return Winner(searched, trial.number, searched, trial, None)


def hand_over(task: Task, winner: Winner, args: argparse.Namespace) -> dict[str, Any]:
    """Test, export and register as `study.best` was asked to; return what was done, by flag.

    Raises:
        InputError: The data or the store are not the study's, or the folder cannot be written.
        TrialError: The weights or the exported model are not as they must be.
        DamagedFile: The weights are.
    """
    done: dict[str, Any] = {}
    name = winner.searched.path.name
    with tempfile.TemporaryDirectory(prefix="study-export-") as scratch:
        target = Path(args.export or Path("export") / name).expanduser().absolute()
        if args.export is None:  # only what is registered stays
            target = Path(scratch) / "export"
        exported = _export(task, winner, target, args)
        if args.export is not None:
            done["export"] = exported
        if args.register is not None:
            done["registered"] = _register(winner.searched, target, args)
    return done


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


def _export(task: Task, winner: Winner, target: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Test the winner once, export it, and record both; return what was done."""
    record, training = winner.record, winner.training
    source = DataSource.find(record.manifest["dataset"], args.data_dir)
    refuse_other_data(record.manifest, task.identity(source), source.data_dir)
    _check_target(target)
    client = tracking_store.connect(tracking_store.resolve_uri(args.tracking_uri))
    again = f", its training {training.number} of the confirmation" if winner.confirmed else ""
    print(f"testing trial {winner.number} and exporting it{again}", file=sys.stderr)
    test = test_once(task, source, record, training, "export")
    difference = export.export(
        *(task, source, record, training, test, target),
        objective=winner.searched.goal,
        confirmed=winner.confirmed,
    )
    tests = {name: value for name, value in test["metrics"].items() if name.startswith("test/")}
    run_id = record.run_folder(training.number).run_id
    metric = record.manifest["metric"]
    if run_id is not None:
        logged = result_of(task, metric, test)
        tracking_results.record_test(client, run_id, logged, tags_of(test))
        tracking_results.record_export(client, run_id, target)
    if not args.json:
        place = "exported" if args.export is None else f"exported to {target}"
        print(
            f"\n{describe_test(metric, test)}\n{per_class_table(task, tests, 'test')}"
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


def _register(searched: StudyRecord, target: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Register an export as a version of an MLflow model; return which, and the champion."""
    from study import tracking_registry

    name = args.register or searched.path.name
    uri = tracking_store.resolve_uri(args.tracking_uri)
    done = tracking_registry.register(uri, name, target, searched.manifest["mode"])
    if not args.json:
        print(f"\nmodel {name}: {done['why']}")
        if done["champion"] == done["version"]:
            print(
                f"  MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow models serve "
                f"-m models:/{name}@champion --env-manager local"
            )
    return done
