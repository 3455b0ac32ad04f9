"""The trainings of a confirmation: configurations found by a search, over folds and seeds.

Training k uses configuration k mod n in round k div n. All configurations of a round share the seed
and the fold, so a hard fold is hard for all of them; the search's own validation fold is never
used, and folds are disjoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from study.config import NUM_FOLDS, Value
from study.search_space import Parameter, SearchSpace

if TYPE_CHECKING:
    from study.records.study_record import StudyRecord
    from study.records.trial_record import TrialRecord

NUM_CONFIRMED = 3
FIRST_SEED = 10_000  # added to the study's seed, so that no trial of the search shares one


def describe(record: StudyRecord, candidates: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return the configurations of a confirmation, for its manifest."""
    return {
        "study": record.manifest["study"],
        "study_id": record.manifest["id"],
        "seed": record.seed(FIRST_SEED),
        "fold": record.manifest["settings"].get("fold", 0),
        "candidates": [{"trial": trial.number, "values": trial.params} for trial in candidates],
    }


@dataclasses.dataclass(frozen=True)
class Place:
    """The configuration and round of a training.

    Attributes:
        trial: Number of the search's trial whose configuration it repeats.
        params: Hyperparameters of that configuration.
        round: From 0; all configurations share seed and fold within a round.
    """

    trial: int
    params: Mapping[str, Value]
    round: int


def place_of(confirms: Mapping[str, Any], number: int) -> Place:
    """Return the place of a training by its number; `confirms` is the result of `describe`."""
    candidates = confirms["candidates"]
    turn, index = divmod(number, len(candidates))
    return Place(int(candidates[index]["trial"]), candidates[index]["values"], turn)


def params_of(confirms: Mapping[str, Any], number: int) -> dict[str, Value]:
    """Return the params of a training: its configuration, seed and fold."""
    place = place_of(confirms, number)
    fold = (confirms["fold"] + 1 + place.round % (NUM_FOLDS - 1)) % NUM_FOLDS
    return {**place.params, "seed": confirms["seed"] + place.round, "fold": fold}


def space_of(searched: SearchSpace) -> SearchSpace:
    """Return the search space extended by seed and fold."""
    places = (
        Parameter(name="seed", kind="int", low=0, high=2**31),
        Parameter(name="fold", kind="int", low=0, high=NUM_FOLDS - 1),
    )
    return dataclasses.replace(searched, parameters=(*searched.parameters, *places))
