"""Getting, importing and verifying data sets; every damaged file is named."""

from __future__ import annotations

import gzip
import http.server
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module
from PIL import Image

from study.data import DataSource
from study.datasets import cmp_facade, fashion_mnist, mini_facade
from study.datasets.archive import download, unpacked
from study.datasets.drawn_facades import draw_set
from study.errors import InputError


@pytest.fixture(scope="module")
def drawn_pairs() -> tuple[np.ndarray, np.ndarray]:
    images, masks, _ = draw_set(4, 0, 256)
    return images, masks


@pytest.fixture
def facade_dir(tmp_path: Path, drawn_pairs: tuple[np.ndarray, np.ndarray]) -> Path:
    """A data directory with a facade set of nine training and three test pairs."""
    images, masks = drawn_pairs
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        split = "train" if index < 9 else "test_dev"
        folder = tmp_path / "data" / "facade" / "starter_set" / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"x_{index:04d}.jpg", quality=95)
        Image.fromarray(mask).save(folder / f"x_{index:04d}.png")
    return tmp_path / "data"


def source(data_dir: Path) -> DataSource:
    return DataSource.find("real", data_dir)


def test_a_folder_of_pairs_is_cached_and_grouped_by_content(facade_dir: Path) -> None:
    entry = mini_facade.load(source(facade_dir))
    assert entry.array("train_images").shape == (9, 3, 256, 256)
    assert entry.array("train_targets").max() < 5
    assert (entry.meta["train"], entry.meta["test"]) == (9, 3)
    groups = entry.array("train_groups")
    for building in range(3):  # three crops each
        assert len(set(groups[3 * building : 3 * building + 3].tolist())) == 1
    assert len(set(groups.tolist())) == 3
    assert set(entry.array("test_groups").tolist()) == {0}  # three crops of one building


def test_resizing_averages_photographs_and_keeps_labels(facade_dir: Path) -> None:
    where = source(facade_dir)
    entry = mini_facade.load(where)
    small = mini_facade.resized(entry, where, 64)
    whole = entry.array("train_images")[0].astype(float)
    expected = whole.reshape(3, 64, 4, 64, 4).mean(axis=(2, 4))
    assert np.abs(small.array("train_images")[0] - expected).max() <= 1
    assert set(np.unique(small.array("train_targets"))) <= set(range(5))


def test_missing_data_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--from PATH.*--dataset sample"):
        mini_facade.load(source(tmp_path))
    with pytest.raises(InputError, match="--data-dir.*--dataset sample"):
        fashion_mnist.load(source(tmp_path))


def damage_jpeg(folder: Path) -> Path:
    file = folder / "x_0003.jpg"
    file.write_bytes(file.read_bytes()[:500])
    return file


def damage_size(folder: Path) -> Path:
    Image.fromarray(np.zeros((128, 256), np.uint8)).save(folder / "x_0003.png")
    return folder / "x_0003.png"


def damage_label(folder: Path) -> Path:
    Image.fromarray(np.full((256, 256), 7, np.uint8)).save(folder / "x_0003.png")
    return folder / "x_0003.png"


def damage_mode(folder: Path) -> Path:
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(folder / "x_0003.png")
    return folder / "x_0003.png"


def damage_pair(folder: Path) -> Path:
    (folder / "x_0003.png").unlink()
    return folder / "x_0003.jpg"


def damage_photo(folder: Path) -> Path:
    (folder / "x_0003.jpg").unlink()
    return folder / "x_0003.png"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_jpeg, "cannot be decoded"),
        (damage_size, "is 256x128 pixels, but its photograph is 256x256"),
        (damage_label, "has the label 7, but classes are 0 to 4"),
        (damage_mode, "has mode RGB"),
        (damage_pair, "has no mask"),
        (damage_photo, "has no photograph"),
    ],
)
def test_damaged_pairs_are_named(facade_dir: Path, damage, message: str) -> None:
    mini_facade.load(source(facade_dir))  # whole and cached: the damage must be seen all the same
    file = damage(facade_dir / "facade" / "starter_set" / "train")
    with pytest.raises(InputError) as caught:
        mini_facade.load(source(facade_dir))
    assert str(file) in str(caught.value) and message in str(caught.value)


