"""Results that are written to MLflow runs after a study: tests, exports and confirmations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import IntegrityError  # MLflow's own

from study.errors import InputError
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.system.environment import is_writable
from study.task import Task
from study.tracking.locations import local_path
from study.tracking.place import find_anywhere, restore_if_deleted
from study.tracking.runs import StudyRuns
from study.tracking.store import connect, log_history, upload_report

logger = logging.getLogger(__name__)


def ensure_run(uri: str, record: StudyRecord, task: Task, trial: TrialRecord) -> str:
    """Return the id of a trial's MLflow run; make sure that the run exists.

    A deleted run is restored; one that was deleted permanently is recreated from the record, with
    parameters, metrics and artifacts. The same goes for its parent, the study's run.

    Args:
        uri: Absolute tracking URI.
        record: The trial's study, or the confirmation.
        task: The study's.
        trial: The trial; its folder stores the id.

    Raises:
        InputError: The store does not answer, or it is not the study's.
    """
    client = connect(uri)
    if (
        record.run_folder(trial.number).run_id is not None
        and find_anywhere(client, record.manifest) is None
    ):
        raise InputError(
            f"the tracking store {uri} has no run of study {record.manifest['study']}; name the "
            "study's store with --tracking-uri. If its runs were deleted permanently, run the "
            "study's command again to recreate them."
        )
    _check_artifacts(client, record.run_folder(trial.number).run_id)
    runs, ended = StudyRuns.of(client, uri, record, task), trial.state != "running"
    run = runs.find_or_create(trial, perhaps_there=True, goes_on=ended)
    if trial.number in runs.restored:
        logger.warning("the MLflow run of trial %d was deleted; restored it", trial.number)
    if ended and not run.ended:
        runs.log(trial, run)
        runs.end(trial, run)
    if runs.made:  # this command does not run the study
        left = any(one.state == "running" for one in record.trials())
        client.set_terminated(runs.parent, "KILLED" if left else "FINISHED")
    return run.run_id


def _check_artifacts(client: MlflowClient, run_id: str | None) -> None:
    """Check that a run's artifact folder is writable, if it is on this machine.

    Raises:
        InputError: It is not; names the folder.
    """
    try:
        location = client.get_run(run_id).info.artifact_uri if run_id is not None else None
    except MlflowException:
        return  # it will be recreated
    folder = local_path(location or "")
    if folder is not None and not is_writable(folder):
        raise InputError(
            f"MLflow's artifact folder {folder} is not writable; restore it, or name another store "
            "with --tracking-uri."
        )


def record_test(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> None:
    """Add test metrics and tags to a trial's run, which must exist."""
    known = client.get_run(run_id).data.metrics
    # The loss is in `tests.json`; with it, some runs would have more than 30 metrics, which makes
    # MLflow's page slow.
    new = {key: value for key, value in metrics.items() if known.get(key) != value}
    new.pop("test/loss", None)
    log_history(client, run_id, [{"epoch": 0, **new}])
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def record_handover(
    uri: str,
    run_id: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    folder: Path,
) -> str | None:
    """Record on a trial's run that it was tested and exported, and add the test figures.

    Args:
        uri: Of the store.
        run_id: The run.
        metrics: Test metrics by name.
        tags: Test tags by name.
        folder: Of the export.

    Returns:
        A sentence if the store cannot be updated; the export is complete regardless.
    """

    def tell() -> None:
        client = connect(uri)
        record_test(client, run_id, metrics, tags)
        client.set_tag(run_id, "study.exported", "true")
        if (folder / "figures" / "test").is_dir():
            client.log_artifacts(run_id, str(folder / "figures" / "test"), "figures/test")

    return try_to_tell(tell)


def try_to_tell(tell: Callable[..., None], *about: Any) -> str | None:
    """Send MLflow something that is already on disk; return a sentence if that fails."""
    try:
        try:
            tell(*about)
        except MlflowException as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            tell(*about)  # another command wrote the same tag between this one's look and write
    except Exception as error:  # SQLAlchemy, HTTP and MLflow each have their own
        reason = str(error).strip().splitlines()[0]
        return (
            f"MLflow was not updated ({reason}); run the same command again to update it. The test "
            "is not repeated."
        )
    return None


def record_confirmation(
    uri: str,
    name: str,
    study_id: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> None:
    """Write the result of a confirmation to its run.

    Args:
        uri: Of the store.
        name: The study's.
        study_id: Id of the confirmation, which identifies its runs.
        metrics: By name.
        tags: By name.
    """
    client = connect(uri)
    run = _run(client, "confirm", {"study": name, "id": study_id})
    if run is not None:
        known = run.data.metrics
        new = {key: value for key, value in metrics.items() if known.get(key) != value}
        log_history(client, run.info.run_id, [{"epoch": 0, **new}])
        given = [RunTag(key, value) for key, value in tags.items()]
        client.log_batch(run.info.run_id, tags=given)


def record_report(uri: str, record: StudyRecord) -> None:
    """Upload a study's page to its run, if the store has that run."""
    client, manifest = connect(uri), record.manifest
    run = _run(client, "study", manifest)
    if run is not None:
        upload_report(client, run.info.run_id, record.path)


def _run(client: MlflowClient, role: str, whose: Mapping[str, Any]) -> Run | None:
    """Return the run of a study or confirmation in any experiment; restore it if deleted."""
    run = find_anywhere(client, whose, f"tags.`study.role` = '{role}'")
    if run is not None:
        restore_if_deleted(client, run)
    return run
