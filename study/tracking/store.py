"""The MLflow store: finding it, and writing and reading single runs.

Only the modules named `tracking` know MLflow.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, Experiment, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from study.errors import InputError
from study.records.run_folder import RunFolder
from study.records.study_record import REPORT_FILE
from study.records.trial_record import metrics_of
from study.storage import sqlite_uri
from study.storage.cache import cache_home, cached
from study.storage.files import local_copy, lock
from study.storage.paths import AnyPath
from study.system.environment import is_writable
from study.system.redaction import without_password
from study.task import Task
from study.tracking.access import OTHER, check_access, refusal
from study.tracking.locations import follow_move


def resolve_uri(flag: str | None) -> str:
    """Return the tracking URI with absolute paths, so that it holds in any folder.

    Args:
        flag: `--tracking-uri`; else `$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db` here.
    """
    if "MLFLOW_TRACKING_URI" in os.environ:  # which MLflow reads, too
        os.environ["MLFLOW_TRACKING_URI"] = without_password(os.environ["MLFLOW_TRACKING_URI"])
    uri = without_password(flag or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    if uri.startswith("sqlite:"):
        return sqlite_uri.absolute(uri)
    if "://" not in uri and not uri.startswith("databricks"):
        raise InputError(
            f"{uri!r} is not a tracking URI; use sqlite:///PATH or the http:// address of an "
            "MLflow server."
        )
    return uri


def is_usable_file(uri: str) -> bool:
    """Return whether a store is a SQLite file that opens, or can be made, as far as can be told.

    It takes no time, while MLflow takes seconds to answer.
    """
    if not uri.startswith("sqlite:"):
        return False
    try:
        check_access(uri)
    except InputError:
        return False
    return True


def connect(uri: str) -> MlflowClient:
    """Return a client after making sure that the store answers; creates a SQLite store.

    Raises:
        InputError: The store cannot be reached or written.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # each new attempt is a warning there
    # The study's tracker tries again by itself, and nobody waits for it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    with command_lock(uri):
        check_access(uri)
        path = sqlite_uri.path_of(uri)
        try:
            with _no_folder_of_encoded_name(uri):
                if path is not None:
                    _create(path)
                client = MlflowClient(uri)
                client.search_experiments(max_results=1)
                if path is not None:
                    follow_move(path)
        except Exception as error:  # SQLAlchemy, HTTP and MLflow each raise their own
            raise refusal(uri, error) from None
    return client


def reach(uri: str, experiment: str | None) -> None:
    """Make sure that a store answers, and has an experiment, which is created if there is none.

    Args:
        uri: Absolute tracking URI.
        experiment: Its name; None for any.

    Raises:
        InputError: The store cannot be reached or written, or the experiment was deleted.
    """
    client = connect(uri)
    try:
        if experiment is not None:
            ensure_experiment(client, uri, experiment)
    except MlflowException as error:
        raise InputError(str(error)) from None


@contextmanager
def _no_folder_of_encoded_name(uri: str) -> Iterator[None]:
    """Take away the folder that MLflow makes of a path with `%3F` in it, not knowing it means `?`.

    Whatever it makes before opening the right file is empty.
    """
    encoded = Path(uri.removeprefix(sqlite_uri.PREFIX))
    made = [folder for folder in encoded.parents if not os.path.lexists(folder)]
    try:
        yield
    finally:
        if uri.startswith(sqlite_uri.PREFIX) and encoded != sqlite_uri.path_of(uri):
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


def _create(path: Path) -> None:
    """Make a SQLite store, if there is none, out of one that MLflow made before.

    MLflow goes through all versions of its tables for each new store, which takes four seconds
    beside the start of Ray. Where this does not work, it does so here too.
    """
    if path.exists():
        return
    with suppress(OSError, InputError):
        made = cached(cache_home(), "mlflow-store", [mlflow.__version__], _make_empty)
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        shutil.copyfile(made.folder / "mlflow.db", draft)
        try:
            os.link(draft, path)  # never over a store that another process made meanwhile
        finally:
            draft.unlink()


def _make_empty(folder: Path) -> dict[str, Any]:
    file = folder / "mlflow.db"
    MlflowClient(sqlite_uri.uri_of(file)).search_experiments(max_results=1)
    with closing(sqlite3.connect(file)) as store:
        # The default experiment's artifacts would lie here; MLflow makes another where it is used.
        store.execute("DELETE FROM experiments")
        store.commit()
    return {"mlflow": mlflow.__version__}


