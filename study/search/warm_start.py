"""Warm start from the results of an earlier study (`--warm-start-from NAME`).

If both studies measure the same thing (data set, epochs, shared settings, how metrics are
computed), the new search treats the earlier trials as its own, including those that diverged.
Otherwise values are not comparable, and the new study merely tries the best configurations of the
earlier one first, after its baseline.
The results are kept in the new study's manifest, so the earlier study may continue or be deleted.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from study.config import Value, config_fields, default_of
from study.errors import InputError
from study.objective import Goal
from study.records.manifest import changed_metrics
from study.records.trial_record import TrialRecord
from study.search_space import SearchSpace
from study.task import load_task

if TYPE_CHECKING:
    from study.records.study_record import StudyRecord

NUM_FIRST = 3  # configurations to try from a study that is not comparable
SAME = ("dataset", "checksum", "epochs")  # must match, with the settings, for comparable values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """The trials and configurations that a search starts from.

    Attributes:
        trials: Trials of the earlier study, with the parameters of the new space.
        first: Configurations to try after the baseline.
    """

    trials: tuple[TrialRecord, ...] = ()
    first: tuple[dict[str, Value], ...] = ()

    @staticmethod
    def of(manifest: dict[str, Any]) -> Earlier:
        """Return the earlier study's results in a manifest."""
        kept = manifest.get("warm_start") or {"trials": [], "first": []}
        trials = tuple(TrialRecord.of(entry) for entry in kept["trials"])
        return Earlier(trials=trials, first=tuple(kept["first"]))


def warm_start(
    manifest: dict[str, Any], space: SearchSpace, earlier: StudyRecord
) -> dict[str, Any]:
    """Return an earlier study's results for the manifest of a new one.

    Args:
        manifest: The new study's manifest.
        space: The new study's search space.
        earlier: The earlier study.

    Raises:
        InputError: The earlier study has another task or objective, or no usable trial.
    """
    name = earlier.manifest["study"]
    for key in ("task", "metric", "mode", "objectives"):
        before, now = (known.get(key, "only one") for known in (earlier.manifest, manifest))
        if before != now:
            raise InputError(
                f"--warm-start-from {name}: its {key} is {before}, not {now}, so its results "
                "do not apply here. Drop the flag."
            )
    goal = Goal.of(manifest)
    inside = {
        trial.number: params
        for trial in earlier.trials()
        if trial.informs and (params := _in_space(earlier, trial, space))
    }
    compares = all(earlier.manifest[key] == manifest[key] for key in SAME)
    compares = compares and not changed_metrics(earlier.manifest, goal.metrics)
    alike = [
        _brief(trial, params, goal)
        for trial, params in ((earlier.trial(number), params) for number, params in inside.items())
        if compares and manifest["settings"].items() <= _config(earlier, trial).items()
    ]
    ranked = [trial.number for trial in earlier.ranking() if trial.number in inside]
    first = [] if alike else [inside[number] for number in ranked[:NUM_FIRST]]
    if not alike and not first:
        raise InputError(
            f"--warm-start-from {name}: none of its ended trials lies in this search space. "
            "Drop the flag, or widen the space."
        )
    return {"from": name, "trials": alike, "first": first}


def _config(record: StudyRecord, trial: TrialRecord) -> dict[str, Value]:
    """Return all settings of a trial, with defaults for those added after its study."""
    fields = config_fields(load_task(record.manifest["task"]).config_class)
    return {name: default_of(field) for name, field in fields.items()} | record.config(trial)


def _in_space(
    record: StudyRecord, trial: TrialRecord, space: SearchSpace
) -> dict[str, Value] | None:
    """Return a trial's params for the parameters of a space; None if it lies outside."""
    config = {**_config(record, trial), **space.fixed}
    params: dict[str, Value] = {}
    for parameter in space.parameters:
        if parameter.active({**space.fixed, **params}):
            value = config.get(parameter.name)
            if value is None or not parameter.contains(value):
                return None
            params[parameter.name] = value
    return params


def _brief(trial: TrialRecord, params: dict[str, Value], goal: Goal) -> dict[str, Any]:
    """Return the parts of a trial that a search uses, as a JSON object."""
    rows = [
        {name: row[name] for name in ("epoch", *goal.metrics) if name in row}
        for row in trial.history
    ]
    kept = dataclasses.replace(trial, params=params, history=tuple(rows), failures=())
    return kept.describe()
