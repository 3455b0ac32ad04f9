"""The command, with a network whose answers are known: the class of a pixel is its colour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_module
from PIL import Image

from study.cli import run_command
from study.inference.exported_model import OBJECT, WHOLE, ExportedModel, default_colors
from study.predict import main
from study.tasks.fashion import TASK, FashionConfig
from study.training.models import Normalized

CLASSES = ["red", "green", "blue"]
# Red above, blue below, a green corner at the lower right.
SCENE = np.zeros((400, 300, 3), np.uint8)
SCENE[:200, :, 0], SCENE[200:, :, 2] = 255, 255
SCENE[250:, 200:] = (0, 255, 0)
LABELS = SCENE.argmax(axis=2)


class Largest(torch.nn.Module):
    """A class for each channel, over the image or for each pixel."""

    def __init__(self, dimensions: tuple[int, ...]) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.scale = torch.nn.Parameter(torch.tensor(8.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images * self.scale
        return images.mean(dim=self.dimensions) if self.dimensions else images


def write_export(folder: Path, network: torch.nn.Module, shape: tuple, **meta: Any) -> Path:
    folder.mkdir(parents=True)
    model = Normalized(network, [0.0] * shape[0], [1.0] * shape[0]).eval()
    inputs = (torch.rand(2, *shape),)
    program = torch.export.export(
        model, inputs, dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}}
    )
    torch.export.save(program, folder / "model.pt2")
    content = {"task": "other", "classes": CLASSES, "preprocessing": {"input": ["batch", *shape]}}
    (folder / "meta.json").write_text(json.dumps({**content, "dataset": "real", **meta}))
    return folder


@pytest.fixture(scope="module")
def segmenting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("a") / "maps", Largest(()), (3, 60, 60))


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = TASK.build_model(FashionConfig(width1=4, width2=4, hidden=8))
    return write_export(
        tmp_path_factory.mktemp("b") / "garments",
        network,
        (1, 28, 28),
        task="fashion",
        classes=TASK.classes,
        dataset="sample",
    )


def save(path: Path, **options: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(SCENE).save(path, **options)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any], str]:
    code = run_command(lambda: main([*map(str, args), "--json"]))
    output = capsys.readouterr()
    return code, json.loads(output.out) if output.out else {}, output.err


def test_maps_have_the_image_s_own_size(segmenting: Path, tmp_path: Path, capsys) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    phone = tmp_path / "phone.jpg"
    Image.fromarray(np.rot90(SCENE)).save(phone, exif=exif, quality=95)
    code, result, _ = run(capsys, segmenting, phone, "--out", tmp_path / "out")
    assert code == 0
    (entry,) = result["images"]
    assert entry["size"] == [300, 400] and entry["notes"] == ["rotated as its EXIF data say"]
    with Image.open(tmp_path / "out" / entry["classes"]) as image:
        assert image.mode == "P" and image.size == (300, 400)
        assert image.getpalette()[:9] == [v for c in default_colors(3) for v in c]
        labels = np.asarray(image)
    assert (labels == LABELS).mean() > 0.98  # but for the edges: it was 60 pixels wide
    shares = np.bincount(labels.ravel(), minlength=3) / labels.size
    assert entry["shares"] == dict(zip(CLASSES, shares.tolist(), strict=True))
    with Image.open(tmp_path / "out" / entry["overlay"]) as image:
        overlay = np.asarray(image).astype(int)
    assert (
        abs(overlay[100, 150] - (SCENE[100, 150] + np.array(default_colors(3)[0])) // 2).max() < 9
    )
    assert (tmp_path / "out" / "legend.png").exists()


def test_every_kind_of_file_in_one_call(segmenting: Path, tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    save(photos / "plain.png")
    Image.fromarray(SCENE).convert("CMYK").save(photos / "cmyk.jpg", quality=95)
    Image.fromarray(SCENE).convert("P").save(photos / "palette.png", transparency=0)
    Image.fromarray(SCENE[..., 0].astype(np.uint16) * 257).save(photos / "sixteen.png")
    Image.new("RGB", (1, 1), "blue").save(photos / "one.png")
    Image.fromarray(SCENE).resize((6000, 4000), 0).save(photos / "large.jpg")
    Image.new("RGB", (3, 70_000), "green").save(photos / "long.png")
    (photos / "text.jpg").write_text("no image")
    (photos / "notes.txt").write_text("is left alone")
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "out"
    code, result, error = run(
        capsys,
        segmenting,
        photos,
        tmp_path / "nothing",
        "absent.png",
        "https://x.org/a.jpg",
        "--out",
        out,
    )
    assert code == 1 and "4 skipped, 7 done" in error and "Traceback" not in error
    sizes = {entry["name"]: entry["size"] for entry in result["images"]}
    assert sizes.pop("large") == [6000, 4000] and sizes.pop("one") == [1, 1]
    assert sizes.pop("long") == [3, 70_000] and set(map(tuple, sizes.values())) == {(300, 400)}
    shares = {entry["name"]: entry["shares"] for entry in result["images"]}
    assert shares["one"] == {"red": 0, "green": 0, "blue": 1}
    for name in ("plain", "cmyk", "large"):
        assert abs(shares[name]["red"] - 0.5) < 0.01 and abs(shares[name]["green"] - 0.125) < 0.01
    for entry in result["images"]:
        for file in ("classes", "overlay"):
            with Image.open(out / entry[file]) as image:
                assert list(image.size) == entry["size"]
    failed = {Path(entry["file"]).name: entry["reason"] for entry in result["failed"]}
    assert failed["text.jpg"].startswith("not an image") and "no such file" in failed["absent.png"]
    assert "without images" in failed["nothing"] and "download" in failed["a.jpg"]
    for name in failed:
        assert f"{name}: " in error


def test_what_a_folder_holds_beside_is_named_by_its_reason(
    segmenting: Path, tmp_path: Path, capsys
) -> None:
    photos = tmp_path / "photos"
    for name in ("a.JPG", "b.jpeg", "c.Png"):
        save(photos / name)
    save(photos / "raw.dng", format="TIFF")
    save(photos / "without", format="PNG")  # the content tells
    save(photos / "inside" / "d.png")
    (photos / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    Image.fromarray(SCENE).save(photos / "drawing.eps")
    for name in ("notes.txt", "table.csv", ".DS_Store", "._a.JPG", "Thumbs.db"):
        (photos / name).write_text("text")
    code, result, error = run(capsys, segmenting, photos, "--out", tmp_path / "out")
    assert code == 1
    names = sorted(Path(entry["file"]).name for entry in result["images"])
    assert names == ["a.JPG", "b.jpeg", "c.Png", "without"]
    failed = {Path(entry["file"]).name: entry["reason"] for entry in result["failed"]}
    assert failed.keys() == {"raw.dng", "phone.HEIC", "drawing.eps"}
    assert all(
        "which is not supported; save it as JPEG or PNG" in reason for reason in failed.values()
    )
    line = next(line for line in error.splitlines() if "not used" in line)
    assert line.startswith("6 not used: ") and f"2 not an image ({photos / 'notes.txt'}, " in line
    assert f"1 a subfolder; name it to include it ({photos / 'inside'})" in line
    assert line.endswith("3 hidden or the system's")
    assert sum(map(len, result["unused"].values())) == 6


def test_the_same_name_in_another_folder_replaces_nothing(
    segmenting: Path, tmp_path: Path, capsys
) -> None:
    files = [save(tmp_path / place / name) for place in "ab" for name in ("x.png", "X.jpg")]
    out = tmp_path / "out"
    _, result, _ = run(capsys, segmenting, *files[:2], "--out", out)
    first = [entry["name"] for entry in result["images"]]
    _, result, _ = run(capsys, segmenting, *files[2:], files[0], files[0], "--out", out)
    names = [entry["name"] for entry in result["images"]]
    assert first == ["x", "X-2"] and names == ["x-3", "X-4", "x"]
    assert len(list(out.glob("*.classes.png"))) == 4
    known = json.loads((out / "predictions.json").read_text())["images"]
    assert [Path(entry["path"]) for entry in known] == [Path(file) for file in files]


def test_garments_get_three_classes(garments: Path, tmp_path: Path, capsys) -> None:
    grey = np.full((200, 150), 250, np.uint8)
    grey[40:160, 50:100] = 30
    Image.fromarray(grey).save(tmp_path / "dark.png")
    Image.fromarray(255 - grey).convert("RGB").save(tmp_path / "light.png")
    code, result, error = run(
        capsys,
        garments,
        tmp_path / "dark.png",
        tmp_path / "light.png",
        "--out",
        tmp_path / "out",
    )
    assert code == 0 and "SAMPLE DATA" in error and result["dataset"] == "sample"
    dark, light = result["images"]
    assert dark["notes"] == ["dark on light: inverted", "cropped to 50x120 pixels"]
    assert light["notes"] == ["cropped to 50x120 pixels"] and dark["top"] == light["top"]
    chances = [best["probability"] for best in dark["top"]]
    assert len(chances) == 3 and chances == sorted(chances, reverse=True) and sum(chances) < 1
    with Image.open(tmp_path / "out" / dark["input"]) as image:
        assert image.size == (28, 28)
    assert main([str(garments), str(tmp_path / "dark.png"), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "dark.png  150x200  (dark on light: inverted" in out and " %" in out


def test_an_image_of_the_data_set_is_classified_as_in_training(
    garments: Path, sample, tmp_path: Path, capsys
) -> None:
    images = TASK.load_splits(sample, FashionConfig()).val.images[:3, 0]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    _, result, _ = run(capsys, garments, tmp_path, "--out", tmp_path / "out")
    module = torch.export.load(garments / "model.pt2").module()
    logits = module(torch.from_numpy(images[:, None].copy()).float() / 255)
    for entry, chances in zip(result["images"], logits.softmax(dim=1).tolist(), strict=True):
        assert entry["top"][0]["probability"] == pytest.approx(max(chances), abs=1e-5)


def test_a_third_task_that_classifies_whole_photographs(tmp_path: Path, capsys) -> None:
    export = write_export(tmp_path / "export", Largest((2, 3)), (3, 30, 30))
    _, result, _ = run(capsys, export, save(tmp_path / "a.png"), "--out", tmp_path / "out")
    assert result["images"][0]["top"][0]["class"] == "red"
    grey = Image.fromarray(SCENE).convert("L")
    grey.save(tmp_path / "grey.png")
    _, result, _ = run(capsys, export, tmp_path / "grey.png", "--out", tmp_path / "out")
    for best in result["images"][0]["top"]:  # grey for a network of three channels
        assert best["probability"] == pytest.approx(1 / 3)


def test_older_exports_learn_from_their_task(segmenting: Path, garments: Path, tmp_path) -> None:
    assert ExportedModel.open(garments).shows == OBJECT
    assert ExportedModel.open(segmenting).shows == WHOLE
    export = write_export(
        tmp_path / "old", Largest(()), (3, 4, 4), task="facade", classes=list("abcde")
    )
    assert ExportedModel.open(export).colors[4] == (255, 0, 0)


def test_mistakes(segmenting: Path, tmp_path: Path, capsys) -> None:
    image = save(tmp_path / "a.png")
    damaged = write_export(tmp_path / "damaged", Largest(()), (3, 4, 4))
    (damaged / "model.pt2").write_bytes(b"PK")
    strange = write_export(tmp_path / "strange", Largest((3,)), (3, 4, 4))
    other = write_export(tmp_path / "other", Largest(()), (3, 4, 4), preprocessing={"input": []})
    many = write_export(tmp_path / "many", Largest(()), (4, 4, 4))
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "predictions.json").write_text("[]")
    for export, out, message in (
        (tmp_path, "out", "there is no export in"),
        (damaged, "out", "cannot be loaded"),
        (strange, "out", "an output of shape (3, 4) is neither"),
        (other, "out", "meta.json is corrupted"),
        (many, "out", "a model with 4 channels"),
        (segmenting, "a.png", "cannot write --out"),
        (segmenting, "ours", "was not written by this command"),
    ):
        code, _, error = run(capsys, export, image, "--out", tmp_path / out)
        assert code == 2 and message in error and len(error.splitlines()) == 1


def test_24_megapixels_without_ray_and_mlflow_in_little_memory(
    segmenting: Path, tmp_path: Path
) -> None:
    Image.fromarray(SCENE).resize((6000, 4000), 0).save(tmp_path / "a.jpg")
    code = (
        "import sys\n"
        "sys.modules['ray'] = sys.modules['mlflow'] = None\n"
        "from study.predict import main\n"
        f"assert main([{str(segmenting)!r}, 'a.jpg']) == 0\n"
        # Not `ru_maxrss`, which a process takes over from the one that started it.
        "if sys.platform == 'linux':\n"
        "    print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # KiB
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions" / "a.overlay.jpg").exists()
    if sys.platform == "linux":
        assert int(done.stdout.splitlines()[-1]) < 1_500_000


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom study.predict import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'PIL', 'ray', 'mlflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert run_module("predict", "--help", cwd=tmp_path).returncode == 0
