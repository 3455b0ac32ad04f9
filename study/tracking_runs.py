"""The runs of a study in MLflow: its own, and below it one for each trial; found or made.

A confirmation is a study of its own, with other roles, below the run of the study it confirms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Param, RunTag
from mlflow.tracking import MlflowClient

from study.candidates import candidate_of
from study.record import StudyRecord
from study.task import Task
from study.tracking_notes import NOTE, experiment_tags, study_note
from study.tracking_store import experiment_id, log_settings
from study.trial_record import TrialRecord

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "running": "RUNNING"}


@dataclasses.dataclass
class Run:
    """What is known to be in MLflow of one trial."""

    run_id: str
    epoch: int = 0  # metrics up to here are there
    ended: bool = False


class StudyRuns:
    """A study's place in MLflow.

    Args:
        client: Of the store.
        uri: Its absolute URI.
        record: The study.
        task: The study's.
        settings: Settings that all trials share, with their values; become parameters.
        known: Facts about data, code and machine; become tags.

    Attributes:
        experiment: Its id.
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
        self.known = dict(known)
        self.confirms: Mapping[str, Any] | None = record.manifest.get("confirms")
        tags = experiment_tags(task, record)
        self.experiment = experiment_id(client, uri, record.manifest["study"], tags)
        self.reported = 0  # ended trials that its description there knows of
        self.parent = self._find_or_create_parent()

    @property
    def searches(self) -> bool:
        """Whether this is a search, and no confirmation of one."""
        return self.confirms is None

    def find_or_create(self, trial: TrialRecord, *, perhaps_there: bool) -> Run:
        """Return a trial's run.

        Args:
            trial: The trial.
            perhaps_there: Whether an earlier process, or a call that failed, may have made it.
        """
        client, run_id = self.client, None
        role = "trial" if self.searches else "confirm-trial"
        if perhaps_there:
            condition = f"tags.`study.role` = '{role}' and tags.`study.trial` = '{trial.number}'"
            run_id = self._find(condition)
        if run_id is None:
            run_id = self._create(trial, role)
            run = Run(run_id)
        else:
            history = client.get_metric_history(run_id, trial.metric)
            run = Run(run_id, max((metric.step for metric in history), default=0))
            known = client.get_run(run_id)
            resumable = known.data.tags.get("study.resumable") == "true"
            run.ended = known.info.status == STATUS[trial.state] != "RUNNING" and not resumable
            if "seed" not in known.data.params:  # killed after creating the run
                self._log_settings(run_id, trial)
            if not run.ended:
                client.update_run(run_id, status="RUNNING")
                client.set_tag(run_id, "study.resumable", "false")
        self.record.run_folder(trial.number).run_id = run_id
        return run

    def describe(self, num_ended: int, runs: Mapping[int, Run]) -> None:
        """Write how the study stands to its run.

        Args:
            num_ended: Trials that have ended, as far as the report knows.
            runs: Of its trials.
        """
        known = {number: run.run_id for number, run in runs.items()}
        note = study_note(self.record, self.task, self.experiment, self.parent, known)
        tags = [RunTag(NOTE, note), RunTag("study.reported", str(num_ended))]
        self.client.log_batch(self.parent, tags=tags)
        self.reported = num_ended

    def _find_or_create_parent(self) -> str:
        name, role = self.record.manifest["study"], "study" if self.searches else "confirm"
        found = self._find(f"tags.`study.role` = '{role}'")
        if found is not None:
            self.reported = int(self.client.get_run(found).data.tags.get("study.reported", 0))
            self.client.update_run(found, status="RUNNING")
            return found
        tags = {"study.role": role, "study.name": name, "study.task": self.task.name}
        if self.confirms:  # below the run of the study that it confirms
            above = self._find("tags.`study.role` = 'study'", self.confirms["study_id"])
            tags |= {"mlflow.parentRunId": above} if above else {}
            name = f"{name}, confirmation"
        else:
            name = f"study {name}"
        if self.record.manifest["dataset"] == "sample":
            name += " [sample data]"
        run = self.client.create_run(self.experiment, run_name=name, tags={**tags, **self.known})
        params = {**self.settings, "metric": self.record.manifest["metric"]}
        params["objective"] = str(self.record.goal)
        self.client.log_batch(
            run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()]
        )
        return str(run.info.run_id)

    def _create(self, trial: TrialRecord, role: str) -> str:
        manifest = self.record.manifest
        tags = {
            "study.role": role,
            "study.name": manifest["study"],
            "study.trial": str(trial.number),
            "study.task": self.task.name,
            "mlflow.parentRunId": self.parent,
            **self.known,
        }
        name = f"trial {trial.number}" + (" (baseline)" if trial.number == 0 else "")
        if self.confirms:
            tags["study.confirms"] = str(candidate_of(self.confirms, trial.number))
            name = f"trial {tags['study.confirms']} again, fold {trial.values['fold']}"
        if manifest["dataset"] == "sample":
            name += " [sample data]"
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        self._log_settings(run_id, trial)
        return run_id

    def _log_settings(self, run_id: str, trial: TrialRecord) -> None:
        params = {**self.settings, **self.record.params(trial)}
        log_settings(self.client, run_id, params, self.known)

    def _find(self, condition: str, study_id: str | None = None) -> str | None:
        name = self.record.manifest["study"]
        condition = f"{condition} and tags.`study.name` = '{name}'"
        if study_id := study_id or self.record.manifest.get("id"):
            condition += f" and tags.`study.id` = '{study_id}'"
        found = self.client.search_runs([self.experiment], condition, max_results=1)
        return str(found[0].info.run_id) if found else None
