"""The params of the next trial of a study: drawn by its search, or given by its confirmation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study.config import Value
from study.records.trial_record import TrialRecord
from study.search.sampler import Sampler
from study.selection.confirmation_runs import params_of

Propose = Callable[[Sequence[TrialRecord]], Mapping[str, Value]]


def proposals_of(manifest: dict[str, Any]) -> Propose:
    """Return what gives the hyperparameters of the next trial, of all trials so far by number.

    Trial 0 of a search is the baseline; of a confirmation all trials are given.
    """
    confirms = manifest.get("confirms")
    if confirms is None:
        return Sampler.of(manifest).draw
    return lambda trials: params_of(confirms, len(trials))
