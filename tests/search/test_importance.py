"""Importance where one parameter matters by construction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from begun import begin
from recorded import closed, open_record

from study.records.study_record import StudyRecord
from study.search.importance import importance
from study.task import load_task

TASK = load_task("facade")
LATE, EARLY = 3, 2  # epochs of finished and of stopped trials


def made_up(path: Path, num_trials: int, seed: int = 0, diverged: int = 0) -> StudyRecord:
    """A study in which the objective follows the learning rate, and pillar a width.

    The last epoch, which stopped trials do not have, says the opposite.
    """
    record = open_record(path, seed=seed)
    generator = np.random.default_rng(seed)
    for number in range(num_trials):
        values = begin(record).params
        if number < diverged:
            record.end(number, "failed", "the training loss is not finite (nan)", "diverged")
            continue
        row = {f"val/ap/{name}": generator.normal() for name in TASK.classes}
        row["val/ap/pillar"] = values["width1"]
        row["val/mean_ap"] = -abs(np.log10(values["learning_rate"]) + 2.5)
        stopped = number % 3 == 1
        for epoch in range(1, (EARLY if stopped else LATE) + 1):
            turned = {**row, "val/mean_ap": -row["val/mean_ap"] - 9.0 if epoch == LATE else 0.0}
            record.report(number, {"epoch": epoch, **(turned if epoch == LATE else row)})
        record.end(number, "stopped" if stopped else "finished")
    return record


@pytest.mark.parametrize("num_trials", [20, 40])
def test_the_knob_that_matters_is_first(tmp_path: Path, num_trials: int) -> None:
    found = importance(TASK, made_up(tmp_path / "s", num_trials, seed=1))
    assert (found.trials, found.diverged, found.epoch) == (num_trials, 0, EARLY)
    assert set(found.shares) == {"learning_rate", "width1", "last_relu", "width5"}
    for knob, metric in (("learning_rate", "val/mean_ap"), ("width1", "val/ap/pillar")):
        shares = {name: share[metric] for name, share in found.shares.items()}
        assert sum(shares.values()) == pytest.approx(100)
        assert max(shares, key=lambda name: shares[name]) == knob and shares[knob] > 50
        assert (knob, metric) in found.clear
    text = found.describe(TASK)
    assert f"the best {num_trials // 4} of {num_trials} trials" in text and "hint" not in text
    assert text.splitlines()[1].split() == ["parameter", "val/mean_ap", *TASK.classes]
    json.dumps(found.as_json(), allow_nan=False)


def test_losses_that_are_not_finite_count_as_worst_and_few_trials_are_a_hint(
    tmp_path: Path,
) -> None:
    found = importance(TASK, made_up(tmp_path / "s", 12, diverged=4))
    assert (found.trials, found.diverged) == (12, 4)
    assert "hint" in found.describe(TASK) and "4 diverged" in found.describe(TASK)


def test_a_metric_that_never_changes_has_no_importance(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    for number in range(8):
        begin(record)
        record.report(number, {"epoch": 1, "val/mean_ap": 0.5})
        record.end(number, "finished")
    found = importance(TASK, record)
    assert {share["val/mean_ap"] for share in found.shares.values()} == {0.0} and not found.clear
    assert "val/ap/pillar" not in next(iter(found.shares.values())), "not measured"


def test_too_few_trials_are_a_mistake(tmp_path: Path, capsys, monkeypatch) -> None:
    from study.best import main
    from study.cli import run_command

    closed(made_up(tmp_path / "studies" / "s", 4))
    monkeypatch.chdir(tmp_path)
    assert run_command(lambda: main(["s", "--importance"])) == 2
    assert "needs 5 ended trials; study s has 4" in capsys.readouterr().err


def test_the_command_line(tmp_path: Path, capsys, monkeypatch) -> None:
    from study.best import main

    closed(made_up(tmp_path / "studies" / "s", 20))
    monkeypatch.chdir(tmp_path)
    assert main(["s", "--importance"]) == 0
    assert "PED-ANOVA" in capsys.readouterr().out
    assert main(["s", "--importance", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["importance"]
    assert found["trials"] == 20 and found["percent"]["width1"]["val/ap/pillar"] > 50
    assert ["width1", "val/ap/pillar"] in found["above_chance"]
