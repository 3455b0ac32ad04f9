"""Files of a study's folder truncated, altered and deleted, one at a time, and what comes of it.

Either the commands give what they would have given, or they end with a message that names the
file: never a traceback, never another result.

    STUDY_CHAOS=long pytest tests/studies/test_corruption.py -s      # 300 instead of 40
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from begun import begin
from conftest import LONG, Finished
from recorded import MANIFEST, closed

from study import best, tune
from study.cli import run_command
from study.datasets.source import DataSource
from study.errors import InputError
from study.records.study_record import StudyRecord
from study.runner.trial import run_trial
from study.search_space import Parameter, SearchSpace
from study.tasks.fashion import TASK, FashionConfig
from study.training.loop import fit

NUM = 300 if LONG else 40
SMALL = {"width2": 4, "hidden": 16, "batch_size": 64, "epochs": 4, "learning_rate": 0.01}
SPACE = SearchSpace((Parameter(name="width1", kind="int", low=2, high=8),), SMALL, {"width1": 4})


def damage(folder: Path, chance: random.Random) -> tuple[str, Path]:
    """Truncate, alter or delete a file below a folder; return what was done, and the file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    name = chance.choice(sorted({path.name for path in files}))  # else most were figures
    file = chance.choice([path for path in files if path.name == name])
    content = file.read_bytes()
    kind = chance.choice(["truncate", "flip", "delete"])
    if kind == "delete":
        file.unlink()
    elif kind == "truncate":
        file.write_bytes(content[: chance.randrange(len(content) or 1)])
    elif content:
        altered = bytearray(content)
        for _ in range(chance.choice([1, 1, 8])):
            altered[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(altered))
    return kind, file


def outcome(what: str, said: str, file: Path, same: bool, code: int) -> str:
    """Judge what a command made of a damaged file, and said."""
    assert "Traceback" not in said, f"{what}: {said}"
    if code == 0:
        assert same, f"another result after {what}: {said}"
        return "told and made up for" if file.name in said else "made up for"
    assert str(file) in said, f"exit code {code} after {what}, but not its name: {said}"
    return "told"


def report(title: str, outcomes: Counter[tuple[str, str]]) -> None:
    print(f"\n{title}: {outcomes.total()} corruptions")
    for (name, result), number in sorted(outcomes.items()):
        print(f"  {name:<18} {result:<22} {number}")


def test_a_finished_study(
    finished: Finished, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(finished.home, origin, ignore=shutil.ignore_patterns("mlruns", "out"))
    command = [str(word) for word in finished.command]

    def run(main: Any, *words: str) -> tuple[int, str, str]:
        code = run_command(lambda: main(list(words)))
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    monkeypatch.chdir(origin)
    code, exported, err = run(best.main, "--json", "--export", "export")
    assert code == 0, err
    expected = json.loads(exported)
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(NUM // 2):
        home = tmp_path / f"{number}"
        shutil.copytree(origin, home)
        monkeypatch.chdir(home)
        kind, file = damage(home / "studies", random.Random(number))
        what = f"{kind} {file.relative_to(home)}"
        results = []
        words = ["--export", "export"] if number % 2 or "tests" in file.name else []
        for main, flags in ((best.main, ["--json", *words]), (tune.main, command)):
            code, out, err = run(main, *flags)
            same = True
            if main is best.main and code == 0:
                got = json.loads(out)
                same = got["best"] == expected["best"] and got["trials"] == expected["trials"]
                if words:
                    same = same and got["export"]["test"] == expected["export"]["test"]
                if file.name == "mlflow_run.json" and not same:  # it cannot be known
                    for entry, known in zip(got["best"], expected["best"], strict=True):
                        assert entry["run_id"] in (None, known["run_id"])
                    same = [{**e, "run_id": 0} for e in got["best"]] == [
                        {**e, "run_id": 0} for e in expected["best"]
                    ]
            results.append(outcome(what, err, file, same, code))
        worst = max(results, key=["made up for", "told and made up for", "told"].index)
        outcomes[(file.name, worst)] += 1
        shutil.rmtree(home)
    with capsys.disabled():
        report("a finished study", outcomes)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory, sample: DataSource) -> Path:
    """A study of four trials that was cut off: two ended, two with some epochs of four."""
    home = tmp_path_factory.mktemp("halfway")
    record = open_halfway(home / "s")
    for epochs in (4, 4, 3, 2):
        trial = begin(record)
        train(record, trial.number, sample, epochs)
        if epochs == 4:
            record.end(trial.number, "finished")
    closed(record)
    return home


def open_halfway(path: Path) -> StudyRecord:
    manifest = {**MANIFEST, "task": "fashion", "metric": "val/accuracy", "epochs": 4, "seed": 0}
    manifest |= {"settings": SMALL, "space": SPACE.describe()}
    return StudyRecord.create_or_continue(path, manifest, "command")


def train(record: StudyRecord, number: int, sample: DataSource, epochs: int) -> None:
    config = FashionConfig(**record.config(record.trial(number)))
    for result in fit(TASK, config, sample, limit_batches=3):
        record.run_folder(number).record(result, {})
        record.report(number, result.state["history"][-1])
        if result.epoch == epochs:
            return


def go_on(path: Path, sample: DataSource, monkeypatch: Any) -> tuple[StudyRecord, list[str]]:
    """Do what the next command and its workers do with trials that were cut off."""
    record = open_halfway(path)
    notes = list(record.repaired)
    for trial in record.trials():
        if trial.state == "running":
            config = {
                **{"task": "fashion", "dataset": "sample", "folder": str(path / "trials")},
                **{"data_dir": str(sample.data_dir), "cache_dir": str(sample.cache_dir)},
                **{"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0, "facts": {}},
                **{"trial": trial.number, "settings": record.config(trial)},
                "goal": record.goal.describe(),
            }
            for said in run_trial(config):
                notes += [said["note"]] if "note" in said else []
                if "epoch" in said:
                    record.report(trial.number, said["metrics"])
            record.end(trial.number, "finished")
    closed(record)
    return record, notes


def timeless(record: StudyRecord) -> list[Any]:
    return [(t.state, t.params, t.curve, t.best_value) for t in record.trials()]


def test_a_study_that_was_cut_off(
    halfway: Path, tmp_path: Path, sample: DataSource, monkeypatch: Any, capsys: Any
) -> None:
    import study.training.loop

    whole = study.training.loop.fit
    monkeypatch.setattr(
        study.training.loop, "fit", lambda *args, **flags: whole(*args, **flags, limit_batches=3)
    )
    shutil.copytree(halfway, tmp_path / "origin")
    expected, _ = go_on(tmp_path / "origin" / "s", sample, monkeypatch)
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(NUM // 2):
        home = tmp_path / f"{number}"
        shutil.copytree(halfway, home)
        kind, file = damage(home / "s", random.Random(1000 + number))
        what, said, code, same = f"{kind} {file.relative_to(home)}", "", 0, True
        try:
            record, notes = go_on(home / "s", sample, monkeypatch)
            said = " ".join(notes)
            same = timeless(record) == timeless(expected)
        except InputError as error:  # one line and exit code 2
            said, code = str(error), 2
        outcomes[(file.name, outcome(what, said, file, same, code))] += 1
        shutil.rmtree(home)
    with capsys.disabled():
        report("a study that was cut off", outcomes)
