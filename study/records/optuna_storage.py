"""All Optuna internals that a study relies on: trial ids, storages, the key of a constraint.

Optuna's public way to write a trial (`Trial.report`, `Study.tell`) rereads the trial for each
value. The internals used here instead may change; `tests/records/test_optuna_storage.py` shows
what an upgrade breaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

CONSTRAINT = "constraints"  # prefix of the system attributes that `FrozenTrial.constraints` reads


def trial_ids(study: optuna.Study) -> list[int]:
    """Return the ids of a study's trials in its storage, by number."""
    return [trial._trial_id for trial in study.get_trials(deepcopy=False)]


def add_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> int:
    """Add a trial as is and return its id, which `Study.add_trial` does not."""
    return study._storage.create_new_trial(study._study_id, trial)


def write_attributes(study: optuna.Study, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Write user attributes of a running trial."""
    for name, value in attributes.items():
        study._storage.set_trial_user_attr(trial_id, name, value)


def write_constraints(study: optuna.Study, trial_id: int, misses: Mapping[str, float]) -> None:
    """Write constraints of a running trial; satisfied at 0 and below."""
    for name, miss in misses.items():
        study._storage.set_trial_system_attr(trial_id, f"{CONSTRAINT}:{name}", miss)


def write_curve(study: optuna.Study, trial_id: int, curve: Mapping[int, float]) -> None:
    """Write values of a running trial by epoch."""
    for epoch, value in curve.items():
        study._storage.set_trial_intermediate_value(trial_id, epoch, value)


def end_trial(
    study: optuna.Study,
    trial_id: int,
    state: optuna.trial.TrialState,
    values: Sequence[float] | None,
) -> None:
    """End a running trial; nothing can be written to it afterwards."""
    study._storage.set_trial_state_values(trial_id, state, values)


def close(storage: optuna.storages.RDBStorage) -> None:
    """Close all connections to a database file."""
    storage.remove_session()
    storage.engine.dispose()
