"""The held-out test: scored once per set of weights, only by `study.best`, and always recorded.

    ready = prepare(task, source, record, trial)    # everything that can fail beforehand
    test = test_once(ready, "export")               # opens the split once per set of weights

`study.selection.test_log` keeps the record.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout

from study.config import TrainConfig, build_config
from study.datasets.source import DataSource, ImageSet, say_absent
from study.errors import StorageError, TrialError
from study.formatting import metric_name, pixels
from study.records import checkpoint
from study.records.run_folder import RunFolder, write_arrays
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord, now
from study.selection.test_log import (
    begin_opening,
    folder_in_study,
    read_openings,
    record_opening,
    study_folder,
)
from study.task import Task
from study.training import distributed
from study.training.batches import Batches
from study.training.evaluation import evaluate
from study.training.intervals import Interval, bootstrap

Why = Literal["confirm", "export"]


@dataclasses.dataclass(frozen=True)
class Score:
    """The scores of a network on an image set.

    Attributes:
        metrics: Metrics by name without the split.
        interval: 95 % interval of the task's metric over the subjects of the images; None if all
            show the same subject.
        figure_data: Data for the figures.
    """

    metrics: dict[str, float]
    interval: Interval | None
    figure_data: dict[str, np.ndarray]


def load_trained(
    task: Task, record: StudyRecord, trial: TrialRecord
) -> tuple[torch.nn.Module, TrainConfig, dict[str, Any]]:
    """Return the network of a trial's best epoch, its settings and the checkpoint.

    Raises:
        DamagedFile: The checkpoint is missing or damaged.
        TrialError: The checkpoint is from another epoch.
    """
    folder = record.run_folder(trial.number)
    state = folder.load_or_repair_weights(trial.metric, trial.mode)
    if len(state["history"]) != trial.best_epoch:
        raise TrialError(
            f"{folder.best_checkpoint} is from epoch {len(state['history'])}, not "
            f"{trial.best_epoch}; if the trial is still running, try again later, else repeat it: "
            "python -m study.train "
            f"{task.name} --like {folder.run_id}"
        )
    config = build_config(task.config_class, state["config"])
    network = task.build_model(config)
    network.load_state_dict(state["network"])
    return network.eval(), config, state


def score(task: Task, config: TrainConfig, network: torch.nn.Module, images: ImageSet) -> Score:
    """Score a network on an image set."""
    device = distributed.device()
    batches = Batches(images, device, task.normalization)
    metrics, meter, seen = evaluate(
        task,
        network.to(device),
        batches,
        images,
        batch_size=config.batch_size,
        precision=config.precision,
        keep_images=True,
    )
    return Score(metrics, bootstrap(meter, seen.shown), task.figure_data(network, meter, seen))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """A set of weights ready for its test: everything that can fail is done, the split is closed.

    Attributes:
        task: The task.
        record: The record of the trial's study or confirmation.
        trial: The trial.
        network: The network of its best epoch.
        config: Its settings.
        state: Its checkpoint.
        checkpoint: SHA-256 of the checkpoint.
        validation: Validation score at the size of the test; None if it was tested before.
        closed: The test images, unseen by any network; None if it was tested before.
    """

    task: Task
    record: StudyRecord
    trial: TrialRecord
    network: torch.nn.Module
    config: TrainConfig
    state: dict[str, Any]
    checkpoint: str
    validation: Score | None
    closed: ImageSet | None

    @property
    def folder(self) -> RunFolder:
        """The trial's folder."""
        return self.record.run_folder(self.trial.number)


def prepare(task: Task, source: DataSource, record: StudyRecord, trial: TrialRecord) -> Examination:
    """Prepare a test: load weights and images, score validation at the size of the test.

    Raises:
        DamagedFile: The checkpoint is missing or damaged.
        TrialError: The checkpoint is from another epoch.
        InputError: The data set is missing, or the list of tests is damaged.
    """
    network, config, state = load_trained(task, record, trial)
    digest = checkpoint.digest(record.run_folder(trial.number).best_checkpoint)
    validation = closed = None
    if _known(record, digest) is None:
        validation = score(task, config, network, task.load_full_size(source, config, "val"))
        closed = task.load_full_size(source, config, "test")
    return Examination(
        task=task,
        record=record,
        trial=trial,
        network=network,
        config=config,
        state=state,
        checkpoint=digest,
        validation=validation,
        closed=closed,
    )