def check(uri: str) -> None:
    """Write a run with a metric and a file to the store, read them back, and delete the run.

    Raises:
        InputError: The store does not answer, or gives back something else.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = connect(uri)
    try:
        run_id = client.create_run(ensure_experiment(client, uri, "study.doctor")).info.run_id
        client.log_metric(run_id, "probe", 0.5)
        client.log_text(run_id, "probe", "probe.txt")
        with tempfile.TemporaryDirectory() as scratch:
            text = Path(client.download_artifacts(run_id, "probe.txt", scratch)).read_text()
        kept = (client.get_run(run_id).data.metrics, text) == ({"probe": 0.5}, "probe")
        client.delete_run(run_id)
    except Exception as error:  # as in `connect`
        raise refusal(uri, error) from None
    if not kept:
        raise InputError(f"the tracking store {uri} does not return what was written to it.")


def command_lock(what: str) -> AbstractContextManager[object]:
    """Return what one command of this user on this machine holds at a time.

    Two that create one SQLite store at once would both fail, and of two that register a model each
    would miss the other's. It lies with the temporary files, so that nothing strange appears
    beside the store.

    Args:
        what: The URI of a store, or a name in it.
    """
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    return lock(Path(tempfile.gettempdir()) / f"study-{os.getuid()}-{name}.lock")


def ensure_experiment(
    client: MlflowClient, uri: str, name: str, tags: Mapping[str, str] | None = None
) -> str:
    """Return the experiment's id, creating it if there is none; `tags` are what it then has.

    Beside a SQLite file the artifacts go to `mlruns/`, where `mlflow ui` started there finds them.

    Raises:
        InputError: It was deleted, or its artifacts cannot be written.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise InputError(
                f"the MLflow experiment {name!r} was deleted; restore it with `mlflow experiments "
                f"restore -x {found.experiment_id}`, or choose another --name."
            )
        set_experiment_tags(client, found, tags or {})
        return str(found.experiment_id)
    location = None
    if (path := sqlite_uri.path_of(uri)) is not None:
        folder = path.parent / "mlruns" / name
        if not is_writable(folder):
            raise refusal(uri, f"its artifact folder {folder} is not writable; {OTHER}")
        location = folder.as_uri()
    return str(client.create_experiment(name, artifact_location=location, tags=dict(tags or {})))


def set_experiment_tags(
    client: MlflowClient, experiment: Experiment, tags: Mapping[str, str]
) -> None:
    """Set what an experiment lacks, and views anew: another version of ours may have made them."""
    for key, value in tags.items():
        known = experiment.tags.get(key)
        if known is None or (known != value and key.startswith("mlflow.sharedViewState.")):
            client.set_experiment_tag(experiment.experiment_id, key, value)


class SingleRun:
    """One run of `study.train --track`, written as it goes."""

    def __init__(
        self, uri: str, task: Task, params: Mapping[str, Any], known: Mapping[str, str]
    ) -> None:
        self.client = connect(uri)
        experiment = ensure_experiment(self.client, uri, task.name)
        tags = {"study.role": "train", "study.task": task.name, **known}
        run = self.client.create_run(experiment, run_name=f"train {task.name}", tags=tags)
        self.run_id = str(run.info.run_id)
        log_settings(self.client, self.run_id, params, known)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch."""
        log_history(self.client, self.run_id, [{"epoch": epoch, **metrics}])

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


def log_history(client: MlflowClient, run_id: str, rows: Iterable[Mapping[str, float]]) -> None:
    """Log epochs in as few calls as MLflow allows; nan is left out.

    Args:
        client: Of the store.
        run_id: The run.
        rows: One for each epoch, with its number `epoch`, and the metrics by name. `ended`, seconds
            since 1970, is their time, else it is now. The same metric with the same time, sent
            again after an answer was lost, is in MLflow once.
    """
    now = time.time()
    metrics = [
        Metric(name, value, int(1000 * row.get("ended", now)), int(row["epoch"]))
        for row in rows
        for name, value in metrics_of(row).items()
        if value == value
    ]
    for first in range(0, len(metrics), MAX_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + MAX_METRICS_PER_BATCH])


def upload_folder(client: MlflowClient, run_id: str, folder: RunFolder) -> None:
    """Upload figures, metrics, the best checkpoint and the error of a trial."""
    targets: list[tuple[AnyPath, str | None]] = [
        *((figure, "figures") for figure in folder.figures()),
        (folder.path / "metrics.json", None),
        (folder.best_checkpoint, "checkpoint"),
        (folder.error_file, None),
    ]
    for path, target in targets:
        with suppress(FileNotFoundError), local_copy(path) as file:
            if file.exists():  # weights of a loser may go meanwhile
                client.log_artifact(run_id, str(file), target)


def upload_report(client: MlflowClient, run_id: str, folder: AnyPath) -> None:
    """Upload the page of a study to its run."""
    with suppress(FileNotFoundError), local_copy(folder / REPORT_FILE) as file:
        client.log_artifact(run_id, str(file))


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
    if found != task_name or run.data.tags.get("study.role") in ("study", "confirm"):
        raise InputError(f"run {run_id} is not a trial of {task_name} (its task is {found}).")
    return run.data.tags["data.dataset"], dict(run.data.params)
