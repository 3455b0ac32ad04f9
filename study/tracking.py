"""A study in MLflow: one run per study, one per trial, written by one thread of one process.

A trial's run is brought up to date from the trial's folder. So nothing is queued in memory: when
the server is away, training goes on, and the next attempt sends what is missing.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Param
from mlflow.tracking import MlflowClient

from study.candidates import candidate_of
from study.errors import InputError
from study.record import StudyRecord
from study.run_folder import RunFolder
from study.task import Task
from study.tracking_store import connect, experiment_id, log_metrics, log_settings, upload_folder
from study.trial_record import TrialRecord, metrics_of

logger = logging.getLogger(__name__)

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "running": "RUNNING"}
RETRY_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class _Store:
    """The study's place in MLflow."""

    client: MlflowClient
    experiment: str
    parent: str


@dataclasses.dataclass
class _Run:
    """What is known to be in MLflow of one trial."""

    run_id: str
    epoch: int = 0  # metrics up to here are there
    ended: bool = False


class StudyTracker:
    """Keeps MLflow in step with a study's record, from a thread of its own.

    Args:
        uri: Absolute tracking URI.
        record: The study.
        task: Draws the figures.
        settings: Settings that all trials share, with their values; become parameters.
        known: Facts about data, code and machine; become tags.
    """

    def __init__(
        self,
        uri: str,
        record: StudyRecord,
        task: Task,
        settings: Mapping[str, Any],
        known: Mapping[str, str],
    ) -> None:
        self.uri = uri
        self.record = record
        self.task = task
        self.settings = dict(settings)
        self.known = {**known, "study.id": record.manifest.get("id", "")}
        self._store: _Store | None = None  # None as long as the store was not reached
        self.runs: dict[int, _Run] = {}
        self.trouble: str | None = None
        self._unsent: dict[int, str] = {}  # trial -> why, when closing
        self._waiting: dict[int, None] = {}  # trials to bring up to date, oldest first
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def touch(self, number: int) -> None:
        """Have a trial's run brought up to date soon."""
        with self._changed:
            self._waiting[number] = None
            self._changed.notify()

    def close(self, status: str, best: TrialRecord | None, timeout: float = 120.0) -> str | None:
        """Bring everything up to date and end the study's run.

        Args:
            status: FINISHED, KILLED or FAILED.
            best: The best trial.
            timeout: Seconds to wait for a store that does not answer.

        Returns:
            What went wrong, None if everything was written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return self.trouble or "the tracking store is slow"
        if self._unsent:
            numbers = ", ".join(map(str, sorted(self._unsent)))
            return f"trials {numbers}: {'; '.join(sorted(set(self._unsent.values())))}"
        try:
            client, parent = self.store.client, self.store.parent
            for run in self.runs.values():
                if not run.ended:  # cut off; the next command goes on with it
                    client.set_tag(run.run_id, "study.resumable", "true")
                    client.set_terminated(run.run_id, "KILLED")
            searches = self._role == "trial"
            if searches and best is not None and best.value is not None and status == "FINISHED":
                key = f"best/{self.record.manifest['metric'].split('/', 1)[1]}"
                if client.get_run(parent).data.metrics.get(key) != best.value:
                    client.log_metric(parent, key, best.value, step=best.number)
                    client.set_tag(parent, "study.best_trial", str(best.number))
            client.set_terminated(parent, status)
        except Exception as error:  # as in `_work`
            return _first_line(error)
        return None

    @property
    def store(self) -> _Store:
        """The study's place in MLflow; reaches for it if it was not reached yet."""
        if self._store is None:
            client = connect(self.uri)
            name = self.record.manifest["study"]
            experiment = experiment_id(client, self.uri, name)
            self._store = _Store(client, experiment, self._parent(client, experiment, name))
        return self._store

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                number = next(iter(self._waiting))
                del self._waiting[number]
            try:
                self._bring_up_to_date(number)
                if self.trouble is not None:
                    logger.warning("tracking is back; what is missing is sent now")
                self.trouble = None
            except Exception as error:  # SQLAlchemy, HTTP and MLflow each raise their own
                # What a call that failed has written is not known: look again.
                self.runs.pop(number, None)
                if self.trouble is None:
                    logger.warning(
                        "tracking fails, training goes on and all is sent later: %s",
                        _first_line(error),
                    )
                self.trouble = _first_line(error)
                with self._changed:
                    if self._closing:
                        self._unsent[number] = self.trouble
                        if self._store is None or len(self._unsent) > 1:  # no use to try them all
                            self._unsent |= dict.fromkeys(self._waiting, self.trouble)
                            self._waiting.clear()
                    else:
                        self._waiting[number] = None
                        self._changed.wait(RETRY_SECONDS)

    def _bring_up_to_date(self, number: int) -> None:
        client = self.store.client
        trial = self.record.trial(number)
        run = self.runs.get(number) or self._find_or_create(trial)
        folder = self.record.run_folder(number)
        for row in trial.history:
            epoch = int(row["epoch"])
            if epoch > run.epoch:
                log_metrics(client, run.run_id, epoch, metrics_of(row), row.get("ended"))
                run.epoch = epoch
        if trial.state != "running" and not run.ended:
            self._end(trial, run, folder)

    def _end(self, trial: TrialRecord, run: _Run, folder: RunFolder) -> None:
        client = self.store.client
        if trial.reason is not None:
            client.set_tag(run.run_id, "study.reason", trial.reason[:5000])
        if trial.epoch is not None:
            client.set_tag(run.run_id, "study.best_epoch", str(trial.epoch))
            note = figure_note(self.task, self.record, trial)
            folder.draw(self.task, note, list(trial.history))
            for text in folder.damage:
                logger.warning(text)
        if trial.failures:
            text = "; ".join(f"epoch {f['epoch']}: {f['reason']}" for f in trial.failures)
            client.set_tag(run.run_id, "study.retries", text[:5000])
        upload_folder(client, run.run_id, folder)
        client.set_terminated(run.run_id, STATUS[trial.state])
        run.ended = True

    def _parent(self, client: MlflowClient, experiment: str, name: str) -> str:
        confirms = self.record.manifest.get("confirms")
        role = "confirm" if confirms else "study"
        found = self._find(client, experiment, f"tags.`study.role` = '{role}'")
        if found is not None:
            client.update_run(found, status="RUNNING")
            return found
        tags = {"study.role": role, "study.name": name, "study.task": self.task.name}
        label = f"{name}, confirmation" if confirms else name
        if confirms:  # below the run of the study that it confirms
            searched = "tags.`study.role` = 'study'"
            above = self._find(client, experiment, searched, confirms["study_id"])
            tags |= {"mlflow.parentRunId": above} if above else {}
        run = client.create_run(experiment, run_name=label, tags={**tags, **self.known})
        params = {**self.settings, "metric": self.record.manifest["metric"]}
        client.log_batch(
            run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()]
        )
        return str(run.info.run_id)

    @property
    def _role(self) -> str:
        return "confirm-trial" if "confirms" in self.record.manifest else "trial"

    def _find_or_create(self, trial: TrialRecord) -> _Run:
        client = self.store.client
        run_id = self._find(
            client,
            self.store.experiment,
            f"tags.`study.role` = '{self._role}' and tags.`study.trial` = '{trial.number}'",
        )
        if run_id is None:
            run_id = self._create(trial)
            run = _Run(run_id)
        else:
            history = client.get_metric_history(run_id, self.task.metric)
            run = _Run(run_id, max((metric.step for metric in history), default=0))
            known = client.get_run(run_id)
            resumable = known.data.tags.get("study.resumable") == "true"
            run.ended = known.info.status == STATUS[trial.state] != "RUNNING" and not resumable
            if "seed" not in known.data.params:  # killed after creating the run
                self._log_settings(client, run_id, trial)
            if not run.ended:
                client.update_run(run_id, status="RUNNING")
                client.set_tag(run_id, "study.resumable", "false")
        self.record.run_folder(trial.number).run_id = run_id
        self.runs[trial.number] = run
        return run

    def _create(self, trial: TrialRecord) -> str:
        client = self.store.client
        manifest = self.record.manifest
        tags = {
            "study.role": self._role,
            "study.name": manifest["study"],
            "study.trial": str(trial.number),
            "study.task": self.task.name,
            "mlflow.parentRunId": self.store.parent,
            **self.known,
        }
        confirms = manifest.get("confirms")
        if confirms:
            candidate = str(candidate_of(confirms, trial.number))
            tags["study.confirms"] = candidate
            name = f"trial {candidate} again, fold {trial.values['fold']}"
        else:
            name = f"trial {trial.number}" + (" (baseline)" if trial.number == 0 else "")
        if manifest["dataset"] == "sample":
            name += " [sample data]"
        run = client.create_run(self.store.experiment, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        self._log_settings(client, run_id, trial)
        return run_id

    def _log_settings(self, client: MlflowClient, run_id: str, trial: TrialRecord) -> None:
        params = {**self.settings, **self.record.params(trial)}
        log_settings(client, run_id, params, self.known)

    def _find(
        self, client: MlflowClient, experiment: str, condition: str, study_id: str | None = None
    ) -> str | None:
        name = self.record.manifest["study"]
        condition = f"{condition} and tags.`study.name` = '{name}'"
        if study_id := study_id or self.record.manifest.get("id"):
            condition += f" and tags.`study.id` = '{study_id}'"
        found = client.search_runs([experiment], condition, max_results=1)
        return str(found[0].info.run_id) if found else None


def _first_line(error: BaseException) -> str:
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{name}{error}".strip().splitlines()[0]


def figure_note(task: Task, record: StudyRecord, trial: TrialRecord) -> str:
    """Return the line that says what the figures of a trial show."""
    dataset, epochs = record.manifest["dataset"], record.manifest["epochs"]
    data = task.name if dataset == "real" else f"{task.name}, SAMPLE data (not real)"
    size = record.params(trial).get("image_size")
    pixels = f", {size}x{size} pixels" if size else ""
    return f"{data}, trial {trial.number}, validation{pixels}, epoch {trial.epoch} of {epochs}"
