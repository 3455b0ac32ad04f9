"""What a study is, over versions of the program: metrics that were once computed otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from begun import begin
from recorded import MANIFEST, SPACE, closed, open_record

from study.errors import InputError
from study.objective import Goal
from study.records.manifest import METRICS_VERSION, changed_metrics, read_manifest, write_manifest
from study.runner.plan import StudyPlan, make_plan
from study.search.warm_start import warm_start
from study.tune import build_parser, options_of

LOSS = {"metric": "val/loss", "mode": "min"}
NOW = {"metrics_version": METRICS_VERSION}


def begun(path: Path, *values: float, **changes: Any) -> Path:
    """Leave a study with a trial for each value; without `metrics_version`, one of version 1."""
    record = open_record(path, **changes)
    for number, value in enumerate(values):
        begin(record)
        record.report(number, {"epoch": 1, "val/mean_ap": value, "val/loss": value})
        record.end(number, "finished")
    return closed(record)


def planned(home: Path, name: str, num_samples: int, *more: str) -> StudyPlan:
    words = ["facade", "--dataset", "sample", "--name", name, "--num-samples", str(num_samples)]
    args = build_parser().parse_args([*words, "--studies-dir", str(home), *more])
    return make_plan(options_of(args))


@pytest.mark.parametrize(
    ("goal", "names"),
    [
        (LOSS, ["val/loss"]),
        ({"require": ["val/loss<=0.5"]}, ["val/loss"]),
        ({"objectives": [["val/mean_ap", "max"], ["val/loss", "min"]]}, ["val/loss"]),
        ({}, []),
    ],
)
def test_a_metric_that_was_once_another_is_known_by_the_manifest(
    goal: dict[str, Any], names: list[str]
) -> None:
    manifest = {**MANIFEST, **goal}
    assert changed_metrics(manifest, Goal.of(manifest).metrics) == names
    assert not changed_metrics({**manifest, **NOW}, Goal.of(manifest).metrics)


def test_an_old_study_after_its_loss_gets_no_new_trials(tmp_path: Path) -> None:
    begun(tmp_path / "old", 0.5, 0.4, **LOSS)
    begun(tmp_path / "new", 0.5, 0.4, **LOSS, **NOW)
    begun(tmp_path / "score", 0.5, 0.4)
    planned(tmp_path, "old", 2, "--objective", "loss").refuse_changed_metrics()  # it is complete
    with pytest.raises(
        InputError, match="study old was started when val/loss was each trial's own"
    ):
        planned(tmp_path, "old", 3, "--objective", "loss").refuse_changed_metrics()
    manifest = read_manifest(tmp_path / "old")
    write_manifest(tmp_path / "old", {**manifest, "confirms": {"study": "s"}})
    with pytest.raises(InputError, match="Move .*/old away and run the command again"):
        planned(tmp_path, "old", 3, "--objective", "loss").refuse_changed_metrics()
    planned(tmp_path, "new", 3, "--objective", "loss").refuse_changed_metrics()
    planned(tmp_path, "score", 3).refuse_changed_metrics()
    planned(tmp_path, "none", 3, "--objective", "loss").refuse_changed_metrics()


def test_a_new_study_says_how_its_metrics_are_computed(tmp_path: Path) -> None:
    assert planned(tmp_path, "s", 1).manifest()["metrics_version"] == METRICS_VERSION
    again = open_record(begun(tmp_path / "old", 0.5), **NOW)  # a newer program goes on with it
    assert changed_metrics(read_manifest(closed(again)), ["val/loss"]) == ["val/loss"]


def test_losses_of_an_old_study_are_no_values_of_a_new_one(tmp_path: Path) -> None:
    record = open_record(begun(tmp_path / "old", 0.5, 0.4, **LOSS), **LOSS)
    told = warm_start({**MANIFEST, **LOSS, **NOW}, SPACE, record)
    assert not told["trials"] and told["first"][0] == record.trial(1).params
    score = open_record(begun(tmp_path / "score", 0.5, 0.4))
    assert len(warm_start({**MANIFEST, **NOW}, SPACE, score)["trials"]) == 2


def test_best_says_that_losses_of_an_old_study_do_not_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from study import best

    told = "val/loss is each trial's own training loss"
    for name, changes in (("old", LOSS), ("new", {**LOSS, **NOW}), ("score", {})):
        begun(tmp_path / name, 0.5, 0.4, **changes)
        assert best.main([name, "--studies-dir", str(tmp_path)]) == 0
        assert (told in capsys.readouterr().err) is (name == "old")
    best.main(["score", "--studies-dir", str(tmp_path), "--require", "loss<=0.45"])
    assert told in capsys.readouterr().err
