"""Studies with real weights, made in this process: no Ray, seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from study.datasets.source import DataSource
from study.records.study_record import StudyRecord
from study.search_space import Parameter, SearchSpace
from study.task import build_config
from study.tasks.fashion import TASK, FashionConfig
from study.training.loop import fit

EPOCHS = 2
SPACE = SearchSpace((Parameter(name="width1", kind="int", low=4, high=9),), {}, {"width1": 8})


def study_in(home: Path, source: DataSource, **changes: Any) -> StudyRecord:
    """Return the record, open for writing, of a study of drawn garments without trials."""
    identity = TASK.identity(source)
    settings = dataclasses.asdict(FashionConfig(epochs=EPOCHS))
    for searched in ("width1", "seed"):
        del settings[searched]
    manifest = {
        "study": "garments",
        "task": "fashion",
        "dataset": "sample",
        "seed": 1,
        "metric": "val/accuracy",
        "mode": "max",
        "epochs": EPOCHS,
        "sampler": "random",
        "checksum": identity["checksum"],
        "data": identity,
        "space": SPACE.describe(),
        "settings": settings,
    }
    command = "python -m study.tune fashion --dataset sample --name garments"
    manifest = json.loads(json.dumps({**manifest, **changes}))
    return StudyRecord.create_or_continue(home / "studies" / "garments", manifest, command)


def train(record: StudyRecord, number: int, source: DataSource, epochs: int = EPOCHS) -> None:
    """Train a trial up to an epoch, on a few batches each; the last epoch ends it."""
    folder, trial = record.run_folder(number), record.trial(number)
    config = build_config(FashionConfig, record.config(trial))
    state = folder.last_state()
    for result in fit(TASK, config, source, resume=state, limit_batches=2):
        folder.record(result, {"version.torch": "some"})
        row = result.state["history"][-1]
        record.report(number, row, "finished" if result.epoch == EPOCHS else None)
        if result.epoch == epochs:
            return
