"""What a study takes from Optuna's inside is there, and is what it was; an upgrade asks here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from study.records import optuna_storage

ROOT = Path(__file__).parent.parent.parent
RANGE = {"x": FloatDistribution(0.0, 1.0)}


def in_memory(path: Path) -> optuna.storages.BaseStorage:
    return optuna.storages.InMemoryStorage()


def in_a_file(path: Path) -> optuna.storages.BaseStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{path / 'optuna.db'}")


@pytest.mark.parametrize("made", [in_memory, in_a_file])
def test_what_is_written_past_optuna_s_public_names_is_read_by_them(
    tmp_path: Path, made: Any
) -> None:
    study = optuna.create_study(storage=made(tmp_path), direction="maximize")
    study.add_trial(create_trial(value=0.5, params={"x": 0.5}, distributions=RANGE))
    begun = create_trial(state=TrialState.RUNNING, params={"x": 0.1}, distributions=RANGE)
    trial_id = optuna_storage.add_trial(study, begun)
    assert optuna_storage.trial_ids(study)[1] == trial_id
    optuna_storage.write_attributes(study, trial_id, {"best": {"epoch": 1}})
    optuna_storage.write_constraints(study, trial_id, {"finite": 2.0, "val/accuracy": -0.1})
    optuna_storage.write_curve(study, trial_id, {1: 0.25, 2: 0.75})
    optuna_storage.end_trial(study, trial_id, TrialState.COMPLETE, [0.75])
    there = study.trials[1]
    assert (there.state, there.value, there.params) == (TrialState.COMPLETE, 0.75, {"x": 0.1})
    assert there.user_attrs == {"best": {"epoch": 1}}
    assert there.intermediate_values == {1: 0.25, 2: 0.75}
    assert there.constraints == {"finite": 2.0, "val/accuracy": -0.1}
    same = create_trial(
        value=0.75, params={"x": 0.1}, distributions=RANGE, constraints=there.constraints
    )
    assert same.constraints == there.constraints, "as the search has it when it is made anew"


def test_tpe_reads_the_constraints_that_are_written(tmp_path: Path) -> None:
    """One trial is far better than all others, but breaks its constraint: it is no model."""
    drawn = []
    for miss in (5.0, -5.0):
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5), direction="maximize"
        )
        for number in range(20):
            begun = create_trial(
                state=TrialState.RUNNING, params={"x": number / 20}, distributions=RANGE
            )
            trial_id = optuna_storage.add_trial(study, begun)
            broken = miss if number >= 16 else -1.0
            optuna_storage.write_constraints(study, trial_id, {"c": broken})
            optuna_storage.end_trial(study, trial_id, TrialState.COMPLETE, [float(number)])
        drawn.append(study.ask().suggest_float("x", 0.0, 1.0))
    assert drawn[0] < 0.8 < drawn[1]


def test_a_database_that_is_closed_can_be_replaced(tmp_path: Path) -> None:
    storage = in_a_file(tmp_path)
    assert isinstance(storage, optuna.storages.RDBStorage)
    optuna.create_study(storage=storage)
    assert storage.engine.pool.checkedin()  # type: ignore[attr-defined]
    optuna_storage.close(storage)
    assert not storage.engine.pool.checkedin()  # type: ignore[attr-defined]


def test_no_other_module_reaches_into_optuna() -> None:
    """Private names of Optuna's, and methods of its storages, which it keeps for itself."""
    public = {*dir(optuna), *dir(optuna.Study)}
    own = [name for name in dir(optuna.storages.BaseStorage) if name not in public]
    inside = re.compile(rf"\.(_trial_id|_study_id|{'|'.join(own)})\b|optuna[a-z_.]*\._")
    files = {file.name: file.read_text() for file in (ROOT / "study").rglob("*.py")}
    assert inside.search(files.pop("optuna_storage.py"))
    for name, text in files.items():
        if "import optuna" in text or "from optuna" in text:
            found = inside.search(text)
            assert found is None, f"{name}: {found[0] if found else ''}"
