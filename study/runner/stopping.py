"""Orderly stop of a study: on signals, at the end of the time budget, and on fatal errors.

The trials see a stop file in the study's folder, save their state, even in the middle of an epoch,
and report that; then the study ends. The same command resumes from there.
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

GRACE_SECONDS = 8.0  # for trials to save, of 20 for the whole stop
SIGNALS = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])


class StudyStopped(BaseException):
    """Leaves Ray Tune's loop; like KeyboardInterrupt, not caught by `except Exception`."""


class Stopping:
    """Whether the study has to stop, and why.

    Args:
        budget: Time budget in seconds; None for no limit.
        begun: Start of the budget, by the monotonic clock; None for now.

    Attributes:
        why: Message with the reason; None while the study continues.
        exit_code: Exit code of the command once the study has stopped.
        spent: Whether the reason is that the time budget is used up.
        abandoned: Whether another driver has taken over the study.
        waits: Whether to wait for trials to save in the middle of an epoch.
        tell: Prints a line in a signal handler, where waiting for a lock is not allowed.
    """

    def __init__(self, budget: float | None, begun: float | None = None) -> None:
        self.budget = budget
        self.why: str | None = None
        self.exit_code = 0
        self.spent = False
        self.waits = True
        self.tell: Callable[[str], None] = write_line
        self.abandoned = False
        self._file: AnyPath | None = None  # None until the study is open
        self._before: dict[signal.Signals, Any] = {}
        self._begun = time.monotonic() if begun is None else begun
        self._since = 0.0

    def watch(self, folder: AnyPath) -> None:
        """Begin: stop requests go to the trials of the study in this folder."""
        self._file = folder / ".stop"
        self._file.unlink(missing_ok=True)
        self.catch_signals()

    def catch_signals(self) -> None:
        """Stop in an orderly way on Ctrl-C, SIGTERM or SIGHUP, and at once on a second signal."""
        for known in SIGNALS:
            before = signal.getsignal(known)
            if before is not signal.SIG_IGN:  # as `nohup` leaves SIGHUP
                self._before.setdefault(known, before)
                signal.signal(known, self._on_signal)

    def release_signals(self) -> None:
        """Restore the earlier signal handlers."""
        for known, before in self._before.items():
            signal.signal(known, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code > 128:
            os._exit(self.exit_code)
        self.exit_code = 128 + number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if name == "SIGHUP":  # the terminal is gone: writing to it fails
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in (1, 2):
                if stat.S_ISCHR(os.fstat(output).st_mode):
                    os.dup2(nowhere, output)
        self.tell(f"{name}: saving running trials; a second one stops at once")
        self.request(f"stopped by {name}", self.exit_code)

    def request(self, why: str, exit_code: int) -> None:
        """Ask the trials to save and the study to stop; the first reason counts.

        Args:
            why: Message with the reason.
            exit_code: Exit code of the command.
        """
        if self.why is None:
            self.why, self.exit_code = why, exit_code
            self._since = time.monotonic()
            try:
                if self._file is not None:
                    write_text(self._file, "")
            except StorageError as error:  # trials resume from their last epoch instead
                print(error, file=sys.stderr)
                self.waits = False

    def cannot_write(self, error: StorageError) -> None:
        """Stop because the study's folder cannot, or must no longer, be written."""
        if isinstance(error, HoldLost):
            self.abandon(str(error))
        else:
            self.request(str(error), 1)

    def abandon(self, why: str) -> None:
        """Leave the study to another driver, without a stop file, which its trials would see.

        Args:
            why: Message with the reason.
        """
        self.abandoned = True
        if self.why is None:
            self.why, self.exit_code, self.waits = why, 1, False

    def check(self, saving: bool = False) -> None:
        """Leave Ray's loop, or a wait for nodes, if the study has to stop.

        Args:
            saving: Whether a trial has yet to report that it is saved.

        Raises:
            StudyStopped: The study has to stop, and trials have saved or the grace period is over.
        """
        elapsed = time.monotonic() - self._begun
        if self.budget is not None and elapsed > self.budget:
            self.spent = self.spent or self.why is None
            self.request(f"the time budget of {duration(self.budget)} is used up", 0)
        if self.why is not None:
            waited = time.monotonic() - self._since
            if not (saving and self.waits) or waited > GRACE_SECONDS:
                raise StudyStopped
