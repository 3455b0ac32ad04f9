"""The live table of a study in a terminal: its last lines, redrawn every second.

Events are printed above the table and stay; the table disappears when the study ends, however it
ends. Without a terminal, or in one that cannot move the cursor (TERM=dumb), lines are just printed
(`study.reporting.progress`).

It uses only two escape sequences. rich 15 was tried: when the terminal is made narrower, its table
leaves lines behind; printing from a signal handler can deadlock (with its refresh thread); and none
of our dependencies requires it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Self, TextIO

from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.reporting.progress import SHARE, Progress
from study.reporting.snapshot import lines, snapshot
from study.search.stopping_rule import StoppingRule
from study.system.redaction import cleaned

DRAW_SECONDS = 1.0


def moves_cursor(stream: TextIO) -> bool:
    """Return whether lines written to a stream can be replaced.

    A notebook runs commands in a terminal named xterm-color that cannot move the cursor.
    """
    kind = os.environ.get("TERM", "dumb")
    notebook = kind == "xterm-color" or "JPY_PARENT_PID" in os.environ
    return stream.isatty() and kind not in ("", "dumb") and not notebook


def progress_for(record: StudyRecord, asked: StoppingRule) -> Progress:
    """Return the live table if it can be shown, else plain lines."""
    if moves_cursor(sys.stderr):
        return LiveProgress(record, asked)
    return Progress(record, asked)


class Block:
    """Lines at the end of a terminal that can be replaced.

    Args:
        stream: The terminal; its buffer is bypassed, so that signal handlers can write, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._file = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._shown: list[str] = []
        self._waiting: list[str] = []  # texts that could not be printed at once
        self._lock = threading.Lock()

    def size(self) -> tuple[int, int]:
        """Return usable columns and rows; a full last column wraps on some terminals."""
        try:
            columns, rows = os.get_terminal_size(self._file)
        except OSError:  # it was closed
            columns, rows = 80, 24
        return max(10, (columns or 80) - 1), max(2, (rows or 24) - 1)

    def draw(self, rows: Sequence[str], above: str = "") -> None:
        """Replace the lines, and print a text above them that stays."""
        with self._lock:
            self._draw(rows, above)

    def above(self, text: str) -> None:
        """Print a text above the lines, immediately unless someone else is drawing, else soon."""
        self._waiting.append(text)
        if self._lock.acquire(blocking=False):
            try:
                self._draw(self._shown, "")
            finally:
                self._lock.release()

    def _draw(self, rows: Sequence[str], above: str) -> None:
        columns, height = self.size()
        # Lines may have wrapped since, if the terminal was made narrower.
        up = sum(max(1, -(-len(row) // (columns + 1))) for row in self._shown)
        rows = [row[:columns] for row in rows][:height]
        texts = [*self._waiting, above]
        del self._waiting[: len(texts) - 1]
        said = [cleaned(text).rstrip("\n") for text in texts if text]
        content = "".join(line + "\n" for line in (*said, *rows))
        # Move to the line's start and up, and erase everything below, including echoed keys (^C).
        content = (f"\x1b[{up}A" if up else "") + "\r\x1b[J" + content
        try:
            os.write(self._file, content.encode(self._encoding, "replace"))
        except OSError:
            pass  # the terminal is gone; the study continues
        self._shown = list(rows)


class LiveProgress(Progress):
    """Prints events above a table with the study's state.

    While it is open, everything that this process prints to the terminal goes above the table.
    """

    def __init__(self, record: StudyRecord, asked: StoppingRule) -> None:
        super().__init__(record, asked)
        self._block = Block(sys.stderr)
        self._last: list[str] = []  # the table as last drawn
        self._before: tuple[Any, ...] = ()

    def __enter__(self) -> Self:
        self._before = (sys.stdout, sys.stderr)
        output = _Above(sys.stderr, self._block)
        sys.stderr = output
        if sys.stdout.isatty():
            sys.stdout = output
        self._redirect_logs(self._before[1], output)
        return super().__enter__()

    def __exit__(self, *raised: object) -> None:
        """Remove the table and restore the terminal."""
        super().__exit__()
        output = sys.stderr
        output.write("\n" * bool(getattr(output, "begun", "")))  # complete an unfinished line
        sys.stdout, sys.stderr = self._before
        self._redirect_logs(output, sys.stderr)
        self._block.draw([])

    def _redirect_logs(self, old: Any, new: Any) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._block.draw(self._last, text)

    def tell(self, text: str) -> None:
        """Print a line above the table, now or with the next drawing; never block."""
        self._block.above(text)

    def epoch(self, number: int, epoch: int) -> None:
        """Do nothing: the table shows it."""

    def ended(self, trial: TrialRecord) -> None:
        """Print the line of an ended trial."""
        self.say(self.ended_line(trial))

    def _keep_showing(self) -> None:
        pause = DRAW_SECONDS
        while not self._due.wait(pause):  # set only at the end
            outlook = self.look_ahead()
            looked = time.monotonic()
            state = snapshot(self.record, self.asked, outlook)
            if state["left"]:
                trained = state["epochs_done"] - self._known[1]
                state["left"]["epochs"] = max(0.0, state["left"]["epochs"] - trained)
            self._last = ["", *lines(state, self._block.size()[0])]
            self._block.draw(self._last)
            pause = max(DRAW_SECONDS, SHARE * (time.monotonic() - looked))


class _Above:
    """A stream whose lines are printed above a block."""

    def __init__(self, stream: TextIO, block: Block) -> None:
        self._stream = stream
        self._block = block
        self.begun = ""

    def write(self, text: str) -> int:
        """Print complete lines; keep the rest until its line is complete."""
        *whole, self.begun = (self.begun + text).split("\n")
        if whole:
            self._block.above("\n".join(whole))
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines are printed when they are complete."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
