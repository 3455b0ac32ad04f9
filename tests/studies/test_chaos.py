"""Studies whose driver is killed at random moments, and what they have lost: nothing.

STUDY_CHAOS=long pytest tests/studies/test_chaos.py -s      # ten kills instead of three
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from conftest import LONG, long_only, run_module, started
from mlflow.tracking import MlflowClient

from study.records import checkpoint
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord

NUM_TRIALS = 8
SPACE = """\
search:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
  width1: {type: int, low: 2, high: 16, log: true}
"""
COMMAND = (
    "tune",
    "fashion",
    "--dataset",
    "sample",
    "--num-samples",
    NUM_TRIALS,
    "--epochs",
    6,
    "--search-space",
    "space.yaml",
    "--cpus-per-worker",
    1,
    "--set",
    "batch_size=8",
    "--set",
    "hidden=16",
    "--seed",
    5,
)


def killed_and_continued(home: Path, command: tuple[object, ...], kills: int, seed: int) -> int:
    """Run a study, killing its driver at random moments; return how often that was.

    Kills are timed by what the study has saved, so that they strike on machines of any speed:
    the first, third, ... after one or two more epochs, the others in the first seconds.
    """
    (home / "space.yaml").write_text(SPACE)
    moments = random.Random(seed)
    seen: dict[int, list[dict[str, float]]] = {}  # trial -> epochs that were saved at a kill
    trials = home / "studies" / "fashion" / "trials"
    done = 0
    while done < kills:
        old = saved(trials)
        with started(*command, cwd=home) as study:
            if done % 2:
                deadline = time.monotonic() + moments.uniform(0, 8)
                while time.monotonic() < deadline and study.poll() is None:
                    time.sleep(0.02)
            else:
                new, wanted = set(), moments.choice([1, 2])
                while len(new) < wanted and study.poll() is None:
                    time.sleep(0.02)
                    new |= saved(trials) - old
                time.sleep(moments.uniform(0, 0.3))
            if study.poll() is not None:
                assert study.returncode == 0, (home / "output").read_text()[-4000:]
                break
            study.kill()
        done += 1
        for folder in trials.glob("*"):
            if (folder / "last.pt").exists():  # else it has not begun, or has ended and lost
                seen[int(folder.name)] = checkpoint.load(folder / "last.pt")["history"]
            elif (folder / "trial.json").exists():
                seen[int(folder.name)] = list(TrialRecord.load(folder).history)
    last = run_module(*command, cwd=home)
    assert last.returncode == 0, last.stderr
    for trial in StudyRecord.read(home / "studies" / "fashion").trials():
        # Each row says when its epoch ended: an epoch that was trained again would differ.
        before = seen.get(trial.number, [])
        assert list(trial.history[: len(before)]) == before, f"trial {trial.number} began anew"
    return done


def saved(trials: Path) -> set[tuple[Path, int]]:
    """Return the epochs that lie on the disk now: the checkpoints with their times."""
    found = set()
    for path in trials.glob("*/last.pt"):
        with suppress(FileNotFoundError):  # the trial has just ended
            found.add((path, path.stat().st_mtime_ns))
    return found


def check_all_agree(home: Path) -> list[TrialRecord]:
    """Compare the record with Optuna's and with MLflow's."""
    record = StudyRecord.read(home / "studies" / "fashion")
    trials = record.trials()
    assert len(trials) == NUM_TRIALS and {t.state for t in trials} <= {"finished", "stopped"}
    url = f"sqlite:///{record.path / 'optuna.db'}"
    there = optuna.load_study(study_name="fashion", storage=url).trials
    store = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("fashion")
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if run.data.tags["study.role"] == "study"]
    children = {int(r.data.tags["study.trial"]): r for r in runs if r not in parents}
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    assert len(runs) == NUM_TRIALS + 1 and sorted(children) == list(range(NUM_TRIALS))
    for trial, optuna_trial in zip(trials, there, strict=True):
        run = children[trial.number]
        assert run.info.status == {"finished": "FINISHED", "stopped": "KILLED"}[trial.state]
        state = {"finished": "COMPLETE", "stopped": "PRUNED"}[trial.state]
        assert optuna_trial.state.name == state and optuna_trial.params == trial.params
        assert optuna_trial.intermediate_values == trial.curve
        assert sorted(trial.curve) == list(range(1, trial.epochs + 1)), "no gap"
        for name in trial.metrics:
            history = store.get_metric_history(run.info.run_id, name)
            points = {metric.step: metric.value for metric in history}
            assert len(history) == len(points), "no step twice"
            assert points == {int(row["epoch"]): row[name] for row in trial.history}
        for name, value in trial.params.items():
            assert run.data.params[name] == str(value)
    return trials


def test_a_killed_study_finds_what_an_uninterrupted_one_finds(tmp_path: Path) -> None:
    command = (*COMMAND, "--max-concurrent", 1)
    homes = [tmp_path / "whole", tmp_path / "killed"]
    found = []
    for home, kills in zip(homes, (0, 10 if LONG else 3), strict=True):
        home.mkdir()
        assert killed_and_continued(home, command, kills, seed=2) >= min(kills, 3)
        found.append(check_all_agree(home))
    for whole, killed in zip(*found, strict=True):
        assert (whole.params, whole.state, whole.curve) == (
            killed.params,
            killed.state,
            killed.curve,
        )
    best = [StudyRecord.read(home / "studies" / "fashion").ranking()[0] for home in homes]
    assert (best[0].number, best[0].best_value) == (best[1].number, best[1].best_value)


@long_only
@pytest.mark.parametrize(("kills", "seed"), [(10, 1), (6, 11), (6, 12), (6, 13)])
def test_trials_side_by_side_survive_too(tmp_path: Path, kills: int, seed: int) -> None:
    done = killed_and_continued(tmp_path, (*COMMAND, "--max-concurrent", 2), kills, seed)
    trials = check_all_agree(tmp_path)
    print(f"{done} kills, {sum(t.epochs for t in trials)} epochs, {len(trials)} trials")
