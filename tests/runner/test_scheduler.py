"""What Ray asks: decisions that were kept when its own class still took them, others by hand."""

from __future__ import annotations

import dataclasses
import random
import types
from pathlib import Path
from typing import Any

import pytest
from begun import begin
from recorded import SPACE, open_record, reopened, report

from study.objective import Goal
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.runner.scheduler import RecordASHA, RecordSearcher
from study.runner.stopping import Stopping

NUM_TRIALS = 60
TWO = [["val/mean_ap", "max"], ["num_params", "min"]]
# Mode, epochs, grace period, reduction factor, places that values are rounded to, objectives: the
# epochs that each trial gets, in base 36. Rounded values are often equal to what they must reach.
KEPT: dict[tuple[str, int, int, float, int, int], str] = {
    ("max", 9, 1, 3.0, 1, 1): "199191311339911111191311111199113111191131131113111131131399",
    ("max", 9, 1, 3.0, 1, 2): "139193131191111911111113111191313111191111111191131311311139",
    ("max", 9, 1, 3.0, 2, 1): "319339111119113933919113313313111111319339191919311313113113",
    ("max", 9, 1, 3.0, 2, 2): "119993311911399331313331139911111111111111131933131913111913",
    ("max", 9, 1, 3.0, 9, 1): "191119191111119311111113939391131111111311191111191113311131",
    ("max", 20, 4, 3.0, 1, 1): "4ckkkk4c444c4444c44444c4kk44444c44ck4kc4kc44444cc44cc444ck4c",
    ("max", 20, 4, 3.0, 1, 2): "kkkkk444cc4444k444444444c44444444ck444k44kc4444c444cc4c44444",
    ("max", 20, 4, 3.0, 2, 1): "kc444kck4c44444k44cc444c4k4444cc444c44444c4444kc4ckc4444444k",
    ("max", 20, 4, 3.0, 2, 2): "kckkkc4c444c444cc44k4444c4c4ckckc444ck444kcc44kc44c44kc444c4",
    ("max", 20, 4, 3.0, 9, 1): "4k44c4444k4444k444ck4k44c44444c44444444kk44444k44c4ccc444444",
    ("max", 27, 1, 3, 1, 1): "1111r3113393111993111331111131111131331111113193993111191r1r",
    ("max", 27, 1, 3, 1, 2): "1111r131339111113133131913111131r11313111133113911111111331r",
    ("max", 27, 1, 3, 2, 1): "11911r111r131r9331391111111113131931r1r111111111331911339111",
    ("max", 27, 1, 3, 2, 2): "119r1r1r11r119133331r33r931111113311911339111111113131313131",
    ("max", 27, 1, 3, 9, 1): "39r133113r313111191r393111113113131311191113111139191r111993",
    ("max", 12, 2, 2.0, 1, 1): "c82ccc2828484c22222424c42422222c244428c424822c242228824c2422",
    ("max", 12, 2, 2.0, 1, 2): "c82ccc22844282244c84c4c22822224482cc242828c2282444222282c222",
    ("max", 12, 2, 2.0, 2, 1): "24ccc2282422422242244c2222822c8482c4882c422828224422c28c4242",
    ("max", 12, 2, 2.0, 2, 2): "4ccc84442cc22222222224284cc42222248822428cc222c8244244424222",
    ("max", 12, 2, 2.0, 9, 1): "2cc28222c2442424cc42c2224244422c42428882484288c822cc42424222",
    ("max", 16, 1, 2.5, 1, 1): "g33g711g3711g11111113331g13g13711113g313113131131311113133g3",
    ("max", 16, 1, 2.5, 1, 2): "g33g711g3713g11111113331g13g131131113g317111711311371g711113",
    ("max", 16, 1, 2.5, 2, 1): "1111g113g11131131113g13g3117311111111111311711111g1111311111",
    ("max", 16, 1, 2.5, 2, 2): "1gg1gg111133111131117311113111133g3333313111133113371g711117",
    ("max", 16, 1, 2.5, 9, 1): "11gg171113311333g1111g1113g111g11173711311111111773131371311",
    ("max", 9, 1, 1.5, 1, 1): "411933923364222164912314319211244931833316116112442464341113",
    ("max", 9, 1, 1.5, 1, 2): "929438233234244419318914193128169642341328962112323361113229",
    ("max", 9, 1, 1.5, 2, 1): "249113421439144481262833131141133416816331122261233219111421",
    ("max", 9, 1, 1.5, 2, 2): "899193699126266481112133929429121216311613912113126124411216",
    ("max", 9, 1, 1.5, 9, 1): "129211129249223114128423934914123136411216432223292113291118",
    ("max", 5, 8, 2.0, 1, 1): "555555555555555555555555555555555555555555555555555555555555",
    ("min", 9, 1, 3.0, 1, 1): "133991199111111111113191311933111111111113391111191311191333",
    ("min", 9, 1, 3.0, 2, 1): "199119131131111913311313113991333331111119111911111111131131",
    ("min", 20, 4, 3.0, 1, 1): "kk4444c444444c44k4c4c44c44kc4kkcc444c444c444444k4k4c44k44cc4",
    ("min", 20, 4, 3.0, 2, 1): "k4k4kk44444c4cc44c44444cckk4444c4c444444c4c4c4ckc444k44k4444",
    ("min", 27, 1, 3, 1, 1): "131rr111331333131111r11313111331911111111133111rr11r11131933",
    ("min", 12, 2, 2.0, 1, 1): "822c4c228242c244c244224848884cc2c8c824484228442c4282222c4242",
    ("min", 12, 2, 2.0, 2, 1): "4c22222c44cc4448822288c842844444cc22248c22c2244cc22484244882",
    ("min", 16, 1, 2.5, 1, 1): "3g111111111311g3g1713g13g1111111171111g111g31113711111117117",
    ("min", 9, 1, 1.5, 1, 1): "223931123132321611241339131162236112321881316631122313643143",
}


