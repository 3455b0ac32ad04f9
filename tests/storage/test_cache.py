"""The cache of arrays under several processes and after a crash."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.errors import InputError
from study.storage import cache
from study.storage.cache import cached, file_stamps


def build_slowly(draft: Path) -> dict[str, Any]:
    with (draft.parent / "builds.log").open("a") as log:
        log.write("built\n")
    time.sleep(0.3)
    np.save(draft / "numbers.npy", np.arange(1000))
    return {"checksum": "abc"}


def read(cache_dir: Path) -> int:
    return int(cached(cache_dir, "slow", ["key"], build_slowly).array("numbers").sum())


def test_eight_processes_at_once_build_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        sums = pool.map(read, [tmp_path] * 8)
    assert sums == [499500] * 8
    assert (tmp_path / "builds.log").read_text() == "built\n"


def test_a_build_that_died_is_done_again(tmp_path: Path) -> None:
    def dies(draft: Path) -> dict[str, Any]:
        (draft / "numbers.npy").write_text("half a file")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached(tmp_path, "slow", ["key"], dies)
    assert read(tmp_path) == 499500


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    first = cached(tmp_path, "slow", ["a"], build_slowly)
    second = cached(tmp_path, "slow", ["b"], build_slowly)
    assert first.folder != second.folder


def test_writing_to_a_mapped_array_leaves_the_file_alone(tmp_path: Path) -> None:
    cached(tmp_path, "slow", ["key"], build_slowly).array("numbers")[:] = 0
    assert read(tmp_path) == 499500


def test_stamps_change_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    before = file_stamps([file])
    file.write_bytes(b"three")
    assert file_stamps([file]) != before


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="STUDY_CACHE_DIR"):
        cached(tmp_path / "file" / "cache", "slow", ["key"], build_slowly)
    assert os.listdir(tmp_path) == ["file"]


def test_a_wait_for_another_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 0.1)
    told = threading.Event()
    read(tmp_path)
    (folder,) = tmp_path.glob("slow-*/")
    shutil.rmtree(folder)
    held = (tmp_path / f"{folder.name}.lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr(cache, "print", lambda *a, **k: (told.set(), print(*a, **k)), raising=False)
    threading.Thread(target=lambda: (told.wait(60), held.close())).start()
    assert read(tmp_path) == 499500
    assert f"holds {tmp_path}" in capsys.readouterr().err
