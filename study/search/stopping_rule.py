"""When trials and the study stop, by the options of the last command."""

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
        num_samples: Ended trials at which the study is complete; inf for no limit.
        asha: ASHA's grace period and reduction factor; None if no trial is stopped early.
        workers: Workers per trial.
        budget: Seconds after which the study stops; None for no limit.
    """

    num_samples: float
    asha: tuple[int, float] | None
    workers: int = 1
    budget: float | None = None

    @staticmethod
    def of(options: RunOptions, epochs: int) -> StoppingRule:
        """Return the rule for these options and this number of epochs."""
        return StoppingRule(
            num_samples=options.num_samples,
            asha=options.asha(epochs),
            workers=options.workers_per_trial,
            budget=options.time_budget,
        )

    @staticmethod
    def of_last_start(manifest: dict[str, Any]) -> StoppingRule | None:
        """Return the rule of a study's last start; None if unknown."""
        options = RunOptions.of_last_start(manifest)
        return None if options is None else StoppingRule.of(options, manifest["epochs"])

    @property
    def unlimited(self) -> bool:
        """Whether the number of trials has no limit."""
        return math.isinf(self.num_samples)

    def budget_left(self, manifest: dict[str, Any]) -> float | None:
        """Return the seconds until the last start's time budget ends; None if it has none."""
        if self.budget is None:
            return None
        begun = seconds_of(manifest["starts"][-1]["time"])
        return max(0.0, begun + self.budget - time.time())


def milestones(rule: StoppingRule | None, epochs: int) -> list[int]:
    """Return the epochs after which trials may be stopped, in ascending order.

    Args:
        rule: The stopping rule; None if unknown.
        epochs: Epochs of a full trial.
    """
    if rule is None or rule.asha is None:
        return []
    found = Rungs(rule.asha[0], epochs, rule.asha[1]).milestones
    return [math.ceil(milestone) for milestone in reversed(found) if milestone < epochs]
