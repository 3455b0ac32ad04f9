"""Hands over the winner of a study: tests it once, then exports it, registers it, or both.

For a confirmed study this is one training of the winning configuration, the best relative to others
on its fold, reported with the mean and interval over all its trainings.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study.datasets.source import DataSource
from study.errors import InputError, StorageError
from study.export import folder as export_folder
from study.export.export import Draft
from study.records.manifest import refuse_other_data
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.reporting import report_page
from study.reporting.tables import per_class_table
from study.selection.confirmation import Confirmation
from study.selection.held_out_test import load_trained, prepare, test_once
from study.selection.test_log import describe_test, result_of, tags_of
from study.storage.lock import driver_of
from study.task import Task
from study.tracking import registry, results, store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Options of `study.best` for the winner.

    Attributes:
        folder: Target folder of the export; None if it is only registered.
        model: Name in MLflow's registry; None if it is not registered.
        force: Whether to accept a trial that has not ended.
        quiet: Whether to print nothing to stdout.
        data_dir: Folder of data sets; None for the default.
        tracking_uri: MLflow store; None for the default.
    """

    folder: Path | None
    model: str | None
    force: bool = False
    quiet: bool = False
    data_dir: str | None = None
    tracking_uri: str | None = None


@dataclasses.dataclass(frozen=True)
class Winner:
    """The winning configuration and its weights.

    Attributes:
        searched: The study.
        number: Number of the trial in the study with this configuration.
        record: The record with the weights: the study, or its confirmation.
        training: The trial in that record.
        confirmed: The confirmation's result for the configuration; None if it is not confirmed.
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
        """Return the winner to hand over.

        Args:
            searched: The study.
            trial: Its best trial, or the requested one.
            confirmation: Of the study's best trials; None if there is none.
            given: Whether the trial was requested; if not, the confirmation's winner replaces it.
        """
        if confirmation is not None:
            one = confirmation.of(trial.number) if given else confirmation.winner
            if one is not None and one.trainings:
                training = confirmation.best_training(one)
                origin = confirmation.as_origin(one)
                return Winner(searched, one.trial.number, confirmation.record, training, origin)
        return Winner(searched, trial.number, searched, trial, None)


def choose(record: StudyRecord, ranking: Sequence[TrialRecord], number: int | None) -> TrialRecord:
    """Return the best trial, or the one with this number.

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """A winner that was tested and exported.

    Attributes:
        folder: Of the export.
        test: As returned by `test_once`.
        difference: Largest logit difference between the exported and the trained model.
    """

    folder: Path
    test: Mapping[str, Any]
    difference: float

    @property
    def scores(self) -> dict[str, float]:
        """The test metrics only, by full name."""
        metrics = self.test["metrics"]
        return {name: value for name, value in metrics.items() if name.startswith("test/")}

    def describe(self, task: Task, metric: str, place: str) -> str:
        """Return a text on test and export; `place` says where the export is."""
        return (
            f"\n{describe_test(metric, self.test)}\n{per_class_table(task, self.scores, 'test')}"
            f"\n\n{place}; the logits of the reloaded model.pt2 differ from the trained model's "
            f"by at most {self.difference:.1e}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return test and export as a JSON object."""
        return {
            "dir": str(self.folder),
            "test": self.scores,
            "intervals": self.test.get("intervals", {}),
            "size": self.test["size"],
            "openings": self.test["openings"],
            "difference": self.difference,
        }


def hand_over(task: Task, winner: Winner, order: Order) -> tuple[dict[str, Any], str | None]:
    """Test, export and register; return the results by flag, and what MLflow could not record.

    Everything that can fail for external reasons is done or tried before the test split is opened.

    Raises:
        InputError: The trial has not ended, the data or the store are not the study's, or the
            folder cannot be written.
        TrialError: The weights or the exported model are invalid.
        DamagedFile: The weights are corrupted.
        StorageError: The disk is full.
    """
    done: dict[str, Any] = {}
    uri = store.resolve_uri(order.tracking_uri)
    with tempfile.TemporaryDirectory(prefix="study-export-") as scratch:
        folder = order.folder or Path(scratch) / "export"  # kept only in the registry
        exported, trouble = _export(task, winner, folder, order, uri)
        if not order.quiet:
            place = "exported" if order.folder is None else f"exported to {exported.folder}"
            print(exported.describe(task, winner.record.manifest["metric"], place))
        if order.folder is not None:
            done["export"] = exported.as_json()
        if order.model is not None:
            mode = winner.searched.manifest["mode"]
            registered = registry.register(uri, order.model, folder, mode)
            done["registered"] = registered
            if not order.quiet:
                print(_registration(uri, registered))
    return done, trouble


def _export(
    task: Task, winner: Winner, folder: Path, order: Order, uri: str
) -> tuple[Exported, str | None]:
    """Test the winner once, export it, and record both; return that, and what was not recorded.

    The order matters: nothing before `test_once` sees the test split.
    """
    record, training, goal = winner.record, winner.training, winner.searched.goal
    if not order.force:
        _refuse_unfinished(winner)
    source = DataSource.find(record.manifest["dataset"], order.data_dir)
    refuse_other_data(record.manifest, task.identity(source), source.data_dir)
    load_trained(task, record, training)  # fails before the slow steps
    target = export_folder.make_ready(folder)
    run_id = results.ensure_run(uri, record, task, training)
    if order.model is not None:
        registry.check(uri, order.model)
    again = f" (training {training.number} of its confirmation)" if winner.confirmed else ""
    print(f"testing and exporting trial {winner.number}{again}", file=sys.stderr)
    with export_folder.draft_of(target) as beside:
        try:
            ready = prepare(task, source, record, training)
            draft = Draft(ready=ready, goal=goal, confirmed=winner.confirmed, folder=beside)
            model = draft.write_model(source)
            if ready.validation is not None:  # not tested before
                draft.rehearse(model)
            test = test_once(ready, "export", forced=order.force)
            draft.write_results(model, test)
        except OSError as error:
            raise StorageError(f"cannot write the export {beside} ({error}).") from error
        export_folder.publish(beside, target)
    scores = result_of(task, record.manifest["metric"], test)
    trouble = results.record_handover(uri, run_id, scores, tags_of(test), target)
    place = folder.expanduser().absolute()
    return Exported(folder=place, test=test, difference=model.difference), trouble


def _registration(uri: str, registered: Mapping[str, Any]) -> str:
    """Return a text on the registered version, and the command that serves it if champion."""
    name = registered["model"]
    text = f"\nmodel {name}: {registered['why']}"
    if registered["champion"] == registered["version"]:
        text += (
            f"\n  MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow models serve "
            f"-m models:/{name}@champion --env-manager local"
        )
    return text


def _refuse_unfinished(winner: Winner) -> None:
    """Refuse a trial that may continue: it could be tested after each of its epochs.

    Raises:
        InputError: It has not ended; says how to continue it.
    """
    training = winner.training
    if training.state != "running":
        return
    command = winner.record.manifest.get("starts", [{}])[-1].get("command", "the study's command")
    driver = driver_of(winner.record.path)
    way = "wait for it" if driver["alive"] else f"resume it with: {command}"
    raise InputError(
        f"trial {winner.number} has not ended (epoch {training.epochs} of "
        f"{winner.record.manifest['epochs']}), so the test split stays closed: {way}. Or choose "
        f"another trial with --trial, or test this one as it is with --trial {winner.number} "
        "--force (this is recorded)."
    )


def renew_report(record: StudyRecord, tracking_uri: str | None) -> str | None:
    """Write the study's page again, with confirmation and test, and upload it to MLflow.

    Returns:
        A sentence if MLflow cannot be updated.
    """
    record = StudyRecord.read(record.path)  # with the study's own constraints
    report_page.write(record)

    def tell() -> None:
        results.record_report(store.resolve_uri(tracking_uri), record)

    return results.try_to_tell(tell)
