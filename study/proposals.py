"""The params of the next trial of a study: drawn by its search, or given by its confirmation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study.candidates import params_of
from study.sampler import Sampler
from study.setting import Value
from study.trial_record import TrialRecord

Propose = Callable[[Sequence[TrialRecord]], Mapping[str, Value]]


def proposals_of(manifest: dict[str, Any]) -> Propose:
    """Return what gives the hyperparameters of the next trial, of all trials so far by number.

    Trial 0 of a search is the baseline; of a confirmation all trials are given.
    """
    confirms = manifest.get("confirms")
    if confirms is None:
        return Sampler.of(manifest).draw
    return lambda trials: params_of(confirms, len(trials))
