"""When trials and the study stop, as the last command asked for it."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from study.records.run_options import RunOptions
from study.records.trial_record import seconds_of
from study.search.asha import Rungs


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """When trials and the study stop.

    Attributes:
        num_samples: Trials at which the study is done; inf if there is no such number.
        asha: Its grace period and reduction factor; None if no trial is stopped early.
        workers: Of a trial.
        budget: Seconds after which the study stops; None for never.
    """

    num_samples: float
    asha: tuple[int, float] | None
    workers: int = 1
    budget: float | None = None

    @staticmethod
    def of(options: RunOptions, epochs: int) -> StoppingRule:
        """Return what was asked for, of trials of so many epochs."""
        return StoppingRule(
            num_samples=options.num_samples,
            asha=options.asha(epochs),
            workers=options.workers_per_trial,
            budget=options.time_budget,
        )

    @staticmethod
    def of_last_start(manifest: dict[str, Any]) -> StoppingRule | None:
        """Return what a study's last start asked for; None if that is not known."""
        options = RunOptions.of_last_start(manifest)
        return None if options is None else StoppingRule.of(options, manifest["epochs"])

    @property
    def unlimited(self) -> bool:
        """Whether there is no number of trials at which the study is done."""
        return math.isinf(self.num_samples)

    def budget_left(self, manifest: dict[str, Any]) -> float | None:
        """Return the seconds until the last start's time budget ends; None if it has none."""
        if self.budget is None:
            return None
        begun = seconds_of(manifest["starts"][-1]["time"])
        return max(0.0, begun + self.budget - time.time())


def milestones(rule: StoppingRule | None, epochs: int) -> list[int]:
    """Return after which epochs trials may be stopped, from the first.

    Args:
        rule: None if unknown.
        epochs: Of a trial that is not stopped.
    """
    if rule is None or rule.asha is None:
        return []
    found = Rungs(rule.asha[0], epochs, rule.asha[1]).milestones
    return [math.ceil(milestone) for milestone in reversed(found) if milestone < epochs]
