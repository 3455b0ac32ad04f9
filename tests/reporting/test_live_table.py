"""The live table, in real terminals: what stays on the screen, at the end and on the way."""

from __future__ import annotations

import contextlib
import os
import re
import select
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, TESTS, plugin, run_module, toy_study
from terminal import Screen, Terminal, terminal

from study.datasets.source import DataSource
from study.reporting.live_table import Block, moves_cursor

COMMAND = (
    "study.tune",
    *toy_study(3, 2),
    "--max-concurrent",
    2,
    "--set",
    "hidden=16",
)
TABLE = re.compile(r"[█░]|rungs  |epochs   \d")  # what only the table has


@contextlib.contextmanager
def block_in(columns: int, rows: int = 24) -> Iterator[tuple[Block, Screen, int]]:
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (rows, columns))
    with os.fdopen(slave, "w") as stream:
        yield Block(stream), Screen(columns, rows), master
    os.close(master)


def shown(screen: Screen, master: int) -> str:
    content = b""
    while select.select([master], [], [], 0.2)[0]:  # it comes a little later
        content += os.read(master, 1 << 16)
    screen.feed(content.decode())
    return screen.text


@pytest.mark.parametrize("columns", [60, 120])
def test_lines_are_replaced_and_what_is_said_stays(columns: int) -> None:
    with block_in(columns) as (block, screen, master):
        block.draw(["one", "two", "w" * 200])
        assert shown(screen, master) == f"one\ntwo\n{'w' * (columns - 1)}\n"
        block.draw(["", "three"], "said\n")
        assert shown(screen, master) == "said\n\nthree\n"
        block.above("a long text " + "x" * 200)
        text = shown(screen, master)
        assert text.endswith("x\n\nthree\n") and text.count("x") == 201
        screen.feed("^C")  # a key's echo
        block.draw([])
        text = shown(screen, master)
        assert text.endswith("x\n") and "three" not in text and "^C" not in text


def test_a_terminal_made_narrower_is_not_littered() -> None:
    with block_in(120) as (block, screen, master):
        block.draw(["wide " + "x" * 200, "short", "wide " + "y" * 200], "said\n")
        assert shown(screen, master).count("x") == 114
        screen.narrow(50)
        termios.tcsetwinsize(master, (24, 50))
        assert len(screen.text.splitlines()) == 8, "the wide lines are three each"
        block.draw(["again"])
        assert shown(screen, master) == "said\nagain\n"


def test_a_low_terminal_is_not_littered() -> None:
    with block_in(60, rows=6) as (block, screen, master):
        for number in range(5):
            block.draw([f"row {n} {number}" for n in range(30)], f"said {number}\n")
        text = shown(screen, master)
        assert text.splitlines()[:5] == [f"said {number}" for number in range(5)]
        assert len(text.splitlines()) == 10  # five rows of the table
        assert screen.widest < 60


def test_where_the_cursor_stays_lines_are_plain(tmp_path: Path, monkeypatch) -> None:
    _, slave = os.openpty()
    with os.fdopen(slave, "w") as stream, (tmp_path / "file").open("w") as file:
        for term, moves in (("xterm", True), ("dumb", False), ("", False), ("xterm-color", False)):
            monkeypatch.setenv("TERM", term)
            assert moves_cursor(stream) == moves
            assert not moves_cursor(file)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("JPY_PARENT_PID", "1")
        assert not moves_cursor(stream)
        monkeypatch.delenv("TERM")
        assert not moves_cursor(stream)


# A driver without Ray: it reports epochs, and says things in every way there is.
DRIVER = r"""
import json, logging, sys, time
from pathlib import Path
from study.reporting.live_table import progress_for
from study.records.study_record import StudyRecord
from study.search.stopping_rule import StoppingRule
from study.runner.stopping import Stopping, StudyStopped
from begun import begin
from recorded import MANIFEST

logging.basicConfig(level=logging.WARNING)
manifest = json.loads(json.dumps(MANIFEST))
record = StudyRecord.create_or_continue(Path("s"), manifest, "command")
stopping = Stopping(None)
stopping.watch(record.path)
with progress_for(record, StoppingRule(num_samples=3, asha=(2, 2.0))) as progress:
    stopping.tell = progress.tell
    progress.say("begins")
    for number in range(3):
        begin(record)
        for epoch in range(1, 10):
            time.sleep(0.2)
            row = {"epoch": epoch, "val/mean_ap": epoch / 10 + number / 100, "ended": time.time()}
            record.report(number, row)
            progress.epoch(number, epoch)
            if stopping.why:
                stopping.check()
        record.end(number, "finished")
        progress.ended(record.trial(number))
        print(f"printed {number}")
        print(f"told {number}", file=sys.stderr)
        logging.warning("warned %d", number)
        if "raise" in sys.argv:
            raise ZeroDivisionError("on purpose")
    print("not ended", end="")
print("the end")
"""


