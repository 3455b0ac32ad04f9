"""The trainings of a confirmation: configurations that a search found, over folds and seeds.

Training k is of configuration k mod n. Round k div n gives all of them the same seed and the same
fold, so that a fold that is hard for one is hard for all; the fold is never the one on which the
search chose them, and folds are disjoint.
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
FIRST_SEED = 10_000  # added to the study's: no trial of the search has such a one


def describe(record: StudyRecord, candidates: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return what the manifest of a confirmation says of its configurations."""
    return {
        "study": record.manifest["study"],
        "study_id": record.manifest["id"],
        "seed": record.seed(FIRST_SEED),
        "fold": record.manifest["settings"].get("fold", 0),
        "candidates": [{"trial": trial.number, "values": trial.params} for trial in candidates],
    }


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a training among those of its confirmation.

    Attributes:
        trial: Of the search, whose configuration it repeats.
        params: That configuration's.
        round: From 0; all configurations have the same seed and fold in a round.
    """

    trial: int
    params: Mapping[str, Value]
    round: int


def place_of(confirms: Mapping[str, Any], number: int) -> Place:
    """Return where a training stands, by its number; `confirms` is what `describe` returned."""
    candidates = confirms["candidates"]
    turn, index = divmod(number, len(candidates))
    return Place(int(candidates[index]["trial"]), candidates[index]["values"], turn)


def params_of(confirms: Mapping[str, Any], number: int) -> dict[str, Value]:
    """Return the params of a training: a configuration, with seed and fold."""
    place = place_of(confirms, number)
    fold = (confirms["fold"] + 1 + place.round % (NUM_FOLDS - 1)) % NUM_FOLDS
    return {**place.params, "seed": confirms["seed"] + place.round, "fold": fold}


def space_of(searched: SearchSpace) -> SearchSpace:
    """Return the space in which the trainings lie."""
    places = (
        Parameter(name="seed", kind="int", low=0, high=2**31),
        Parameter(name="fold", kind="int", low=0, high=NUM_FOLDS - 1),
    )
    return dataclasses.replace(searched, parameters=(*searched.parameters, *places))
