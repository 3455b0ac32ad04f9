"""The closed split: scored once per set of weights, by `study.best` alone, and always recorded.

`study.tested` reads what is recorded.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch

from study import checkpoint, distributed
from study.batches import Batches
from study.data import DataSource, ImageSet, say_absent
from study.errors import TrialError
from study.evaluation import evaluate
from study.interval import Interval, bootstrap
from study.record import StudyRecord
from study.run_folder import write_arrays
from study.task import Task, TrainConfig, build_config
from study.tested import read_tests, study_folder, write_tests
from study.trial_record import TrialRecord, now

Why = Literal["confirm", "export"]


@dataclasses.dataclass(frozen=True)
class Score:
    """What a network scored on an image set.

    Attributes:
        metrics: By name, without the split's.
        interval: 95 % interval of the task's metric over what the images show; None if they all
            show the same.
        evidence: What figures are drawn from.
    """

    metrics: dict[str, float]
    interval: Interval | None
    evidence: dict[str, np.ndarray]


def load_trained(
    task: Task, record: StudyRecord, trial: TrialRecord
) -> tuple[torch.nn.Module, TrainConfig, dict[str, Any]]:
    """Return the network of a trial's best epoch, its settings and the checkpoint.

    Raises:
        DamagedFile: The checkpoint is missing or damaged.
        TrialError: It is of another epoch.
    """
    folder = record.run_folder(trial.number)
    state = folder.weights(trial.metric, trial.mode)
    if len(state["history"]) != trial.epoch:
        raise TrialError(
            f"{folder.best_checkpoint} is of epoch {len(state['history'])}, not {trial.epoch}; if "
            "the trial still runs try again later, else repeat it: python -m study.train "
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
        *(task, network.to(device), batches, images),
        batch_size=config.batch_size,
        precision=config.precision,
        keep_images=True,
    )
    return Score(metrics, bootstrap(meter, seen.shown), task.evidence(network, meter, seen))


def test_of(
    tests: list[dict[str, Any]], record: StudyRecord, trial: TrialRecord
) -> dict[str, Any] | None:
    """Return the test of a trial's weights, None if there was none."""
    digest = checkpoint.digest(record.run_folder(trial.number).best_checkpoint)
    for test in tests:
        if test["checkpoint"] == digest and test["checksum"] == record.manifest["checksum"]:
            return test
    return None


def test_once(
    task: Task,
    source: DataSource,
    record: StudyRecord,
    trial: TrialRecord,
    why: Why,
) -> dict[str, Any]:
    """Score a trial on the closed test split, and on validation at the same size.

    The same weights are never scored again.

    Args:
        task: The task.
        source: The data.
        record: Where the trial is: a study, or the confirmation of one.
        trial: The trial.
        why: What for.

    Returns:
        `metrics` by full name (`test/...`, `val/...`), `intervals` of the task's metric, `size` of
        the targets, `time`.
    """
    study = study_folder(record)
    tests = read_tests(study)
    folder = record.run_folder(trial.number)
    network, config, _ = load_trained(task, record, trial)
    known = test_of(tests, record, trial)
    if known is not None:
        return known
    metrics: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    size, name = "", task.metric.split("/", 1)[1]
    splits: tuple[Literal["val", "test"], ...] = ("val", "test")
    for split in splits:
        images = task.load_full_size(source, config, split)
        scored = score(task, config, network, images)
        metrics |= {f"{split}/{key}": value for key, value in scored.metrics.items()}
        if scored.interval is not None:
            intervals[f"{split}/{name}"] = scored.interval
        sized = images.targets if images.targets.ndim == 3 else images.images
        size = "{}x{} pixels".format(*sized.shape[-2:])
        if split == "test":
            say_absent(task, images, "the test split")
            write_arrays(folder.path / "test.npz", scored.evidence)
    test = {
        "why": why,
        "trial": trial.number,
        "folder": str(folder.path).removeprefix(f"{study}/"),
        "checkpoint": checkpoint.digest(folder.best_checkpoint),
        "checksum": record.manifest["checksum"],
        "size": size,
        "time": now(),
        "metrics": metrics,
        "intervals": intervals,
    }
    write_tests(study, [*tests, test])
    return test
