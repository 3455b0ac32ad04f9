"""The params of a study's next trial: drawn by its sampler, or given by its confirmation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study.config import Value
from study.records.trial_record import TrialRecord
from study.search.sampler import Sampler
from study.selection.confirmation_runs import params_of

Propose = Callable[[Sequence[TrialRecord]], Mapping[str, Value]]


def proposals_of(manifest: dict[str, Any]) -> Propose:
    """Return a function from all trials so far, by number, to the next hyperparameters.

    Trial 0 of a search is the baseline; a confirmation's trials are all predetermined.
    """
    confirms = manifest.get("confirms")
    if confirms is None:
        return Sampler.of(manifest).draw
    return lambda trials: params_of(confirms, len(trials))
