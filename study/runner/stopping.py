"""Stopping a study in good order: signals, the time budget, and what makes going on pointless.

The trials see a file in the study's folder, save where they are, in the middle of an epoch too,
and say so; then the study ends. The same command goes on from there.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from study.errors import HoldLost, StorageError
from study.formatting import duration
from study.storage.files import write_text
from study.storage.paths import AnyPath
from study.system.streams import write_line

GRACE_SECONDS = 8.0  # for trials to save; of the 20 that stopping may take
SIGNALS = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])


class StudyStopped(BaseException):
    """Leaves Ray Tune's loop; as KeyboardInterrupt, no handler of errors may catch it."""


class Stopping:
    """Whether the study is to stop, and why.

    Args:
        budget: Seconds after which it stops; None for never.
        begun: From when on, by the monotonic clock; None from now on.

    Attributes:
        why: In a sentence for people; None as long as the study goes on.
        exit_code: Of the command, once the study has stopped.
        spent: Whether it stopped because the time budget is used up.
        abandoned: Whether another driver has the study now.
        waits: Whether trials can save in the middle of an epoch, so that waiting helps.
        tell: Prints a line while a signal is handled, where nothing may wait for a lock.
    """

    def __init__(self, budget: float | None, begun: float | None = None) -> None:
        self.budget = budget
        self.why: str | None = None
        self.exit_code = 0
        self.spent = False
        self.waits = True
        self.tell: Callable[[str], None] = write_line
        self.abandoned = False
        self._file: AnyPath | None = None  # none before the study is open
        self._before: dict[signal.Signals, Any] = {}
        self._begun = time.monotonic() if begun is None else begun
        self._since = 0.0

    def watch(self, folder: AnyPath) -> None:
        """Begin: the trials of the study in this folder are the ones to ask."""
        self._file = folder / ".stop"
        self._file.unlink(missing_ok=True)
        self.catch_signals()

    def catch_signals(self) -> None:
        """Stop in good order on Ctrl-C, SIGTERM and a closed terminal; at once on a second one."""
        for known in SIGNALS:
            before = signal.getsignal(known)
            if before is not signal.SIG_IGN:  # as `nohup` leaves SIGHUP
                self._before.setdefault(known, before)
                signal.signal(known, self._on_signal)

    def release_signals(self) -> None:
        """Give the signals back."""
        for known, before in self._before.items():
            signal.signal(known, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code > 128:
            os._exit(self.exit_code)
        self.exit_code = 128 + number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if name == "SIGHUP":  # the terminal is gone: whoever writes to it fails
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in (1, 2):
                if stat.S_ISCHR(os.fstat(output).st_mode):
                    os.dup2(nowhere, output)
        self.tell(f"{name}: saving the running trials; a second one stops at once")
        self.request(f"stopped by {name}", self.exit_code)

    def request(self, why: str, exit_code: int) -> None:
        """Ask the trials to save and the study to stop; the first reason counts.

        Args:
            why: In a sentence.
            exit_code: Of the command.
        """
        if self.why is None:
            self.why, self.exit_code = why, exit_code
            self._since = time.monotonic()
            try:
                if self._file is not None:
                    write_text(self._file, "")
            except StorageError as error:  # epochs that are saved must do
                print(error, file=sys.stderr)
                self.waits = False

    def cannot_write(self, error: StorageError) -> None:
        """Stop because the study's folder cannot be written, or must not be any more."""
        if isinstance(error, HoldLost):
            self.abandon(str(error))
        else:
            self.request(str(error), 1)

    def abandon(self, why: str) -> None:
        """Leave the study to another driver, which has its own trials; ask none to stop.

        Args:
            why: In a sentence.
        """
        self.abandoned = True
        if self.why is None:
            self.why, self.exit_code, self.waits = why, 1, False

    def check(self, saving: bool = False) -> None:
        """Leave Ray's loop, or a wait for nodes, if it is time.

        Args:
            saving: Whether a trial has not yet said that it is saved.

        Raises:
            StudyStopped: It is time.
        """
        elapsed = time.monotonic() - self._begun
        if self.budget is not None and elapsed > self.budget:
            self.spent = self.spent or self.why is None
            self.request(f"the time budget of {duration(self.budget)} is used up", 0)
        if self.why is not None:
            waited = time.monotonic() - self._since
            if not (saving and self.waits) or waited > GRACE_SECONDS:
                raise StudyStopped
