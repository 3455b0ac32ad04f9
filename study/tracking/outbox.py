"""The outbox of a study's tracking: jobs still to be sent to MLflow, by one thread.

A job says what has changed, not how: the content is read from the study's folder when the job
runs, so a waiting job is never queued twice, and a failed one is retried as a whole.
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
    """Update a trial's run."""

    number: int

    def __str__(self) -> str:
        return f"trial {self.number}"


@dataclasses.dataclass(frozen=True)
class ReportJob:
    """Write the study's page again."""

    def __str__(self) -> str:
        return "report"


Job: TypeAlias = TrialJob | ReportJob


class Outbox:
    """A queue of distinct jobs, oldest first.

    Attributes:
        trouble: Why the last job failed; None if it succeeded.
        unsent: Jobs that failed after `close`, with the reason.
        num_sent: Number of jobs that succeeded.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.unsent: dict[Job, str] = {}
        self.num_sent = 0
        self._waiting: dict[Job, None] = {}
        self._changed = threading.Condition()
        self._closing = False

    def put(self, job: Job) -> None:
        """Add a job."""
        with self._changed:
            self._waiting[job] = None
            self._changed.notify()

    def close(self, *last: Job) -> None:
        """Close the outbox: after these jobs and all earlier ones, `take` returns None."""
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
            more_to_come: Whether a closed outbox may still get jobs.
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
        """Note that the last job taken was done."""
        self.num_sent += 1
        if self.trouble is not None:
            logger.warning("tracking is back; sending what is missing")
        self.trouble = None

    def failed(self, job: Job, reason: str) -> None:
        """Note that a job failed. It is retried after a while, unless the outbox is closing."""
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
        """Count all waiting jobs as unsent."""
        assert self.trouble is not None
        with self._changed:
            self.unsent |= dict.fromkeys(self._waiting, self.trouble)
            self._waiting.clear()
