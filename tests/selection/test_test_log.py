"""The record of openings: none is lost, whoever writes at the same time."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from study.errors import InputError
from study.selection.test_log import begin_opening, read_openings, read_tests, record_opening
from study.storage.files import read_document, write_document
from study.storage.paths import AnyPath, as_path

EACH, WRITERS = 6, 4


def write(folder: str, writer: int) -> None:
    for number in range(EACH):
        about = {"trial": number, "checkpoint": f"{writer}-{number}", "checksum": "c"}
        opening = begin_opening(as_path(folder), about)
        if number % 2:
            record_opening(as_path(folder), {**opening, "metrics": {}})


def write_at_once(folder: AnyPath) -> None:
    """Have several processes record openings."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(str(folder), n)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert all(writer.exitcode == 0 for writer in writers)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_writers_at_once_lose_nothing(place: str, tmp_path: Path, request) -> None:
    folder = tmp_path if place == "disk" else as_path(f"{request.getfixturevalue('bucket')}/study")
    earlier = {"trial": 9, "checkpoint": "e", "checksum": "c", "time": "2026-01-01T00:00:00+0000"}
    write_document(folder / "tests.json", {"tests": [{**earlier, "metrics": {}}]})
    write_at_once(folder)
    openings = read_openings(folder)
    assert len({opening["checkpoint"] for opening in openings}) == WRITERS * EACH + 1
    assert len(openings) == WRITERS * EACH + 1 and openings[0]["checkpoint"] == "e"
    assert len(read_tests(folder)) == WRITERS * EACH // 2 + 1
    assert read_document(folder / "tests.json")["tests"] == openings
    if isinstance(folder, Path):
        assert not list(folder.glob(".*")), "no draft is left"


def test_what_one_of_the_two_files_lost_the_other_has(tmp_path: Path) -> None:
    first, second = (begin_opening(tmp_path, {"checkpoint": c, "checksum": "c"}) for c in "ab")
    (tmp_path / "tests.json").unlink()
    assert {one["id"] for one in read_openings(tmp_path)} == {first["id"], second["id"]}
    record_opening(tmp_path, {**first, "metrics": {}})
    next((tmp_path / "tests").glob(f"*{second['id']}.json")).unlink()
    assert {one["id"] for one in read_openings(tmp_path)} == {first["id"], second["id"]}
    file = next((tmp_path / "tests").glob("*.json"))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match="which weights have been tested"):
        read_tests(tmp_path)
