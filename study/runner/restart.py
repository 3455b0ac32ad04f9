"""Restart after Ray has died: the same command is executed in place of this process.

Calls into a Ray whose GCS or raylet is dead or stopped never return, not even those that shut it
down (Ray 2.60, measured), so Ray cannot be restarted in this process. `exec` replaces the program
but keeps the process id, the terminal and the parent.

`$STUDY_RESTART` passes state on to the new program.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from study.cluster.session import kill_ray

if TYPE_CHECKING:
    from study.records.study_record import StudyRecord
    from study.runner.stopping import Stopping

VARIABLE = "STUDY_RESTART"
TIDY_SECONDS = 5.0
MOST = 3  # restarts in a row without an epoch in between


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restart:
    """State passed from the command before a restart to the one after it.

    Attributes:
        begun: Start of the first command, in seconds of the machine's monotonic clock.
        row: Restarts in a row without an epoch in between.
        progress: Number of epochs and ended trials recorded at the last restart.
        why: Reason to close the study instead of resuming it; None to resume.
        exit_code: Exit code in that case.
    """

    begun: float
    row: int = 0
    progress: int = -1
    why: str | None = None
    exit_code: int = 0

    @staticmethod
    def take() -> Restart:
        """Read the state from the environment, and remove it there for child processes."""
        told = os.environ.pop(VARIABLE, None)
        if told is None:
            return Restart(begun=time.monotonic())
        return Restart(**json.loads(told))

    def after(self, death: str, record: StudyRecord, stopping: Stopping, local: bool) -> Restart:
        """Return the state for the next start.

        Args:
            death: Message about what happened to Ray.
            record: The study.
            stopping: Whether the study was stopping anyway.
            local: Whether Ray can be restarted.
        """
        trials = record.trials()
        progress = sum(trial.epochs + (trial.state != "running") for trial in trials)
        row = 1 if progress > self.progress else self.row + 1
        why, code = stopping.why, stopping.exit_code
        if why is None and not local:
            why, code = death, 1
        elif why is None and row > MOST:
            why, code = f"{death}, {row} times in a row without completing an epoch", 1
        return Restart(begun=self.begun, row=row, progress=progress, why=why, exit_code=code)


def is_command() -> bool:
    """Return whether this process is a study command, not a notebook or another program."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    by_name = spec is not None and str(spec.name).startswith("study.")
    return by_name or os.path.basename(getattr(main, "__file__", "") or "") == "study"


def go_on_after(
    death: str,
    before: Restart,
    record: StudyRecord,
    stopping: Stopping,
    tidy: Callable[[], None],
    local: bool,
) -> None:
    """Replace this process by the same command; if that is impossible, stop the study.

    Args:
        death: Message about what happened to Ray.
        before: State from the last restart.
        record: The study.
        stopping: Whether the study was stopping anyway.
        tidy: Removes the live table from the terminal.
        local: Whether Ray was started by this process.
    """
    kill_ray()
    # A terminal that blocks must not keep this process here.
    tidying = threading.Thread(target=tidy, daemon=True)
    tidying.start()
    tidying.join(TIDY_SECONDS)
    if not is_command():
        stopping.request(death, 1)
        return
    following = before.after(death, record, stopping, local)
    if following.why is None:
        print(
            f"{death}; restarting Ray, trials resume from their last epoch",
            file=sys.stderr,
        )
    record.let_go()
    os.environ[VARIABLE] = json.dumps(dataclasses.asdict(following))
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
