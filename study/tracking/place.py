"""A study's experiment and run in MLflow, found wherever they are.

Whatever was deleted in MLflow's UI is restored, and renaming a study renames its experiment. A
study has exactly one run, and so has each of its trials.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Experiment, Run, ViewType
from mlflow.tracking import MlflowClient

from study.records.study_record import StudyRecord
from study.tracking.store import ensure_experiment

logger = logging.getLogger(__name__)


def belongs(manifest: Mapping[str, Any]) -> str:
    """Return the search condition for a study's runs: its own and its trials'."""
    if study_id := manifest.get("id"):
        return f"tags.`study.id` = '{study_id}'"
    return f"tags.`study.name` = '{manifest['study']}'"  # created by an early version


def find_run(client: MlflowClient, experiments: list[str], condition: str) -> Run | None:
    """Return a matching run, preferably one that is not deleted; None if there is none."""
    for stage in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY):
        found = client.search_runs(experiments, condition, run_view_type=stage, max_results=1)
        if experiments and found:
            return found[0]
    return None


def find_anywhere(
    client: MlflowClient, manifest: Mapping[str, Any], condition: str = ""
) -> Run | None:
    """Return a run of a study in any experiment, a deleted one if necessary; None if there is none.

    Args:
        client: Of the store.
        manifest: Of the study.
        condition: Additional search condition.
    """
    both = " and ".join(filter(None, (condition, belongs(manifest))))
    return find_run(client, _all_experiments(client), both)


def restore_if_deleted(client: MlflowClient, run: Run) -> bool:
    """Restore a run if it is deleted; return whether it was."""
    if run.info.lifecycle_stage != "deleted":
        return False
    client.restore_run(run.info.run_id)
    return True


def find_experiment(
    client: MlflowClient, uri: str, record: StudyRecord, tags: Mapping[str, str]
) -> str:
    """Return the id of a study's experiment; restore it if it was deleted, create it if missing.

    It is the experiment with the study's runs (for a confirmation, those of the study that it
    confirms), else the experiment with the study's name.

    Args:
        client: Of the store.
        uri: Its absolute URI.
        record: The study.
        tags: Tags that the experiment gets.
    """
    manifest = record.manifest
    name, confirms = manifest["study"], manifest.get("confirms")
    searched = {"study": name, "id": confirms.get("study_id")} if confirms else manifest
    named = client.get_experiment_by_name(name)
    run = find_run(client, [named.experiment_id], belongs(searched)) if named else None
    if run is None and searched.get("id"):
        run = find_anywhere(client, searched)
    found = client.get_experiment(run.info.experiment_id) if run is not None else named
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        logger.warning(
            "the MLflow experiment %r was deleted; restored it because study %s continues",
            found.name,
            name,
        )
        found = client.get_experiment(found.experiment_id)
    if found is None:
        return ensure_experiment(client, uri, name, tags)
    if run is not None and found.name != name and run.data.tags.get("study.name") != name:
        found = _renamed(client, found, name, belongs(searched))
    return ensure_experiment(client, uri, found.name, tags)


def _renamed(client: MlflowClient, found: Experiment, name: str, condition: str) -> Experiment:
    """Rename the experiment of a renamed study, unless another study is in it."""
    others = condition.replace(" = ", " != ", 1)
    shared = find_run(client, [found.experiment_id], f"tags.`study.role` = 'study' and {others}")
    if shared is not None or client.get_experiment_by_name(name) is not None:
        logger.warning(
            "study %s was renamed; its runs stay in the MLflow experiment %r", name, found.name
        )
        return found
    client.rename_experiment(found.experiment_id, name)
    logger.warning(
        "study %s was renamed; its MLflow experiment %r is renamed to match", name, found.name
    )
    return client.get_experiment(found.experiment_id)


def _all_experiments(client: MlflowClient) -> list[str]:
    found: list[str] = []
    token = None
    while token or not found:
        page = client.search_experiments(ViewType.ALL, max_results=1000, page_token=token)
        found += [experiment.experiment_id for experiment in page]
        token = page.token
        if not page:
            break
    return found
