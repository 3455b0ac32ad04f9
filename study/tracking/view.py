"""The MLflow page with a study's trials, which `study.ui` opens."""

from __future__ import annotations

from study.errors import InputError
from study.records.study_record import StudyRecord
from study.task import load_task
from study.tracking.notes import experiment_tags, trials_place
from study.tracking.place import find_anywhere
from study.tracking.store import connect, set_experiment_tags


def prepare_view(uri: str, record: StudyRecord) -> str:
    """Return the URL fragment of a study's trials in MLflow.

    The view that it names is updated, also for a study of an earlier version.

    Raises:
        InputError: The store does not answer, or does not have the study.
    """
    name = record.manifest["study"]
    client = connect(uri)
    run = find_anywhere(client, record.manifest)
    if run is None:
        raise InputError(
            f"this tracking store has no run of study {name}; name the study's store with "
            "--tracking-uri, or run the study's command again to send everything."
        )
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"the MLflow experiment {experiment.name!r} was deleted; run the study's command "
            f"again, or `mlflow experiments restore -x {experiment.experiment_id}`."
        )
    tags = experiment_tags(load_task(record.manifest["task"]), record)
    set_experiment_tags(client, experiment, tags)
    return trials_place(str(experiment.experiment_id))
