"""Getting, importing and verifying data sets; every damaged file is named."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module
from PIL import Image

from study.datasets import cmp_facade, fashion_mnist, mini_facade
from study.datasets.archive import unpacked
from study.datasets.drawn_facades import draw_set
from study.datasets.source import DataSource, ImageSet, Splits, check_classes, say_absent
from study.errors import InputError
from study.storage.cache import checksum
from study.tasks.facade import TASK as FACADE
from study.tasks.fashion import TASK as FASHION


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


def test_task_files_of_before_find_what_they_import() -> None:
    from study import data

    assert (data.DataSource, data.ImageSet, data.Splits) == (DataSource, ImageSet, Splits)


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
    Image.fromarray(np.zeros((256, 256), bool)).save(folder / "x_0003.png")
    return folder / "x_0003.png"


def damage_colour(folder: Path) -> Path:
    Image.fromarray(np.full((256, 256, 3), 9, np.uint8)).save(folder / "x_0003.png")
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
        (damage_label, "has the label 7, but the classes are 0 to 4"),
        (damage_mode, "has mode 1"),
        (damage_colour, "has the label 9, but the classes are 0 to 4"),
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


def test_pairs_of_any_spelling_are_used_and_all_else_is_told(
    facade_dir: Path, tmp_path: Path
) -> None:
    given = facade_dir / "facade" / "starter_set"
    train = given / "train"
    (train / "more").mkdir()
    for number, (photo, mask) in enumerate(
        [(".JPG", ".PNG"), (".jpeg", ".png"), (".JPEG", ".Png")]
    ):
        (train / f"x_000{number}.jpg").rename(train / f"x_000{number}{photo}")
        (train / f"x_000{number}.png").rename(train / f"x_000{number}{mask}")
    for number in (3, 4):
        for suffix in ("jpg", "png"):
            (train / f"x_000{number}.{suffix}").rename(train / "more" / f"x_000{number}.{suffix}")
    for name in (
        "photo.heic",
        "notes.txt",
        "more/x.webp",
        ".DS_Store",
        "._x_0000.jpg",
        "Thumbs.db",
    ):
        (train / name).write_bytes(b"")
    (train / "gone.jpg").symlink_to("nowhere")
    (train / "elsewhere").symlink_to(tmp_path)
    for command in (["--from", given], []):
        done = run_module(
            "data", "facade", *command, "--data-dir", tmp_path / "new", "--json", cwd=tmp_path
        )
        assert done.returncode == 0 and json.loads(done.stdout)["train"] == 9, done.stderr
        if command:
            for phrase in (
                "8 not used: ",
                "1 link to a folder (elsewhere)",
                "1 broken link (gone.jpg)",
                "3 neither JPEG nor PNG by their names (",
                "more/x.webp",
                "3 hidden or the system's",
            ):
                assert phrase in done.stderr
    entry = mini_facade.load(source(facade_dir))  # where they are, nothing is left out silently
    assert entry.meta["train"] == 9 and "3 neither JPEG" in entry.meta["files"]
    new = mini_facade.load(source(tmp_path / "new"))
    assert "files" not in new.meta and new.meta["checksum"] == entry.meta["checksum"]


def test_a_part_of_a_set_is_refused_with_its_numbers(facade_dir: Path, tmp_path: Path) -> None:
    train = facade_dir / "facade" / "starter_set" / "train"
    for number in range(4):
        (train / f"x_000{number}.png").unlink()
    with pytest.raises(InputError, match=r"x_0000.jpg has no mask: .* 4 files of 14 have no part"):
        mini_facade.load(source(facade_dir))
    shutil.copy(train / "x_0004.jpg", train / "x_0004.JPEG")
    with pytest.raises(InputError, match=r"x_0004.* have the same name; remove or rename one"):
        mini_facade.load(source(facade_dir))
    shutil.rmtree(train.with_name("test_dev"))
    with pytest.raises(InputError, match=r"has a folder train, but no test_dev beside it"):
        mini_facade.acquire(source(tmp_path / "new"), [facade_dir])


def test_two_sets_in_one_archive_are_refused(facade_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(facade_dir / "facade", facade_dir / "copy")
    with pytest.raises(
        InputError, match=r"contains 2 data sets \(copy/starter_set/, facade/starter_"
    ):
        mini_facade.acquire(source(tmp_path / "new"), [facade_dir])


def test_masks_of_another_palette_and_turned_photographs_give_the_same_arrays(
    facade_dir: Path, capsys
) -> None:
    where = source(facade_dir)
    before = mini_facade.load(where)
    expected = [before.array("train_images").copy(), before.array("train_targets").copy()]
    train = facade_dir / "facade" / "starter_set" / "train"
    order = [3, 0, 4, 1, 2]  # class -> number in the file
    with Image.open(train / "x_0000.png") as image:
        labels = np.asarray(image)
    mask = Image.fromarray(np.array(order, np.uint8)[labels]).convert("P")
    mask.putdata(np.array(order, np.uint8)[labels].ravel())
    mask.putpalette([v for n in np.argsort(order) for v in mini_facade.PALETTE[n]])
    mask.save(train / "x_0000.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    lossless = Image.fromarray(expected[0][1].transpose(1, 2, 0)[::-1, ::-1].copy())
    lossless.save(train / "x_0001.jpg", "PNG", exif=exif)  # the content counts, not the name
    after = mini_facade.load(where)
    assert np.array_equal(after.array("train_targets"), expected[1])
    assert np.array_equal(after.array("train_images"), expected[0])
    said = "1 masks read by their colours, 1 photographs turned as their EXIF data say"
    assert after.meta["read"] == said and f"facade: {said}" in capsys.readouterr().err
    # What older versions read otherwise is another data set: a study does not go on over it.
    files = [file for pair in mini_facade.find_pairs(train).pairs for file in pair]
    files += [f for p in mini_facade.find_pairs(train.with_name("test_dev")).pairs for f in p]
    assert after.meta["checksum"] != checksum(files)


def test_a_class_that_is_nowhere_is_told(capsys) -> None:
    targets = np.array([[[0, 1]], [[0, 0]], [[3, 1]], [[1, 1]]], np.uint8)
    images = np.zeros((4, 3, 1, 2), np.uint8)
    some = ImageSet(images, targets, np.array([0, 1]))
    assert say_absent("facade", FACADE.classes, some, "validation") == ["others", "facade"]
    assert capsys.readouterr().err == (
        "facade: validation has no pillar, window, balcony; they have no score, and "
        "means are over the other 2 classes\n"
    )
    classes = FACADE.classes
    check_classes("facade", classes, Splits(ImageSet(images, targets, np.array([2])), some))
    with pytest.raises(
        InputError, match="validation has only one class, others .of 5., so every net"
    ):
        check_classes("facade", classes, Splits(some, ImageSet(images, targets, np.array([1]))))
    labels = np.arange(10, dtype=np.uint8)
    for chosen, said in ((labels, 0), (labels[1:], 1)):
        some = ImageSet(labels, labels, chosen)
        assert len(say_absent("fashion", FASHION.classes, some, "training")) == 10 - said
    assert "has no T-shirt/top; it has no score" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "tune"])
def test_masks_of_one_class_are_refused(facade_dir: Path, tmp_path: Path, command: str) -> None:
    for mask in (facade_dir / "facade" / "starter_set").rglob("*.png"):
        Image.fromarray(np.ones((256, 256), np.uint8)).save(mask)
    done = run_module(command, "facade", "--data-dir", facade_dir, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: validation has only one class, facade (of 5)" in done.stderr
    assert "training has no others, pillar, window, balcony" in done.stderr


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
    built_from = [
        {"name": path.name, "facades": 6, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in archives
    ]
    assert entry.meta["built_from"] == built_from


def test_cmp_masks_are_read_by_colour_whatever_their_numbers(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(1, 13, (64, 64), np.uint8)
    order = np.concatenate([[0], generator.permutation(np.arange(1, 13))])
    expected = cmp_facade.CLASS_OF_LABEL[labels]
    colors = np.zeros((256, 3), np.uint8)
    for color, label in cmp_facade.COLORS.items():
        colors[order[label]] = color
    for name, numbers, palette in (
        ("grey", labels, None),
        ("permuted", order[labels].astype(np.uint8), colors),
    ):
        image = Image.fromarray(numbers)
        if palette is not None:
            image = image.convert("P")
            image.putdata(numbers.ravel())
            image.putpalette(palette.ravel().tolist())
        image.save(tmp_path / f"{name}.png")
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.jpg")
        _, mask = cmp_facade._read_pair(tmp_path / f"{name}.jpg", tmp_path / f"{name}.png", 64)
        assert np.array_equal(np.asarray(mask), expected), name


def test_what_is_no_part_of_the_database_is_told(tmp_path: Path, drawn_pairs, capsys) -> None:
    images, masks = drawn_pairs
    root = tmp_path / "base"
    root.mkdir()
    label_of_class = np.array([4, 2, 11, 3, 7], np.uint8)
    for index in range(6):
        Image.fromarray(images[index].transpose(1, 2, 0)).save(root / f"cmp_b000{index}.JPG")
        Image.fromarray(label_of_class[masks[index]]).save(root / f"cmp_b000{index}.png")
    (root / "cmp_b0005.png").unlink()
    (root / "cmp_b0000.xml").write_text("")
    cmp_facade.build([root], tmp_path / "set")
    error = capsys.readouterr().err
    assert "5 of the 378 facades of part base" in error and "from 5 CMP facades" in error
    assert "1 without a mask (cmp_b0005.JPG)" in error and "(cmp_b0000.xml)" in error
    with pytest.raises(InputError, match=r"cmp_b0000.JPG appears twice"):
        cmp_facade.build([root, shutil.copytree(root, tmp_path / "again")], tmp_path / "set")


def test_the_database_is_not_fetched_without_a_checksum(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"CMP_facade_DB_base.zip and .* --from.*--dataset sample"):
        mini_facade.acquire(source(tmp_path), [])


def test_a_label_beyond_the_database_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray(np.full((8, 8), 13, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png is not a CMP mask"):
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
