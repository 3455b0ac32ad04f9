"""Objectives and constraints: names, derived metrics by hand, ranking, and what Optuna is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from begun import begin
from points import brute_force, drawn
from recorded import MANIFEST, SPACE, closed, open_record

from study.errors import InputError
from study.objective import (
    Constraint,
    Goal,
    Objective,
    dominates,
    front,
    read_constraint,
)
from study.records.optuna_trials import frozen
from study.records.study_record import StudyRecord
from study.search.parse_objective import known_metrics, parse_goal
from study.search.warm_start import warm_start
from study.task import build_config, load_task, task_names
from study.training.batches import Batches
from study.training.evaluation import evaluate
from study.training.loop import fit

FACADE, FASHION = load_task("facade"), load_task("fashion")
TWO = parse_goal(FACADE, "mean_ap,num_params", []).describe()
CONSTRAINED = parse_goal(FACADE, None, ["ap/window>=0.8"]).describe()


def put(record: StudyRecord, state: Any, *rows: tuple[float, ...], diverged: bool = False) -> int:
    """Add a trial with rows of (mean_ap, num_params, ap/window)."""
    number = begin(record).number
    for epoch, values in enumerate(rows, 1):
        named = zip(("val/mean_ap", "num_params", "val/ap/window"), values, strict=False)
        record.report(number, {"epoch": epoch, **dict(named)})
    if state != "running":
        reason = "the training loss is not finite (nan)" if diverged else None
        record.end(number, state, reason, "diverged" if diverged else None)
    return number


def numbers(trials: list[Any]) -> list[int]:
    return [trial.number for trial in trials]


@pytest.mark.parametrize("name", task_names())
def test_the_known_metrics_are_those_of_an_evaluation(name: str, sample) -> None:
    task = load_task(name)
    small: dict[str, Any] = {
        "fashion": {"width1": 2, "width2": 2, "hidden": 4},
        "facade": {"image_size": 32, **{f"width{n}": 2 for n in range(1, 6)}},
    }.get(name, {})
    config = build_config(task.config_class, {**small, "epochs": 1, "batch_size": 16})
    result = next(fit(task, config, sample, limit_batches=3))
    measured = {n for n in result.metrics if not n.startswith("train/")}
    assert measured <= set(known_metrics(task))
    val = task.load_splits(sample, config).val
    network = task.build_model(config)
    batches = Batches(val, torch.device("cpu"), task.normalization)
    scores, *_ = evaluate(task, network, batches, val, batch_size=64, precision="auto")
    assert {f"val/{n}" for n in scores} | {"num_params", "images_per_second", "epoch_seconds"} == (
        set(known_metrics(task))
    )
    per_class = [v for n, v in scores.items() if n.startswith(f"{task.class_metric}/")]
    assert scores[f"min_{task.class_metric}"] == min(per_class)
    assert result.metrics["num_params"] == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("task", "flag", "objectives"),
    [
        (FACADE, None, [("val/mean_ap", "max")]),
        (FACADE, "mean_ap", [("val/mean_ap", "max")]),
        (FACADE, "val/ap/pillar", [("val/ap/pillar", "max")]),
        (FACADE, "min_ap", [("val/min_ap", "max")]),
        (FACADE, "worst_class", [("val/min_ap", "max")]),
        (FASHION, "worst_class", [("val/min_accuracy", "max")]),
        (FASHION, "loss", [("val/loss", "min")]),
        (FASHION, "accuracy/Ankle boot", [("val/accuracy/Ankle boot", "max")]),
        (FACADE, "mean_ap, num_params", [("val/mean_ap", "max"), ("num_params", "min")]),
        (
            FASHION,
            "accuracy,images_per_second",
            [("val/accuracy", "max"), ("images_per_second", "max")],
        ),
    ],
)
def test_names(task: Any, flag: str | None, objectives: list[tuple[str, str]]) -> None:
    goal = parse_goal(task, flag, [])
    assert goal == Goal(tuple(Objective(*entry) for entry in objectives))
    assert Goal.of(json.loads(json.dumps(goal.describe()))) == goal


@pytest.mark.parametrize(
    ("objective", "require", "message"),
    [
        ("mean_app", [], "facade has no metric 'mean_app'; did you mean 'mean_ap'?"),
        ("ap/piller", [], "did you mean 'ap/pillar'?"),
        ("mean_ap,", [], "no metric ''"),
        ("num_params,mean_ap", [], "the first metric decides which epoch"),
        ("num_params", [], "the first metric decides which epoch"),
        ("mean_ap,mean_ap", [], "two different ones"),
        ("mean_ap,min_ap,num_params", [], "two different ones"),
        (None, ["ap/windw>=0.8"], "--require: facade has no metric 'ap/windw'"),
        (None, ["ap/window>0.8"], "METRIC>=VALUE"),
        (None, ["ap/window>=high"], "METRIC>=VALUE"),
        (None, ["ap/window>=nan"], "METRIC>=VALUE"),
        (None, [">=0.8"], "METRIC>=VALUE"),
    ],
)
def test_wrong_names(objective: str | None, require: list[str], message: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_goal(FACADE, objective, require)
    assert message in str(raised.value)


def test_constraints_by_hand() -> None:
    constraint, cap = Constraint("val/ap/window", ">=", 0.8), Constraint("num_params", "<=", 1000.0)
    assert (
        constraint.miss(0.6) == pytest.approx(0.25)
        and constraint.miss(0.8) == 0
        and constraint.miss(0.9) < 0
    )
    assert cap.miss(1500.0) == 0.5 and cap.miss(10.0) < 0 < cap.miss(None)
    assert Constraint("val/loss", "<=", 0.0).miss(0.3) == 0.3
    goal = parse_goal(FACADE, None, ["num_params<=1e3", " ap/window >= .8 ", "ap/window>=0.8"])
    assert goal.constraints == (cap, constraint)
    assert Goal.of(json.loads(json.dumps(goal.describe()))) == goal


def test_what_misses_a_constraint_ranks_last_and_the_nearest_is_named(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s", **CONSTRAINED)
    put(record, "finished", (0.9, 1, 0.5))
    put(record, "stopped", (0.8, 1, 0.75))
    put(record, "finished", (0.1, 1, 0.9), (0.7, 1, 0.79))  # at its best epoch it misses
    assert numbers(record.ranking()) == [2, 1, 0]
    told = record.goal.shortfall(record.ranking()) or ""
    assert "trial 2 is closest: val/ap/window is 0.7900, 0.0100 below 0.8" in told
    put(record, "finished", (0.2, 1, 0.8))
    put(record, "finished", (0.3, 1, 0.95))
    assert numbers(record.ranking()) == [4, 3, 2, 1, 0]
    assert record.goal.shortfall(record.ranking()) is None


def test_two_objectives_rank_the_front_first_and_keep_its_weights(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s", **TWO, require=["val/ap/window>=0.5"])
    put(record, "finished", (0.5, 100, 0.9))
    put(record, "finished", (0.8, 300, 0.9))
    put(record, "stopped", (0.6, 200, 0.9))
    put(record, "finished", (0.7, 300, 0.9))  # trial 1 is better and as small
    put(record, "finished", (0.9, 10, 0.1))  # misses the constraint
    put(record, "failed", (0.99, 1, 0.9))
    put(record, "running", (0.4, 50, 0.9))
    assert numbers(record.front()) == [1, 2, 0, 6]
    assert numbers(record.ranking()) == [1, 2, 0, 6, 3, 4]
    for number in range(7):
        (record.run_folder(number).path / "best.pt").write_text("x")
    record.drop_losers(1)
    have = [record.run_folder(number).best_checkpoint.exists() for number in range(7)]
    assert have == [True, True, True, False, False, False, True]


def test_optuna_s_own_tools_see_the_front_and_the_floors(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s", **TWO, require=["val/ap/window>=0.5"])
    put(record, "finished", (0.5, 100, 0.9), (0.4, 100, 0.9))
    put(record, "stopped", (0.3, 200, 0.25))
    put(record, "failed", diverged=True)
    put(record, "running", (0.1, 50, 0.9))
    before = [(t.state, t.cause, t.best, t.curve) for t in record.trials()]
    again = open_record(closed(record), **TWO, require=["val/ap/window>=0.5"])
    assert not again.repaired
    put(again, "finished", (0.2, 10, 0.6))
    closed(again)
    file = tmp_path / "s" / "optuna.db"
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{file}")
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "RUNNING", "COMPLETE"]
    assert study.trials[1].values == [0.3, 200] and study.trials[1].user_attrs["ending"]
    assert study.trials[1].constraints == {"val/ap/window>=0.5": 0.5}
    assert [trial.number for trial in study.best_trials] == [0, 4]
    for number in range(4):  # what Optuna knows mends the record
        (tmp_path / "s" / "trials" / f"{number:04d}" / "trial.json").write_text("{")
    recalled = StudyRecord.read(tmp_path / "s").trials()[:4]
    assert [(t.state, t.cause, t.best, t.curve) for t in recalled] == before
    closed(open_record(tmp_path / "s", **TWO, require=["val/ap/window>=0.5"]))
    assert not StudyRecord.read(tmp_path / "s").repaired


@pytest.mark.parametrize("goal", [MANIFEST, CONSTRAINED, TWO])
def test_the_search_goes_on_where_it_was_and_knows_what_diverged(
    tmp_path: Path, goal: dict[str, Any]
) -> None:
    goal = {key: value for key, value in goal.items() if key in (*TWO, *CONSTRAINED)}
    drawn = []
    for restarts in (False, True):
        record = open_record(tmp_path / f"{restarts}", **goal)
        for number in range(30):
            values = begin(record).params
            rate, width = float(values["learning_rate"]), float(values["width1"])
            if rate > 5e-3:
                record.end(number, "failed", "the training loss is not finite (nan)", "diverged")
            else:
                row = {"val/mean_ap": rate, "num_params": width, "val/ap/window": width / 64}
                record.report(number, {"epoch": 1, **row})
                record.end(number, "stopped" if number % 4 == 1 else "finished")
            if restarts and number % 7 == 3:
                record = open_record(closed(record), **goal)
        drawn.append([trial.params for trial in record.trials()])
    assert drawn[0] == drawn[1]
    lost = next(trial for trial in record.trials() if trial.diverged)
    shown, told = (frozen(lost, SPACE, record.goal, searching=s) for s in (False, True))
    assert (shown.state.name, told.state.name) == ("FAIL", "PRUNED")
    assert not shown.constraints and told.constraints["finite"] > 1e5
    for other in record.trials():  # and ranks last, for TPE
        constraints = frozen(other, SPACE, record.goal, searching=True).constraints
        assert other.diverged or sum(constraints.values()) < 10


def test_the_objective_is_part_of_a_study_s_identity(tmp_path: Path) -> None:
    closed(open_record(tmp_path / "s", **TWO))
    closed(open_record(tmp_path / "s", **TWO))
    for other in ({}, CONSTRAINED, {**TWO, "require": ["val/ap/window>=0.8"]}):
        with pytest.raises(InputError, match="'s' in .* was created with (objectives|require)="):
            open_record(tmp_path / "s", **other)
    closed(open_record(tmp_path / "t"))
    with pytest.raises(InputError, match="was created with metric="):
        open_record(tmp_path / "t", metric="val/min_ap")
    with pytest.raises(InputError, match="its objectives is"):
        put(record := open_record(tmp_path / "u", **TWO), "finished", (0.5, 9, 0.5))
        warm_start(MANIFEST, record.space, record)


def test_an_earlier_study_with_two_objectives_tells_both(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s", **TWO)
    put(record, "finished", (0.5, 9, 0.5))
    put(record, "stopped", (0.4, 9, 0.5))
    told = warm_start({**MANIFEST, **TWO}, record.space, record)
    row = {"epoch": 1, "val/mean_ap": 0.5, "num_params": 9}
    assert told["trials"][0]["history"] == (row,)
    warm = open_record(tmp_path / "warm", **TWO, warm_start=told)
    assert [begin(warm).number for _ in range(12)] == list(range(12))


@pytest.mark.parametrize("bound", [0.8, 1048576.0, 1000001.0, 1e-9, -0.1, 1e20])
def test_a_constraint_is_read_as_it_was_written(bound: float) -> None:
    constraint = Constraint("num_params", "<=", bound)
    assert read_constraint(str(constraint)) == constraint


@pytest.mark.parametrize("seed", range(40))
def test_fronts_are_those_of_brute_force(seed: int) -> None:
    points = drawn(seed, seed)
    assert front(points) == brute_force(points)
    assert front([point[:1] for point in points]) == brute_force([p[:1] for p in points])


def test_dominance_by_hand() -> None:
    assert dominates((1, 2), (1, 1)) and dominates((2, 2), (1, 1))
    assert not dominates((1, 1), (1, 1)) and not dominates((2, 0), (1, 1))
