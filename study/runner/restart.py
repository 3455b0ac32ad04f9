"""Going on after Ray has died: the same command once more, in the place of this process.

Calls into a Ray whose GCS or raylet is gone or stopped never return, those that would end it
neither (Ray 2.60, measured), so it cannot be started again in this process. `exec` replaces the
program and leaves the process as it is to others: its id, its terminal, its parent.

What the command must still know afterwards is in `$STUDY_RESTART`.
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
    """What a command knows of itself from before Ray died.

    Attributes:
        begun: When it was typed, in seconds of the machine's monotonic clock.
        row: How many restarts came in a row without an epoch in between.
        progress: Epochs and ends that were recorded at the last one.
        why: For which reason it is not to go on but to end; None to go on.
        exit_code: With which it ends then.
    """

    begun: float
    row: int = 0
    progress: int = -1
    why: str | None = None
    exit_code: int = 0

    @staticmethod
    def take() -> Restart:
        """Return what the environment says, and leave nothing there for other processes."""
        told = os.environ.pop(VARIABLE, None)
        if told is None:
            return Restart(begun=time.monotonic())
        return Restart(**json.loads(told))

    def after(self, death: str, record: StudyRecord, stopping: Stopping, local: bool) -> Restart:
        """Return what the next start is to know.

        Args:
            death: What became of Ray, in a sentence.
            record: The study.
            stopping: Whether it was to stop anyway.
            local: Whether Ray can be started again.
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
    """Return whether this process is one of our commands, not a notebook or another's program."""
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
    """Replace this process by the same command; if that cannot be, have the study stop.

    Args:
        death: What became of Ray, in a sentence.
        before: What was known of restarts so far.
        record: The study.
        stopping: Whether it was to stop anyway.
        tidy: Takes a live table from the terminal.
        local: Whether Ray was started by this process.
    """
    kill_ray()
    # A terminal that cannot be tidied up must not keep us here.
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
