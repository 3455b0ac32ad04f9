"""Figures under a user's own configuration of matplotlib: the same, and it stays as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from study.figures.run_figures import draw_run, save_figures
from study.records.run_folder import RunFolder
from study.tasks.fashion import TASK

HISTORY = [{"epoch": 1, "train/loss": 1.0, "val/loss": 1.1, "val/accuracy": 0.5}]
DRAW = """
import sys
from study.cli import run_command
from study.figures.run_figures import draw_run
from study.records.run_folder import RunFolder
from study.tasks.fashion import TASK

history = [{"epoch": 1, "train/loss": 1.0, "val/loss": 1.1, "val/accuracy": 0.5}]

def main():
    folder = RunFolder(__import__("pathlib").Path(sys.argv[1]))
    draw_run(folder, TASK, "val/accuracy", "a_note", history)
    return 0

sys.exit(run_command(main))
"""
STYLE = "text.usetex: True\nsavefig.bbox: tight\nsavefig.dpi: 31\naxes.facecolor: red\n"


def draw(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = home / "run"
    return subprocess.run(
        [sys.executable, "-c", DRAW, str(folder)],
        cwd=home,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The learning curves where nothing is configured."""
    home = tmp_path_factory.mktemp("plain")
    done = draw(home)
    assert done.returncode == 0, done.stderr
    return (home / "run" / "figures" / "learning_curves.png").read_bytes()


@pytest.mark.parametrize("kind", ["backend", "no such backend", "style", "garbage", "here", "home"])
def test_no_configuration_changes_or_ends_a_drawing(
    kind: str, plain: bytes, tmp_path: Path
) -> None:
    environment: dict[str, str] = {}
    if kind == "backend":
        environment["MPLBACKEND"] = "module://notebook.not_installed"
    elif kind == "no such backend":
        environment["MPLBACKEND"] = "inlined"
    elif kind == "home":
        file = tmp_path / "file"
        file.touch()
        environment["MPLCONFIGDIR"] = str(file)
    else:
        place = tmp_path if kind == "here" else tmp_path / "settings"
        place.mkdir(exist_ok=True)
        text = b"text.usetex: \xff\n" if kind == "garbage" else STYLE.encode()
        (place / "matplotlibrc").write_bytes(text)
        environment["MPLCONFIGDIR"] = str(tmp_path / "settings")
    done = draw(tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "figures" / "learning_curves.png").read_bytes() == plain


def test_a_notebook_keeps_its_settings(tmp_path: Path) -> None:
    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 31}):
        draw_run(RunFolder(tmp_path), TASK, "val/accuracy", "a_note", HISTORY)
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["savefig.dpi"] == 31

        def fails() -> dict:
            raise OSError("no figure")

        with pytest.raises(OSError, match="no figure"):
            save_figures(fails, tmp_path)
        assert matplotlib.rcParams["text.usetex"]
