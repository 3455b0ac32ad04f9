"""Studies of which there is only the record: nothing is trained."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from begun import begin

from study.records.study_record import StudyRecord
from study.search_space import Parameter, SearchSpace

SPACE = SearchSpace(
    (
        Parameter(name="learning_rate", kind="float", low=1e-4, high=1e-1, log=True),
        Parameter(name="width1", kind="int", low=4, high=64, step=4),
        Parameter(name="last_relu", kind="categorical", choices=(True, False)),
        Parameter(name="width5", kind="int", low=4, high=64, when=("last_relu", (False,))),
    ),
    {"image_size": 64},
    {"learning_rate": 1e-3, "width1": 16, "last_relu": True},
)
MANIFEST: dict[str, Any] = {
    "study": "s",
    "task": "facade",
    "dataset": "sample",
    "checksum": "c",
    "seed": 3,
    "sampler": "tpe",
    "metric": "val/mean_ap",
    "mode": "max",
    "epochs": 9,
    "settings": {"image_size": 64},
    "space": SPACE.describe(),
}

COMMAND = "python -m study.tune facade --num-samples 6 --grace-period 2 --reduction-factor 2"


def open_record(path: Path, **changes: Any) -> StudyRecord:
    manifest = json.loads(json.dumps({**MANIFEST, **changes}))
    return StudyRecord.create_or_continue(path, manifest, "command")


def report(record: StudyRecord, number: int, *values: float) -> None:
    for epoch, value in enumerate(values, 1):
        record.report(number, {"epoch": epoch, "val/mean_ap": value, "epoch_seconds": 2.0})


def closed(record: StudyRecord) -> Path:
    record.close()
    return record.path


def reopened(record: StudyRecord) -> StudyRecord:
    """The record as another process would find it."""
    return open_record(closed(record))


def four_trials(path: Any, command: str = COMMAND) -> StudyRecord:
    """A study of nine epochs, its four trials finished, stopped, failed and running."""
    record = StudyRecord.create_or_continue(path, json.loads(json.dumps(MANIFEST)), command)
    for number, values in enumerate([[0.1, 0.5, 0.4] + [0.6] * 6, [0.2, 0.3], [0.1], [0.2, 0.7]]):
        begin(record)
        for epoch, value in enumerate(values, 1):
            ended = time.time() - 100 + 3 * epoch
            row = {"epoch": epoch, "val/mean_ap": value, "epoch_seconds": 2.0, "ended": ended}
            record.report(number, row)
    record.end(0, "finished")
    record.end(1, "stopped")
    record.retry(2, "its process died", 1)
    record.end(2, "failed", "loss is\nnot finite \x1b[2J")
    return record
