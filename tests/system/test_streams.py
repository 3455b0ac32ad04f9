"""Commands whose reader is gone, `head` for one: nothing that they do is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import plugin
from recorded import MANIFEST

from study.datasets.source import DataSource
from study.records.study_record import StudyRecord

SPEAKS = """
import logging, pathlib, subprocess, sys, threading
from study.cli import run_command

def main():
    sys.stdin.read()  # until the reader is gone
    for stream in (sys.stdout, sys.stderr):
        for _ in range(3):
            print("x" * 20_000, file=stream, flush=True)
    thread = threading.Thread(target=print, args=("y" * 20_000,))
    thread.start()
    thread.join()
    logging.getLogger("some").error("bad")
    child = subprocess.run([sys.executable, "-c", "print('z' * 20_000, flush=True)"])
    pathlib.Path("done").write_text(str(child.returncode))
    print("left in the buffer")
    return 7

sys.exit(run_command(main))
"""


@pytest.mark.parametrize("output", ["</dev/null", ">/dev/full"])
def test_output_that_cannot_be_written_ends_nothing(tmp_path: Path, output: str) -> None:
    for other, told in (("2>errors", True), (f"2{output}" if "full" in output else "2>&1", False)):
        command = f'"$0" -c "$1" 1{output} {other} <<<""'
        done = subprocess.run(["bash", "-c", command, sys.executable, SPEAKS], cwd=tmp_path)
        assert done.returncode == 7 and (tmp_path / "done").exists()
        (tmp_path / "done").unlink()
        if told:
            errors = (tmp_path / "errors").read_text()
            assert errors.count("cannot write to standard output (") == 1, errors
            assert "run_command" not in errors, "no traceback but that of what it starts"


def test_a_reader_that_is_slow_gets_all(tmp_path: Path) -> None:
    text = (
        "from study.system.streams import outlive_readers; outlive_readers(); print('x' * 500_000)"
    )
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen([sys.executable, "-c", text], stdout=writer) as process:
        os.close(writer)
        with open(reader, "rb") as file:
            assert len(file.read()) == 500_001
    assert process.returncode == 0


def without_reader(
    *command: object, cwd: Path, env: dict[str, str] | None = None, lines: int = 0
) -> int:
    """Run a command as `command 2>&1 | head` does; return its exit code."""
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None and process.stdout is not None
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    try:
        return process.wait(400)
    finally:
        process.kill()


def test_what_nobody_reads_is_dropped(tmp_path: Path) -> None:
    for flags in ([], ["-u"]):
        (tmp_path / "done").unlink(missing_ok=True)
        assert without_reader(sys.executable, *flags, "-c", SPEAKS, cwd=tmp_path) == 7
        assert (tmp_path / "done").read_text() == "0"


def test_a_page_of_help_ends_quietly(tmp_path: Path) -> None:
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -m study.tune --help | head -1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")


def test_watching_ends_when_nobody_looks(tmp_path: Path) -> None:
    manifest = json.loads(json.dumps(MANIFEST))
    record = StudyRecord.create_or_continue(tmp_path / "studies" / "s", manifest, "study.tune")
    command = (sys.executable, "-m", "study.status", "s", "--watch", "--json", "--every", 0.1)
    assert without_reader(*command, cwd=tmp_path, lines=1) == 0
    record.close()


def test_a_study_and_a_training_go_on_without_a_reader(tmp_path: Path, sample: DataSource) -> None:
    env = plugin(tmp_path)
    study = (
        sys.executable,
        "-m",
        "study.tune",
        "faulty",
        "--dataset",
        "sample",
        "--epochs",
        1,
        "--num-samples",
        3,
        "--search-space",
        "space.yaml",
    )
    assert without_reader(*study, cwd=tmp_path, env=env, lines=1) == 0
    trials = StudyRecord.read(tmp_path / "studies" / "faulty").trials()
    assert len(trials) == 3 and all(trial.state != "running" for trial in trials)
    training = (
        sys.executable,
        "-m",
        "study.train",
        "fashion",
        "--dataset",
        "sample",
        "--epochs",
        2,
        "--limit-batches",
        2,
        "--run-dir",
        "run",
    )
    assert without_reader(*training, cwd=tmp_path, lines=1) == 0
    assert len(json.loads((tmp_path / "run" / "metrics.json").read_text())) == 2
