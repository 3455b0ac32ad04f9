"""The outbox of a study's tracking: what is still to be sent to MLflow, by one thread.

A job names what has changed, not how: what is sent is read from the study's folder when its turn
comes, so a job that waits already need not wait twice, and one that failed is tried again whole.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import TypeAlias

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class TrialJob:
    """A trial's run is to be brought up to date."""

    number: int

    def __str__(self) -> str:
        return f"trial {self.number}"


@dataclasses.dataclass(frozen=True)
class ReportJob:
    """The page of the study is to be written anew."""

    def __str__(self) -> str:
        return "report"


Job: TypeAlias = TrialJob | ReportJob


class Outbox:
    """Jobs, each of which waits once, oldest first.

    Attributes:
        trouble: Why the last job failed; None if it did not.
        unsent: Jobs that failed after `close`, and why.
        num_sent: How many jobs succeeded.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.unsent: dict[Job, str] = {}
        self.num_sent = 0
        self._waiting: dict[Job, None] = {}
        self._changed = threading.Condition()
        self._closing = False

    def put(self, job: Job) -> None:
        """Have a job done soon."""
        with self._changed:
            self._waiting[job] = None
            self._changed.notify()

    def close(self, *last: Job) -> None:
        """Have `take` return None once these jobs, and all before them, are done."""
        with self._changed:
            self._closing = True
            self._waiting |= dict.fromkeys(last)
            self._changed.notify()

    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def take(self, more_to_come: Callable[[], bool]) -> Job | None:
        """Wait for the next job and return it; None if the outbox is closed and empty.

        Args:
            more_to_come: Whether a closed outbox is still to be waited at.
        """
        with self._changed:
            while not self._waiting and (not self._closing or more_to_come()):
                self._changed.wait()
            if not self._waiting:
                return None
            job = next(iter(self._waiting))
            del self._waiting[job]
            return job

    def succeeded(self) -> None:
        """Note that the job taken last was done."""
        self.num_sent += 1
        if self.trouble is not None:
            logger.warning("tracking is back; sending what is missing")
        self.trouble = None

    def failed(self, job: Job, reason: str) -> None:
        """Note that a job failed. It is tried again after a while, unless the outbox is closing."""
        if self.trouble is None:
            logger.warning(
                "tracking failed; training continues and everything is sent later: %s", reason
            )
        self.trouble = reason
        with self._changed:
            if self._closing:
                self.unsent[job] = reason
            else:
                self._waiting[job] = None
                self._changed.wait(RETRY_SECONDS)

    def give_up(self) -> None:
        """Count all that waits as unsent."""
        assert self.trouble is not None
        with self._changed:
            self.unsent |= dict.fromkeys(self._waiting, self.trouble)
            self._waiting.clear()
