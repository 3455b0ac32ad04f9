"""Everything MLflow: one run per study, one per trial, written by one thread of one process.

A trial's run is brought up to date from the trial's folder. So nothing is queued in memory: when
the server is away, training goes on, and the next attempt sends what is missing.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from study.errors import InputError
from study.record import StudyRecord, TrialRecord
from study.run_folder import RunFolder
from study.task import Task

logger = logging.getLogger(__name__)

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "running": "RUNNING"}
RETRY_SECONDS = 5.0


def resolve_uri(flag: str | None) -> str:
    """Return the tracking URI with absolute paths, so that it holds in any folder.

    Args:
        flag: `--tracking-uri`; else `$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db` here.
    """
    uri = flag or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"
    if "://" not in uri and not uri.startswith("databricks"):
        raise InputError(
            f"the tracking URI {uri!r} is none; use sqlite:///PATH or the http:// address of an "
            "MLflow server."
        )
    return uri


def connect(uri: str) -> MlflowClient:
    """Return a client after making sure that the store answers; creates a SQLite store.

    Raises:
        InputError: The store cannot be reached or written.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # SQLAlchemy, HTTP and MLflow each raise their own
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the tracking store {uri} does not answer ({reason}).") from None
    return client


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Return the experiment's id, creating it if there is none.

    Beside a SQLite file the artifacts go to `mlruns/`, where `mlflow ui` started there finds them.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise InputError(
                f"the MLflow experiment {name!r} was deleted; restore it with `mlflow experiments "
                f"restore -x {found.experiment_id}`, or choose another --name."
            )
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / name
        location = folder.as_uri()
    return str(client.create_experiment(name, artifact_location=location))


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

    Raises:
        InputError: The store cannot be reached at the start.
    """

    def __init__(
        self,
        uri: str,
        record: StudyRecord,
        task: Task,
        settings: Mapping[str, Any],
        known: Mapping[str, str],
    ) -> None:
        self.client = connect(uri)
        self.record = record
        self.task = task
        self.settings = dict(settings)
        self.known = dict(known)
        name = record.manifest["study"]
        self.experiment = experiment_id(self.client, uri, name)
        self.parent = self._find_or_create_parent(name)
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
            return "; ".join(f"trial {number}: {why}" for number, why in self._unsent.items())
        try:
            for run in self.runs.values():
                if not run.ended:  # cut off; the next command goes on with it
                    self.client.set_tag(run.run_id, "study.resumable", "true")
                    self.client.set_terminated(run.run_id, "KILLED")
            if best is not None and best.value is not None:
                key = f"best/{self.record.manifest['metric'].split('/', 1)[1]}"
                self.client.log_metric(self.parent, key, best.value, step=best.number)
                self.client.set_tag(self.parent, "study.best_trial", str(best.number))
            self.client.set_terminated(self.parent, status)
        except Exception as error:  # as in `_work`
            return str(error)
        return None

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
                self.trouble = None
            except Exception as error:  # SQLAlchemy, HTTP and MLflow each raise their own
                if self.trouble is None:
                    logger.warning("tracking failed, training goes on: %s", error, exc_info=True)
                self.trouble = f"{type(error).__name__}: {error}"
                with self._changed:
                    if self._closing:  # each trial has one more try
                        self._unsent[number] = self.trouble
                    else:
                        self._waiting[number] = None
                        self._changed.wait(RETRY_SECONDS)

    def _bring_up_to_date(self, number: int) -> None:
        trial = self.record.trial(number)
        run = self.runs.get(number) or self._find_or_create(trial)
        folder = self.record.run_folder(number)
        for row in folder.history():
            epoch = int(row["epoch"])
            if epoch > run.epoch:
                now = int(time.time() * 1000)
                values = [
                    Metric(name, value, now, epoch)
                    for name, value in row.items()
                    if name != "epoch" and value == value
                ]
                self.client.log_batch(run.run_id, metrics=values)
                run.epoch = epoch
        if trial.state != "running" and not run.ended:
            self._end(trial, run, folder)

    def _end(self, trial: TrialRecord, run: _Run, folder: RunFolder) -> None:
        if trial.reason is not None:
            self.client.set_tag(run.run_id, "study.reason", trial.reason[:5000])
        if trial.epoch is not None:
            self.client.set_tag(run.run_id, "study.best_epoch", str(trial.epoch))
            folder.draw(self.task, figure_note(self.task, self.record, trial))
        upload_folder(self.client, run.run_id, folder)
        self.client.set_terminated(run.run_id, STATUS[trial.state])
        run.ended = True

    def _find_or_create_parent(self, name: str) -> str:
        found = self._find("tags.`study.role` = 'study'")
        if found is not None:
            self.client.update_run(found, status="RUNNING")
            return found
        tags = {"study.role": "study", "study.name": name, "study.task": self.task.name}
        run = self.client.create_run(self.experiment, run_name=name, tags={**tags, **self.known})
        params = {**self.settings, "metric": self.record.manifest["metric"]}
        self.client.log_batch(
            run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()]
        )
        return str(run.info.run_id)

    def _find_or_create(self, trial: TrialRecord) -> _Run:
        role = "tags.`study.role` = 'trial'"
        run_id = self._find(f"{role} and tags.`study.trial` = '{trial.number}'")
        if run_id is None:
            run_id = self._create(trial)
            run = _Run(run_id)
        else:
            history = self.client.get_metric_history(run_id, self.task.metric)
            run = _Run(run_id, max((metric.step for metric in history), default=0))
            known = self.client.get_run(run_id)
            resumable = known.data.tags.get("study.resumable") == "true"
            run.ended = known.info.status == STATUS[trial.state] != "RUNNING" and not resumable
            if not run.ended:
                self.client.update_run(run_id, status="RUNNING")
                self.client.set_tag(run_id, "study.resumable", "false")
        self.record.run_folder(trial.number).run_id = run_id
        self.runs[trial.number] = run
        return run

    def _create(self, trial: TrialRecord) -> str:
        manifest = self.record.manifest
        tags = {
            "study.role": "trial",
            "study.name": manifest["study"],
            "study.trial": str(trial.number),
            "study.task": self.task.name,
            "mlflow.parentRunId": self.parent,
            **self.known,
        }
        name = f"trial {trial.number}" + (" (baseline)" if trial.number == 0 else "")
        if manifest["dataset"] == "sample":
            name += " [sample data]"
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        params = {**self.settings, **self.record.params(trial)}
        log_settings(self.client, run_id, params, self.known)
        return run_id

    def _find(self, condition: str) -> str | None:
        name = self.record.manifest["study"]
        found = self.client.search_runs(
            [self.experiment], f"{condition} and tags.`study.name` = '{name}'", max_results=1
        )
        return str(found[0].info.run_id) if found else None


class SingleRun:
    """One run of `study.train --track`, written as it goes."""

    def __init__(
        self, uri: str, task: Task, params: Mapping[str, Any], known: Mapping[str, str]
    ) -> None:
        self.client = connect(uri)
        experiment = experiment_id(self.client, uri, task.name)
        tags = {"study.role": "train", "study.task": task.name, **known}
        run = self.client.create_run(experiment, run_name=f"train {task.name}", tags=tags)
        self.run_id = str(run.info.run_id)
        log_settings(self.client, self.run_id, params, known)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch."""
        now = int(time.time() * 1000)
        values = [Metric(name, value, now, epoch) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=[m for m in values if m.value == m.value])

    def end(self, folder: RunFolder, status: str, reason: str | None = None) -> None:
        """Upload the folder's results and end the run as FINISHED, KILLED or FAILED."""
        if reason is not None:
            self.client.set_tag(self.run_id, "study.reason", reason)
        upload_folder(self.client, self.run_id, folder)
        self.client.set_terminated(self.run_id, status)