class Curves:
    """A record whose trials have the values of a random generator, of which some are missing."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest, self.goal = manifest, Goal.of(manifest)
        made = {"metric": manifest["metric"], "mode": manifest["mode"], "params": {}}
        self._trials = [TrialRecord(number=number, **made) for number in range(NUM_TRIALS)]

    def trials(self) -> list[TrialRecord]:
        return self._trials

    def trial(self, number: int) -> TrialRecord:
        return self._trials[number]

    def report(self, number: int, row: dict[str, float]) -> None:
        trial = self._trials[number]
        self._trials[number] = dataclasses.replace(trial, history=(*trial.history, row))


def replay(mode: str, epochs: int, grace: int, factor: float, places: int, objectives: int) -> str:
    """Train some trials at a time until all ended; begin anew from the record now and then."""
    manifest = {"metric": "val/mean_ap", "mode": mode, "epochs": epochs}
    if objectives == 2:
        manifest["objectives"] = TWO
    generator = random.Random(f"{mode} {epochs} {grace} {factor} {places}")
    record: Any = Curves(manifest)
    scheduler = RecordASHA(record, grace, factor)
    waiting, running = list(range(NUM_TRIALS)), []
    while waiting or running:
        while waiting and len(running) < 5:
            running.append(waiting.pop(0))
        number = generator.choice(running)
        epoch = record.trial(number).epochs + 1
        row = {"epoch": epoch, "val/mean_ap": round(generator.random(), places)}
        row["num_params"] = float(generator.randrange(10) * 100)
        if generator.random() < 0.03 and objectives == 1:  # never reported, but Ray passes it by
            row["val/mean_ap"] = float("nan")
        trial: Any = types.SimpleNamespace(config={"trial": number}, trial_id=str(number))
        result = {"epoch": epoch, **{f"metrics/{key}": row[key] for key in record.goal.metrics}}
        stops = scheduler.on_trial_result(None, trial, result) == "STOP"
        assert stops == (number in scheduler.stopped)
        record.report(number, row)
        if stops or epoch == epochs:
            running.remove(number)
        if generator.random() < 0.02:  # the driver was killed
            scheduler = RecordASHA(record, grace, factor)
    return "".join(
        f"{t.epochs:x}" if t.epochs < 16 else chr(87 + t.epochs) for t in record.trials()
    )


@pytest.mark.parametrize("case", KEPT)
def test_decisions_are_those_of_ray(case: tuple[str, int, int, float, int, int]) -> None:
    assert replay(*case) == KEPT[case]


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
