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

from study import export_folder, tracking_registry, tracking_results, tracking_store
from study.closed_split import load_trained, prepare, test_once
from study.confirmed import Confirmation
from study.datasets.source import DataSource
from study.errors import InputError, StorageError
from study.export import Draft
from study.hold import driver_of
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

    What MLflow could not be told is `trouble`. All that can fail for outside reasons is done or
    tried while the test split is closed.

    Raises:
        InputError: The trial has not ended, the data or the store are not the study's, or the
            folder cannot be written.
        TrialError: The weights or the exported model are not as they must be.
        DamagedFile: The weights are.
        StorageError: The disk is full.
    """
    done: dict[str, Any] = {}
    name = winner.searched.path.name
    with tempfile.TemporaryDirectory(prefix="study-export-") as scratch:
        folder = Path(args.export or Path("export") / name)
        if args.export is None:  # only what is registered stays
            folder = Path(scratch) / "export"
        exported, trouble = _export(task, winner, folder, args)
        if trouble is not None:
            done["trouble"] = trouble
        if args.export is not None:
            done["export"] = exported
        if args.register is not None:
            done["registered"] = _register(winner.searched, folder, args)
    return done


def _export(
    task: Task, winner: Winner, folder: Path, args: argparse.Namespace
) -> tuple[dict[str, Any], str | None]:
    """Test the winner once, export it, and record both; return what was done, and what was not.

    The order matters: up to `test_once` nothing has seen the test split.
    """
    record, training, goal = winner.record, winner.training, winner.searched.goal
    if not args.force:
        _refuse_unfinished(winner)
    source = DataSource.find(record.manifest["dataset"], args.data_dir)
    refuse_other_data(record.manifest, task.identity(source), source.data_dir)
    load_trained(task, record, training)  # before what takes longer
    target = export_folder.checked(folder)
    uri = tracking_store.resolve_uri(args.tracking_uri)
    run_id = tracking_results.run_of(uri, record, task, training)
    if args.register is not None:
        tracking_registry.check(uri, args.register or winner.searched.path.name)
    again = f", its training {training.number} of the confirmation" if winner.confirmed else ""
    print(f"testing trial {winner.number} and exporting it{again}", file=sys.stderr)
    with export_folder.draft_of(target) as folder_of_draft:
        try:
            ready = prepare(task, source, record, training)
            draft = Draft(
                ready=ready, goal=goal, confirmed=winner.confirmed, folder=folder_of_draft
            )
            model = draft.write_model(source)
            if ready.validation is not None:  # it was not tested before
                draft.rehearse(model)
            test = test_once(ready, "export", forced=args.force)
            draft.write_results(model, test)
        except OSError as error:
            raise StorageError(f"cannot write the export {folder_of_draft} ({error}).") from error
        export_folder.publish(folder_of_draft, target)
    scores = result_of(task, record.manifest["metric"], test)
    trouble = tracking_results.record_handover(uri, run_id, scores, tags_of(test), target)
    place = folder.expanduser().absolute()
    return _told(task, winner, place, test, model.difference, args), trouble


def _refuse_unfinished(winner: Winner) -> None:
    """Refuse a trial that may go on: it could be tested after each of its epochs.

    Raises:
        InputError: It has not ended; says how it goes on.
    """
    training = winner.training
    if training.state != "running":
        return
    command = winner.record.manifest.get("starts", [{}])[-1].get("command", "the study's command")
    driver = driver_of(winner.record.path)
    way = "wait for it" if driver["alive"] else f"it goes on with: {command}"
    raise InputError(
        f"trial {winner.number} has not ended (epoch {training.epochs} of "
        f"{winner.record.manifest['epochs']}), so the test split stays closed: {way}. Or name "
        f"another by --trial, or take this one as it is by --trial {winner.number} --force, which "
        "is recorded."
    )


def _told(
    task: Task,
    winner: Winner,
    folder: Path,
    test: dict[str, Any],
    difference: float,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Print what was tested and exported; return it as a JSON object."""
    tests = {name: value for name, value in test["metrics"].items() if name.startswith("test/")}
    if not args.json:
        place = "exported" if args.export is None else f"exported to {folder}"
        print(
            f"\n{describe_test(winner.record.manifest['metric'], test)}"
            f"\n{per_class_table(task, tests, 'test')}"
            f"\n\n{place}; the reloaded model.pt2 differs from the trained model by "
            f"at most {difference:.1e} in a logit"
        )
    return {
        "dir": str(folder),
        "test": tests,
        "intervals": test.get("intervals", {}),
        "size": test["size"],
        "openings": test["openings"],
        "difference": difference,
    }


def _register(searched: StudyRecord, target: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Register an export as a version of an MLflow model; return which, and the champion."""
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
