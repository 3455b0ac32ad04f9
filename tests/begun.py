"""Trials begun in a record as a running study begins them."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.selection.proposals import Propose, proposals_of

_proposals: WeakKeyDictionary[StudyRecord, Propose] = WeakKeyDictionary()


def begin(record: StudyRecord) -> TrialRecord:
    """Begin the next trial, drawn by what drew the earlier ones while the record was open."""
    propose = _proposals.setdefault(record, proposals_of(record.manifest))
    return record.begin(propose(record.trials()))
