"""Scores measure the network alone: no setting that a search can change is in them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import study.tasks
from study.config import Value
from study.datasets.source import DataSource, ImageSet, Splits
from study.objective import COSTS
from study.task import Task, TrainConfig, base_values, build_config, load_task, task_names
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import FashionConfig
from study.training.batches import Batches
from study.training.evaluation import evaluate
from study.training.loop import fit

EXAMPLE = ROOT / "docs" / "example"
FACADE, FASHION = load_task("facade"), load_task("fashion")


class Fixed(nn.Module):
    """Says the same of an image whatever was searched, trained or in the same batch."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # for the optimizer
        self.register_buffer("slopes", torch.linspace(-3, 3, len(task.classes)))
        self.per_pixel = task.class_metric == "ap"

    def forward(self, images: Tensor) -> Tensor:
        values = images[:, :1] if self.per_pixel else images[:, :1, 8, 8]
        shape = (1, -1, 1, 1) if self.per_pixel else (1, -1)
        return values * self.slopes.view(shape) + self.slopes.view(shape).sin() + 0 * self.weight


@pytest.fixture(params=[*task_names(), "stripes"])
def fixed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Every task, with that network, on some of its images."""
    monkeypatch.setattr(study.tasks, "__path__", [*study.tasks.__path__, str(EXAMPLE)])
    task = copy.copy(load_task(request.param))
    whole = task.load_splits

    def load_splits(source: DataSource, config: TrainConfig) -> Splits:
        splits = whole(source, config)
        parts = ((splits.train, 16), (splits.val, 50))
        return Splits(
            *(dataclasses.replace(part, indices=part.indices[:num]) for part, num in parts)
        )

    monkeypatch.setattr(task, "load_splits", load_splits)
    monkeypatch.setattr(task, "build_model", lambda config: Fixed(task))
    return task


def searchable(config_class: type[TrainConfig]) -> list[dict[str, Value]]:
    """Return settings that differ from the baseline in all that can be searched.

    Together they have every choice, and both ends of every range.
    """
    others: dict[str, list[Any]] = {}
    for field in dataclasses.fields(config_class):
        low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
        default = field.default
        if not field.metadata["searchable"]:
            continue
        if isinstance(default, bool):
            others[field.name] = [not default]
        elif isinstance(default, str):
            others[field.name] = [word for word in choices if word != default]
        else:
            ends = [type(default)(end) for end in (low, high) if end is not None]
            others[field.name] = [end for end in ends if end != default]
    most = max(map(len, others.values()))
    return [{name: v[n % len(v)] for name, v in others.items() if v} for n in range(most)]


def test_no_setting_that_can_be_searched_is_in_a_score(fixed: Task, sample: DataSource) -> None:
    base = {**base_values(fixed, "sample"), "epochs": 1}
    if fixed.name == "facade":
        base["image_size"] = 16

    def metrics(values: dict[str, Value]) -> dict[str, float]:
        if "depth" in values:
            values = {**values, "depth": min(int(values["depth"]), 4)}  # of images of 16 pixels
        config = build_config(fixed.config_class, {**base, **values})
        return next(fit(fixed, config, sample)).metrics

    plain = metrics({"batch_size": 8})
    scores = {name: value for name, value in plain.items() if name.startswith("val/")}
    assert {"val/loss", fixed.metric} <= scores.keys()
    everything = searchable(fixed.config_class)
    for values in everything:
        found = metrics({**values, "batch_size": 8})
        assert {n: v for n, v in found.items() if n.startswith("val/")} == scores, values
        assert found["num_params"] == plain["num_params"]
        assert found["train/loss"] != plain["train/loss"], "what is trained on does change"
    larger = metrics({**everything[0], "batch_size": 16})  # added up in another order
    assert {n: larger[n] for n in scores} == pytest.approx(scores, rel=1e-12)
    assert scores.keys() | {*COSTS, "train/loss", "train/accuracy"} == plain.keys(), (
        "a new metric: can a setting change what it measures?"
    )


@pytest.mark.parametrize(
    ("task", "config"),
    [
        (FASHION, FashionConfig(label_smoothing=0.3)),
        (FACADE, FacadeConfig(image_size=32, loss="weighted", label_smoothing=0.1)),
        (FACADE, FacadeConfig(image_size=32, loss="dice")),
    ],
)
def test_the_loss_is_torch_s_cross_entropy_over_the_whole_set(
    task: Task, config: TrainConfig, sample: DataSource
) -> None:
    images = task.load_full_size(sample, config, "val")  # facade: masks of 128 pixels, logits of 32
    images = dataclasses.replace(images, indices=images.indices[:13])  # a short last batch
    batches = Batches(images, torch.device("cpu"), task.normalization)
    network = Fixed(task)
    scores, *_ = evaluate(task, network, batches, images, batch_size=5, precision="float32")
    inputs, targets = (torch.cat(parts) for parts in zip(*batches.evaluation(13), strict=True))
    with torch.inference_mode():
        logits = network(inputs)
        if targets.ndim == 3:
            logits = nn.functional.interpolate(logits, targets.shape[1:], mode="bilinear")
        assert scores["loss"] == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-6)
        assert scores["loss"] != pytest.approx(task.loss(logits, targets, config).item(), rel=1e-3)


def test_pixels_of_no_class_are_in_no_loss() -> None:
    class Voids(type(FASHION)):  # type: ignore[misc]
        """Its own data may mark what does not count; its meter must know, too."""

        def build_meter(self, device: torch.device) -> Any:
            meter = super().build_meter(device)
            update = meter.update
            meter.update = lambda logits, targets: update(
                logits[targets < 10], targets[targets < 10]
            )
            return meter

    rng = np.random.default_rng(0)
    images = rng.integers(255, size=(6, 1, 28, 28), dtype=np.uint8)
    targets = np.array([0, 255, 3, 9, 255, 1], np.uint8)
    losses = []
    for chosen in (np.arange(6), np.flatnonzero(targets < 10)):
        part = ImageSet(images, targets, chosen)
        batches = Batches(part, torch.device("cpu"), FASHION.normalization)
        scores, *_ = evaluate(
            Voids(), Fixed(FASHION), batches, part, batch_size=4, precision="float32"
        )
        losses.append(scores["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
