"""What Ray asks and is told: decisions worked out by hand, and after a restart."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from begun import begin
from recorded import SPACE, open_record, reopened, report

from study.record import StudyRecord
from study.scheduler import RecordASHA
from study.search import RecordSearcher
from study.stopping import Stopping


def test_a_trial_that_was_cut_off_goes_on_first_and_keeps_its_epochs(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    asked = [begin(record) for _ in range(3)]
    report(record, 0, 0.1)
    record.end(0, "finished")
    report(record, 1, 0.1, 0.2)
    again = reopened(record)
    stopping = Stopping(None)
    stopping.watch(again.path)
    searcher = RecordSearcher(again, stopping, {"task": "facade"})
    configs = [searcher.suggest(f"ray-{n}") or {} for n in range(3)]
    assert [config["trial"] for config in configs] == [1, 2, 3]
    assert configs[0]["settings"] == {**SPACE.fixed, **asked[1].params, "seed": 4}
    report(again, 1, 0.1, 0.2, 0.3)
    assert again.trial(1).curve == {1: 0.1, 2: 0.2, 3: 0.3}
    stopping.request("enough", 0)
    assert searcher.suggest("ray-4") is None and len(again.trials()) == 4
    stopping.release_signals()


def decide(scheduler: RecordASHA, number: int, epoch: int, value: float) -> str:
    trial: Any = types.SimpleNamespace(config={"trial": number})
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "metrics/val/mean_ap": value})


def asked(path: Path, **changes: Any) -> StudyRecord:
    record = open_record(path, **changes)
    for _ in range(4):
        begin(record)
    return record


def test_asha_by_hand(tmp_path: Path) -> None:
    # Rungs at epochs 1 and 3; at each the best third of those so far goes on.
    scheduler = RecordASHA(asked(tmp_path / "s"), grace_period=1, reduction_factor=3)
    assert decide(scheduler, 0, 1, 0.5) == "CONTINUE"  # the first at a rung
    assert decide(scheduler, 1, 1, 0.4) == "STOP"
    assert decide(scheduler, 2, 1, 0.6) == "CONTINUE"
    assert decide(scheduler, 0, 2, 0.1) == "CONTINUE"  # no rung
    assert decide(scheduler, 2, 3, 0.7) == "CONTINUE"
    assert decide(scheduler, 0, 3, 0.6) == "STOP"
    assert decide(scheduler, 2, 9, 0.1) == "CONTINUE"  # the last epoch ends it anyway
    assert scheduler.stopped == {0, 1}


def test_asha_knows_the_rungs_of_earlier_processes(tmp_path: Path) -> None:
    record = asked(tmp_path / "s")
    for number, value in enumerate((0.5, 0.6)):
        report(record, number, value)
    scheduler = RecordASHA(reopened(record), grace_period=1, reduction_factor=3)
    assert decide(scheduler, 0, 1, 0.0) == "CONTINUE"  # reported again: decided before
    assert decide(scheduler, 1, 2, 0.61) == "CONTINUE"  # its own rung is not counted again
    assert decide(scheduler, 2, 1, 0.4) == "STOP"
    assert decide(scheduler, 3, 1, 0.7) == "CONTINUE"


def test_asha_minimises(tmp_path: Path) -> None:
    scheduler = RecordASHA(asked(tmp_path / "s", mode="min"), 1, 3)
    assert decide(scheduler, 0, 1, 0.5) == "CONTINUE"
    assert decide(scheduler, 1, 1, 0.6) == "STOP"
    assert decide(scheduler, 2, 1, 0.4) == "CONTINUE"


def test_with_two_objectives_the_front_of_a_rung_goes_on(tmp_path: Path) -> None:
    objectives = [["val/mean_ap", "max"], ["num_params", "min"]]
    record = asked(tmp_path / "s", objectives=objectives)
    scheduler = RecordASHA(record, grace_period=1, reduction_factor=3)

    def goes_on(scheduler: RecordASHA, number: int, ap: float, size: float) -> bool:
        trial: Any = types.SimpleNamespace(config={"trial": number})
        result = {"epoch": 1, "metrics/val/mean_ap": ap, "metrics/num_params": size}
        return scheduler.on_trial_result(None, trial, result) == "CONTINUE"

    assert goes_on(scheduler, 0, 0.5, 100)
    assert goes_on(scheduler, 1, 0.1, 10), "poor, but small"
    assert not goes_on(scheduler, 2, 0.3, 200) and scheduler.stopped == {2}
    for number, ap, size in ((0, 0.5, 100), (1, 0.1, 10), (2, 0.3, 200)):
        record.report(number, {"epoch": 1, "val/mean_ap": ap, "num_params": size})
    record.close()
    record = open_record(record.path, objectives=objectives)
    again = RecordASHA(record, grace_period=1, reduction_factor=3)
    assert not goes_on(again, 3, 0.4, 150), "it knows what was there before"
