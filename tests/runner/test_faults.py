"""What goes wrong in trials and what becomes of it: real processes, killed, hung, out of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import plugin, run_module, toy_study
from mlflow.tracking import MlflowClient

from study.datasets.source import DataSource
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.runner.faults import common_failure, out_of_memory
from study.tasks.fashion import TASK, FashionConfig
from study.training.loop import fit

SMALL = {"width1": 4, "width2": 4, "hidden": 16}


def test_every_fault_has_its_cure_or_its_reason(tmp_path: Path) -> None:
    done = run_module(
        "tune",
        *toy_study(6, 3),
        "--set",
        "cycle=true",
        "--trial-timeout",
        "60s",
        "--set",
        "hidden=16",
        cwd=tmp_path,
        env=plugin(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    record = StudyRecord.read(tmp_path / "studies" / "faulty")
    none, raises, raises_once, memory, dies, hangs = record.trials()
    for trial in (none, raises_once, memory, dies, hangs):
        assert trial.state == "finished" and sorted(trial.curve) == [1, 2, 3], done.stderr
    assert raises.state == "failed" and sorted(raises.curve) == [1]
    assert "Input/output error (tried 3 times)" in (raises.reason or "")
    assert "Input/output error" in raises_once.failures[0]["reason"]
    assert dies.failures[0]["reason"] == "its process died"
    assert hangs.failures[0]["reason"] == "no report for 1 min 00 s (--trial-timeout)"
    assert [f["epoch"] for f in (*raises_once.failures, *dies.failures, *hangs.failures)] == [2] * 3
    assert memory.micro_batches == 4 and len(memory.failures) == 2
    assert "can't allocate memory" in memory.failures[0]["reason"]
    assert "in 4 micro-batches" in done.stderr and "Traceback" not in done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for trial in record.trials():
        run = client.get_run(record.run_folder(trial.number).run_id or "")
        assert run.info.status == ("FAILED" if trial is raises else "FINISHED")
        history = client.get_metric_history(run.info.run_id, "val/accuracy")
        assert [metric.step for metric in history] == sorted(trial.curve)
    assert "OSError" in (record.run_folder(1).error_file).read_text()


def test_a_study_whose_first_trials_fail_alike_stops(tmp_path: Path) -> None:
    command = (
        "tune",
        "faulty",
        "--dataset",
        "sample",
        "--num-samples",
        50,
        "--epochs",
        3,
        "--search-space",
        "space.yaml",
        "--cpus-per-worker",
        1,
        "--max-failures",
        0,
        "--set",
        "fault=raises",
        "--set",
        "hidden=16",
    )
    done = run_module(*command, cwd=tmp_path, env=plugin(tmp_path))
    assert done.returncode == 1, done.stderr
    trials = StudyRecord.read(tmp_path / "studies" / "faulty").trials()
    assert 3 <= sum(trial.state == "failed" for trial in trials) <= 4
    assert "all failed for the same reason: OSError: [Errno 5] Input/output error" in done.stderr
    assert "continue with: python -m study.tune faulty" in done.stderr


def test_parts_of_a_batch_give_the_step_of_the_whole(sample: DataSource) -> None:
    config = FashionConfig(epochs=2, batch_size=48, precision="float32", **SMALL)
    whole, parts = (
        list(fit(TASK, config, sample, limit_batches=6, micro_batches=parts))[-1]
        for parts in (1, 4)
    )
    for name, tensor in whole.state["network"].items():
        assert torch.allclose(parts.state["network"][name], tensor, atol=1e-5)
    for name in ("train/loss", "train/accuracy", "val/loss"):
        assert whole.metrics[name] == pytest.approx(parts.metrics[name], abs=1e-4)


def test_what_means_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert out_of_memory(MemoryError())
    assert out_of_memory("Task was killed due to the node running low on memory.")
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    # Ray says this of any process that dies.
    assert not out_of_memory("The process is killed by SIGKILL by OOM killer due to high memory")


def failed(*reasons: str | None) -> list[TrialRecord]:
    return [
        TrialRecord(
            number=number,
            metric="m",
            mode="max",
            params={},
            state="failed" if reason else "finished",
            reason=reason,
        )
        for number, reason in enumerate(reasons)
    ]


def test_failures_are_alike_whatever_numbers_they_name() -> None:
    nan = "the training loss is not finite (nan); a smaller learning rate than {} may help."
    assert common_failure(failed(nan.format("1e-05"), nan.format(0.3), nan.format(7)))
    assert common_failure(failed("a", "a")) is None
    assert common_failure(failed("a", "a", "b")) is None
    assert common_failure(failed(None, "a", "a", "a")) is None


def test_failures_do_not_end_a_study_in_which_another_trial_gets_further() -> None:
    alike = failed("a", "a", "a")
    running = TrialRecord(number=3, metric="m", mode="max", params={})
    assert common_failure([running, *alike]) is None, "the first is not through yet"
    assert common_failure([*alike, running]) == "a"
    further = running.with_row({"epoch": 1, "m": 0.5})
    assert common_failure([*alike, further]) is None
    stopped = further.with_end("stopped")
    assert common_failure([stopped, *(trial.with_row({"epoch": 1, "m": 0.5}) for trial in alike)])
