"""The MLflow store: finding it, and reading and writing single runs.

Only the modules of `study.tracking` use MLflow.
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
    """Return the tracking URI with absolute paths, so that it works from any directory.

    Args:
        flag: `--tracking-uri`; else `$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db` in the
            current directory.
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
    """Return whether a store is a SQLite file that can (probably) be opened or created.

    This takes no time, while MLflow takes seconds.
    """
    if not uri.startswith("sqlite:"):
        return False
    try:
        check_access(uri)
    except InputError:
        return False
    return True


def connect(uri: str) -> MlflowClient:
    """Return a client, after checking that the store answers; create a missing SQLite store.

    Raises:
        InputError: The store cannot be reached or written.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns about every retry
    # The study's tracker retries by itself, and nobody waits for it.
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
        except Exception as error:  # SQLAlchemy, HTTP and MLflow each have their own
            raise refusal(uri, error) from None
    return client


def reach(uri: str, experiment: str | None) -> None:
    """Check that a store answers, and create the experiment if it is missing.

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
    """Remove the folder that MLflow creates from a path with `%3F`, not decoding it to `?`.

    Whatever it creates before opening the right file is empty.
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
    """Create a SQLite store, if there is none, as a copy of one that MLflow created before.

    For each new store MLflow runs all its migrations, which takes four seconds while Ray is
    starting. If copying fails, MLflow does so here, too.
    """
    if path.exists():
        return
    with suppress(OSError, InputError):
        made = cached(cache_home(), "mlflow-store", [mlflow.__version__], _make_empty)
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        shutil.copyfile(made.folder / "mlflow.db", draft)
        try:
            os.link(draft, path)  # never replaces a store that another process has created
        finally:
            draft.unlink()


def _make_empty(folder: Path) -> dict[str, Any]:
    file = folder / "mlflow.db"
    MlflowClient(sqlite_uri.uri_of(file)).search_experiments(max_results=1)
    with closing(sqlite3.connect(file)) as store:
        # The default experiment's artifacts would be here; MLflow creates another in each copy.
        store.execute("DELETE FROM experiments")
        store.commit()
    return {"mlflow": mlflow.__version__}


def check(uri: str) -> None:
    """Write a run with a metric and a file to the store, read them back, and delete the run.

    Raises:
        InputError: The store does not answer, or returns something else.
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
    """Return a lock that one command of this user on this machine holds at a time.

    Two commands that create the same SQLite store at once would both fail, and two that register a
    model would miss each other's. The lock file is in the temporary directory, so that no unknown
    file appears beside the store.

    Args:
        what: The URI of a store, or a name in it.
    """
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    return lock(Path(tempfile.gettempdir()) / f"study-{os.getuid()}-{name}.lock")


def ensure_experiment(
    client: MlflowClient, uri: str, name: str, tags: Mapping[str, str] | None = None
) -> str:
    """Return the id of an experiment with these `tags`, creating it if there is none.

    The artifacts of a SQLite store go to `mlruns/` beside the file, where `mlflow ui` finds them.

    Raises:
        InputError: It was deleted, or its artifact folder is not writable.
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
    """Set an experiment's missing tags, and update views, which an earlier version may have set."""
    for key, value in tags.items():
        known = experiment.tags.get(key)
        if known is None or (known != value and key.startswith("mlflow.sharedViewState.")):
            client.set_experiment_tag(experiment.experiment_id, key, value)


class SingleRun:
    """The run of `study.train --track`, written epoch by epoch."""

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
    """Log parameters, and the data set in MLflow's form."""
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    dataset = Dataset(
        name=known["data.name"],
        digest=known["data.checksum"][:12],
        source_type="study",
        source=known["data.dataset"],
    )
    client.log_inputs(run_id, [DatasetInput(dataset, tags=[])])


def log_history(client: MlflowClient, run_id: str, rows: Iterable[Mapping[str, float]]) -> None:
    """Log epochs in as few calls as MLflow allows; NaN is left out.

    Args:
        client: Of the store.
        run_id: The run.
        rows: One per epoch: its number `epoch`, and the metrics by name. Their time is `ended`,
            seconds since 1970, or now if it is missing. MLflow stores a metric with the same time
            once, even if it is sent again because a response was lost.
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
            if file.exists():  # a losing trial's weights may be deleted meanwhile
                client.log_artifact(run_id, str(file), target)


def upload_report(client: MlflowClient, run_id: str, folder: AnyPath) -> None:
    """Upload a study's page to its run."""
    with suppress(FileNotFoundError), local_copy(folder / REPORT_FILE) as file:
        client.log_artifact(run_id, str(file))


def run_settings(uri: str, run_id: str, task_name: str) -> tuple[str, dict[str, str]]:
    """Return the data set (`real` or `sample`) and the parameters of a trial's run.

    Raises:
        InputError: There is no such run, or it belongs to another task.
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
