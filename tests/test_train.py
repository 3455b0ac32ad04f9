"""One trial from its command line."""

from __future__ import annotations

import json
import pdb
from pathlib import Path

import pytest
import torch
from conftest import Finished, run_module
from mlflow.tracking import MlflowClient

from study.datasets.source import DataSource
from study.records import checkpoint
from study.records.run_folder import RunFolder
from study.records.study_record import StudyRecord
from study.tasks.fashion import TASK, FashionConfig
from study.train import main
from study.training.loop import fit

QUICK = ("fashion", "--dataset", "sample", "--limit-batches", 3, "--epochs", 2)


def epochs_in(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_leaves_checkpoint_metrics_and_figures(tmp_path: Path) -> None:
    done = run_module("train", *QUICK, "--run-dir", "run", "--width1", 4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "last.pt",
        "best.pt",
        "metrics.json",
        "evidence.npz",
        "figures",
    }
    assert [row["epoch"] for row in epochs_in(tmp_path / "run")] == [1, 2]
    assert "T-shirt/top" in done.stdout and "SAMPLE DATA" in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
    again = run_module("train", *QUICK, "--run-dir", "run", cwd=tmp_path)
    assert again.returncode == 2 and "already contains a run; add --resume" in again.stderr


def test_params_come_from_a_file_and_flags_stand_above(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"width1": 3, "width2": 5}')
    done = run_module(
        "train", *QUICK, "--params", "params.json", "--width2", 6, "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    folder = RunFolder(Path(json.loads(done.stdout)["run_dir"]))
    config = (folder.last_state() or {})["config"]
    assert (config["width1"], config["width2"]) == (3, 6)


def test_resuming_keeps_the_settings_and_changes_only_the_length(tmp_path: Path) -> None:
    first = run_module("train", *QUICK, "--run-dir", "run", "--width1", 4, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    resume = ("fashion", "--dataset", "sample", "--run-dir", "run", "--resume")
    for flags, message in (
        (("--learning-rate", "0.1"), "the run has learning_rate=0.001, but got 0.1"),
        ((), "already has 2 epochs; use a larger --epochs"),
    ):
        done = run_module("train", *resume, *flags, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr
    done = run_module("train", *resume, "--epochs", 3, "--limit-batches", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = RunFolder(tmp_path / "run")
    assert [row["epoch"] for row in epochs_in(folder.path)] == [1, 2, 3]
    assert (folder.last_state() or {})["config"]["width1"] == 4


def test_a_schedule_is_resumed_for_as_many_epochs_as_it_was_begun(
    tmp_path: Path, sample: DataSource
) -> None:
    config = FashionConfig(epochs=4, schedule="one_cycle", width1=4)
    first = next(fit(TASK, config, sample, limit_batches=2))
    RunFolder(tmp_path / "run").path.mkdir()
    RunFolder(tmp_path / "run").record(first, {})
    resume = ("fashion", "--dataset", "sample", "--run-dir", "run", "--resume")
    done = run_module("train", *resume, "--epochs", 6, cwd=tmp_path)
    assert done.returncode == 2
    assert "schedule=one_cycle was set up for 4 epochs, not 6" in done.stderr


def test_a_run_of_before_there_was_a_setting_is_not_resumed_with_another(
    tmp_path: Path, sample: DataSource
) -> None:
    first = next(fit(TASK, FashionConfig(epochs=2, width1=4), sample, limit_batches=2))
    del first.state["config"]["optimizer"]
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").record(first, {})
    resume = ("fashion", "--dataset", "sample", "--run-dir", "run", "--resume")
    done = run_module("train", *resume, "--optimizer", "sgd", cwd=tmp_path)
    assert done.returncode == 2 and "the run has optimizer=adam, but got sgd" in done.stderr


def test_flags_may_stand_before_the_task(tmp_path: Path) -> None:
    words = ("--dataset", "sample", "--epochs", 1, "fashion", "--limit-batches", 1)
    done = run_module("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_tracking_is_asked_for(tmp_path: Path) -> None:
    done = run_module("train", *QUICK, "--track", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fashion")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["study.role"] == "train"
    history = client.get_metric_history(run.info.run_id, "val/accuracy")
    assert [metric.step for metric in history] == [1, 2]


def test_a_trial_is_repeated_bit_for_bit(finished: Finished) -> None:
    record = StudyRecord.read(finished.home / "studies" / "fashion")
    trial = next(t for t in record.trials() if t.state == "finished")
    run_id = record.run_folder(trial.number).run_id
    done = run_module(
        "train",
        "fashion",
        "--like",
        run_id,
        "--threads",
        1,
        "--run-dir",
        "like",
        "--json",
        cwd=finished.home,
    )
    assert done.returncode == 0, done.stderr
    history = epochs_in(finished.home / "like")
    assert {row["epoch"]: row["val/accuracy"] for row in history} == trial.curve
    before, again = (
        checkpoint.load(folder.best_checkpoint)["network"]
        for folder in (record.run_folder(trial.number), RunFolder(finished.home / "like"))
    )
    assert before.keys() == again.keys()
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_a_failing_run_says_why(tmp_path: Path) -> None:
    done = run_module("train", *QUICK, "--learning-rate", "1e30", cwd=tmp_path)
    assert done.returncode == 1 and "failed: the training loss is not finite" in done.stderr


def test_a_breakpoint_in_the_loop_stops_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from study.training.models import TwoConv

    stops = []
    forward = TwoConv.forward

    def stopping(self, images):
        if not stops:
            breakpoint()
        return forward(self, images)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TwoConv, "forward", stopping)
    monkeypatch.setattr(pdb, "set_trace", lambda **keywords: stops.append(keywords))
    assert main([str(word) for word in QUICK]) == 0
    assert len(stops) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["fashon"], "unknown task 'fashon'; did you mean 'fashion'?"),
        (["fashion", "--width1", "0"], "--width1: width1 must be at least 1"),
        (["fashion", "--width1", "x"], "--width1: width1 must be a whole number, but got 'x'"),
        (["fashion", "--limit-batches", "0"], "--limit-batches must be at least 1"),
        (["fashion", "--params", "none.json"], "--params none.json cannot be read"),
        (["fashion", "--params", "twice.json"], "'width1' appears twice"),
        (["fashion", "--params", "deep.json"], "--params deep.json cannot be read"),
        (["fashion", "--resume"], "no readable last.pt found"),
        (["fashion", "--threads", "0"], "--threads must be at least 1"),
        (["fashion", "--like", "0123"], "there is no run '0123'"),
        (["facade", "--data-dir", "nowhere"], "there is no facade data set"),
    ],
)
def test_mistakes(tmp_path: Path, capsys, monkeypatch, flags: list[str], message: str) -> None:
    from study.cli import run_command

    monkeypatch.chdir(tmp_path)
    Path("twice.json").write_text('{"width1": 3, "width1": 5}')
    Path("deep.json").write_text("[" * 100_000)
    sample = [] if flags[0] == "facade" else ["--dataset", "sample"]
    assert run_command(lambda: main([*flags, *sample])) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
