"""The MLflow runs of a study: one parent run, and one child per trial; found or created.

A confirmation is a study of its own, with other roles, below the run of the study it confirms.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from mlflow import entities
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from study.formatting import sample_mark
from study.records.provenance import code_and_machine
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.selection.confirmation_runs import place_of
from study.task import Task
from study.tracking.notes import (
    NOTE,
    best_metric,
    class_tags,
    experiment_tags,
    study_note,
    trial_note,
)
from study.tracking.place import belongs, find_experiment, find_run, restore_if_deleted
from study.tracking.store import log_history, log_settings, upload_folder

logger = logging.getLogger(__name__)

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "running": "RUNNING"}


@dataclasses.dataclass
class Run:
    """The part of one trial that is known to be in MLflow."""

    run_id: str
    epoch: int = 0  # metrics up to this epoch were sent
    ended: bool = False


class StudyRuns:
    """A study's experiment and runs in MLflow.

    Args:
        client: Of the store.
        uri: Its absolute URI.
        record: The study.
        task: The study's.
        settings: Settings shared by all trials, with their values; logged as parameters.
        known: Facts about data, code and machine; logged as tags.

    Attributes:
        experiment: Id of the experiment.
        parent: Id of the study's run.
    """

    def __init__(
        self,
        client: MlflowClient,
        uri: str,
        record: StudyRecord,
        task: Task,
        settings: Mapping[str, Any],
        known: Mapping[str, str],
    ) -> None:
        self.client = client
        self.record = record
        self.task = task
        self.settings = dict(settings)
        self.known = {**known, "study.id": record.manifest.get("id", "")}
        self.confirms: Mapping[str, Any] | None = record.manifest.get("confirms")
        self.experiment = find_experiment(client, uri, record, experiment_tags(task, record))
        self.reported = 0  # ended trials counted in its description there
        self.restored: set[int] = set()  # trials whose runs were deleted
        self.made = False  # whether the study's run is new
        self.parent = self._find_or_create_parent()

    @staticmethod
    def of(client: MlflowClient, uri: str, record: StudyRecord, task: Task) -> StudyRuns:
        """Return a study's runs from its record, for a command that does not run the study."""
        manifest = record.manifest
        known = {
            "data.dataset": manifest["dataset"],
            "data.name": str(manifest.get("data", {}).get("dataset", manifest["task"])),
            "data.checksum": manifest["checksum"],
            **code_and_machine(),
        }
        settings = {**manifest["settings"], "dataset": manifest["dataset"]}
        return StudyRuns(client, uri, record, task, settings, known)

    @property
    def searches(self) -> bool:
        """Whether this is a search, not the confirmation of one."""
        return self.confirms is None

    def find_or_create(
        self, trial: TrialRecord, *, perhaps_there: bool, goes_on: bool = True
    ) -> Run:
        """Return a trial's run.

        Args:
            trial: The trial.
            perhaps_there: Whether an earlier process, or a failed call, may have created it.
            goes_on: Whether the caller will update and end it.
        """
        client = self.client
        role = "trial" if self.searches else "confirm-trial"
        found = None
        if perhaps_there:
            condition = f"tags.`study.role` = '{role}' and tags.`study.trial` = '{trial.number}'"
            found = self._find(condition)
        if found is None:
            run = Run(self._create(trial, role))
        else:
            run_id, tags = str(found.info.run_id), found.data.tags
            if restore_if_deleted(client, found):
                self.restored.add(trial.number)
            due = self._place()
            if (
                trial.state != "running" and self.searches
            ):  # not there, if an early version ended it
                due |= class_tags(self.task, trial)
            new = [RunTag(key, value) for key, value in due.items() if tags.get(key) != value]
            if new:
                client.log_batch(run_id, tags=new)
            history = client.get_metric_history(run_id, trial.metric)
            run = Run(run_id, max((metric.step for metric in history), default=0))
            resumable = tags.get("study.resumable") == "true"
            run.ended = found.info.status == STATUS[trial.state] != "RUNNING" and not resumable
            if "seed" not in found.data.params:  # killed after creating the run
                self._log_settings(run_id, trial)
            if not run.ended and goes_on:
                client.update_run(run_id, status="RUNNING")
                client.set_tag(run_id, "study.resumable", "false")
        self.record.run_folder(trial.number).write_run_id(run.run_id)
        return run

    def log(self, trial: TrialRecord, run: Run) -> None:
        """Log the epochs that a trial's run does not have yet."""
        log_history(self.client, run.run_id, trial.history[run.epoch :])
        run.epoch = trial.epochs

    def end(self, trial: TrialRecord, run: Run) -> None:
        """Write to a trial's run how the trial ended, upload its folder, and end the run."""
        tags = {NOTE: trial_note(self.record, trial)}
        if trial.reason is not None:
            tags["study.reason"] = trial.reason
        if trial.failures:
            texts = [f"epoch {f['epoch']}: {f['reason']}" for f in trial.failures]
            tags["study.retries"] = "; ".join(texts)
        if trial.best_epoch is not None:
            tags |= {"study.best_epoch": str(trial.best_epoch), **class_tags(self.task, trial)}
        metrics = []
        if trial.best_value is not None and trial.best_epoch is not None and self.searches:
            at = int(1000 * trial.history[-1].get("ended", 0))
            metrics = [Metric(best_metric(self.record), trial.best_value, at, trial.best_epoch)]
        given = [RunTag(name, tags[name][:5000]) for name in tags]
        self.client.log_batch(run.run_id, metrics=metrics, tags=given)
        upload_folder(self.client, run.run_id, self.record.run_folder(trial.number))
        self.client.set_terminated(run.run_id, STATUS[trial.state])
        run.ended = True

    def is_from_other_study(self) -> bool:
        """Return whether the last command that wrote these runs is not of this folder's study."""
        last = self.client.get_run(self.parent).data.tags.get("study.start")
        return last is not None and last not in self.record.manifest["lineage"]

    def resume(self) -> None:
        """Mark the study's run as running, started by this command."""
        self.client.update_run(self.parent, status="RUNNING")
        self.client.set_tag(self.parent, "study.start", self.record.manifest["lineage"][-1])

    def describe(self, num_ended: int, runs: Mapping[int, Run]) -> None:
        """Write the study's current state to the description of its run.

        Args:
            num_ended: Number of ended trials in the report.
            runs: Runs of its trials, by trial.
        """
        known = {number: run.run_id for number, run in runs.items()}
        note = study_note(self.record, self.task, self.experiment, self.parent, known)
        tags = [RunTag(NOTE, note), RunTag("study.reported", str(num_ended))]
        self.client.log_batch(self.parent, tags=tags)
        self.reported = num_ended

    def _find_or_create_parent(self) -> str:
        name, role = self.record.manifest["study"], "study" if self.searches else "confirm"
        called = f"study {name}" if self.searches else f"{name}, confirmation"
        called += self._mark()
        found = self._find(f"tags.`study.role` = '{role}'")
        if found is not None:
            run_id, tags = str(found.info.run_id), found.data.tags
            if restore_if_deleted(self.client, found):
                logger.warning("the MLflow run of study %s was deleted; restored it", name)
            if tags.get("study.name") != name:
                self.client.set_tag(run_id, "study.name", name)
                self.client.update_run(run_id, name=called)
            self.reported = int(tags.get("study.reported", 0))
            return run_id
        tags = {"study.role": role, "study.name": name, "study.task": self.task.name}
        if self.confirms:  # below the run of the study that it confirms
            searched = belongs({"study": name, "id": self.confirms["study_id"]})
            above = self._find("tags.`study.role` = 'study'", searched)
            tags |= {"mlflow.parentRunId": str(above.info.run_id)} if above else {}
        run = self.client.create_run(self.experiment, run_name=called, tags={**tags, **self.known})
        self.made = True
        params = {**self.settings, "metric": self.record.manifest["metric"]}
        params["objective"] = str(self.record.goal)
        self.client.log_batch(
            run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()]
        )
        return str(run.info.run_id)

    def _mark(self) -> str:
        """Return the suffix of run names for sample data."""
        return " [sample data]" if sample_mark(self.record.manifest["dataset"]) else ""

    def _place(self) -> dict[str, str]:
        """Return the tags that link a trial's run to its study."""
        return {"study.name": self.record.manifest["study"], "mlflow.parentRunId": self.parent}

    def _create(self, trial: TrialRecord, role: str) -> str:
        tags = {
            "study.role": role,
            "study.trial": str(trial.number),
            "study.task": self.task.name,
            **self._place(),
            **self.known,
        }
        name = f"trial {trial.number}" + (" (baseline)" if trial.number == 0 else "")
        if self.confirms:
            tags["study.confirms"] = str(place_of(self.confirms, trial.number).trial)
            name = f"trial {tags['study.confirms']} again, fold {trial.params['fold']}"
        name += self._mark()
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        self._log_settings(run_id, trial)
        return run_id

    def _log_settings(self, run_id: str, trial: TrialRecord) -> None:
        params = {**self.settings, **self.record.config(trial)}
        log_settings(self.client, run_id, params, self.known)

    def _find(self, condition: str, whose: str | None = None) -> entities.Run | None:
        whose = whose or belongs(self.record.manifest)
        return find_run(self.client, [self.experiment], f"{condition} and {whose}")