def test_a_damaged_file_ends_a_study_before_ray_starts(facade_dir: Path, tmp_path: Path) -> None:
    file = damage_label(facade_dir / "facade" / "starter_set" / "train")
    done = run_module("tune", "facade", "--data-dir", facade_dir, cwd=tmp_path)
    assert done.returncode == 2 and str(file) in done.stderr
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_a_starter_set_is_imported(facade_dir: Path, tmp_path: Path, packed: bool) -> None:
    given = facade_dir / "facade"
    forks = given / "__MACOSX" / "starter_set"  # what the Finder adds to archives
    for split in ("train", "test_dev"):
        (forks / split).mkdir(parents=True)
        (forks / split / "._x_0000.jpg").write_bytes(b"fork")
    if packed:
        given = Path(shutil.make_archive(str(tmp_path / "starter"), "zip", given))
    done = run_module(
        "data", "facade", "--from", given, "--data-dir", tmp_path / "new", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"] == 9
    old = mini_facade.load(source(facade_dir)).array("train_images")
    assert np.array_equal(mini_facade.load(source(tmp_path / "new")).array("train_images"), old)


def test_cmp_archives_become_a_set(tmp_path: Path, drawn_pairs) -> None:
    images, masks = drawn_pairs
    # The drawn masks hold 0 to 4; the database's labels of those classes, others as a door.
    label_of_class = np.array([4, 2, 11, 3, 7], np.uint8)
    archives = []
    for part in (0, 1):
        archives.append(tmp_path / f"CMP_{part}.zip")
        with zipfile.ZipFile(archives[-1], "w") as archive:
            for index in range(6 * part, 6 * part + 6):
                for suffix, array in (
                    ("jpg", images[index].transpose(1, 2, 0)),
                    ("png", label_of_class[masks[index]]),
                ):
                    file = tmp_path / f"cmp_{index:04d}.{suffix}"
                    tall = np.concatenate([array, array])  # not square, as in the database
                    Image.fromarray(tall).save(file)
                    archive.write(file, f"base/{file.name}")
    target = tmp_path / "data"
    mini_facade.acquire(source(target), archives)
    entry = mini_facade.load(source(target))
    assert entry.meta["train"] + entry.meta["test"] == 12
    assert 1 <= entry.meta["test"] <= 3, "crops of one building"
    assert set(np.unique(entry.array("train_targets"))) == set(np.unique(masks))


def test_a_label_beyond_the_database_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray(np.full((8, 8), 13, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png is no CMP mask"):
        cmp_facade.build([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out" / "train").exists()


def test_a_zip_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("good.txt", "good")
        archive.writestr("../../evil.txt", "evil")
    with pytest.raises(InputError, match=r"outside its folder \(../../evil.txt\)"):
        with unpacked(evil):
            pass


@pytest.mark.parametrize("content", [b"no zip at all", None])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match="neither a folder nor a zip|there is no"):
        with unpacked(tmp_path / "a.zip"):
            pass


@pytest.mark.parametrize("name", list(fashion_mnist.FILES))
def test_a_file_that_is_not_fashion_mnist_is_named(tmp_path: Path, name: str) -> None:
    raw = fashion_mnist.folder(source(tmp_path))
    raw.mkdir(parents=True)
    file = raw / f"{name}.gz"
    file.write_bytes(gzip.compress(b"\0\0\x08\x01" + bytes(100)))
    with pytest.raises(InputError, match="is not the published file"):
        fashion_mnist.decode(file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match="cannot be unpacked"):
        fashion_mnist.decode(file)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a hundred kilobytes; `/cut` promises more than it sends."""

    def do_GET(self) -> None:
        body = bytes(range(256)) * 400
        self.send_response(200 if self.path != "/none" else 404)
        self.send_header("Content-Length", str(len(body) * (2 if self.path == "/cut" else 1)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_download_arrives_whole(tmp_path: Path, address: str) -> None:
    path = download(f"{address}/file", tmp_path / "new" / "file.bin")
    assert path.read_bytes() == bytes(range(256)) * 400


def test_a_page_instead_of_an_archive_is_refused(tmp_path: Path, address: str, monkeypatch) -> None:
    with pytest.raises(InputError, match="gave no zip archive"):
        download(f"{address}/file", tmp_path / "archive.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["cut", "none"])
def test_a_failed_download_leaves_no_file(tmp_path: Path, address: str, what: str) -> None:
    with pytest.raises(InputError, match="--from PATH.*--dataset sample"):
        download(f"{address}/{what}", tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_download_of_other_content_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match="is not the file that was expected"):
        download(f"{address}/file", tmp_path / "file.bin", sha256_prefix="0000")
    assert list(tmp_path.iterdir()) == []


def test_sample_data_is_deterministic() -> None:
    first, again, other = (draw_set(2, seed, 64) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert set(np.unique(first[1])) <= set(range(5))


def test_with_no_network_fashion_names_both_ways_out(tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import FashionMNIST

    # Nothing listens on the discard port of this machine.
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(InputError, match="--data-dir DIR.*--dataset sample"):
        fashion_mnist.acquire(source(tmp_path), [])
