"""Ranking, testing once, exporting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Finished, run_module
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from study.inference.exported_model import OBJECT
from study.records.study_record import StudyRecord
from study.storage.files import read_document, write_document
from study.tasks.fashion import TASK, FashionConfig


def test_json_is_what_the_contract_says(finished: Finished) -> None:
    done = run_module("best", "fashion", "--json", "--top", 2, cwd=finished.home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result) == ["study", "task", "dataset", "metric", "mode", "trials", "best"]
    assert result["dataset"] == "sample" and result["metric"] == "val/accuracy"
    assert sum(result["trials"].values()) == 8
    assert list(result["trials"]) == ["finished", "stopped", "failed", "running"]
    assert len(result["best"]) == 2
    first, second = result["best"]
    assert set(first) == {"trial", "run_id", "value", "epoch", "params", "metrics"}
    assert first["value"] >= second["value"]
    assert first["value"] == first["metrics"]["val/accuracy"]
    assert FashionConfig(**first["params"]).seed == 1 + first["trial"]


def test_the_table_is_of_the_study_last_run(finished: Finished) -> None:
    done = run_module("best", cwd=finished.home)
    assert done.returncode == 0, done.stderr
    assert "SAMPLE DATA" in done.stdout and "Ankle boot" in done.stdout


@pytest.fixture(scope="module")
def exported(finished: Finished) -> dict:
    done = run_module("best", "fashion", "--export", "out", "--json", cwd=finished.home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["export"]


def test_the_export_is_complete(finished: Finished, exported: dict) -> None:
    folder = finished.home / "out"
    assert {path.name for path in folder.iterdir()} == {
        "model.pt2",
        "weights.safetensors",
        "meta.json",
        "README.md",
        "figures",
    }
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["classes"][0] == "T-shirt/top" and meta["largest_difference"] < 1e-4
    assert meta["preprocessing"]["shows"] == OBJECT and len(meta["colors"]) == 10
    assert meta["metrics"]["test/accuracy"] == exported["test"]["test/accuracy"]
    assert meta["run_id"] and meta["data"]["checksum"] and meta["origin"]["version.torch"]
    card = (folder / "README.md").read_text()
    assert "sample data drawn by the program" in card and "Ankle boot" in card
    assert (folder / "figures" / "test" / "confusion_matrix.png").exists()
    assert (folder / "figures" / "validation" / "learning_curves.png").exists()


def test_the_model_works_without_this_project(finished: Finished, exported: dict) -> None:
    code = (
        "import sys, torch\n"
        "model = torch.export.load('model.pt2').module()\n"
        "for size in (1, 3, 40):\n"
        "    p = model(torch.rand(size, 1, 28, 28)).softmax(dim=1)\n"
        "    assert p.shape == (size, 10)\n"
        "assert not any(name.split('.')[0] == 'study' for name in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=finished.home / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_weights_fit_the_task_s_network(finished: Finished, exported: dict) -> None:
    meta = json.loads((finished.home / "out" / "meta.json").read_text())
    network = TASK.build_model(FashionConfig(**meta["params"]))
    network.load_state_dict(load_file(finished.home / "out" / "weights.safetensors"))


def test_the_test_split_is_evaluated_once_and_recorded(finished: Finished, exported: dict) -> None:
    folder = finished.home / "studies" / "fashion"
    before = read_document(folder / "tests.json")["tests"]
    assert len(before) == 1
    again = run_module("best", "fashion", "--export", "out", "--json", cwd=finished.home)
    assert again.returncode == 0, again.stderr
    assert read_document(folder / "tests.json")["tests"] == before
    assert json.loads(again.stdout)["export"]["test"] == exported["test"]
    run_id = StudyRecord.read(folder).run_folder(before[0]["trial"]).run_id or ""
    client = MlflowClient(f"sqlite:///{finished.home / 'mlflow.db'}")
    history = client.get_metric_history(run_id, "test/accuracy")
    assert [metric.value for metric in history] == [exported["test"]["test/accuracy"]]
    assert client.get_run(run_id).data.tags["study.exported"] == "true"
    assert client.list_artifacts(run_id, "figures/test")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["fashio"], "/studies; did you mean 'fashion'?"),
        (["--studies-dir", "nowhere"], "there is no study in"),
        (["--top", "0"], "--top must be at least 1"),
        (["fashion", "--export", "."], "is not an earlier export"),
        (["fashion", "--export", "space.yaml"], "space.yaml is a file; name a folder"),
        (["fashion", "--export", "/proc/export"], "cannot write /proc/export"),
    ],
)
def test_mistakes(finished: Finished, capsys, monkeypatch, flags, message: str) -> None:
    from study.best import main
    from study.cli import run_command

    monkeypatch.chdir(finished.home)
    assert run_command(lambda: main(flags)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_damaged_checkpoint_is_named(finished: Finished, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished.home / "studies", tmp_path / "studies")
    record = StudyRecord.read(tmp_path / "studies" / "fashion")
    (record.path / "tests.json").unlink(missing_ok=True)  # of another test's export
    shutil.rmtree(record.path / "tests", ignore_errors=True)
    folder = record.run_folder(record.ranking()[0].number)
    checkpoint = folder.best_checkpoint
    folder.last_checkpoint.write_bytes(b"")  # which can serve if the last epoch was the best
    for damage in (checkpoint.read_bytes()[:1000], None):
        checkpoint.unlink()
        if damage is not None:
            checkpoint.write_bytes(damage)
        done = run_module("best", "--export", cwd=tmp_path)
        assert done.returncode == 1 and str(checkpoint) in done.stderr
        assert "Traceback" not in done.stderr
        assert not (record.path / "tests.json").exists() and not (record.path / "tests").exists()


def test_another_data_set_under_the_same_path_is_refused(
    finished: Finished, tmp_path: Path, capsys, monkeypatch
) -> None:
    import shutil

    from study.best import main
    from study.cli import run_command

    shutil.copytree(finished.home / "studies", tmp_path / "studies")
    manifest = tmp_path / "studies" / "fashion" / "study.json"
    write_document(manifest, {**read_document(manifest), "checksum": "other"})
    monkeypatch.chdir(tmp_path)
    assert run_command(lambda: main(["fashion", "--export"])) == 2
    assert "is not the one this study uses" in capsys.readouterr().err
