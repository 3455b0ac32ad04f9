"""What an export holds: a network that any door takes again, no image, and no place or person."""

from __future__ import annotations

import getpass
import io
import json
import re
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Finished, run_module
from mlflow.artifacts import download_artifacts
from mlflow.tracking import MlflowClient

from study.datasets.source import DataSource
from study.export.export import save_program
from study.inference.archive_check import checked, load_program
from study.task import Value, load_task
from study.training.models import Normalized

NETWORKS: list[tuple[str, dict[str, Value]]] = [
    ("fashion", {"model": "two_conv", "batch_norm": True, "dropout": 0.5}),
    ("fashion", {"model": "residual"}),
    ("facade", {"model": "hourglass"}),
    ("facade", {"model": "unet", "block": "plain", "norm": "batch"}),
    ("facade", {"model": "unet", "block": "residual", "norm": "group"}),
]


@pytest.mark.parametrize(("name", "settings"), NETWORKS, ids=str)
def test_each_network_is_taken_again(name: str, settings: dict[str, Value], tmp_path: Path) -> None:
    task = load_task(name)
    torch.manual_seed(0)
    config = task.config_class(**settings)  # type: ignore[arg-type]
    model = Normalized(task.build_model(config), *task.normalization).eval()
    shape = (1, 28, 28) if name == "fashion" else (3, 64, 64)
    save_program(model, shape, tmp_path / "model.pt2")
    module = load_program(tmp_path / "model.pt2").module()
    for size in (1, 3):
        images = torch.rand(size, *shape)
        with torch.inference_mode():
            assert torch.allclose(module(images), model(images), atol=1e-4)


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.LSTM(28, 8, batch_first=True)
        self.second = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images[:, 0])[0]).mean(1)


class Unusual(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():  # an operator of a higher order
            x = torch.nn.functional.interpolate(images, None, 2, "bilinear", antialias=True)
        x = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
        x = torch.einsum("bchw,bchw->bc", x, x) * x.shape[0]
        return torch.cat([x.softmax(1), torch.fft.rfft(images.flatten(1)).abs()[:, :3]], 1)


@pytest.mark.parametrize("model", [Recurrent(), Unusual()], ids=lambda model: type(model).__name__)
def test_networks_of_a_user_s_own_are_taken_again(model: torch.nn.Module, tmp_path: Path) -> None:
    save_program(model.eval(), (1, 28, 28), tmp_path / "model.pt2")
    images = torch.rand(3, 1, 28, 28)
    with torch.inference_mode():
        module = load_program(tmp_path / "model.pt2").module()
        assert torch.allclose(module(images), model(images), atol=1e-5)


def test_no_image_is_kept(tmp_path: Path) -> None:
    """Of the archive only weights are numbers, and it is as large as these."""
    task = load_task("fashion")
    model = Normalized(task.build_model(task.config_class()), *task.normalization).eval()
    save_program(model, (1, 28, 28), tmp_path / "model.pt2")
    weights = sum(value.nbytes for value in model.state_dict().values())
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        sizes = {info.filename.split("/", 1)[1]: info.file_size for info in archive.infolist()}
    assert sizes["data/sample_inputs/model.pt"] == 0
    payloads = [size for name, size in sizes.items() if re.search(r"/(weight|tensor)_\d+$", name)]
    assert sum(payloads) == weights
    assert load_program(tmp_path / "model.pt2").example_inputs is None


@pytest.fixture(scope="module")
def handed_over(finished: Finished) -> Path:
    done = run_module("best", "fashion", "--export", "private", "--register", cwd=finished.home)
    assert done.returncode == 0, done.stderr
    return finished.home / "private"


def test_an_export_shows_no_image_of_the_data(handed_over: Path) -> None:
    """Neither as bytes nor as floats, of any image, anywhere in what is handed over."""
    meta = json.loads((handed_over / "meta.json").read_text())
    task = load_task("fashion")
    config = task.config_class(**meta["params"])
    splits = task.load_splits(DataSource.find("sample"), config)
    image = splits.val.images[splits.val.indices[0]]
    floats = torch.from_numpy(image).float() / 255
    rows = [np.ascontiguousarray(row) for row in (*image[0], *floats[0].numpy()) if row.any()]
    content = b"".join(path.read_bytes() for path in handed_over.rglob("*") if path.is_file())
    with zipfile.ZipFile(io.BytesIO(checked(handed_over / "model.pt2"))) as archive:
        content += b"".join(archive.read(name) for name in archive.namelist())
    assert rows and not [row for row in rows if row.tobytes() in content and len(set(row)) > 3]


def test_a_registered_model_has_zeros_as_its_example(handed_over: Path) -> None:
    uri = f"sqlite:///{handed_over.parent / 'mlflow.db'}"
    (version, *_) = MlflowClient(uri).search_model_versions("name = 'fashion'")
    model = MlflowClient(uri).get_logged_model(version.source.removeprefix("models:/"))
    folder = Path(download_artifacts(artifact_uri=model.artifact_location, tracking_uri=uri))
    example = json.loads((folder / "serving_input_example.json").read_text())
    assert np.array(example["inputs"]).shape == (1, 1, 28, 28)
    assert not np.array(example["inputs"]).any()


def test_an_export_names_no_place_and_no_person(handed_over: Path) -> None:
    """Of the files that are text, and of the archive's texts, too."""
    texts = {
        path.name: path.read_text()
        for path in handed_over.glob("*.*")
        if path.suffix in (".json", ".md")
    }
    with zipfile.ZipFile(handed_over / "model.pt2") as archive:
        names = [name for name in archive.namelist() if name.endswith(".json")]
        texts |= {name: archive.read(name).decode() for name in names}
    places = [socket.gethostname(), str(Path.home()), str(handed_over.parent), "site-packages"]
    if getpass.getuser() != "root":
        places.append(getpass.getuser())
    assert len(texts) == 5
    for name, text in texts.items():
        assert '"stack_trace"' not in text, name
        for place in places:
            assert not re.search(rf"(?<!\w){re.escape(place)}(?!\w)", text), (name, place)