def log_settings(
    client: MlflowClient, run_id: str, params: Mapping[str, Any], known: Mapping[str, str]
) -> None:
    """Log parameters, and the data set as MLflow shows it."""
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    dataset = Dataset(
        name=known["data.name"],
        digest=known["data.checksum"][:12],
        source_type="study",
        source=known["data.dataset"],
    )
    client.log_inputs(run_id, [DatasetInput(dataset, tags=[])])


def upload_folder(client: MlflowClient, run_id: str, folder: RunFolder) -> None:
    """Upload figures, metrics, the best checkpoint and the error of a trial."""
    if (folder.path / "figures").is_dir():
        client.log_artifacts(run_id, str(folder.path / "figures"), "figures")
    for path, target in (
        (folder.path / "metrics.json", None),
        (folder.best_checkpoint, "checkpoint"),
        (folder.error_file, None),
    ):
        if path.exists():
            client.log_artifact(run_id, str(path), target)


def figure_note(task: Task, record: StudyRecord, trial: TrialRecord) -> str:
    """Return the line that says what the figures of a trial show."""
    dataset, epochs = record.manifest["dataset"], record.manifest["epochs"]
    data = task.name if dataset == "real" else f"{task.name}, SAMPLE data (not real)"
    size = record.params(trial).get("image_size")
    pixels = f", {size}x{size} pixels" if size else ""
    return f"{data}, trial {trial.number}, validation{pixels}, epoch {trial.epoch} of {epochs}"


def run_settings(uri: str, run_id: str, task_name: str) -> tuple[str, dict[str, str]]:
    """Return the data set (`real` or `sample`) and the parameters of a trial's run.

    Raises:
        InputError: There is no such run, or it is of another task.
    """
    client = connect(uri)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise InputError(f"there is no run {run_id!r} in {uri}.") from None
    found = run.data.tags.get("study.task")
    if found != task_name or run.data.tags.get("study.role") == "study":
        raise InputError(f"run {run_id} is no trial of {task_name} (its task is {found}).")
    return run.data.tags["data.dataset"], dict(run.data.params)


def record_test(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], size: str, folder: Path
) -> None:
    """Add test metrics and the export's figures to a trial's run.

    Raises:
        InputError: The store does not have the run.
    """
    try:
        known = client.get_run(run_id).data.metrics
    except MlflowException:
        raise InputError(
            f"exported, but the run {run_id} is not in this tracking store; name the study's with "
            "--tracking-uri and export again (the test is not repeated)."
        ) from None
    now = int(time.time() * 1000)
    values = [Metric(name, value, now, 0) for name, value in metrics.items() if name not in known]
    tags = [RunTag("study.exported", "true"), RunTag("study.test_size", size)]
    client.log_batch(run_id, metrics=values, tags=tags)
    client.log_artifacts(run_id, str(folder / "figures" / "test"), "figures/test")
