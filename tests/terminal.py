"""A terminal that a command runs in, and what is on its screen at the end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

# Makes the terminal the one that controls the command, so that Ctrl-C reaches it.
LAUNCH = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])"
)


class Screen:
    """Lines as a terminal shows them, those that scrolled away too; knows what the live table uses.

    Args:
        columns: Width; what is longer wraps.
        rows: Height; the cursor cannot go up beyond it.
    """

    def __init__(self, columns: int, rows: int = 24) -> None:
        self.columns, self.rows = columns, rows
        self.lines = [""]
        self.row = self.column = 0
        self.widest = 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|\x1b.|.|\n", text, re.DOTALL):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self._down()
            elif part.startswith("\x1b["):
                number, letter = part[2:-1], part[-1]
                assert letter in "AJm", f"an unknown sequence {part!r}"
                if letter == "m":  # a colour of somebody else's
                    continue
                if letter == "A":
                    self.row = max(self.row - int(number), len(self.lines) - self.rows, 0)
                else:
                    assert number == ""
                    self.lines[self.row] = self.lines[self.row][: self.column]
                    del self.lines[self.row + 1 :]
            else:
                assert not part.startswith("\x1b")
                if self.column == self.columns:
                    self._down()
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1
                self.widest = max(self.widest, self.column)

    def narrow(self, columns: int) -> None:
        """Make it narrower; what is too long then goes on in the next line, as in VTE and kitty."""
        above, self.lines = self.lines, []
        for number, line in enumerate(above):
            if number == self.row:
                self.row = len(self.lines) + self.column // columns
            line = line.rstrip()
            self.lines += [line[k : k + columns] for k in range(0, max(1, len(line)), columns)]
        self.columns, self.column = columns, self.column % columns

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


class Terminal:
    """A command in a terminal.

    Attributes:
        seen: All that it wrote, escape sequences and all.
        process: The command.
    """

    def __init__(self, process: subprocess.Popen[bytes], master: int, columns: int) -> None:
        self.process, self._master, self._columns = process, master, columns
        self._raw = b""

    @property
    def seen(self) -> str:
        return self._raw.decode(errors="replace")

    @property
    def screen(self) -> Screen:
        screen = Screen(self._columns)
        screen.feed(self.seen)
        return screen

    def read(self, seconds: float) -> bool:
        """Read what comes for so long; return whether more may come."""
        if select.select([self._master], [], [], seconds)[0]:
            try:
                content = os.read(self._master, 1 << 16)
            except OSError:  # the command has ended
                return False
            self._raw += content
            return bool(content)
        return self.process.poll() is None

    def wait_for(self, text: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert self.read(0.2), f"ended without {text!r}: {self.seen[-3000:]}"
            assert time.monotonic() < deadline, f"waited in vain for {text!r}: {self.seen[-3000:]}"

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait(self, seconds: float = 180) -> int:
        deadline = time.monotonic() + seconds
        while self.read(0.2):
            assert time.monotonic() < deadline, f"did not end: {self.seen[-3000:]}"
        return self.process.wait(30)


@contextlib.contextmanager
def terminal(
    *command: object, cwd: Path, columns: int = 80, env: dict[str, str] | None = None
) -> Iterator[Terminal]:
    """Run `python -m ...` in a terminal of 24 rows."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *map(str, command)],
        **{"stdin": slave, "stdout": slave, "stderr": slave, "cwd": cwd},
        env={**os.environ, "TERM": "xterm", **(env or {})},
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master, columns)
    finally:
        process.kill()
        process.wait()
        os.close(master)