@pytest.mark.parametrize("columns", [60, 120])
@pytest.mark.parametrize("how", ["ends", "raise", "Ctrl-C"])
def test_all_that_is_said_stays_and_the_table_goes(tmp_path: Path, columns: int, how: str) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    path = f"{tmp_path}:{TESTS}:{ROOT}"
    with terminal("driver", how, cwd=tmp_path, columns=columns, env={"PYTHONPATH": path}) as run:
        run.wait_for("█░")
        table = run.screen.text
        if how == "Ctrl-C":
            run.press(b"\x03")
        assert run.wait() == (0 if how == "ends" else 1), run.seen
    assert "s (SAMPLE DATA): 0/3 trials (1 running)" in table and "rungs    epoch 2" in table
    assert not re.search(r"[█░]|rungs  |epochs   \d|SAMPLE", run.screen.text), run.screen.text
    screen = run.screen.text.splitlines()
    assert screen[0] == "begins"
    if how == "Ctrl-C":
        assert "Ctrl-C: saving running trials; a second one stops at once" in screen
        assert "StudyStopped" in run.screen.text and "^C" not in run.screen.text
        return
    for number in range(3 if how == "ends" else 1):
        assert run.screen.text.count(f"trial   {number}  finished") == 1
        for line in (f"printed {number}", f"told {number}", f"WARNING:root:warned {number}"):
            assert screen.count(line) == 1
    last = ["not ended", "the end"] if how == "ends" else ["ZeroDivisionError: on purpose"]
    assert screen[-len(last) :] == last


def faulty(home: Path) -> dict[str, str]:
    """The task `faulty`, with the package beside these tests and no other that is installed."""
    env = plugin(home)
    return {**env, "PYTHONPATH": f"{env['PYTHONPATH']}:{ROOT}"}


def study_in(home: Path, columns: int, **env: str) -> contextlib.AbstractContextManager[Terminal]:
    return terminal(*COMMAND, cwd=home, columns=columns, env={**faulty(home), **env})


def assert_clean(running: Terminal) -> str:
    """Nothing of the table is left, no line of it ever wrapped, and what was said is whole."""
    text = running.screen.text
    assert not TABLE.search(text), text
    assert "study faulty begins" in text and "folder" in text
    return text


@pytest.mark.parametrize("columns", [60, 120])
def test_a_study_leaves_a_clean_screen(tmp_path: Path, sample: DataSource, columns: int) -> None:
    with study_in(tmp_path, columns, PAUSE="0.02") as running:
        assert running.wait() == 0, running.seen[-3000:]
    text = assert_clean(running)
    assert "░" in running.seen, "the table was there"
    for line in re.findall(r"[^\r\n]*░[^\r\n]*", running.seen):
        assert len(re.sub(r"\x1b\[\d*[A-Z]", "", line)) < columns
    for number in range(3):
        assert text.count(f"trial   {number}  finished") == 1
    assert "study faulty: 3 finished" in text and "next:" in text


def test_ctrl_c_leaves_a_clean_screen(tmp_path: Path, sample: DataSource) -> None:
    with study_in(tmp_path, 100, PAUSE="0.3") as running:
        running.wait_for("░")
        running.press(b"\x03")
        assert running.wait() == 130
    text = assert_clean(running)
    assert text.count("Ctrl-C: saving running trials; a second one stops at once") == 1
    assert "stopped by Ctrl-C" in text and "continue with: python -m study.tune" in text


def test_an_exception_leaves_a_clean_screen(tmp_path: Path, sample: DataSource) -> None:
    code = (
        "import sys, study.runner.callbacks as s, study.tune as t\n"
        "from study.cli import run_command\n"
        "def broken(*a, **k): raise ZeroDivisionError('broken')\n"
        "s.StudyCallback._ended = broken\n"
        "sys.exit(run_command(lambda: t.main(sys.argv[1:])))\n"
    )
    (tmp_path / "broken.py").write_text(code)
    env = {**faulty(tmp_path), "PAUSE": "0.02"}
    env["PYTHONPATH"] += f":{tmp_path}"
    with terminal("broken", *COMMAND[1:], cwd=tmp_path, columns=100, env=env) as running:
        assert running.wait() == 1, running.seen[-3000:]
    assert "ZeroDivisionError: broken" in assert_clean(running)
    assert "░" in running.seen


def test_a_dumb_terminal_and_a_file_get_plain_lines(tmp_path: Path, sample: DataSource) -> None:
    with study_in(tmp_path, 80, TERM="dumb") as running:
        assert running.wait() == 0, running.seen[-3000:]
    seen = running.seen.removesuffix("\x1b[0m")  # from colorama, which Ray imports, at exit
    assert "\x1b" not in seen and "3/3 trials" in seen
    home = tmp_path / "again"
    home.mkdir()
    done = run_module("tune", *COMMAND[1:], cwd=home, env={**faulty(home), "TERM": "xterm"})
    assert done.returncode == 0 and "3/3 trials" in done.stderr and "\x1b" not in done.stderr
