"""The options of a start: from flags, in `study.json`, as a command again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from recorded import MANIFEST, four_trials

from study.records.command_text import options_of as options_of_text
from study.records.manifest import read_manifest, write_manifest
from study.records.run_options import ResourceOptions, RunOptions
from study.records.study_record import StudyRecord
from study.reporting import facts
from study.search.stopping_rule import StoppingRule
from study.status import read_status
from study.tune import build_parser, options_of

WORDS = """facade --name a --num-samples 6 --set epochs=3 --require ap/window>=0.5 --require
num_params<=1e5 --time-budget 1.5h --gpus-per-worker 0.5 --system-metrics --seed 4""".split()


def typed(*words: str) -> RunOptions:
    return options_of(build_parser().parse_args(words))


def test_the_defaults_are_those_of_the_flags() -> None:
    assert typed("facade") == RunOptions(task="facade")


def test_options_come_back_from_json_and_from_their_own_command() -> None:
    options = typed(*WORDS)
    assert options.require == ("ap/window>=0.5", "num_params<=1e5") and options.time_budget == 5400
    assert RunOptions.of(json.loads(json.dumps(options.describe()))) == options
    assert options.command().startswith("python -m study.tune facade --num-samples 6 --gpus-per")
    assert options_of_text(options.command()) == options
    endless = typed("facade", "--num-samples", "inf")
    described = json.dumps(endless.describe(), allow_nan=False)
    assert RunOptions.of(json.loads(described)).num_samples == math.inf
    assert endless.command() == "python -m study.tune facade --num-samples inf"


def test_options_of_another_version_have_what_is_known() -> None:
    stored = {**RunOptions(task="facade", seed=3).describe(), "of_a_later_version": 1}
    del stored["max_failures"]
    assert RunOptions.of(stored) == RunOptions(task="facade", seed=3)
    assert ResourceOptions.of({"task": "facade", "wait": 2}) == ResourceOptions(wait=2)


def test_a_password_is_not_kept() -> None:
    uri = "mysql://me:s3 cret/@db/mlflow"
    options = RunOptions(task="facade", tracking_uri=uri)
    assert options.tracking_uri == uri
    assert options.describe()["tracking_uri"] == "mysql://me:***@db/mlflow"
    assert "s3 cret" not in options.command()


@pytest.mark.parametrize("scheduler", ["asha", "none"])
def test_the_rule_of_stopping(scheduler: str) -> None:
    rule = RunOptions(task="facade", scheduler=scheduler).asha(9)
    assert rule == ((2, 3.0) if scheduler == "asha" else None)
    assert RunOptions(task="facade", grace_period=5, reduction_factor=2).asha(9) == (5, 2)


def test_status_and_report_read_no_text_of_a_command(tmp_path: Path) -> None:
    """A flag that is called otherwise some day must not empty them."""
    record = four_trials(tmp_path / "s")
    record.close()
    manifest = read_manifest(record.path)
    manifest["starts"][-1]["command"] = "python -m study.tune facade --trials 6 --grace 2"
    write_manifest(record.path, manifest)
    state = read_status(record.path)
    assert state["num_samples"] == 6 and [rung["epoch"] for rung in state["rungs"]] == [2, 4, 8]
    commands = dict(facts.commands(StudyRecord.read(record.path)))
    assert "--num-samples 12" in commands["twice as many trials"]


@pytest.mark.parametrize(
    ("text", "num_samples"),
    [
        ("python -m study.tune facade --num-samples 6", 6),
        ("python -m study.tune facade --num-s=6 --warm-start-from 'a b'", 6),
        ("python -m study.tune facade", 10),
        ("python -m study.tune facade --num-samples inf --time-budget 2h", math.inf),
    ],
)
def test_a_study_of_before_gets_its_options_from_its_text_on_opening(
    tmp_path: Path, text: str, num_samples: float
) -> None:
    record = StudyRecord.create_or_continue(tmp_path / "s", json.loads(json.dumps(MANIFEST)), text)
    record.close()
    manifest = read_manifest(record.path)
    assert manifest["starts"][-1].pop("options")["task"] == "facade"
    write_manifest(record.path, manifest)  # as the version before left it
    asked = StoppingRule.of_last_start(StudyRecord.read(record.path).manifest)
    assert asked is not None and asked.num_samples == num_samples
    assert asked.asha == (2, 3.0)


@pytest.mark.parametrize(
    "text",
    [
        "python -m study.tune facade --unknown-flag",
        "python -m study.tune facade --num-samples six",
        "python -m study.tune facade --num-samples",
        "python -m study.tune facade --m 3",  # of two flags
        "python -m study.tune a b",
        "python -m study.tune",
        "python -m study.best facade --confirm 3",
        "python -m study.tune 'facade",
        "",
    ],
)
def test_a_text_that_is_not_understood_gives_no_options(text: str) -> None:
    assert options_of_text(text) is None