def test_once(ready: Examination, why: Why, *, forced: bool = False) -> dict[str, Any]:
    """Score the closed test split, unless these weights have been scored already.

    The opening is recorded before the split is opened, and the scores before anyone sees them, so
    neither a kill nor a concurrent command can hide an opening.

    Args:
        ready: The weights.
        why: Purpose of the test.
        forced: Whether the user insisted although the trial has not ended.

    Returns:
        `metrics` by full name (`test/...`, `val/...`), `intervals` of the task's metric, `size` of
        the targets, `time`, and `openings`, the number of openings for these weights.

    Raises:
        StorageError: The opening (which then did not take place) or its scores cannot be recorded.
    """
    study = study_folder(ready.record)
    with _alone(ready.folder):
        test = _known(ready.record, ready.checkpoint)
        if test is None:
            assert ready.validation is not None and ready.closed is not None
            opening = begin_opening(study, _about(ready, why, forced))
            say_absent(ready.task.name, ready.task.classes, ready.closed, "the test split")
            scored = score(ready.task, ready.config, ready.network, ready.closed)
            test = {**opening, **_result(ready, scored), "scored": now()}
            record_opening(study, test)
            try:
                write_arrays(ready.folder.path / "test.npz", scored.figure_data)
            except StorageError as error:  # never repeat the test for its figures
                print(f"{error} No figures of the test split were saved.", file=sys.stderr)
    return {**test, "openings": len(_openings(ready.record, ready.checkpoint))}


def _about(ready: Examination, why: Why, forced: bool) -> dict[str, Any]:
    """Return an opening's facts about the weights."""
    trial = ready.trial
    about = {
        "why": why,
        "trial": trial.number,
        "folder": folder_in_study(ready.record, trial),
        "checkpoint": ready.checkpoint,
        "checksum": ready.record.manifest["checksum"],
        "state": trial.state,
        "epochs": trial.epochs,
    }
    return {**about, "forced": True} if forced else about


def _result(ready: Examination, scored: Score) -> dict[str, Any]:
    """Return an opening's scores."""
    assert ready.validation is not None and ready.closed is not None
    metrics: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for split, one in (("val", ready.validation), ("test", scored)):
        metrics |= {f"{split}/{key}": value for key, value in one.metrics.items()}
        if one.interval is not None:
            intervals[f"{split}/{metric_name(ready.task.metric)}"] = one.interval
    images = ready.closed
    sized = images.targets if images.targets.ndim == 3 else images.images
    height, width = sized.shape[-2:]
    return {"size": pixels(height, width), "metrics": metrics, "intervals": intervals}


def _openings(record: StudyRecord, digest: str) -> list[dict[str, Any]]:
    """Return the openings for these weights on this data set."""
    of = (digest, record.manifest["checksum"])
    openings = read_openings(study_folder(record))
    return [one for one in openings if (one["checkpoint"], one["checksum"]) == of]


def _known(record: StudyRecord, digest: str) -> dict[str, Any] | None:
    """Return the test of these weights; None if there was none."""
    return next((one for one in _openings(record, digest) if "metrics" in one), None)


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Make a concurrent command on this disk wait and reuse the scores.

    Without locks, as in an object store, both score, and both openings are recorded.
    """
    lock = FileLock(folder.path / ".test.lock") if isinstance(folder.path, Path) else None
    with ExitStack() as held:
        try:
            if lock is not None:
                held.enter_context(lock.acquire(timeout=0))
        except Timeout:
            assert lock is not None
            print("another command is testing the same weights; waiting for it", file=sys.stderr)
            held.enter_context(lock.acquire())
        except (OSError, NotImplementedError):
            pass  # a file system without locks
        yield
