"""What a person finds in MLflow: names, descriptions, columns, few metrics, the report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest
from conftest import Finished
from mlflow.entities import Experiment, Run
from mlflow.tracking import MlflowClient

from study.records.study_record import StudyRecord


@pytest.fixture
def store(finished: Finished) -> MlflowClient:
    return MlflowClient(f"sqlite:///{finished.home / 'mlflow.db'}")


@pytest.fixture
def experiment(store: MlflowClient) -> Experiment:
    return store.get_experiment_by_name("fashion")


@pytest.fixture
def runs(store: MlflowClient, experiment: Experiment) -> Mapping[str, Run]:
    """All runs of the study, by their names."""
    found = store.search_runs([experiment.experiment_id], max_results=100)
    return {run.info.run_name: run for run in found}


def test_names_say_what_a_run_is(runs: Mapping[str, Run]) -> None:
    trials = {"trial 0 (baseline)", *(f"trial {number}" for number in range(1, 8))}
    assert runs.keys() == {f"{name} [sample data]" for name in ("study fashion", *trials)}


def test_the_study_s_description_has_its_table_and_links_that_lead_somewhere(
    finished: Finished, store: MlflowClient, runs: Mapping[str, Run], experiment: Experiment
) -> None:
    parent = runs["study fashion [sample data]"]
    note = parent.data.tags["mlflow.note.content"]
    best = StudyRecord.read(finished.home / "studies" / "fashion").ranking()[0]
    assert note.startswith("**Sample data, drawn by the program")
    (row,) = (line for line in note.splitlines() if f"[trial {best.number}]" in line)
    assert f"| {best.best_value:.4f} |" in row
    assert "| Shirt | " in note and "python -m study.best fashion --export" in note
    ids = re.findall(r"\(#/experiments/(\d+)/runs/(\w+)", note)
    assert len(ids) >= 3
    assert set(ids) <= {(experiment.experiment_id, run.info.run_id) for run in runs.values()}
    assert f"/runs/{parent.info.run_id}/artifacts/report.html" in note
    assert "report.html" in {file.path for file in store.list_artifacts(parent.info.run_id)}


def test_a_trial_s_description_says_how_it_ended(runs: Mapping[str, Run]) -> None:
    first = {"FINISHED": "Trained to the end", "KILLED": "Stopped early", "FAILED": "Failed after"}
    for name, run in runs.items():
        if name.startswith("trial"):
            note = run.data.tags["mlflow.note.content"]
            assert note.startswith(first[run.info.status]) and "learning_rate" in note


def test_columns_exist_and_the_best_is_on_top(
    store: MlflowClient, experiment: Experiment, runs: Mapping[str, Run], finished: Finished
) -> None:
    view = json.loads(experiment.tags["mlflow.sharedViewState.trials"])
    ordered = store.search_runs(
        [experiment.experiment_id],
        view["searchFilter"],
        order_by=[f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"],
    )
    assert len(ordered) == 8
    best = StudyRecord.read(finished.home / "studies" / "fashion").ranking()[0]
    assert ordered[0].data.tags["study.trial"] == str(best.number)
    for column in view["selectedColumns"]:
        kind, name = re.fullmatch(r"(\w+)\.`(.*)`", column).groups()
        assert name in getattr(ordered[0].data, kind), column


def test_few_metrics_and_those_of_the_machine_with_the_study(runs: Mapping[str, Run]) -> None:
    for name, run in runs.items():
        system = [key for key in run.data.metrics if key.startswith("system/")]
        assert bool(system) == name.startswith("study"), name
        assert len(run.data.metrics) <= 30, sorted(run.data.metrics)
    parent = runs["study fashion [sample data]"]
    assert 0 <= parent.data.metrics["system/cpu_utilization_percentage"] <= 100
