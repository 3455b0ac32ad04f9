"""The results of an earlier study, made known to a new one (`--warm-start-from NAME`).

If both measure the same thing (data set, epochs, shared settings, how metrics are computed), the
new search knows the earlier trials as if they were its own, those that diverged too. Otherwise
values do not compare, and the best configurations of the earlier study are simply the first that
the new one tries after its baseline.
It is kept in the new study's manifest, so the earlier study may go on, or go away.
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

NUM_FIRST = 3  # configurations of a study that does not compare
SAME = ("dataset", "checksum", "epochs")  # beside the settings: what makes values comparable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """The trials and configurations that a search knows before its first trial.

    Attributes:
        trials: Of the earlier study, with the parameters that the new space has.
        first: Configurations to try after the baseline.
    """

    trials: tuple[TrialRecord, ...] = ()
    first: tuple[dict[str, Value], ...] = ()

    @staticmethod
    def of(manifest: dict[str, Any]) -> Earlier:
        """Return what a study's manifest keeps of an earlier one."""
        kept = manifest.get("warm_start") or {"trials": [], "first": []}
        trials = tuple(TrialRecord.of(entry) for entry in kept["trials"])
        return Earlier(trials=trials, first=tuple(kept["first"]))


def warm_start(
    manifest: dict[str, Any], space: SearchSpace, earlier: StudyRecord
) -> dict[str, Any]:
    """Return what the manifest of a new study keeps of an earlier one.

    Args:
        manifest: Of the new study.
        space: Of the new study.
        earlier: The earlier study.

    Raises:
        InputError: The earlier study has another task or objective, or tells nothing.
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
    """Return all settings of a trial, those that its study did not know yet at their defaults."""
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
    """Return of a trial what a search uses, as a JSON object."""
    rows = [
        {name: row[name] for name in ("epoch", *goal.metrics) if name in row}
        for row in trial.history
    ]
    kept = dataclasses.replace(trial, params=params, history=tuple(rows), failures=())
    return kept.describe()
