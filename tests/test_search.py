"""Early stopping and the record: decisions worked out by hand, and after a restart."""

from __future__ import annotations

import json
import multiprocessing
import types
from pathlib import Path
from typing import Any

import pytest

from study.errors import InputError
from study.manifest import find_study
from study.record import StudyRecord, counts
from study.search import RecordASHA, RecordSearcher
from study.space import Parameter, SearchSpace

SPACE = SearchSpace(
    (
        Parameter(name="learning_rate", kind="float", low=1e-4, high=1e-1, log=True),
        Parameter(name="width1", kind="int", low=4, high=64, step=4),
        Parameter(name="last_relu", kind="categorical", choices=(True, False)),
        Parameter(name="width5", kind="int", low=4, high=64, when=("last_relu", (False,))),
    ),
    {"image_size": 64},
    {"learning_rate": 1e-3, "width1": 16, "last_relu": True},
)
MANIFEST: dict[str, Any] = {
    **{"study": "s", "task": "facade", "dataset": "sample", "checksum": "c", "seed": 3},
    **{"metric": "val/mean_ap", "mode": "max", "epochs": 9, "settings": {"image_size": 64}},
    "space": SPACE.describe(),
}


def open_record(path: Path, **changes: Any) -> StudyRecord:
    manifest = json.loads(json.dumps({**MANIFEST, **changes}))
    return StudyRecord.create_or_continue(path, manifest, "command")


def rows(*values: float) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "val/mean_ap": value, "epoch_seconds": 2.0}
        for epoch, value in enumerate(values, 1)
    ]


def closed(record: StudyRecord) -> Path:
    assert record.lock is not None
    record.lock.release()
    return record.path


def reopened(record: StudyRecord) -> StudyRecord:
    """The record as another process would find it."""
    return open_record(closed(record))


def test_trial_zero_is_the_baseline_and_others_lie_in_the_space(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    assert record.ask(SPACE) == (0, SPACE.baseline)
    seen = set()
    for number in range(1, 12):
        asked, values = record.ask(SPACE)
        assert asked == number
        seen.add(values["last_relu"])
        assert ("width5" in values) == (values["last_relu"] is False)
        assert values["width1"] % 4 == 0 and 1e-4 <= values["learning_rate"] <= 1e-1
    assert seen == {True, False}


def test_the_record_keeps_what_happened(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    for _ in range(4):
        record.ask(SPACE)
    record.report(0, rows(0.1, 0.5, 0.4))
    record.report(1, rows(0.2))
    record.report(3, rows(0.3))
    record.end(0, "finished")
    record.end(1, "stopped")
    record.end(2, "failed", "the loss is not finite")
    trials = reopened(record).trials()
    assert [t.state for t in trials] == ["finished", "stopped", "failed", "running"]
    assert (trials[0].value, trials[0].epoch, trials[0].seconds) == (0.5, 2, 6.0)
    assert trials[0].curve == {1: 0.1, 2: 0.5, 3: 0.4}
    assert trials[2].reason == "the loss is not finite" and trials[2].value is None
    assert counts(trials) == {"finished": 1, "stopped": 1, "failed": 1, "running": 1}


def test_ranking_respects_the_mode_and_leaves_out_failures(tmp_path: Path) -> None:
    for mode, best in (("max", [2, 0]), ("min", [0, 2])):
        record = open_record(tmp_path / mode, mode=mode)
        for number, value in enumerate((0.3, 0.9, 0.4)):
            record.ask(SPACE)
            record.report(number, rows(value))
            record.end(number, "failed" if number == 1 else "finished")
        assert [trial.number for trial in record.ranking()] == best


def test_a_trial_that_was_cut_off_goes_on_first_and_keeps_its_epochs(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    asked = [record.ask(SPACE) for _ in range(3)]
    record.report(0, rows(0.1))
    record.end(0, "finished")
    record.report(1, rows(0.1, 0.2))
    again = reopened(record)
    searcher = RecordSearcher(again, SPACE, {"task": "facade"})
    configs = [searcher.suggest(f"ray-{n}") for n in range(3)]
    assert [config["trial"] for config in configs] == [1, 2, 3]
    assert configs[0]["settings"] == {**SPACE.fixed, **asked[1][1], "seed": 4}
    again.report(1, rows(0.1, 0.2, 0.3))
    assert again.trial(1).curve == {1: 0.1, 2: 0.2, 3: 0.3}


def test_a_trial_cut_off_while_it_was_asked_keeps_what_it_has(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    record.study.enqueue_trial(SPACE.baseline)  # killed before `ask`
    again = reopened(record)
    searcher = RecordSearcher(again, SPACE, {})
    assert searcher.suggest("a")["settings"] == {**SPACE.fixed, **SPACE.baseline, "seed": 3}
    half = again.study.ask()
    rate = half.suggest_float("learning_rate", 1e-4, 1e-1, log=True)  # killed after the first
    settings = RecordSearcher(reopened(again), SPACE, {})
    settings.suggest("b")  # trial 0
    drawn = settings.suggest("c")["settings"]
    assert drawn["learning_rate"] == rate and {"width1", "last_relu"} <= drawn.keys()


def test_the_best_epoch_survives_a_kill_between_two_writes(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    record.ask(SPACE)
    record.report(0, rows(0.1))
    record._open[0].report(0.5, 2)  # killed after this
    again = reopened(record)
    again.reopen(0, SPACE)
    again.report(0, rows(0.1, 0.5))
    assert (again.trial(0).value, again.trial(0).epoch) == (0.5, 2)


def test_a_continued_search_does_not_repeat_its_first_draws(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    first = [record.ask(SPACE)[1]["learning_rate"] for _ in range(3)]
    second = [reopened(record).ask(SPACE)[1]["learning_rate"]]
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("key", "value"),
    [("task", "fashion"), ("dataset", "real"), ("checksum", "d"), ("epochs", 10), ("seed", 4)],
)
def test_another_study_under_the_same_name_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    closed(open_record(tmp_path / "s"))
    with pytest.raises(InputError, match=f"'s' in .* has another {key}: .*another --name"):
        open_record(tmp_path / "s", **{key: value})


def test_another_space_is_refused_with_what_differs(tmp_path: Path) -> None:
    closed(open_record(tmp_path / "s"))
    other = {**SPACE.describe(), "fixed": {"image_size": 32}}
    with pytest.raises(InputError, match="image_size: 64 there, image_size: 32 asked for"):
        open_record(tmp_path / "s", space=other)


def hold(path: Path, started: Any, done: Any) -> None:
    record = open_record(path)
    started.set()
    done.wait(60)
    del record


def test_a_second_process_is_refused_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "s", started, done))
    holder.start()
    assert started.wait(60)
    with pytest.raises(InputError, match=f"another process.*{holder.pid}"):
        open_record(tmp_path / "s")
    holder.kill()
    holder.join()
    open_record(tmp_path / "s")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"study": "s"}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match=r"study.json is damaged"):
        StudyRecord.read(tmp_path)


def test_find_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no study in"):
        find_study(tmp_path, None)
    open_record(tmp_path / "older")
    open_record(tmp_path / "newer")
    assert find_study(tmp_path, None).name == "newer"
    with pytest.raises(InputError, match="did you mean 'older'?"):
        find_study(tmp_path, "oldr")


def decide(scheduler: RecordASHA, number: int, epoch: int, value: float) -> str:
    trial: Any = types.SimpleNamespace(config={"trial": number})
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "metrics/val/mean_ap": value})


