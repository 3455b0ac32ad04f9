"""The best trials of a study: as a table, and as JSON for `study.best --json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from study.formatting import pixels, sample_mark
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord, counts
from study.reporting.progress import standings
from study.reporting.tables import per_class_table
from study.task import Task


def as_json(record: StudyRecord, best: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return the study and its best trials as a JSON object.

    With two objectives it has `objectives`, and `pareto`: the front, ordered by the first one. With
    constraints it has `require`, and for each trial `missed`: by how much it violates each, as a
    fraction of the bound.
    """
    goal = record.goal
    keys = ("study", "task", "dataset", "metric", "mode")
    result: dict[str, Any] = {
        **{key: record.manifest[key] for key in keys},
        "trials": counts(record.trials()),
        "best": [_trial_as_json(record, trial) for trial in best],
    }
    if goal.has_two:
        result["objectives"] = [dataclasses.asdict(objective) for objective in goal.objectives]
        result["pareto"] = [_trial_as_json(record, trial) for trial in record.front()]
    if goal.constraints:
        result["require"] = [str(constraint) for constraint in goal.constraints]
    return result


def _trial_as_json(record: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "trial": trial.number,
        "run_id": record.run_folder(trial.number).run_id,
        "value": trial.best_value,
        "epoch": trial.best_epoch,
        "params": record.config(trial),
        "metrics": trial.metrics,
    }
    if record.goal.has_two:
        entry["values"] = record.goal.values(trial)
    if record.goal.constraints:
        entry["missed"] = {k: miss for k, miss in record.goal.misses(trial).items() if miss > 0}
    return entry


def describe(task: Task, record: StudyRecord, ranking: list[TrialRecord], top: int) -> str:
    """Return a table of the best trials or the Pareto front, and the winner's scores by class."""
    manifest = record.manifest
    states = ", ".join(f"{n} {state}" for state, n in counts(record.trials()).items() if n)
    mark = sample_mark(manifest["dataset"])
    lines = [f"study {manifest['study']} ({manifest['task']}): {states}   {mark}".rstrip()]
    if not ranking:
        return "\n".join([*lines, "no trial has a result yet"])
    winner = ranking[0]
    size = record.config(winner).get("image_size")
    at_size = f" at {pixels(size)}" if size else ""
    return "\n".join(
        [
            *lines,
            standings(record, ranking, top),
            f"\ntrial {winner.number}, validation{at_size}, epoch {winner.best_epoch}, MLflow run "
            f"{record.run_folder(winner.number).run_id}:",
            per_class_table(task, winner.metrics),
        ]
    )
