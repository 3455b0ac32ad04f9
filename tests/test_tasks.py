"""The contract of every task: a new file in `study/tasks/` is tested here with no new test.

The README's example is one of them, as it would be if it were there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, timeless

import study.tasks
from study.datasets.source import DataSource
from study.search.space_file import load_space
from study.search_space import find_space
from study.task import NUM_FOLDS, Task, base_values, build_config, class_key, load_task, task_names
from study.training.batches import Batches
from study.training.evaluation import evaluate
from study.training.loop import fit

EXAMPLE = ROOT / "docs" / "example"


@pytest.fixture(params=[*task_names(), "stripes"])
def task(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(study.tasks, "__path__", [*study.tasks.__path__, str(EXAMPLE)])
    return load_task(request.param)


def small_config(task: Task, **values: Any) -> Any:
    return build_config(task.config_class, {**base_values(task, "sample"), **values})


def test_names(task: Task) -> None:
    assert task.metric.startswith("val/") and task.mode in ("max", "min")
    assert len(set(map(class_key, task.classes))) == len(task.classes)


def test_the_baseline_is_inside_the_shipped_search_space(task: Task) -> None:
    example = EXAMPLE / f"{task.name}.yaml"
    file = find_space(str(example) if example.exists() else task.name)
    space = load_space(file, task.config_class, {}, {})
    assert all(p.contains(space.baseline[p.name]) for p in space.parameters)
    config = build_config(task.config_class, space.baseline)
    defaults = build_config(task.config_class, {})
    assert config == defaults, "trial 0 is the baseline"


def test_splits_are_disjoint_stable_and_seeded(task: Task, sample: DataSource) -> None:
    config = small_config(task)
    first, again = (task.load_splits(sample, config) for _ in range(2))
    train, val = set(first.train.indices.tolist()), set(first.val.indices.tolist())
    assert train and val and not train & val
    assert len(train | val) == len(first.train.images)
    assert np.array_equal(first.val.indices, again.val.indices)
    other = task.load_splits(sample, dataclasses.replace(config, split_seed=1))
    assert not np.array_equal(first.val.indices, other.val.indices)
    for fold in range(1, NUM_FOLDS):  # `study.best --confirm` validates on these
        val = task.load_splits(sample, dataclasses.replace(config, fold=fold)).val
        assert len(val) and not set(first.val.indices) & set(val.indices)


def test_images_and_targets_are_what_the_protocol_says(task: Task, sample: DataSource) -> None:
    config = small_config(task)
    val = task.load_splits(sample, config).val
    assert val.images.dtype == val.targets.dtype == np.uint8
    assert val.targets.max() < len(task.classes)
    batches = Batches(val, torch.device("cpu"), task.normalization)
    images, targets = next(batches.evaluation(4))
    assert images.dtype == torch.float32 and targets.dtype == torch.int64
    assert abs(float(images.mean())) < 2 and 0.1 < float(images.std()) < 5  # normalised
    network = task.build_model(config)
    logits = network(images)
    assert logits.shape == (4, len(task.classes), *targets.shape[1:])
    loss = task.loss(logits, targets, config)
    assert loss.shape == () and torch.isfinite(loss)


def test_meter_gives_the_metric_and_every_class(task: Task, sample: DataSource) -> None:
    config = small_config(task)
    val = task.load_splits(sample, config).val
    batches = Batches(val, torch.device("cpu"), task.normalization)
    scores, meter, seen = evaluate(
        task, task.build_model(config), batches, val, batch_size=64, precision="auto"
    )
    assert task.metric.removeprefix("val/") in scores
    for name in task.classes:
        assert f"{task.class_metric}/{class_key(name)}" in scores
    assert len(scores) <= 25, "MLflow's page drags with more than 30 keys"
    assert np.array_equal(seen.indices, val.indices)


def test_figures_are_drawn_from_figure_data(task: Task, sample: DataSource, tmp_path: Path) -> None:
    config = small_config(task)
    val = task.load_splits(sample, config).val
    network = task.build_model(config)
    batches = Batches(val, torch.device("cpu"), task.normalization)
    _, meter, seen = evaluate(task, network, batches, val, batch_size=64, precision="auto")
    figure_data = task.figure_data(network, meter, seen)
    assert sum(array.nbytes for array in figure_data.values()) < 20e6
    for name, figure in task.figures(figure_data, "a note").items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_loss_falls_on_sample_data(task: Task, sample: DataSource) -> None:
    config = small_config(task, epochs=2)
    losses = [r.metrics["train/loss"] for r in fit(task, config, sample, limit_batches=12)]
    assert losses[1] < 0.9 * losses[0]


def test_same_seed_gives_the_same_numbers(task: Task, sample: DataSource) -> None:
    config = small_config(task, epochs=1, seed=5)
    first, again = (next(fit(task, config, sample, limit_batches=3)) for _ in range(2))
    assert timeless(first.metrics) == timeless(again.metrics)
    other = next(fit(task, dataclasses.replace(config, seed=6), sample, limit_batches=3))
    assert timeless(other.metrics) != timeless(first.metrics)
