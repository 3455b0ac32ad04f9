"""Clock that counts only the time in which the driver runs."""

from __future__ import annotations

import time

MOST_SECONDS = 5.0  # between two ticks; Ray Tune's loop takes a tenth of a second


class DriverClock:
    """Seconds in which the driver ran.

    While the driver is suspended (Ctrl-Z), its machine asleep or its disk slow, it receives no
    reports, so that time must not count against trials.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        """Record that the driver is running."""
        last, self._last = self._last, time.monotonic()
        self.now += min(self._last - last, MOST_SECONDS)
