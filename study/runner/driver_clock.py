"""Clock of a study's driver, which stands still while the driver does."""

from __future__ import annotations

import time

MOST_SECONDS = 5.0  # between two ticks; Ray Tune's loop takes a tenth of a second


class DriverClock:
    """Seconds in which the driver ran.

    One that is stopped (Ctrl-Z), asleep with its machine, or waiting for a slow disk hears no
    trial, so that such time says nothing about trials.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        """Note that the driver runs."""
        last, self._last = self._last, time.monotonic()
        self.now += min(self._last - last, MOST_SECONDS)
