"""Checkpoints are believed only if they are what was written."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from study.errors import DamagedFile
from study.records import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {"network": {"weight": torch.randn(50, 50)}, "history": [{"epoch": 1, "loss": 0.5}]}
    checkpoint.save(state, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def test_what_is_saved_is_loaded(saved: Path) -> None:
    state = checkpoint.load(saved)
    torch.manual_seed(0)
    assert torch.equal(state["network"]["weight"], torch.randn(50, 50))
    assert state["history"] == [{"epoch": 1, "loss": 0.5}]
    assert os.listdir(saved.parent) == ["last.pt"]


def test_every_truncation_is_found_out(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(0, len(whole), 97):
        saved.write_bytes(whole[:length])
        with pytest.raises(DamagedFile, match="last.pt"):
            checkpoint.load(saved)


def test_a_flipped_bit_never_changes_a_tensor_unnoticed(saved: Path) -> None:
    whole = saved.read_bytes()
    expected = checkpoint.load(saved)["network"]["weight"]
    generator = random.Random(0)
    found = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        saved.write_bytes(bytes(damaged))
        try:
            assert torch.equal(checkpoint.load(saved)["network"]["weight"], expected)
        except DamagedFile as error:
            assert "last.pt" in str(error)
            found += 1
    assert found > 150, "what is not found out lies in padding"


def test_code_is_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"network": Evil()}, tmp_path / "evil.pt", pickle_module=pickle)
    with pytest.raises(DamagedFile):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "evil").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="last.pt is missing"):
        checkpoint.load(tmp_path / "last.pt")
