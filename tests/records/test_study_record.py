"""The record of a study: what it keeps, what it refuses, what it mends, what it draws."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from begun import begin
from conftest import ROOT
from recorded import MANIFEST, SPACE, closed, open_record, reopened, report

from study.errors import InputError
from study.objective import Goal
from study.records import optuna_mirror
from study.records.manifest import find_study
from study.records.study_record import StudyRecord
from study.records.trial_record import Ending, counts
from study.search.sampler import NUM_RANDOM, draw, tpe
from study.search.warm_start import Earlier, warm_start
from study.search_space import Parameter, SearchSpace
from study.storage.files import read_document

LOST = "the training loss is not finite"
ENDINGS: tuple[Ending, ...] = ("finished", "stopped", "failed")


def test_trial_zero_is_the_baseline_and_others_lie_in_the_space(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    assert begin(record).params == SPACE.baseline
    seen = set()
    for number in range(1, 12):
        trial = begin(record)
        values = trial.params
        assert trial.number == number
        seen.add(values["last_relu"])
        assert ("width5" in values) == (values["last_relu"] is False)
        assert values["width1"] % 4 == 0 and 1e-4 <= values["learning_rate"] <= 1e-1
    assert seen == {True, False}


def test_the_record_keeps_what_happened(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    for _ in range(4):
        begin(record)
    report(record, 0, 0.1, 0.5, 0.4)
    report(record, 1, 0.2)
    report(record, 3, 0.3)
    record.retry(0, "its process died", 2)
    record.end(0, "finished")
    record.end(1, "stopped")
    record.end(2, "failed", "the loss is not finite", "diverged")
    trials = reopened(record).trials()
    assert [t.state for t in trials] == ["finished", "stopped", "failed", "running"]
    assert (trials[0].best_value, trials[0].best_epoch, trials[0].seconds) == (0.5, 2, 6.0)
    assert trials[0].curve == {1: 0.1, 2: 0.5, 3: 0.4}
    assert (trials[0].micro_batches, trials[0].failures[0]["reason"]) == (2, "its process died")
    assert trials[2].reason == "the loss is not finite" and trials[2].best_value is None
    assert [trial.cause for trial in trials] == [None, None, "diverged", None]
    assert counts(trials) == {"finished": 1, "stopped": 1, "failed": 1, "running": 1}


def test_ranking_respects_the_mode_and_leaves_out_failures(tmp_path: Path) -> None:
    for mode, best in (("max", [2, 0]), ("min", [0, 2])):
        record = open_record(tmp_path / mode, mode=mode)
        for number, value in enumerate((0.3, 0.9, 0.4)):
            begin(record)
            report(record, number, value)
            record.end(number, "failed" if number == 1 else "finished")
        assert [trial.number for trial in record.ranking()] == best


def test_an_epoch_that_is_reported_again_changes_nothing(tmp_path: Path) -> None:
    record = open_record(tmp_path / "s")
    begin(record)
    report(record, 0, 0.1, 0.2)
    report(record, 0, 0.9, 0.9, 0.3)
    assert record.trial(0).curve == {1: 0.1, 2: 0.2, 3: 0.3}


def test_configurations_do_not_depend_on_restarts(tmp_path: Path) -> None:
    drawn = []
    for restarts in (False, True):
        record = open_record(tmp_path / f"{restarts}")
        for number in range(14):  # more than the ten that TPE draws at random
            values = begin(record).params
            report(record, number, values["learning_rate"])
            if restarts and number % 3 == 0:
                record = reopened(record)
            record.end(number, "stopped" if number % 4 == 1 else "finished")
            if restarts and number % 2:
                record = reopened(record)
        drawn.append([trial.params for trial in record.trials()])
    assert drawn[0] == drawn[1]
    assert len({str(values) for values in drawn[0]}) == 14


def test_what_is_drawn_is_what_a_study_made_anew_would_draw(tmp_path: Path) -> None:
    """Trials end out of order, in all ways, some only reported; others are told in between."""
    told = warm_start(MANIFEST, SPACE, some_trials(tmp_path / "s"))
    for name, changes in (
        ("cold", {}),
        ("warm", {"warm_start": told, "mode": "max"}),
        ("random", {"sampler": "random"}),
    ):
        record = open_record(tmp_path / name, **changes)
        earlier = Earlier.of(record.manifest)
        for number in range(40):
            expected = draw(
                SPACE,
                [*earlier.trials, *record.trials()],
                number=number,
                seed=3,
                sampler=changes.get("sampler", "tpe"),
                goal=Goal.of(MANIFEST),
                first=[SPACE.baseline, *earlier.first],
            )
            assert begin(record).params == expected
            for ending in (number - 2, number):  # every third trial ends two trials later
                if ending >= 0 and (ending % 3 == 0) == (ending < number):
                    rate = float(record.trial(ending).params["learning_rate"])
                    report(record, ending, rate, rate / 2)
                    record.end(ending, ENDINGS[ending % 5 % 3])
        assert {trial.state for trial in record.trials()} == {*ENDINGS, "running"}


def test_random_search_learns_nothing(tmp_path: Path) -> None:
    drawn: dict[str, list[list[object]]] = {}
    for sampler in ("tpe", "random"):
        for rising in (1, -1):  # what is best differs
            record = open_record(tmp_path / f"{sampler}{rising}", sampler=sampler)
            for number in range(20):
                rate = float(begin(record).params["learning_rate"])
                report(record, number, rising * rate)
                record.end(number, "finished")
            rows = [list(trial.params.items()) for trial in record.trials()]
            drawn.setdefault(sampler, []).append(list(rows))
            assert record.trial(0).params == SPACE.baseline
    assert drawn["random"][0] == drawn["random"][1]
    assert drawn["tpe"][0] != drawn["tpe"][1]


def test_weights_of_losers_go_and_those_of_the_best_and_of_running_trials_stay(
    tmp_path: Path,
) -> None:
    record = open_record(tmp_path / "s")
    for number, value in enumerate((0.3, 0.9, 0.4, 0.95, 0.1)):
        begin(record)
        for name in ("best.pt", "last.pt", "metrics.json"):
            (record.run_folder(number).path / name).write_text("x")
        report(record, number, value)
        if number < 3:
            record.end(number, "finished")
            record.drop_losers(2)
    record.end(3, "failed", "why")
    record.drop_losers(2)
    have = [record.run_folder(number).best_checkpoint.exists() for number in range(5)]
    assert have == [False, True, True, False, True]
    assert (record.run_folder(0).path / "metrics.json").exists()


def test_optuna_s_own_tools_read_the_study(tmp_path: Path) -> None:
    closed(record := some_trials(tmp_path / "s"))
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 's' / 'optuna.db'}")
    for there, trial in zip(study.trials, record.trials(), strict=True):
        assert there.params == trial.params and there.intermediate_values == trial.curve
    assert [there.state.name for there in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert study.best_value == 0.5


def some_trials(path: Path) -> StudyRecord:
    record = open_record(path)
    for _ in range(4):
        begin(record)
    report(record, 0, 0.1, 0.5, 0.4)
    report(record, 1, 0.2)
    report(record, 3, 0.3, 0.2)
    record.end(0, "finished")
    record.end(1, "stopped")
    record.end(2, "failed", "the loss is not finite", "diverged")
    return record


def curves(record: StudyRecord) -> list[object]:
    return [(t.state, t.params, t.curve, t.best, t.reason) for t in record.trials()]


@pytest.mark.parametrize("damage", ["delete", "flip", "empty", "other"])
def test_a_trial_s_damaged_file_comes_back_from_optuna_db(tmp_path: Path, damage: str) -> None:
    record = some_trials(tmp_path / "s")
    expected = curves(record)
    closed(record)
    for number in range(4):
        file = tmp_path / "s" / "trials" / f"{number:04d}" / "trial.json"
        text = file.read_text()
        if damage == "delete":
            file.unlink()
        else:
            file.write_text({"flip": text.replace("0.", "0.9", 1), "empty": ""}.get(damage, "[]"))
        read = StudyRecord.read(tmp_path / "s")  # deleting the last trial's file is found below
        if not (damage == "delete" and number == 3):
            assert curves(read) == expected and str(file) in read.repaired[0]
        again = open_record(tmp_path / "s")
        assert curves(again) == expected and str(file) in " ".join(again.repaired)
        closed(again)
        closed(again := open_record(tmp_path / "s"))
        assert not again.repaired


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM trials WHERE number = 1",
        "UPDATE trial_intermediate_values SET intermediate_value = 0.9",
        "UPDATE trial_params SET param_value = param_value * 1.1 WHERE param_name = 'width1'",
        "UPDATE trial_values SET value = 0.7",
        "UPDATE trials SET state = 'COMPLETE'",
        "UPDATE study_directions SET direction = 'MINIMIZE'",
        "DROP TABLE trials",
        None,
    ],
)
def test_a_damaged_optuna_db_is_made_anew(tmp_path: Path, damage: str | None) -> None:
    expected = curves(record := some_trials(tmp_path / "s"))
    closed(record)
    file = tmp_path / "s" / "optuna.db"
    if damage is None:
        file.write_bytes(file.read_bytes()[:5000])
    else:
        with sqlite3.connect(file) as connection:
            connection.execute(damage)
    record = open_record(tmp_path / "s")
    assert curves(record) == expected and str(file) in record.repaired[0]
    assert list((tmp_path / "s").glob("optuna.db.damaged-*"))
    begin(record)
    closed(record)
    assert not open_record(tmp_path / "s").repaired
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{file}")
    assert len(study.trials) == 5 and study.best_value == 0.5


def test_a_full_disk_is_told_by_its_code_not_by_its_words(tmp_path: Path) -> None:
    file = tmp_path / "full, locked, readonly" / "a.db"
    file.parent.mkdir()
    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (x)"))
        connection.execute(sqlalchemy.text("PRAGMA max_page_count = 2"))
        with pytest.raises(sqlalchemy.exc.OperationalError) as full:
            connection.execute(sqlalchemy.text("INSERT INTO t VALUES (zeroblob(100000))"))
        with pytest.raises(sqlalchemy.exc.OperationalError) as wrong:
            connection.execute(sqlalchemy.text("SELECT * FROM readonly_full"))
    engine.dispose()
    assert optuna_mirror._is_disk(full.value) and not optuna_mirror._is_disk(wrong.value)
    assert not optuna_mirror._is_disk(ValueError("disk I/O error, full"))


def test_optuna_db_may_lag_behind_after_a_kill(tmp_path: Path) -> None:
    record = some_trials(tmp_path / "s")
    closed(record)
    file = tmp_path / "s" / "optuna.db"
    before = file.read_bytes()
    record._put(record.trial(3).with_row({"epoch": 3, "val/mean_ap": 0.6}))
    record.end(3, "finished")
    begin(record)
    file.write_bytes(before)
    again = open_record(tmp_path / "s")
    assert not again.repaired and len(again.trials()) == 5
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{file}")
    assert study.best_value == 0.6 and len(study.trials) == 5


def test_a_damaged_manifest_comes_back_from_optuna_db(tmp_path: Path) -> None:
    closed(some_trials(tmp_path / "s"))
    for damage in (lambda f: f.unlink(), lambda f: f.write_text(f.read_text()[:-9])):
        damage(tmp_path / "s" / "study.json")
        assert len(StudyRecord.read(tmp_path / "s").trials()) == 4
        with pytest.raises(
            InputError, match="was created with seed=3; this command asks for seed=9"
        ):
            open_record(tmp_path / "s", seed=9)
        closed(open_record(tmp_path / "s"))
        assert read_document(tmp_path / "s" / "study.json")["seed"] == 3


def test_what_nothing_can_make_up_for_is_named(tmp_path: Path) -> None:
    closed(some_trials(tmp_path / "s"))
    (tmp_path / "s" / "optuna.db").unlink()
    file = tmp_path / "s" / "trials" / "0001" / "trial.json"
    file.write_text("{}")
    for opened in (StudyRecord.read, open_record):
        with pytest.raises(InputError, match=f"{file} is corrupted"):
            opened(tmp_path / "s")


def test_a_trial_killed_while_it_began_leaves_no_hole(tmp_path: Path) -> None:
    closed(some_trials(tmp_path / "s"))
    (tmp_path / "s" / "trials" / "0004").mkdir()
    (tmp_path / "s" / "trials" / "0004" / ".trial.json.draft").write_text("{")
    record = open_record(tmp_path / "s")
    assert len(record.trials()) == 4 and begin(record).number == 4


def test_an_earlier_study_that_compares_counts_as_if_it_were_the_own(tmp_path: Path) -> None:
    earlier = some_trials(tmp_path / "s")
    told = warm_start(MANIFEST, SPACE, earlier)
    assert told["from"] == "s" and not told["first"]
    assert [entry["number"] for entry in told["trials"]] == [0, 1, 2]  # ended; 2 diverged
    cold, warm = (
        open_record(tmp_path / name, **extra)
        for name, extra in (("cold", {}), ("warm", {"warm_start": told}))
    )
    assert begin(cold).params == begin(warm).params == SPACE.baseline
    for _ in range(30):  # enough for TPE in both
        for record in (cold, warm):
            number = begin(record).number
            report(record, number, 0.2)
            record.end(number, "finished")
    assert len(warm.trials()) == 31, "the earlier trials are not its own"
    assert [t.params for t in cold.trials()] != [t.params for t in warm.trials()]


def test_an_earlier_study_tells_all_that_its_own_search_knows(tmp_path: Path) -> None:
    """Most diverged, one failed for another reason, one runs: the new search draws as the old."""
    record = open_record(tmp_path / "s")
    for number in range(15):
        begin(record)
        if number < 12:
            record.end(number, "failed", f"{LOST} (nan).", "diverged")
        elif number < 14:
            report(record, number, 0.1 * number, 0.2)
            record.end(number, "stopped" if number % 2 else "finished")
        else:
            record.end(number, "failed", "its process died", "died")
    begin(record)  # runs
    told = json.loads(json.dumps(warm_start(MANIFEST, SPACE, record)))
    assert [entry["number"] for entry in told["trials"]] == list(range(14))
    known = Earlier.of({"warm_start": told}).trials
    own = [trial for trial in record.trials() if trial.informs]
    assert [trial.diverged for trial in known] == [trial.diverged for trial in own]
    goal = Goal.of(MANIFEST)
    drawn = [
        draw(SPACE, some, number=20, seed=3, sampler="tpe", goal=goal, first=[])
        for some in (known, own, [trial for trial in own if not trial.diverged])
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_lost_trials_inform_a_search_or_are_no_reason_to_begin_with_them(
    tmp_path: Path,
) -> None:
    record = open_record(tmp_path / "s")
    record.end(begin(record).number, "failed", f"{LOST} (nan).", "diverged")
    assert len(warm_start(MANIFEST, SPACE, record)["trials"]) == 1
    with pytest.raises(InputError, match="none of its ended trials"):
        warm_start({**MANIFEST, "epochs": 30}, SPACE, record)


def test_settings_that_an_earlier_study_did_not_know_had_their_defaults(tmp_path: Path) -> None:
    earlier = some_trials(tmp_path / "s")
    for optimizer, compares in (("adam", True), ("sgd", False)):
        settings = {**MANIFEST["settings"], "optimizer": optimizer}
        told = warm_start({**MANIFEST, "settings": settings}, SPACE, earlier)
        assert bool(told["trials"]) is compares and bool(told["first"]) is not compares
    optimizer = Parameter(name="optimizer", kind="categorical", choices=("sgd", "adam"))
    wider = SearchSpace((*SPACE.parameters, optimizer), SPACE.fixed, SPACE.baseline)
    told = warm_start(MANIFEST, wider, earlier)
    assert {entry["values"]["optimizer"] for entry in told["trials"]} == {"adam"}
    closed(earlier)
    again = open_record(tmp_path / "s", settings={**MANIFEST["settings"], "optimizer": "adam"})
    assert "optimizer" not in again.config(again.trial(0)), "it goes on as it was"


def test_of_an_earlier_study_that_does_not_compare_the_best_are_tried_first(
    tmp_path: Path,
) -> None:
    earlier = some_trials(tmp_path / "s")
    told = warm_start({**MANIFEST, "epochs": 30}, SPACE, earlier)
    assert not told["trials"] and len(told["first"]) == 2, "what diverged is not tried again"
    record = open_record(tmp_path / "new", epochs=30, warm_start=told)
    asked = [begin(record).params for _ in range(4)]
    assert asked[0] == SPACE.baseline
    assert asked[1:3] == [earlier.trial(0).params, earlier.trial(1).params]
    closed(record)
    again = open_record(tmp_path / "new", epochs=30, warm_start={"from": "s"})
    assert begin(again).number == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "fashion"}, "its task is facade, not fashion"),
        ({"metric": "val/accuracy"}, "its metric is val/mean_ap, not val/accuracy"),
    ],
)
def test_an_earlier_study_of_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        warm_start({**MANIFEST, **changes}, SPACE, some_trials(tmp_path / "s"))


def test_an_earlier_study_outside_of_the_space_is_refused(tmp_path: Path) -> None:
    space = SearchSpace((Parameter(name="width1", kind="int", low=100, high=200),), {}, {})
    with pytest.raises(InputError, match="none of its ended trials lies in this search space"):
        warm_start(MANIFEST, space, some_trials(tmp_path / "s"))


def test_a_study_does_not_become_another_by_a_warm_start(tmp_path: Path) -> None:
    closed(some_trials(tmp_path / "s"))
    with pytest.raises(InputError, match="was not created with --warm-start-from x"):
        open_record(tmp_path / "s", warm_start={"from": "x"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "fashion"),
        ("dataset", "real"),
        ("checksum", "d"),
        ("epochs", 10),
        ("seed", 4),
        ("sampler", "random"),
    ],
)
def test_another_study_under_the_same_name_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    closed(open_record(tmp_path / "s"))
    with pytest.raises(InputError, match=f"'s' in .* was created with {key}=.*another --name"):
        open_record(tmp_path / "s", **{key: value})


def test_another_space_is_refused_with_what_differs(tmp_path: Path) -> None:
    closed(open_record(tmp_path / "s"))
    other = {**SPACE.describe(), "fixed": {"image_size": 32}}
    with pytest.raises(InputError, match="space=image_size: 64; .* space=image_size: 32"):
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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"study": "s"}', "[" * 99999])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match=r"study.json is corrupted"):
        StudyRecord.read(tmp_path)


def test_find_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no study in"):
        find_study(tmp_path, None)
    open_record(tmp_path / "older")
    open_record(tmp_path / "newer")
    assert find_study(tmp_path, None).name == "newer"
    with pytest.raises(InputError, match="did you mean 'older'?"):
        find_study(tmp_path, "oldr")


def test_tpe_has_one_set_of_arguments_whatever_optuna_s_defaults_are() -> None:
    """And benchmarks, which chose them, have the same: nothing else makes a sampler."""
    for objectives in (1, 2):
        sampler = tpe(3, objectives=objectives)
        assert sampler._multivariate is (objectives == 1) and sampler._constant_liar
        assert sampler._n_startup_trials == NUM_RANDOM == 10
    files = [*(ROOT / "study").rglob("*.py"), *(ROOT / "tests" / "benchmarks").glob("*.py")]
    made = [file.name for file in files if "TPESampler(" in file.read_text()]
    assert made == ["sampler.py"]
