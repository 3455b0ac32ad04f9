"""Versions of a registered model: the champion's rule, and a real server that answers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Finished, run_module, wait_for
from mlflow.models import get_model_info
from mlflow.tracking import MlflowClient

from study.tasks.fashion import TASK
from study.tracking import registry


@pytest.fixture(scope="module")
def registered(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the study; its winner exported and registered, unconfirmed."""
    home = tmp_path_factory.mktemp("registered")
    shutil.copytree(finished.home, home, dirs_exist_ok=True)
    done = run_module("best", "fashion", "--export", "out", "--register", cwd=home)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "version 1 is not confirmed" in done.stdout and "there is no champion" in done.stdout
    return home


def register(
    home: Path, copy: Path, mean: float, folds: tuple[int, ...] = (1, 2), **other: str
) -> dict:
    """Register the export with other weights and a confirmed score."""
    if not copy.exists():
        shutil.copytree(home / "out", copy)
        with (copy / "weights.safetensors").open("ab") as file:
            file.write(copy.name.encode())
    meta = json.loads((copy / "meta.json").read_text())
    scores = {"mean": mean, "interval": [mean - 0.1, mean + 0.1]}
    meta["confirmed"] = {
        **{"metric": "val/accuracy", "trial": 0, "seeds": 2, "search": 0.9},
        **{"val": scores, "test": scores, "validated_on": {"folds": folds}},
    }
    meta |= other
    (copy / "meta.json").write_text(json.dumps(meta))
    uri = f"sqlite:///{home / 'mlflow.db'}"
    before = dict(os.environ)
    done = registry.register(uri, "garments", copy, TASK.mode)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):  # the next command would find it
        assert os.environ.get(name) == before.get(name)
    return done


def test_only_a_better_confirmed_score_moves_the_champion(registered: Path, tmp_path: Path) -> None:
    first = register(registered, tmp_path / "a", 0.8)
    assert first["version"] == first["champion"] == "1" and "first champion" in first["why"]
    worse = register(registered, tmp_path / "b", 0.79)
    assert worse["version"] == "2" and worse["champion"] == "1"
    assert "version 1 stays champion" in worse["why"] and "is not better" in worse["why"]
    tie = register(registered, tmp_path / "c", 0.8)
    assert tie["version"] == "3" and tie["champion"] == "1"
    better = register(registered, tmp_path / "d", 0.81)
    assert better["version"] == better["champion"] == "4"
    other = register(registered, tmp_path / "e", 0.99, evaluated_at="14x14 pixels")
    assert other["champion"] == "4" and "cannot be compared" in other["why"]
    more = register(registered, tmp_path / "f", 0.99, folds=(1, 2, 3))
    assert more["champion"] == "4" and "confirm both with the same number of seeds" in more["why"]
    again = register(registered, tmp_path / "d", 0.81)
    assert again["version"] == "4" and "already the champion" in again["why"]
    client = MlflowClient(f"sqlite:///{registered / 'mlflow.db'}")
    assert len(client.search_model_versions("name = 'garments'")) == 6


def test_of_two_commands_the_second_waits_for_the_first(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    known = registry._known

    def seen(client: MlflowClient, name: str, digest: str) -> Any:
        order.append("begins")
        if len(order) == 1:  # the second comes while the first is at work
            second.start()
            second.join(1.0)
        return known(client, name, digest)

    def crowned(*args: Any) -> str:
        order.append("ends")
        return "tried"

    second = threading.Thread(target=register, args=(registered, tmp_path / "same", 0.9))
    monkeypatch.setattr(registry, "_known", seen)
    monkeypatch.setattr(registry, "_crown", crowned)
    first = register(registered, tmp_path / "same", 0.9)
    second.join()
    assert order == ["begins", "ends"] * 2
    client = MlflowClient(f"sqlite:///{registered / 'mlflow.db'}")
    versions = client.search_model_versions("name = 'garments'")
    assert str(max(int(one.version) for one in versions)) == first["version"], "made once"


def test_a_version_says_what_it_is(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(f"sqlite:///{registered / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'fashion'")
    assert (
        "Ankle boot" in version.description
        and "sample data drawn by the program" in version.description
    )
    meta = json.loads((registered / "out" / "meta.json").read_text())
    assert version.run_id == meta["run_id"]
    assert version.tags["data.checksum"] == meta["data"]["checksum"]
    # Not MLflow's own function, which would leave the environment to the tests that follow.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered / 'mlflow.db'}")
    info = get_model_info("models:/fashion/1")
    (inputs,), (outputs,) = info.signature.inputs.inputs, info.signature.outputs.inputs
    assert inputs.shape == (-1, 1, 28, 28) and outputs.shape == (-1, 10)
    assert inputs.type == np.dtype("float32")
    assert info.saved_input_example_info is not None


@pytest.fixture
def server(registered: Path) -> Iterator[str]:
    """The address of `mlflow models serve`, run where there is no `study`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"sqlite:///{registered / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    environment.pop("PYTHONPATH", None)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/fashion/1",
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "-w",
        "1",
    ]
    with (registered / "server").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=registered,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

        def answers() -> bool:
            assert process.poll() is None, (registered / "server").read_text()
            try:
                return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/ping").status == 200)
            except OSError:
                return False

        try:
            wait_for(answers)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def test_a_server_answers_with_the_export_s_logits(registered: Path, server: str) -> None:
    images = torch.rand(3, 1, 28, 28)
    request = urllib.request.Request(
        server,
        json.dumps({"inputs": images.tolist()}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        answer = np.array(json.loads(response.read())["predictions"])
    model = torch.export.load(registered / "out" / "model.pt2").module()
    assert np.allclose(answer, model(images).detach().numpy(), atol=1e-5)


def test_the_model_lies_with_the_study_s_artifacts(registered: Path) -> None:
    client = MlflowClient(f"sqlite:///{registered / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'fashion'")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    experiment = client.get_experiment_by_name("fashion")
    assert model.artifact_location.startswith(experiment.artifact_location)