def test_asha_by_hand(tmp_path: Path) -> None:
    # Rungs at epochs 1 and 3; at each the best third of those so far goes on.
    scheduler = RecordASHA(open_record(tmp_path / "s"), grace_period=1, reduction_factor=3)
    assert decide(scheduler, 0, 1, 0.5) == "CONTINUE"  # the first at a rung
    assert decide(scheduler, 1, 1, 0.4) == "STOP"
    assert decide(scheduler, 2, 1, 0.6) == "CONTINUE"
    assert decide(scheduler, 0, 2, 0.1) == "CONTINUE"  # no rung
    assert decide(scheduler, 2, 3, 0.7) == "CONTINUE"
    assert decide(scheduler, 0, 3, 0.6) == "STOP"
    assert decide(scheduler, 2, 9, 0.1) == "CONTINUE"  # the last epoch ends it anyway
    assert scheduler.stopped == {0, 1}


def test_asha_knows_the_rungs_of_earlier_processes(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    for number, value in enumerate((0.5, 0.6)):
        record.ask(SPACE)
        record.report(number, rows(value))
    scheduler = RecordASHA(reopened(record), grace_period=1, reduction_factor=3)
    assert decide(scheduler, 1, 2, 0.61) == "CONTINUE"  # its own rung is not counted again
    assert decide(scheduler, 2, 1, 0.4) == "STOP"
    assert decide(scheduler, 3, 1, 0.7) == "CONTINUE"


def test_asha_minimises(tmp_path: Path) -> None:
    scheduler = RecordASHA(open_record(tmp_path / "s", mode="min"), 1, 3)
    assert decide(scheduler, 0, 1, 0.5) == "CONTINUE"
    assert decide(scheduler, 1, 1, 0.6) == "STOP"
    assert decide(scheduler, 2, 1, 0.4) == "CONTINUE"
